package convert_test

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/testudo-ipsec/testudo/ipsec"
	ipsecv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/ipsec/v1"
	policyv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/policy/v1"
	"github.com/testudo-ipsec/testudo/services/internal/convert"
)

// sent is a message as it arrives at another process.
func sent[M proto.Message](t interface{ Fatal(...any) }, m M) M {
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	out := m.ProtoReflect().New().Interface()
	if err := proto.Unmarshal(b, out); err != nil {
		t.Fatal(err)
	}
	return out.(M)
}

// plain replaces secrets, which nothing compares, by their octets.
type plainSA struct {
	ipsec.SA
	encr, integ string
}

func plain(sa *ipsec.SA) plainSA {
	p := plainSA{*sa, string(sa.EncrKey.Reveal()), string(sa.IntegKey.Reveal())}
	p.EncrKey, p.IntegKey = ipsec.Secret{}, ipsec.Secret{}
	return p
}

var (
	addr4     = rapid.Custom(func(t *rapid.T) netip.Addr { return netip.AddrFrom4([4]byte(octets(t, 4))) })
	addr6     = rapid.Custom(func(t *rapid.T) netip.Addr { return netip.AddrFrom16([16]byte(octets(t, 16))) })
	addr      = rapid.OneOf(addr4, addr6)
	word      = rapid.StringMatching(`[a-z/#-]{1,20}`)
	anyTime   = rapid.Map(rapid.Int64Min(0), func(n int64) time.Duration { return time.Duration(n) })
	transform = rapid.Custom(func(t *rapid.T) ipsec.Transform {
		return ipsec.Transform{Type: ipsec.TransformType(rapid.Uint8Min(1).Draw(t, "type")), ID: rapid.Uint16().Draw(t, "id"), KeyBits: rapid.Uint16().Draw(t, "bits")}
	})
	suites = map[ipsec.Protocol][]string{
		ipsec.ProtocolIKE: {"aes256gcm16-prfsha256-x25519", "aes128-sha256-modp2048-ecp256", "aes256gcm16-aes128gcm16-prfsha384-ecp384"},
		ipsec.ProtocolESP: {"aes128gcm16", "aes256-sha256-esn", "aes128gcm16-aes256gcm16-x25519-noesn", "null-sha256"},
		ipsec.ProtocolAH:  {"sha256"},
	}
)

func octets(t *rapid.T, n int) []byte { return rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, "octets") }

func proposals(t *rapid.T, p ipsec.Protocol) []ipsec.Proposal {
	var out []ipsec.Proposal
	for _, s := range rapid.SliceOfN(rapid.SampledFrom(suites[p]), 0, 3).Draw(t, "suites") {
		x, err := ipsec.ParseProposal(p, s)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, x)
	}
	return out
}

var side = rapid.Custom(func(t *rapid.T) ipsec.TrafficSelector {
	family := rapid.SampledFrom([]*rapid.Generator[netip.Addr]{addr4, addr6}).Draw(t, "family")
	s := ipsec.TrafficSelector{Protocol: rapid.Uint8().Draw(t, "protocol"), First: family.Draw(t, "a"), Last: family.Draw(t, "b")}
	if s.Last.Less(s.First) {
		s.First, s.Last = s.Last, s.First
	}
	s.PortFirst, s.PortLast = rapid.Uint16().Draw(t, "x"), rapid.Uint16().Draw(t, "y")
	if s.PortLast < s.PortFirst {
		s.PortFirst, s.PortLast = s.PortLast, s.PortFirst
	}
	if rapid.Bool().Draw(t, "opaque") {
		s.PortFirst, s.PortLast = 65535, 0
	}
	return s
})

var selector = rapid.Custom(func(t *rapid.T) ipsec.Selector {
	return ipsec.Selector{Local: side.Draw(t, "local"), Remote: side.Draw(t, "remote")}
})

var lifetime = rapid.Custom(func(t *rapid.T) ipsec.Lifetime {
	n := rapid.Uint64()
	return ipsec.Lifetime{
		Bytes: ipsec.Limit{Soft: n.Draw(t, "bs"), Hard: n.Draw(t, "bh")}, Packets: ipsec.Limit{Soft: n.Draw(t, "ps"), Hard: n.Draw(t, "ph")},
		TimeSoft: anyTime.Draw(t, "ts"), TimeHard: anyTime.Draw(t, "th"),
		UseSoft: anyTime.Draw(t, "us"), UseHard: anyTime.Draw(t, "uh"),
	}
})

var someSA = rapid.Custom(func(t *rapid.T) *ipsec.SA {
	maybe := func(name string) ipsec.Transform {
		if rapid.Bool().Draw(t, "with "+name) {
			return transform.Draw(t, name)
		}
		return ipsec.Transform{}
	}
	n64 := rapid.Uint64()
	sa := &ipsec.SA{
		ID: ipsec.SAID(n64.Draw(t, "id")), Direction: rapid.SampledFrom([]ipsec.Direction{ipsec.Inbound, ipsec.Outbound}).Draw(t, "direction"),
		Protocol: ipsec.Protocol(rapid.Uint8().Draw(t, "protocol")), SPI: ipsec.SPI(rapid.Uint32Min(uint32(ipsec.FirstSPI)).Draw(t, "spi")),
		Mode:  rapid.SampledFrom([]ipsec.Mode{ipsec.ModeTunnel, ipsec.ModeTransport}).Draw(t, "mode"),
		Local: addr.Draw(t, "local"), Remote: addr.Draw(t, "remote"),
		Suite: ipsec.Suite{
			Protocol: ipsec.Protocol(rapid.Uint8().Draw(t, "suite")), Encr: maybe("encr"), Integ: maybe("integ"), PRF: maybe("prf"), KE: maybe("ke"),
			ESN: rapid.Bool().Draw(t, "esn"),
		},
		EncrKey:      ipsec.NewSecret(rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "encr key")),
		IntegKey:     ipsec.NewSecret(rapid.SliceOfN(rapid.Byte(), 0, 64).Draw(t, "integ key")),
		ReplayWindow: rapid.Uint32().Draw(t, "window"), ReplayFloor: n64.Draw(t, "floor"),
		Lease: ipsec.Lease{First: n64.Draw(t, "first"), Last: n64.Draw(t, "last")}, Lifetime: lifetime.Draw(t, "lifetime"),
		Rule: word.Draw(t, "rule"), Peer: word.Draw(t, "peer"), Child: n64.Draw(t, "child"),
		Resource: rapid.Uint32().Draw(t, "resource"), PadTo: rapid.Uint16().Draw(t, "pad"),
	}
	if rapid.Bool().Draw(t, "encap") {
		sa.Encap = &ipsec.Encap{LocalPort: rapid.Uint16().Draw(t, "lp"), RemotePort: rapid.Uint16().Draw(t, "rp"), TCP: rapid.Bool().Draw(t, "tcp")}
	}
	for range rapid.IntRange(0, 3).Draw(t, "selectors") {
		sa.Selectors = append(sa.Selectors, selector.Draw(t, "selector"))
	}
	return sa
})

var someRule = rapid.Custom(func(t *rapid.T) *ipsec.Rule {
	r := &ipsec.Rule{
		Name: word.Draw(t, "name"), Policy: word.Draw(t, "policy"), Weight: rapid.Uint64().Draw(t, "weight"), Selector: selector.Draw(t, "selector"),
		Direction: rapid.SampledFrom([]ipsec.Direction{ipsec.Inbound, ipsec.Outbound, ipsec.Both}).Draw(t, "direction"),
		Action:    rapid.SampledFrom([]ipsec.Action{ipsec.ActionPermit, ipsec.ActionBlock, ipsec.ActionSecure}).Draw(t, "action"),
	}
	if r.Action != ipsec.ActionSecure {
		return r
	}
	r.Peer = word.Draw(t, "peer")
	r.Template = &ipsec.Template{
		Mode:      rapid.SampledFrom([]ipsec.Mode{ipsec.ModeTunnel, ipsec.ModeTransport}).Draw(t, "mode"),
		Proposals: proposals(t, rapid.SampledFrom([]ipsec.Protocol{ipsec.ProtocolESP, ipsec.ProtocolAH}).Draw(t, "protocol")),
		PFS:       rapid.Uint16().Draw(t, "pfs"), Lifetime: lifetime.Draw(t, "lifetime"), ReplayWindow: rapid.Uint32().Draw(t, "window"),
		ForceEncap: rapid.Bool().Draw(t, "encap"), AcceptClear: rapid.Bool().Draw(t, "accept"), FallbackClear: rapid.Bool().Draw(t, "fallback"),
		Outer:     ipsec.OuterHeader{DF: ipsec.DF(rapid.IntRange(0, 3).Draw(t, "df")), CopyLabel: rapid.Bool().Draw(t, "label")},
		Resources: rapid.Uint32().Draw(t, "resources"), PadTo: rapid.Uint16().Draw(t, "pad"),
	}
	return r
})

var identity = rapid.Custom(func(t *rapid.T) ipsec.Identity {
	if rapid.Bool().Draw(t, "none") {
		return ipsec.Identity{}
	}
	return ipsec.Identity{Kind: ipsec.IdentityKind(rapid.Uint8Min(1).Draw(t, "kind")), Data: string(rapid.SliceOf(rapid.Byte()).Draw(t, "data"))}
})

var someMethod = rapid.Custom(func(t *rapid.T) ipsec.AuthMethod {
	a := ipsec.AuthMethod{Side: ipsec.AuthSide(rapid.IntRange(0, 2).Draw(t, "side"))}
	switch rapid.IntRange(0, 2).Draw(t, "kind") {
	case 0:
		a.PSK = word.Draw(t, "psk")
	case 1:
		a.Null = true
	default:
		a.Certificate = &ipsec.CertificateAuth{
			Trust: []string{word.Draw(t, "trust")}, Credential: word.Draw(t, "credential"), PeerIdentity: "*.example",
			Revocation: ipsec.Revocation(rapid.IntRange(0, 2).Draw(t, "revocation")), RevocationURLs: []string{word.Draw(t, "url")}, AllowLegacy: rapid.Bool().Draw(t, "legacy"),
		}
	}
	return a
})

var somePeer = rapid.Custom(func(t *rapid.T) *ipsec.Peer {
	p := &ipsec.Peer{
		Name: word.Draw(t, "name"), LocalID: identity.Draw(t, "local id"), RemoteID: identity.Draw(t, "remote id"), Proposals: proposals(t, ipsec.ProtocolIKE),
		Lifetime: anyTime.Draw(t, "lifetime"), DPD: anyTime.Draw(t, "dpd"), ForceEncap: rapid.Bool().Draw(t, "encap"), Mobike: rapid.Bool().Draw(t, "mobike"), TCP: ipsec.TCPUse(rapid.IntRange(0, 2).Draw(t, "tcp")),
	}
	for range rapid.IntRange(0, 3).Draw(t, "n") {
		p.Local = append(p.Local, addr.Draw(t, "local"))
		p.Remote = append(p.Remote, addr.Draw(t, "remote"))
		p.Auth = append(p.Auth, someMethod.Draw(t, "method"))
	}
	return p
})

func TestWhatIsSentArrives(t *testing.T) {
	t.Run("SA", rapid.MakeCheck(func(t *rapid.T) {
		sa := someSA.Draw(t, "sa")
		m := sent(t, convert.ToSA(sa))
		got, err := convert.FromSA(m)
		if err != nil {
			t.Fatal(err)
		}
		if g, w := plain(got), plain(sa); !reflect.DeepEqual(g, w) {
			t.Fatalf("got  %+v\nwant %+v", g, w)
		}
		if m.EncrKey != nil || m.IntegKey != nil {
			t.Fatal("the message still holds the keys")
		}
	}))
	t.Run("Rule", rapid.MakeCheck(func(t *rapid.T) {
		r := someRule.Draw(t, "rule")
		if got, err := convert.FromRule(sent(t, convert.ToRule(r))); err != nil || !reflect.DeepEqual(got, r) {
			t.Fatalf("got %+v, %v\nwant %+v", got, err, r)
		}
	}))
	t.Run("Peer", rapid.MakeCheck(func(t *rapid.T) {
		p := somePeer.Draw(t, "peer")
		if got, err := convert.FromPeer(sent(t, convert.ToPeer(p))); err != nil || !reflect.DeepEqual(got, p) {
			t.Fatalf("got %+v, %v\nwant %+v", got, err, p)
		}
	}))
	t.Run("Selector", rapid.MakeCheck(func(t *rapid.T) {
		s := selector.Draw(t, "selector")
		if got, err := convert.FromSelector(sent(t, convert.ToSelector(s))); err != nil || got != s {
			t.Fatalf("got %+v, %v, want %+v", got, err, s)
		}
	}))
	t.Run("Flow", rapid.MakeCheck(func(t *rapid.T) {
		f := ipsec.Flow{
			Local: addr.Draw(t, "l"), Remote: addr.Draw(t, "r"), Protocol: rapid.Uint8().Draw(t, "p"),
			LocalPort: rapid.Uint16().Draw(t, "lp"), RemotePort: rapid.Uint16().Draw(t, "rp"),
		}
		if got, err := convert.FromFlow(sent(t, convert.ToFlow(f))); err != nil || got != f {
			t.Fatalf("got %+v, %v, want %+v", got, err, f)
		}
	}))
	t.Run("Version", rapid.MakeCheck(func(t *rapid.T) {
		v := ipsec.Version{Cluster: word.Draw(t, "c"), Epoch: rapid.Uint64().Draw(t, "e"), Revision: rapid.Uint64().Draw(t, "r")}
		if got := convert.FromVersion(sent(t, convert.ToVersion(v))); got != v {
			t.Fatalf("got %v, want %v", got, v)
		}
	}))
	t.Run("SACounters", rapid.MakeCheck(func(t *rapid.T) {
		n := rapid.Uint64()
		c := ipsec.SACounters{ID: ipsec.SAID(n.Draw(t, "id")), Bytes: n.Draw(t, "b"), Packets: n.Draw(t, "p"), Top: n.Draw(t, "t"), Errors: n.Draw(t, "e")}
		if rapid.Bool().Draw(t, "used") {
			c.Used = time.Unix(rapid.Int64Range(0, 1<<34).Draw(t, "s"), rapid.Int64Range(0, 1e9-1).Draw(t, "ns")).UTC()
		}
		if got := convert.FromCounters(sent(t, convert.ToCounters(c))); got != c {
			t.Fatalf("got %+v, want %+v", got, c)
		}
	}))
}

// zeros lists the fields of a value that hold the zero value, by path.
func zeros(v reflect.Value, path string) []string {
	switch v.Interface().(type) {
	case netip.Addr, time.Time, time.Duration, ipsec.Secret:
		if v.IsZero() {
			return []string{path}
		}
		return nil
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return []string{path}
		}
		return zeros(v.Elem(), path)
	case reflect.Struct:
		var out []string
		for i := range v.NumField() {
			out = append(out, zeros(v.Field(i), path+"."+v.Type().Field(i).Name)...)
		}
		return out
	case reflect.Slice:
		if v.Len() == 0 {
			return []string{path}
		}
		return zeros(v.Index(0), path+"[0]")
	}
	if v.IsZero() {
		return []string{path}
	}
	return nil
}

// A field that is added to one of these types and forgotten in convert would be
// silently lost on the way. Here every field is set, found set by reflection
// (so that a new one fails the test until it is added), and must arrive.
func TestNoFieldIsForgotten(t *testing.T) {
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	s := ipsec.TrafficSelector{Protocol: 6, First: a, Last: b, PortFirst: 1, PortLast: 2}
	sel := ipsec.Selector{Local: s, Remote: s}
	tr := func(n uint16) ipsec.Transform { return ipsec.Transform{Type: ipsec.TransformENCR, ID: n, KeyBits: 128} }
	life := ipsec.Lifetime{Bytes: ipsec.Limit{Soft: 1, Hard: 2}, Packets: ipsec.Limit{Soft: 3, Hard: 4}, TimeSoft: 5, TimeHard: 6, UseSoft: 7, UseHard: 8}
	esp := []ipsec.Proposal{{Protocol: ipsec.ProtocolESP, Transforms: []ipsec.Transform{{Type: ipsec.TransformENCR, ID: ipsec.EncrAESGCM16, KeyBits: 128}}}}
	ike, err := ipsec.ParseProposal(ipsec.ProtocolIKE, "aes128gcm16-prfsha256-x25519")
	if err != nil {
		t.Fatal(err)
	}
	id := ipsec.Identity{Kind: ipsec.IdentityFQDN, Data: "x"}

	sa := &ipsec.SA{
		ID: 1, Direction: ipsec.Outbound, Protocol: ipsec.ProtocolESP, SPI: 0x1000, Mode: ipsec.ModeTransport, Local: a, Remote: b,
		Encap: &ipsec.Encap{LocalPort: 4500, RemotePort: 4501, TCP: true}, Suite: ipsec.Suite{Protocol: 50, Encr: tr(1), Integ: tr(2), PRF: tr(3), KE: tr(4), ESN: true,
			ADDKE: [ipsec.MaxADDKE]ipsec.Transform{{Type: ipsec.TransformADDKE, ID: 36}, 2: {Type: ipsec.TransformADDKE + 2, ID: 37}}},
		EncrKey: ipsec.NewSecret([]byte("encr")), IntegKey: ipsec.NewSecret([]byte("integ")), Selectors: []ipsec.Selector{sel},
		ReplayWindow: 1024, ReplayFloor: 9, Lease: ipsec.Lease{First: 7, Last: 8}, Lifetime: life, Rule: "r", Peer: "p", Child: 10, Resource: 11, PadTo: 1200,
	}
	rule := &ipsec.Rule{
		Name: "n", Policy: "p", Weight: 1, Direction: ipsec.Both, Selector: sel, Action: ipsec.ActionSecure, Peer: "peer",
		Template: &ipsec.Template{Mode: ipsec.ModeTunnel, Proposals: esp, PFS: 31, Lifetime: life, ReplayWindow: 64, ForceEncap: true, AcceptClear: true, FallbackClear: true, Resources: 3, PadTo: 1200, Outer: ipsec.OuterHeader{DF: ipsec.DFSet, FixedDSCP: true, DSCP: 9, CopyLabel: true}},
	}
	cert := &ipsec.CertificateAuth{Trust: []string{"file:ca"}, Credential: "file:own", PeerIdentity: "*.x", Revocation: ipsec.RevocationHard,
		RevocationURLs: []string{"http://crl.x/"}, AllowLegacy: true}
	peer := &ipsec.Peer{
		Name: "n", Local: []netip.Addr{a}, Remote: []netip.Addr{b}, LocalID: id, RemoteID: id, Auth: []ipsec.AuthMethod{{PSK: "file:x"}, {Null: true, Side: ipsec.AuthRemote}, {Certificate: cert, Side: ipsec.AuthLocal}},
		PPK: &ipsec.PPK{ID: "i", Secret: "file:p", Required: true}, Reauth: 2 * time.Hour,
		Proposals: []ipsec.Proposal{ike}, Lifetime: time.Hour, DPD: time.Minute, ForceEncap: true, Mobike: true, TCP: ipsec.TCPAlways,
	}
	counters := ipsec.SACounters{ID: 1, Bytes: 2, Packets: 3, Top: 4, Errors: 5, First: time.Unix(5, 6).UTC(), Used: time.Unix(6, 7).UTC()}
	for _, v := range []any{sa, rule, counters, cert} {
		if z := zeros(reflect.ValueOf(v), fmt.Sprintf("%T", v)); len(z) != 0 {
			t.Errorf("this test leaves fields unset, so that it cannot tell whether they arrive: %s", strings.Join(z, ", "))
		}
	}
	for _, z := range zeros(reflect.ValueOf(peer), "Peer") {
		// IKE is 0, and a method is one of three.
		if z != "Peer.Proposals[0].Protocol" && !strings.HasPrefix(z, "Peer.Auth[") {
			t.Errorf("this test leaves %s unset", z)
		}
	}

	gotSA, err := convert.FromSA(sent(t, convert.ToSA(sa)))
	if err != nil {
		t.Fatal(err)
	}
	if g, w := plain(gotSA), plain(sa); !reflect.DeepEqual(g, w) {
		t.Errorf("got  %+v\nwant %+v", g, w)
	}
	if got, err := convert.FromRule(sent(t, convert.ToRule(rule))); err != nil || !reflect.DeepEqual(got, rule) {
		t.Errorf("got %+v, %v\nwant %+v", got, err, rule)
	}
	if got, err := convert.FromPeer(sent(t, convert.ToPeer(peer))); err != nil || !reflect.DeepEqual(got, peer) {
		t.Errorf("got %+v, %v\nwant %+v", got, err, peer)
	}
	if got := convert.FromCounters(sent(t, convert.ToCounters(counters))); got != counters {
		t.Errorf("got %+v, want %+v", got, counters)
	}
}

func TestNumbersThatDoNotFitAreRefused(t *testing.T) {
	a := netip.MustParseAddr("192.0.2.1")
	side := ipsec.AddrSelector(a)
	sa := &ipsec.SA{Direction: ipsec.Inbound, Mode: ipsec.ModeTunnel, SPI: 256, Local: a, Remote: a}
	for name, change := range map[string]func(*ipsecv1.SecurityAssociation){
		"direction":         func(m *ipsecv1.SecurityAssociation) { m.Direction = 256 + 1 },
		"negative":          func(m *ipsecv1.SecurityAssociation) { m.Direction = -255 },
		"direction of rule": func(m *ipsecv1.SecurityAssociation) { m.Direction = 3 },
		"mode":              func(m *ipsecv1.SecurityAssociation) { m.Mode = 256 + 1 },
		"protocol":          func(m *ipsecv1.SecurityAssociation) { m.Protocol = 256 + 50 },
		"SPI":               func(m *ipsecv1.SecurityAssociation) { m.Spi = 255 },
		"address":           func(m *ipsecv1.SecurityAssociation) { m.Local = []byte{1, 2, 3} },
		"no address":        func(m *ipsecv1.SecurityAssociation) { m.Remote = nil },
		"port":              func(m *ipsecv1.SecurityAssociation) { m.Encap = &ipsecv1.Encap{LocalPort: 65536 + 4500} },
		"transform":         func(m *ipsecv1.SecurityAssociation) { m.Suite.Encr = &ipsecv1.Transform{Type: 1, Id: 65536 + 20} },
		"selector":          func(m *ipsecv1.SecurityAssociation) { m.Selectors = []*ipsecv1.Selector{nil} },
	} {
		m := convert.ToSA(sa)
		change(m)
		if got, err := convert.FromSA(m); err == nil {
			t.Errorf("SA, %s: taken as %+v", name, got)
		}
	}
	rule := &ipsec.Rule{
		Name: "r", Direction: ipsec.Both, Action: ipsec.ActionSecure, Peer: "p", Selector: ipsec.Selector{Local: side, Remote: side}, Template: &ipsec.Template{Mode: ipsec.ModeTunnel},
	}
	for name, change := range map[string]func(*policyv1.Rule){
		"name":      func(m *policyv1.Rule) { m.Name = "" },
		"direction": func(m *policyv1.Rule) { m.Direction = 256 + 1 },
		"action":    func(m *policyv1.Rule) { m.Action = 256 + 1 }, // secure must not become permit
		"template":  func(m *policyv1.Rule) { m.Template = nil },
		"peer":      func(m *policyv1.Rule) { m.Peer = "" },
		"mode":      func(m *policyv1.Rule) { m.Template.Mode = 512 + 2 },
		"pfs":       func(m *policyv1.Rule) { m.Template.Pfs = 65536 + 31 },
		"selector":  func(m *policyv1.Rule) { m.Selector = nil },
		"two families": func(m *policyv1.Rule) {
			m.Selector.Local.Last = netip.MustParseAddr("2001:db8::1").AsSlice()
		},
		"ports": func(m *policyv1.Rule) { m.Selector.Local.PortFirst, m.Selector.Local.PortLast = 2, 1 },
	} {
		m := convert.ToRule(rule)
		change(m)
		if got, err := convert.FromRule(m); err == nil {
			t.Errorf("rule, %s: taken as %+v", name, got)
		}
	}
	for name, m := range map[string]*policyv1.Peer{
		"nil":         nil,
		"identity":    {Name: "p", LocalId: &policyv1.Identity{Kind: 256 + 2}},
		"kind":        {Name: "p", RemoteId: &policyv1.Identity{Data: []byte("x")}},
		"address":     {Name: "p", Remote: [][]byte{{}}},
		"proposal":    {Name: "p", Proposals: []*ipsecv1.Proposal{{}}},
		"no method":   {Name: "p", Auth: []*policyv1.AuthMethod{{}}},
		"two methods": {Name: "p", Auth: []*policyv1.AuthMethod{{Psk: "file:x", Null: true}}},
		"side":        {Name: "p", Auth: []*policyv1.AuthMethod{{Psk: "file:x", Side: 256 + 1}}},
		"revocation":  {Name: "p", Auth: []*policyv1.AuthMethod{{Certificate: &policyv1.CertificateAuth{Revocation: 256 + 2}}}},
		"pattern":     {Name: "p", Auth: []*policyv1.AuthMethod{{Certificate: &policyv1.CertificateAuth{PeerIdentity: "a*b"}}}},
		"ppk":         {Name: "p", Ppk: &policyv1.Ppk{Id: "x"}},
	} {
		if got, err := convert.FromPeer(m); err == nil {
			t.Errorf("peer, %s: taken as %+v", name, got)
		}
	}
	m := convert.ToPeer(&ipsec.Peer{Name: "p", DPD: time.Second})
	m.Dpd.Seconds = -1
	if _, err := convert.FromPeer(m); err == nil || !strings.Contains(err.Error(), "peer p: dpd:") {
		t.Errorf("negative DPD: got %v", err)
	}
}

// fuzz feeds octets that were decoded as M to from, which may refuse them, but
// must not panic; what it takes must arrive again unchanged.
func fuzz[M proto.Message, V any](f *testing.F, seed M, from func(M) (V, error), to func(V) M, equal func(a, b V) bool) {
	b, err := proto.Marshal(seed)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		m := seed.ProtoReflect().New().Interface().(M)
		if proto.Unmarshal(b, m) != nil {
			return
		}
		v, err := from(m)
		if err != nil {
			return
		}
		again, err := from(sent(t, to(v)))
		if err != nil || !equal(v, again) {
			t.Fatalf("got %+v, %v\nwant %+v", again, err, v)
		}
	})
}

func FuzzFromSA(f *testing.F) {
	seed := convert.ToSA(someSA.Example(1))
	fuzz(f, seed, convert.FromSA, convert.ToSA, func(a, b *ipsec.SA) bool { return reflect.DeepEqual(plain(a), plain(b)) })
}

func FuzzFromRule(f *testing.F) {
	fuzz(f, convert.ToRule(someRule.Example(1)), convert.FromRule, convert.ToRule, func(a, b *ipsec.Rule) bool { return reflect.DeepEqual(a, b) })
}

func FuzzFromPeer(f *testing.F) {
	fuzz(f, convert.ToPeer(somePeer.Example(1)), convert.FromPeer, convert.ToPeer, func(a, b *ipsec.Peer) bool { return reflect.DeepEqual(a, b) })
}
