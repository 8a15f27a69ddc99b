package ikeload_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/cred"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/engine"
	"github.com/testudo-ipsec/testudo/keymgr/ike/ikev2"
	"github.com/testudo-ipsec/testudo/keymgr/push"
	"github.com/testudo-ipsec/testudo/services/internal/ikeload"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// responder is an engine behind one UDP socket on the loopback, with a worker
// that acknowledges all.
type responder struct {
	*engine.Engine
	addr    netip.AddrPort
	session *engine.Session
	conn    *net.UDPConn
	acks    chan uint64
}

func (r *responder) Apply(b push.Batch) error { r.acks <- b.Nonce; return nil }

func (r *responder) SendIKE(p ike.Path, data []byte) error {
	_, err := r.conn.WriteToUDPAddrPort(data, p.Remote)
	return err
}

func (r *responder) AcquireFailed(uint64, string) error { return nil }
func (r *responder) Close(string)                       {}

type oneKey string

func (k oneKey) PSK(context.Context, string) ([]ipsec.Secret, error) {
	return []ipsec.Secret{ipsec.CopySecret([]byte(k))}, nil
}

const key = "thirty-two octets of a test's key"

var loopback = netip.MustParseAddr("127.0.0.1")

func identity(s string) ipsec.Identity { return ipsec.Identity{Kind: ipsec.IdentityFQDN, Data: s} }

func suite(t testing.TB, p ipsec.Protocol, s string) ipsec.Proposal {
	t.Helper()
	x, err := ipsec.ParseProposal(p, s)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// anyone is a store with one credential, whose authority proves every identity.
type anyone struct{ credential *cred.Credential }

func newAnyone(t testing.TB) anyone {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1)}, &x509.Certificate{}, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	return anyone{&cred.Credential{Chain: [][]byte{der}, Signer: k}}
}

func (a anyone) Credential(context.Context, string) (*cred.Credential, error) {
	return a.credential, nil
}

func (a anyone) Authorities(context.Context, []string) ([][20]byte, error) {
	return [][20]byte{{1}}, nil
}

func (a anyone) Verify(_ context.Context, q cred.ChainQuestion) (crypto.PublicKey, error) {
	if len(q.Chain) != 1 || !bytes.Equal(q.Chain[0], a.credential.Chain[0]) {
		return nil, errors.New("another certificate")
	}
	return a.credential.Signer.Public(), nil
}

// newResponder proves itself by the preshared key, or by the store of certificates.
func newResponder(t testing.TB, stores ...cred.Certificates) *responder {
	t.Helper()
	cfg, auth := engine.Config{Machines: ikev2.Machines{}, Secrets: oneKey(key)}, ipsec.AuthMethod{PSK: "file:psk"}
	if len(stores) > 0 {
		cfg.Certificates, auth = stores[0], ipsec.AuthMethod{Certificate: &ipsec.CertificateAuth{Trust: []string{"file:ca"}, Credential: "file:gw"}}
	}
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback, 0)))
	if err != nil {
		t.Fatal(err)
	}
	e, err := engine.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r := &responder{Engine: e, conn: conn, addr: conn.LocalAddr().(*net.UDPAddr).AddrPort(), acks: make(chan uint64, 1024)}
	e.SetPolicy("gw", &ipsec.NodePolicy{
		Node: "gw", Addresses: []netip.Addr{loopback}, Default: ipsec.ActionPermit,
		Peers: []ipsec.Peer{{Name: "any", Local: []netip.Addr{loopback}, LocalID: identity("gw"), RemoteID: identity("load-0"),
			Auth: []ipsec.AuthMethod{auth}, Proposals: []ipsec.Proposal{suite(t, ipsec.ProtocolIKE, "aes256gcm16-prfsha256-x25519")}}},
		Rules: []ipsec.Rule{{Name: "rule", Weight: 1, Direction: ipsec.Both, Action: ipsec.ActionSecure, Peer: "any",
			Selector: ipsec.Selector{Local: ipsec.AddrSelector(loopback), Remote: ipsec.PrefixSelector(netip.MustParsePrefix("127.0.0.0/8"))},
			Template: &ipsec.Template{Mode: ipsec.ModeTunnel, Proposals: []ipsec.Proposal{suite(t, ipsec.ProtocolESP, "aes128gcm16")}, ReplayWindow: 64}}},
	})
	if r.session, err = e.Attach(push.Hello{Node: "gw", Incarnation: 1, Addresses: []netip.Addr{loopback}}, r); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	reports := make(chan push.Report, 1024)
	wg.Go(func() {
		buf := make([]byte, 65536)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			reports <- push.Datagram{Path: ike.Path{Local: r.addr, Remote: from}, Data: append([]byte(nil), buf[:n]...)}
		}
	})
	stop := make(chan struct{})
	wg.Go(func() {
		for {
			select {
			case d := <-reports:
				r.session.Handle(d)
			case n := <-r.acks:
				r.session.Handle(push.Ack{Nonce: n})
			case <-stop:
				return
			}
		}
	})
	t.Cleanup(func() {
		conn.Close()
		close(stop)
		wg.Wait()
		e.Close()
	})
	return r
}

// waitClean waits until the responder has forgotten all IKE SAs: the answer to a
// delete is on its way a moment before.
func (r *responder) waitClean(t *testing.T) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for limit := time.Now().Add(30 * time.Second); ; <-tick.C {
		s := r.Stats()
		if s.Machines == 0 && s.SADesired == 0 {
			return
		}
		if time.Now().After(limit) {
			t.Fatalf("the responder has %d IKE SAs and %d simplex SAs left", s.Machines, s.SADesired)
		}
	}
}

func options(t testing.TB, to netip.AddrPort) ikeload.Options {
	return ikeload.Options{
		To: to, LocalID: "load-%d", RemoteID: "gw", PSK: ipsec.CopySecret([]byte(key)),
		IKE: suite(t, ipsec.ProtocolIKE, "aes256gcm16-prfsha256-x25519"), ESP: suite(t, ipsec.ProtocolESP, "aes128gcm16"),
		Count: 40, Concurrency: 4, Time: time.Minute, Timeout: 20 * time.Second,
	}
}

func run(t testing.TB, o ikeload.Options) ikeload.Report {
	t.Helper()
	r, err := ikeload.Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Each of them is deleted again, so that a measurement leaves nothing behind.
func TestRunLeavesTheResponderClean(t *testing.T) {
	to := newResponder(t)
	r := run(t, options(t, to.addr))
	if r.Succeeded != 40 || r.Failed != 0 || r.Lost != 0 || r.PerSecond <= 0 || r.P50 <= 0 || r.P99 < r.P50 || r.Max < r.P99 {
		t.Errorf("report %+v", r)
	}
	if up := to.Stats().Established; up != 40 {
		t.Errorf("the responder has seen %d IKE SAs; want 40", up)
	}
	to.waitClean(t)
}

// Held IKE SAs are all there at once, and are deleted at the end.
func TestHold(t *testing.T) {
	to := newResponder(t)
	o := options(t, to.addr)
	o.Hold = time.Millisecond
	held := uint64(0)
	o.Settled = func(r ikeload.Report) {
		if held = to.Stats().Machines; r.Succeeded != 40 {
			t.Errorf("report before the hold %+v", r)
		}
	}
	run(t, o)
	if held != 40 {
		t.Errorf("%d were held; want 40", held)
	}
	to.waitClean(t)
}

// By certificates in both directions, and refused when the responder trusts others.
func TestCertificates(t *testing.T) {
	store := newAnyone(t)
	to := newResponder(t, store)
	o := options(t, to.addr)
	o.PSK, o.Certificates, o.Credential, o.Trust = ipsec.Secret{}, store, "file:load-%d", "file:ca"
	if r := run(t, o); r.Succeeded != 40 || r.Failed != 0 {
		t.Errorf("report %+v", r)
	}
	o.Certificates = newAnyone(t)
	if r := run(t, o); r.Succeeded != 0 || len(r.Failures) != 1 || r.Failures[0].Why != "AUTHENTICATION_FAILED" {
		t.Errorf("report of another certificate %+v", r)
	}
}

func TestFailuresSayWhy(t *testing.T) {
	to := newResponder(t)
	silent, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback, 0)))
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for _, tt := range []struct {
		name   string
		change func(*ikeload.Options)
		why    string
	}{
		{"another key", func(o *ikeload.Options) { o.PSK = ipsec.CopySecret([]byte("another key that the gateway has not")) }, "AUTHENTICATION_FAILED"},
		{"a suite that it does not have", func(o *ikeload.Options) { o.IKE = suite(t, ipsec.ProtocolIKE, "aes256gcm16-prfsha384-ecp256") }, "NO_PROPOSAL_CHOSEN"},
		{"an ESP suite that it does not have", func(o *ikeload.Options) { o.ESP = suite(t, ipsec.ProtocolESP, "chacha20poly1305") }, "NO_PROPOSAL_CHOSEN"},
		{"nobody answers", func(o *ikeload.Options) {
			o.To = silent.LocalAddr().(*net.UDPAddr).AddrPort()
			o.Timeout = 50 * time.Millisecond
		}, "TIMEOUT"},
	} {
		o := options(t, to.addr)
		o.Count, o.Concurrency = 3, 3
		tt.change(&o)
		r := run(t, o)
		if r.Succeeded != 0 || r.Failed != 3 || len(r.Failures) != 1 || r.Failures[0].Why != tt.why || r.Failures[0].Count != 3 || r.Failures[0].Detail == "" {
			t.Errorf("%s: %+v; want three times %s", tt.name, r, tt.why)
		}
	}
}

// Each source address is a peer of its own.
func TestSourceAddressesHaveIdentities(t *testing.T) {
	to := newResponder(t)
	o := options(t, to.addr)
	o.From = []netip.Addr{netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.3")}
	// The responder knows load-0 only: every second one is refused.
	r := run(t, o)
	if r.Succeeded != 20 || r.Failed != 20 {
		t.Errorf("report %+v; want 20 of 40", r)
	}
}

// At a rate, set-ups begin by the clock, however soon the ones before are done.
func TestRate(t *testing.T) {
	to := newResponder(t)
	o := options(t, to.addr)
	o.Count, o.Rate = 20, 100
	if r := run(t, o); r.Succeeded != 20 || r.Seconds < 0.19 {
		t.Errorf("report %+v; want 20, the last of which begins after 190 ms", r)
	}
}

func TestTimeEndsTheRun(t *testing.T) {
	to := newResponder(t)
	o := options(t, to.addr)
	o.Count, o.Time = ikeload.MaxCount, 50*time.Millisecond
	if r := run(t, o); r.Count >= ikeload.MaxCount || r.Succeeded == 0 {
		t.Errorf("report %+v; want some and not all", r)
	}
	ctx, cancel := context.WithCancel(t.Context())
	o.Time, o.Hold = time.Minute, time.Hour
	o.Count = 2
	o.Settled = func(ikeload.Report) { cancel() }
	if _, err := ikeload.Run(ctx, o); err != nil {
		t.Error(err)
	}
	to.waitClean(t)
}

func TestCheck(t *testing.T) {
	for want, change := range map[string]func(*ikeload.Options){
		"responder":    func(o *ikeload.Options) { o.To = netip.AddrPort{} },
		"one host":     func(o *ikeload.Options) { o.To = netip.MustParseAddrPort("224.0.0.1:500") },
		"count":        func(o *ikeload.Options) { o.Count = ikeload.MaxCount + 1 },
		"concurrency":  func(o *ikeload.Options) { o.Concurrency = 0 },
		"rate":         func(o *ikeload.Options) { o.Rate = -1 },
		"time":         func(o *ikeload.Options) { o.Time = ikeload.MaxTime + 1 },
		"timeout":      func(o *ikeload.Options) { o.Timeout = 0 },
		"hold":         func(o *ikeload.Options) { o.Hold = -1 },
		"neither":      func(o *ikeload.Options) { o.PSK = ipsec.Secret{} },
		"a credential": func(o *ikeload.Options) { o.Certificates = anyone{} },
		"two families": func(o *ikeload.Options) { o.From = []netip.Addr{netip.MustParseAddr("::1")} },
		"identity":     func(o *ikeload.Options) { o.RemoteID = "" },
	} {
		o := options(t, netip.AddrPortFrom(loopback, 1))
		change(&o)
		if _, err := ikeload.Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v; want one about %q", err, want)
		}
	}
}

func TestSources(t *testing.T) {
	for words, want := range map[string]int{
		"127.0.0.1": 1, "127.0.0.0/30": 4, "127.0.0.9-127.0.1.8": 256, "::1": 1, "127.0.0.1,127.0.0.4/31": 3,
		"": -1, "127.0.0.0/8": -1, "127.0.0.2-127.0.0.1": -1, "127.0.0.1-::1": -1, "host.example": -1,
	} {
		got, err := ikeload.Sources(strings.Split(words, ","))
		if want < 0 && err == nil || want >= 0 && (err != nil || len(got) != want) {
			t.Errorf("%q gives %d addresses and error %v; want %d", words, len(got), err, want)
		}
	}
}

// BenchmarkSetUp is both ends of a set-up in one process, over the loopback.
func BenchmarkSetUp(b *testing.B) {
	to := newResponder(b)
	o := options(b, to.addr)
	o.Count, o.Concurrency = b.N, 8
	if r := run(b, o); r.Succeeded != b.N {
		b.Fatalf("%+v", r)
	}
}
