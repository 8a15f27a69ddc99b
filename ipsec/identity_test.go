package ipsec

import (
	"crypto/x509/pkix"
	"testing"
)

func TestParseIdentity(t *testing.T) {
	web := dn(t, pkix.Name{Country: []string{"DE"}, Organization: []string{"Fleet"}, CommonName: "web-1"})
	for s, want := range map[string]Identity{
		"web-1.fleet.example":       {IdentityFQDN, "web-1.fleet.example"},
		"ops@fleet.example":         {IdentityEmail, "ops@fleet.example"},
		"10.0.0.1":                  {IdentityIPv4, "\x0a\x00\x00\x01"},
		"keyid:a=b":                 {IdentityKeyID, "a=b"},
		"C=DE, O=Fleet, CN=web-1":   web,
		"c=DE,  o=Fleet , CN=web-1": web,
	} {
		if got, err := ParseIdentity(s); err != nil || !got.Equal(want) {
			t.Errorf("%q: got %s, %v; want %s", s, got, err, want)
		}
	}
	for _, s := range []string{"", "C=DE, X=1", "CN="} {
		if got, err := ParseIdentity(s); err == nil {
			t.Errorf("%q was read as %s", s, got)
		}
	}
	if other, _ := ParseIdentity("CN=web-1, O=Fleet, C=DE"); other.Equal(web) {
		t.Error("the order of attributes does not count")
	}
}
