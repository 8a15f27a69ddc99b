package ikev2_test

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/iketest"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// FuzzMachine damages one message of a run in which both ends connect, rekey and
// close, with additional key exchanges in every other sixteen runs and certificates
// in every other thirty-two: on the wire, or inside of SK and sealed again with the
// live keys. No input makes a machine panic or leaves an SA without an owner; damage
// on the wire, from IKE_AUTH on, changes nothing at all.
func FuzzMachine(f *testing.F) {
	for which := range uint8(64) {
		f.Add(which, true, uint16(which)*7, []byte{0xff})
		f.Add(which, false, uint16(which)*5, []byte{0, 0, 0, 1})
	}
	f.Fuzz(func(t *testing.T, which uint8, inside bool, at uint16, with []byte) {
		change := func(w, d *iketest.Side) {
			if which/16%2 == 1 {
				hybrid(w, d)
			}
		}
		n, web, db := iketest.Pair(t, uint64(which), change)
		if which/32%2 == 1 {
			n, web, db = certified(t, uint64(which), "p256", "ed25519", change)
		}
		count, damagedInit := uint8(0), false
		n.Hook = func(p iketest.Packet) []iketest.Packet {
			if count++; count != which%16+1 {
				return []iketest.Packet{p}
			}
			bad := p
			if inside {
				for _, m := range p.From.Machines {
					if b := m.(resealer).ResealForTest(p.Data, func(first wire.PayloadType, inner []byte) (wire.PayloadType, []byte) {
						if at == 0 && len(with) > 0 {
							return wire.PayloadType(with[0]), inner
						}
						return first, overwrite(inner, at, with)
					}); b != nil {
						bad.Data = b
						return []iketest.Packet{bad}
					}
				}
				return []iketest.Packet{p}
			}
			bad.Data = overwrite(p.Data, at, with)
			h, _ := wire.ParseHeader(p.Data)
			damagedInit = h.Exchange == wire.IKESAInit
			bad.At = p.At.Add(-time.Millisecond)
			return []iketest.Packet{bad, p}
		}
		web.Connect("rule", nil)
		n.Run(3 * time.Second)
		if m := web.Machine("established"); m != nil && len(m.Info().Children) > 0 {
			web.Tell(m, ike.RekeyChild{Child: m.Info().Children[0].ID})
		}
		n.Run(3 * time.Second)
		if m := db.Machine("established"); m != nil {
			db.Tell(m, ike.RekeyIKE{})
		}
		n.Run(3 * time.Minute)
		for _, h := range []*iketest.Host{web, db} {
			owned := map[string]bool{}
			for _, c := range h.Children() {
				owned[fmt.Sprint(c.In)], owned[fmt.Sprint(c.Out)] = true, true
			}
			for _, sa := range h.SAs {
				if !owned[fmt.Sprint(sa.ID)] {
					t.Fatalf("%s: SA %s has no owner\n%s", h.Name, sa.SPI, n.LadderText(0))
				}
			}
		}
		if !inside && !damagedInit {
			mustBeUp(t, n, web, db)
			if len(web.Failures)+len(db.Failures) != 0 {
				t.Fatalf("%+v %+v", web.Failures, db.Failures)
			}
		}
	})
}

type resealer interface {
	ResealForTest([]byte, func(wire.PayloadType, []byte) (wire.PayloadType, []byte)) []byte
}

// overwrite puts octets over others; past the end they are appended.
func overwrite(b []byte, at uint16, with []byte) []byte {
	out := bytes.Clone(b)
	i := int(at) % (len(out) + 1)
	out = append(out[:i], append(bytes.Clone(with), out[min(len(out), i+len(with)):]...)...)
	return out
}

// FuzzFirstMessage gives any octets to a fresh responder and a waiting initiator.
func FuzzFirstMessage(f *testing.F) {
	n, web, _ := iketest.Pair(f, 1, nil)
	n.Hook = func(p iketest.Packet) []iketest.Packet { f.Add(p.Data); return []iketest.Packet{p} }
	web.Connect("rule", nil)
	n.Run(time.Second)
	f.Fuzz(func(t *testing.T, b []byte) {
		n, web, db := iketest.Pair(t, 1, nil)
		web.Connect("rule", nil)
		web.Do(ike.Datagram{Path: web.Machine().Info().Path, Data: b})
		p := web.Machine().Info().Path
		n.Inject(iketest.Packet{From: web, To: db, Src: p.Local, Dst: p.Remote, Data: b})
		n.Run(time.Second)
	})
}
