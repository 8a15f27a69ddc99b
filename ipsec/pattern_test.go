package ipsec

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"net/netip"
	"testing"
)

func dn(t testing.TB, name pkix.Name) Identity {
	t.Helper()
	der, err := asn1.Marshal(name.ToRDNSequence())
	if err != nil {
		t.Fatal(err)
	}
	return Identity{IdentityDN, string(der)}
}

func TestIdentityPatterns(t *testing.T) {
	web := dn(t, pkix.Name{Country: []string{"DE"}, Organization: []string{"Fleet"}, OrganizationalUnit: []string{"Web"}, CommonName: "web-1"})
	fqdn := func(s string) Identity { return Identity{IdentityFQDN, s} }
	mail := func(s string) Identity { return Identity{IdentityEmail, s} }
	addr := func(s string) Identity { return AddrIdentity(netip.MustParseAddr(s)) }
	for _, tt := range []struct {
		pattern string
		yes, no []Identity
	}{
		{"web-1.fleet.example", []Identity{fqdn("web-1.fleet.example"), fqdn("WEB-1.Fleet.Example")},
			[]Identity{fqdn("web-1.fleet.example."), fqdn("web-1.fleet.example\x00.evil.example"), mail("web-1.fleet.example"), {IdentityKeyID, "web-1.fleet.example"}}},
		{"*.fleet.example", []Identity{fqdn("web-1.fleet.example"), fqdn("a.b.fleet.EXAMPLE")},
			[]Identity{fqdn("fleet.example"), fqdn(".fleet.example"), fqdn("evilfleet.example"), fqdn("web-1.fleet.example.evil.example"), mail("x@a.fleet.example")}},
		{"*.kiosk.example", nil, []Identity{fqdn("a.\u212aiosk.example")}}, // the Kelvin sign
		{"*@fleet.example", []Identity{mail("ops@fleet.example")}, []Identity{mail("@fleet.example"), mail("ops@evil.fleet.example"), fqdn("ops@fleet.example")}},
		{"10.0.1.0/24", []Identity{addr("10.0.1.11")}, []Identity{addr("10.0.2.11"), addr("::ffff:0:1"), {IdentityFQDN, "10.0.1.11"}, {IdentityIPv4, "10.0.1.11"}}},
		{"2001:db8::1", []Identity{addr("2001:db8::1")}, []Identity{addr("2001:db8::2")}},
		{"O=fleet, OU=Web", []Identity{web}, []Identity{fqdn("O=fleet, OU=Web"), {IdentityDN, "junk"}, dn(t, pkix.Name{Organization: []string{"Fleet"}})}},
		{"O=Fleet, CN=web-2", nil, []Identity{web}},
	} {
		p, err := ParseIdentityPattern(tt.pattern)
		if err != nil {
			t.Errorf("%s: %v", tt.pattern, err)
			continue
		}
		for _, id := range tt.yes {
			if !p.Match(id) {
				t.Errorf("%s does not match %s", tt.pattern, id)
			}
		}
		for _, id := range tt.no {
			if p.Match(id) {
				t.Errorf("%s matches %s", tt.pattern, id)
			}
		}
	}
	for _, bad := range []string{"", "*", "*.", "**.x", "web-*.example", "*x", "a.*.b", "*.x@y", "10.0.1.7/24", "X=1", "O=", "a\nb", "ü.example"} {
		if p, err := ParseIdentityPattern(bad); err == nil {
			t.Errorf("%q was read as %s", bad, p)
		}
	}
	if !(IdentityPattern{}).Match(web) {
		t.Error("no pattern matches nothing")
	}
}

func TestDistinguishedNamesAreComparedAsRFC5280Section7_1Says(t *testing.T) {
	// value encodes "O=<tag text>, CN=x".
	value := func(tag int, text string) []byte {
		seq := pkix.RDNSequence{{{Type: asn1.ObjectIdentifier{2, 5, 4, 10}, Value: asn1.RawValue{Tag: tag, Bytes: []byte(text)}}}}
		der, err := asn1.Marshal(seq)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	base := value(asn1.TagPrintableString, "Fleet One")
	for _, tt := range []struct {
		other []byte
		equal bool
	}{
		{value(asn1.TagUTF8String, "Fleet One"), true},
		{value(asn1.TagUTF8String, " fleet   ONE "), true},
		{value(asn1.TagUTF8String, "FleetOne"), false},
		{value(asn1.TagUTF8String, "Fleet One\x00"), false},
		{value(asn1.TagBMPString, "Fleet One"), false},
		{append(value(asn1.TagPrintableString, "Fleet One"), 0), false},
		{nil, false},
		{[]byte{0x30, 0x80}, false},
	} {
		if EqualDN(base, tt.other) != tt.equal || EqualDN(tt.other, base) != tt.equal {
			t.Errorf("%x: want equal %t", tt.other, tt.equal)
		}
	}
	if got := (Identity{IdentityDN, string(base)}).String(); got != "O=Fleet One" {
		t.Errorf("got %q", got)
	}
}

func FuzzEqualDN(f *testing.F) {
	f.Add([]byte{0x30, 0x00}, []byte{0x30, 0x00})
	f.Fuzz(func(t *testing.T, a, b []byte) {
		if EqualDN(a, b) != EqualDN(b, a) {
			t.Errorf("%x and %x: equal one way only", a, b)
		}
		_ = Identity{IdentityDN, string(a)}.String()
	})
}
