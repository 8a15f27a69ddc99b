package wire

import (
	"bytes"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// sample holds one payload of every kind.
func sample() []Payload {
	gcm := ipsec.Transform{Type: ipsec.TransformENCR, ID: ipsec.EncrAESGCM16, KeyBits: 128}
	return []Payload{
		&SA{Proposals: []Proposal{
			{Number: 1, Protocol: protoESP, SPI: []byte{1, 2, 3, 4}, Transforms: []Transform{
				{Transform: gcm},
				{Transform: ipsec.Transform{Type: 9, ID: 77}, Unknown: []Attribute{{Type: 3, Short: 7}, {Type: 4, Value: []byte{1, 2, 3}}}},
			}},
			{Number: 2, Protocol: protoIKE, SPI: []byte{}, Transforms: []Transform{{Transform: gcm}}},
		}},
		&KE{Method: ipsec.KEX25519, Data: bytes.Repeat([]byte{7}, 32)},
		&ID{PayloadType: TypeIDi, Identity: ipsec.Identity{Kind: ipsec.IdentityFQDN, Data: "web-1"}, Reserved: [3]byte{1, 2, 3}},
		&ID{PayloadType: TypeIDr, Identity: ipsec.AddrIdentity(netip.MustParseAddr("2001:db8::1"))},
		&Auth{Method: AuthSharedKey, Data: []byte{1, 2, 3}},
		&Nonce{Data: bytes.Repeat([]byte{9}, MinNonce)},
		&Notify{Protocol: protoESP, SPI: []byte{0, 0, 0x12, 0x34}, Message: RekeySA, Data: []byte{}},
		&Notify{Message: Cookie, SPI: []byte{}, Data: []byte("cookie")},
		&Delete{Protocol: protoESP, SPIs: []ipsec.SPI{256, 257}},
		&Delete{Protocol: protoIKE},
		&VendorID{Data: []byte("vendor")},
		&TS{PayloadType: TypeTSi, Selectors: []ipsec.TrafficSelector{
			{Protocol: 6, First: netip.MustParseAddr("10.0.0.0"), Last: netip.MustParseAddr("10.0.0.255"), PortFirst: 443, PortLast: 443},
			ipsec.PrefixSelector(netip.MustParsePrefix("2001:db8::/64")),
		}},
		&TS{PayloadType: TypeTSr, Selectors: []ipsec.TrafficSelector{
			{First: netip.MustParseAddr("10.0.0.1"), Last: netip.MustParseAddr("10.0.0.1"), PortFirst: 65535, PortLast: 0},
		}},
		&Cert{Encoding: CertX509Signature, Data: []byte{1, 2, 3}},
		&CertReq{Encoding: CertX509Signature, Authorities: []Authority{{1}, {2}}},
		&CertReq{Encoding: 7, Data: []byte{1}},
		&Opaque{PayloadType: TypeCP, Body: []byte{4, 1, 2, 3}},
		&Opaque{PayloadType: 49, Body: []byte{1}},
		&Encrypted{PayloadType: TypeSKF, Inner: TypeIDi, Fragment: 2, Total: 3, Body: []byte("sealed")},
	}
}

func TestEveryPayloadReadsBackAsWritten(t *testing.T) {
	h := Header{SPIi: 1, SPIr: 2, Exchange: IKEAuth, Flags: FlagInitiator, MessageID: 7}
	want := sample()
	b := AppendMessage([]byte("prefix"), h, want)[len("prefix"):]
	got, ps, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	if got.SPIi != 1 || got.SPIr != 2 || got.MessageID != 7 || got.Length != uint32(len(b)) || got.Next != TypeSA {
		t.Errorf("header reads back as %+v", got)
	}
	if len(ps) != len(want) {
		t.Fatalf("got %d payloads, want %d", len(ps), len(want))
	}
	for i := range want {
		if !reflect.DeepEqual(ps[i], want[i]) {
			t.Errorf("payload %d:\n got %#v\nwant %#v", i, ps[i], want[i])
		}
	}
}

// A message of one SK or SKF payload is written and read as any other.
func TestEncryptedMessagesAreWrittenAndReadAlone(t *testing.T) {
	h := Header{SPIi: 1, SPIr: 2, Exchange: IKEAuth, Flags: FlagResponse, MessageID: 7}
	for _, p := range []*Encrypted{
		{PayloadType: TypeSK, Inner: TypeIDi, Body: []byte("sealed")},
		{PayloadType: TypeSK, Body: []byte{}},
		{PayloadType: TypeSKF, Inner: TypeIDi, Fragment: 1, Total: 3, Body: []byte("sealed")},
	} {
		want := AppendMessage(nil, h, []Payload{p})
		b := append(p.AppendHead(nil, h, len(p.Body)), p.Body...)
		if !bytes.Equal(b, want) {
			t.Errorf("%s:\n got %x\nwant %x", p, b, want)
		}
		got, err := ParseEncrypted(Header{Next: p.PayloadType}, b)
		if err != nil || !reflect.DeepEqual(&got, p) {
			t.Errorf("%s reads back as %s, error %v", p, &got, err)
		}
	}
}

func TestDescribeShowsNoKeyMaterial(t *testing.T) {
	h := Header{SPIi: 1, Exchange: IKESAInit, Flags: FlagInitiator}
	s := Describe(h, []Payload{
		&KE{Method: ipsec.KEX25519, Data: []byte("SECRETSECRET")},
		&Nonce{Data: []byte("SECRETSECRETSECRET")},
		&Auth{Method: AuthSharedKey, Data: []byte("SECRETSECRET")},
	})
	if strings.Contains(s, "SECRET") {
		t.Errorf("log line holds key material: %s", s)
	}
	if want := "IKE_SA_INIT request 0 { KE(x25519) N(18) AUTH(psk) }"; s != want {
		t.Errorf("got %q, want %q", s, want)
	}
}

// RFC 7296 §2.5: an unknown payload with the critical bit "MUST be rejected",
// one without "MUST be ignored", and the bit means nothing on a known type.
func TestCriticalBitCountsOnUnknownTypesOnly(t *testing.T) {
	h := Header{SPIi: 1, Exchange: IKESAInit, Flags: FlagInitiator}
	message := func(p Payload, critical bool) []byte {
		b := AppendMessage(nil, h, []Payload{p})
		if critical {
			b[HeaderLen+1] |= criticalBit
		}
		return b
	}
	unknown := &Opaque{PayloadType: 200, Body: []byte{1}}
	if _, _, err := Parse(message(unknown, false)); err != nil {
		t.Errorf("unknown, not critical: %v", err)
	}
	_, _, err := Parse(message(unknown, true))
	var e *Error
	if !errors.As(err, &e) || e.Notify != UnsupportedCriticalPayload || !bytes.Equal(e.Data, []byte{200}) {
		t.Errorf("unknown and critical: got %v, want UNSUPPORTED_CRITICAL_PAYLOAD for 200", err)
	}
	if _, _, err := Parse(message(&VendorID{Data: []byte("v")}, true)); err != nil {
		t.Errorf("known and critical: %v", err)
	}
}

func TestMalformedMessagesAreRefusedByName(t *testing.T) {
	h := Header{SPIi: 1, Exchange: IKESAInit, Flags: FlagInitiator}
	good := AppendMessage(nil, h, sample())
	edit := func(f func(b []byte) []byte) []byte { return f(bytes.Clone(good)) }
	fixLength := func(b []byte) []byte {
		b[24], b[25], b[26], b[27] = 0, 0, byte(len(b)>>8), byte(len(b))
		return b
	}
	one := func(p Payload) []byte { return AppendMessage(nil, h, []Payload{p}) }
	tests := []struct {
		name string
		b    []byte
		want NotifyType
		text string
	}{
		{"short header", good[:27], InvalidSyntax, "28 are needed"},
		{"length field", good[:len(good)-1], InvalidSyntax, "length field"},
		{"higher version", edit(func(b []byte) []byte { b[17] = 0x30; return b }), InvalidMajorVersion, "major version 3"},
		{"IKEv1", edit(func(b []byte) []byte { b[17] = 0x10; return b }), InvalidSyntax, "major version 1"},
		{"zero SPI", edit(func(b []byte) []byte { clear(b[:8]); return b }), InvalidSyntax, "SPI is zero"},
		{"payload length 3", edit(func(b []byte) []byte { b[30], b[31] = 0, 3; return b }), InvalidSyntax, "payload length 3"},
		{"payload past the end", edit(func(b []byte) []byte { b[30] = 0xff; return b }), InvalidSyntax, "octets left"},
		{"octets after the last payload", fixLength(append(one(&VendorID{}), 0)), InvalidSyntax, "after the last payload"},
		{"short nonce", one(&Nonce{Data: make([]byte, MinNonce-1)}), InvalidSyntax, "nonce of 15"},
		{"long nonce", one(&Nonce{Data: make([]byte, MaxNonce+1)}), InvalidSyntax, "nonce of 257"},
		{"no selectors", one(&TS{PayloadType: TypeTSi}), InvalidSyntax, "no traffic selectors"},
		{"delete of protocol 9", one(&Delete{Protocol: 9}), InvalidSyntax, "protocol 9"},
		{"fragment 0", one(&Encrypted{PayloadType: TypeSKF, Total: 1}), InvalidSyntax, "fragment 0 of 1"},
		{"empty CERT", one(&Opaque{PayloadType: TypeCERT}), InvalidSyntax, "1 are needed"},
		{"CERT too large", one(&Cert{Encoding: CertX509Signature, Data: make([]byte, MaxCertOctets+1)}), InvalidSyntax, "at most 32768"},
		{"half an authority", one(&Opaque{PayloadType: TypeCERTREQ, Body: append([]byte{4}, make([]byte, 20+7)...)}), InvalidSyntax, "multiple of 20"},
		{"too many authorities", one(&CertReq{Encoding: CertX509Signature, Authorities: make([]Authority, MaxAuthorities+1)}), InvalidSyntax, "at most 256"},
		{"too many payloads", AppendMessage(nil, h, repeat(&VendorID{}, MaxPayloads+1)), InvalidSyntax, "more than 64 payloads"},
		{"too many proposals", one(&SA{Proposals: make([]Proposal, MaxProposals+1)}), InvalidSyntax, "more than 64 proposals"},
		{"too many transforms", one(&SA{Proposals: []Proposal{{Transforms: make([]Transform, MaxTransforms+1)}}}), InvalidSyntax, "129 transforms"},
		{"too many attributes", one(&SA{Proposals: []Proposal{{Transforms: []Transform{{Unknown: make([]Attribute, MaxAttributes+1)}}}}}), InvalidSyntax, "more than 8 attributes"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			_, _, err := Parse(tc.b)
			var e *Error
			if !errors.As(err, &e) || e.Notify != tc.want || !strings.Contains(e.Detail, tc.text) {
				t.Errorf("got %v, want %s with %q", err, tc.want, tc.text)
			}
		})
	}
}

// A selector that can match nothing is left out, and counted, not refused.
func TestUnknownSelectorsAreSkipped(t *testing.T) {
	h := Header{SPIi: 1, Exchange: IKEAuth, Flags: FlagInitiator}
	ts := &TS{PayloadType: TypeTSi, Selectors: []ipsec.TrafficSelector{
		ipsec.AddrSelector(netip.MustParseAddr("10.0.0.1")),
		ipsec.AddrSelector(netip.MustParseAddr("10.0.0.2")),
	}}
	b := AppendMessage(nil, h, []Payload{ts})
	b[HeaderLen+GenericLen+4] = 9 // TS_FC_ADDR_RANGE
	_, ps, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	got := ps[0].(*TS)
	if got.Skipped != 1 || len(got.Selectors) != 1 || got.Selectors[0] != ts.Selectors[1] {
		t.Errorf("got %+v", got)
	}
}

func repeat(p Payload, n int) []Payload {
	out := make([]Payload, n)
	for i := range out {
		out[i] = p
	}
	return out
}

// FuzzParse: no input makes the parser panic, and what it accepts reads back
// the same after it is written again.
func FuzzParse(f *testing.F) {
	h := Header{SPIi: 1, SPIr: 2, Exchange: IKEAuth, Flags: FlagInitiator}
	f.Add(AppendMessage(nil, h, sample()))
	for _, p := range sample() {
		f.Add(AppendMessage(nil, h, []Payload{p}))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, ps, err := Parse(b)
		if h.Version != 0 && (h.Next == TypeSK || h.Next == TypeSKF) {
			if _, bad := ParseEncrypted(h, b); (bad == nil) != (err == nil) {
				t.Fatalf("read alone: %v, else: %v", bad, err)
			}
		}
		if err != nil {
			return
		}
		_ = Describe(h, ps)
		for _, p := range ps {
			if ts, ok := p.(*TS); ok && ts.Skipped != 0 {
				return // what is skipped is not written again
			}
		}
		again := AppendMessage(nil, h, ps)
		_, ps2, err := Parse(again)
		if err != nil {
			t.Fatalf("written again: %v", err)
		}
		if !reflect.DeepEqual(ps, ps2) {
			t.Fatalf("reads back different:\n%#v\n%#v", ps, ps2)
		}
	})
}
