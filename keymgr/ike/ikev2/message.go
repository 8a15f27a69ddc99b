package ikev2

import (
	"fmt"

	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// Room for what most messages have, so that it is made once.
const (
	usualPayloads = 16
	usualMessage  = 512 // octets
)

// row says which payloads a message must and may have, and who handles it.
// Payloads that it does not name are not shown to the handler. A response that
// carries an error notify need not have the required ones.
type row struct {
	exchange wire.ExchangeType
	response bool
	required []wire.PayloadType
	optional []wire.PayloadType
	handle   func(*Machine, *message)
}

// protectedRows are the rows of all exchanges but IKE_SA_INIT.
func protectedRows() [][]row {
	return [][]row{intermediateRows, ikeAuthRows, createChildRows, followUpRows, informationalRows}
}

func findRow(h wire.Header) (row, bool) {
	for _, rows := range protectedRows() {
		for _, r := range rows {
			if r.exchange == h.Exchange && r.response == h.Response() {
				return r, true
			}
		}
	}
	return row{}, false
}

// message is a message that has the shape its row asks for.
type message struct {
	wire.Header
	path     ike.Path
	content  content // what was inside of SK
	raw      []byte  // IKE_SA_INIT: the datagram, which AUTH covers
	sa       *wire.SA
	ke       *wire.KE
	nonce    *wire.Nonce
	idi      *wire.ID
	idr      *wire.ID
	auth     *wire.Auth
	certs    []*wire.Cert
	certReqs []*wire.CertReq
	tsi      *wire.TS
	tsr      *wire.TS
	notifies []*wire.Notify
	deletes  []*wire.Delete
	usual    [8]*wire.Notify // room for notifies
}

// index sorts the payloads of a message by what its row asks for.
func (r row) index(h wire.Header, ps []wire.Payload) (*message, *wire.Error) {
	msg := &message{Header: h}
	msg.notifies = msg.usual[:0]
	var seen [256]bool // by type
	for _, p := range ps {
		t := p.Type()
		if !contains(r.required, t) && !contains(r.optional, t) {
			continue
		}
		once := true
		switch p := p.(type) {
		case *wire.SA:
			msg.sa = p
		case *wire.KE:
			msg.ke = p
		case *wire.Nonce:
			msg.nonce = p
		case *wire.ID:
			if t == wire.TypeIDi {
				msg.idi = p
			} else {
				msg.idr = p
			}
		case *wire.Auth:
			msg.auth = p
		case *wire.Cert:
			msg.certs, once = append(msg.certs, p), false
		case *wire.CertReq:
			msg.certReqs, once = append(msg.certReqs, p), false
		case *wire.TS:
			if t == wire.TypeTSi {
				msg.tsi = p
			} else {
				msg.tsr = p
			}
		case *wire.Notify:
			msg.notifies, once = append(msg.notifies, p), false
		case *wire.Delete:
			msg.deletes, once = append(msg.deletes, p), false
		}
		if once && seen[t] {
			return nil, &wire.Error{Notify: wire.InvalidSyntax, Detail: fmt.Sprintf("%s: more than one %s payload", h, t)}
		}
		seen[t] = true
	}
	if r.response && (msg.refusal() != nil || msg.notify(wire.Cookie) != nil) {
		return msg, nil // COOKIE is a status type, and still refuses (RFC 7296 §2.6)
	}
	for _, t := range r.required {
		if !seen[t] {
			return nil, &wire.Error{Notify: wire.InvalidSyntax, Detail: fmt.Sprintf("%s: no %s payload, got %v", h, t, types(ps))}
		}
	}
	return msg, nil
}

func types(ps []wire.Payload) (ts []wire.PayloadType) {
	for _, p := range ps {
		ts = append(ts, p.Type())
	}
	return ts
}

func contains(ts []wire.PayloadType, t wire.PayloadType) bool {
	for _, x := range ts {
		if x == t {
			return true
		}
	}
	return false
}

// notify finds the first notify of a type.
func (msg *message) notify(t wire.NotifyType) *wire.Notify {
	for _, n := range msg.notifies {
		if n.Message == t {
			return n
		}
	}
	return nil
}

// refusal is the first error notify. One of an unknown type counts too
// (RFC 7296 §3.10.1: the request "has failed entirely").
func (msg *message) refusal() *wire.Notify {
	for _, n := range msg.notifies {
		if n.Message.IsError() {
			return n
		}
	}
	return nil
}
