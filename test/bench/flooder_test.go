package bench

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/ikev2"
	"github.com/testudo-ipsec/testudo/keymgr/ike/suite"
)

// flooderVar makes the test binary a flooder, as its value says.
const flooderVar = "TESTUDO_BENCH_FLOODER"

// flooder is hostile peers, one at each address, that set up IKE SAs one after the
// other as fast as they are answered, and delete them. It computes as little as
// it can: in MODP groups its private key is 1, so that its public value is the
// generator and the shared secret is the responder's public value; and it does
// not check what the responder proves itself by.
type flooder struct {
	To         netip.Addr
	Peers      []hostile
	RemoteID   string
	IKE        string
	PSK        string // or
	Chain, Key string // in PEM, for all peers

	chain  [][]byte
	signer crypto.Signer
	done   atomic.Uint64
	failed atomic.Uint64
}

type hostile struct {
	Addr netip.Addr
	ID   string
}

// floodFor does what a flooder's variable says until it is interrupted.
func floodFor(text string) (err error) {
	var f flooder
	if err := json.Unmarshal([]byte(text), &f); err != nil {
		return err
	}
	if f.Key != "" {
		block, _ := pem.Decode([]byte(f.Key))
		key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return err
		}
		f.signer = key.(crypto.Signer)
		for rest := []byte(f.Chain); ; {
			if block, rest = pem.Decode(rest); block == nil {
				break
			}
			f.chain = append(f.chain, block.Bytes)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	var g sync.WaitGroup
	for _, p := range f.Peers {
		pol, err := f.policy(p)
		if err != nil {
			return err
		}
		c, err := net.DialUDP("udp", &net.UDPAddr{IP: p.Addr.AsSlice()}, &net.UDPAddr{IP: f.To.AsSlice(), Port: 500})
		if err != nil {
			return err
		}
		defer c.Close()
		g.Go(func() {
			for ctx.Err() == nil {
				f.setUp(c, pol)
			}
		})
	}
	fmt.Println("flooding")
	began := time.Now()
	<-ctx.Done()
	stopped := time.Since(began).Seconds()
	done, failed := f.done.Load(), f.failed.Load()
	fmt.Printf("flooded: %.1f %d\n", float64(done)/stopped, failed)
	return nil // what is half done is left to the responder's time limit
}

func (f *flooder) policy(p hostile) (*ipsec.NodePolicy, error) {
	proposal, err := ipsec.ParseProposal(ipsec.ProtocolIKE, f.IKE)
	if err != nil {
		return nil, err
	}
	esp, err := ipsec.ParseProposal(ipsec.ProtocolESP, "aes128gcm16")
	if err != nil {
		return nil, err
	}
	auth := ipsec.AuthMethod{PSK: "psk"}
	if f.signer != nil {
		auth = ipsec.AuthMethod{Certificate: &ipsec.CertificateAuth{Credential: "x", Trust: []string{"x"}}}
	}
	fqdn := func(s string) ipsec.Identity { return ipsec.Identity{Kind: ipsec.IdentityFQDN, Data: s} }
	return &ipsec.NodePolicy{
		Node: p.ID, Addresses: []netip.Addr{p.Addr}, Default: ipsec.ActionPermit,
		Peers: []ipsec.Peer{{Name: "gw", Local: []netip.Addr{p.Addr}, Remote: []netip.Addr{f.To}, LocalID: fqdn(p.ID), RemoteID: fqdn(f.RemoteID),
			Auth: []ipsec.AuthMethod{auth}, Proposals: []ipsec.Proposal{proposal}}},
		Rules: []ipsec.Rule{{Name: "flood", Weight: 1, Direction: ipsec.Both, Action: ipsec.ActionSecure, Peer: "gw",
			Selector: ipsec.Selector{Local: ipsec.AddrSelector(p.Addr), Remote: ipsec.AddrSelector(f.To)},
			Template: &ipsec.Template{Mode: ipsec.ModeTunnel, Proposals: []ipsec.Proposal{esp}, ReplayWindow: 64}}},
	}, nil
}

// setUp makes one IKE SA and deletes it.
func (f *flooder) setUp(c *net.UDPConn, pol *ipsec.NodePolicy) {
	var ids uint64
	env := ike.Env{Rand: rand.Reader, AllocSPI: func() ipsec.SPI { return ipsec.FirstSPI + ipsec.SPI(time.Now().UnixMicro()&0xffffff) },
		NextID: func() uint64 { ids++; return ids }}
	path := ike.Path{Node: pol.Node, Local: c.LocalAddr().(*net.UDPAddr).AddrPort(), Remote: c.RemoteAddr().(*net.UDPAddr).AddrPort()}
	m := ikev2.NewInitiator(env, pol, pol.Peers[0], path)
	var spi uint64
	gone := false
	handle := func(ev ike.Event) {
		todo := []ike.Event{ev}
		for len(todo) > 0 && !gone {
			ev, todo = todo[0], todo[1:]
			for _, e := range m.Handle(time.Now(), ev) {
				switch e := e.(type) {
				case ike.Send:
					spi = binary.BigEndian.Uint64(e.Data)
					_, _ = c.Write(e.Data) // one that is lost is sent again
				case ike.NeedPSK:
					todo = append(todo, ike.PSKs{ID: e.ID, Secrets: []ipsec.Secret{ipsec.CopySecret([]byte(f.PSK))}})
				case ike.NeedKE:
					todo = append(todo, cheapKE(e))
				case ike.NeedAuthorities:
					todo = append(todo, ike.Authorities{ID: e.ID})
				case ike.NeedSignature:
					todo = append(todo, ikev2.PerformSignature(rand.Reader, e, f.signer, f.chain))
				case ike.NeedVerification:
					todo = append(todo, ike.Verified{ID: e.ID})
				case ike.Install:
					todo = append(todo, ike.Installed{ID: e.ID})
				case ike.ChildUp:
					f.done.Add(1)
					todo = append(todo, ike.Terminate{Why: "again"})
				case ike.Failed:
					if f.failed.Add(1) == 1 {
						fmt.Println("the first that failed:", e.Failure.Why, e.Failure.Detail)
					}
					gone = true
				case ike.Done:
					gone = true
				}
			}
		}
	}
	handle(ike.CreateChild{Rule: "flood"})
	buf := make([]byte, 65536)
	for limit := time.Now().Add(10 * time.Second); !gone && time.Now().Before(limit); {
		until := m.Deadline()
		if until.IsZero() || until.After(limit) {
			until = limit
		}
		_ = c.SetReadDeadline(until)
		switch n, err := c.Read(buf); {
		case errors.Is(err, os.ErrDeadlineExceeded):
			handle(ike.Timer{})
		case err == nil && n >= 8 && binary.BigEndian.Uint64(buf) == spi: // not what is left of the one before
			handle(ike.Datagram{Path: path, Data: append([]byte(nil), buf[:n]...)})
		}
	}
}

// cheapKE is both steps of a MODP exchange with 1 as the private key.
func cheapKE(need ike.NeedKE) ike.KeyExchanged {
	if need.Peer != nil {
		return ike.KeyExchanged{ID: need.ID, Shared: ipsec.CopySecret(need.Peer)}
	}
	k, _ := suite.LookupKE(need.Method)
	public := make([]byte, k.InitiatorLen)
	public[len(public)-1] = 2
	return ike.KeyExchanged{ID: need.ID, Public: public, State: ipsec.CopySecret([]byte{1})}
}
