package ipsec

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// IdentityPattern says which identities a peer may have. The zero value matches
// all of them.
type IdentityPattern struct {
	text  string
	match func(Identity) bool
}

// ParseIdentityPattern reads what an operator writes:
//
//	web-1.fleet.example     that domain name
//	*.fleet.example         every domain name below fleet.example
//	ops@fleet.example, *@fleet.example
//	10.0.1.11, 10.0.1.0/24  that address, every address of the prefix
//	O=Fleet, OU=Web         a distinguished name with these attributes (C, ST, L, O, OU, CN)
//
// A star stands for the whole beginning and nothing else: web-*.example is refused.
func ParseIdentityPattern(s string) (IdentityPattern, error) {
	p := IdentityPattern{text: s}
	bad := func(why string) (IdentityPattern, error) {
		return IdentityPattern{}, fmt.Errorf("identity pattern %q: %s; want a name such as web-1.fleet.example, *.fleet.example, *@fleet.example, 10.0.1.0/24 or O=Fleet, OU=Web", s, why)
	}
	if s == "" || len(s) > 512 {
		return bad(fmt.Sprintf("it has %d characters", len(s)))
	}
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e {
			return bad("it has a character that is not printable ASCII")
		}
	}
	if strings.Contains(s, "=") {
		want, err := parseAttributes(s)
		if err != nil {
			return bad(err.Error())
		}
		p.match = func(id Identity) bool { return id.Kind == IdentityDN && hasAttributes(id.Data, want) }
		return p, nil
	}
	if prefix, err := netip.ParsePrefix(s); err == nil {
		if prefix != prefix.Masked() {
			return bad("it has address bits after the prefix; write " + prefix.Masked().String())
		}
		p.match = func(id Identity) bool {
			a, ok := netip.AddrFromSlice([]byte(id.Data))
			return (id.Kind == IdentityIPv4 || id.Kind == IdentityIPv6) && ok && prefix.Contains(a)
		}
		return p, nil
	}
	if suffix, ok := strings.CutPrefix(s, "*"); ok {
		kind := IdentityFQDN
		switch {
		case len(suffix) < 2, strings.Contains(suffix, "*"):
			return bad("a star stands for the whole beginning, before a dot or @")
		case suffix[0] == '@':
			kind = IdentityEmail
		case suffix[0] != '.', strings.Contains(suffix, "@"):
			return bad("a star stands for the whole beginning, before a dot or @")
		}
		p.match = func(id Identity) bool {
			n := len(id.Data) - len(suffix)
			return id.Kind == kind && n > 0 && EqualFoldASCII(id.Data[n:], suffix)
		}
		return p, nil
	}
	if strings.Contains(s, "*") {
		return bad("a star stands for the whole beginning, before a dot or @")
	}
	want, err := ParseIdentity(s)
	if err != nil {
		return bad(err.Error())
	}
	p.match = func(id Identity) bool { return want.Equal(id) }
	return p, nil
}

// Match reports whether id is one of the pattern's.
func (p IdentityPattern) Match(id Identity) bool { return p.match == nil || p.match(id) }

func (p IdentityPattern) String() string { return p.text }

// Equal reports whether both name the same: names and e-mail addresses whatever
// their case (RFC 4945 §3.1.2, §3.1.3), distinguished names as RFC 5280 §7.1
// compares them, everything else octet by octet.
func (i Identity) Equal(o Identity) bool {
	switch {
	case i.Kind != o.Kind:
		return false
	case i.Kind == IdentityFQDN, i.Kind == IdentityEmail:
		return EqualFoldASCII(i.Data, o.Data)
	case i.Kind == IdentityDN:
		return EqualDN([]byte(i.Data), []byte(o.Data))
	}
	return i.Data == o.Data
}

// EqualFoldASCII compares whatever the case of A to Z. Letters outside ASCII that
// fold to one of them (the Kelvin sign to k) are different: they are look-alikes.
func EqualFoldASCII(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}

// attribute is one attribute of a distinguished name with its value's encoding.
type attribute struct {
	Type  asn1.ObjectIdentifier
	Value asn1.RawValue
}

type rdnSET []attribute

// EqualDN compares two distinguished names in DER: attribute by attribute in
// their order, texts without regard to case, to white space at the ends and to
// how much of it is inside (RFC 5280 §7.1), anything else octet by octet.
func EqualDN(a, b []byte) bool {
	if string(a) == string(b) {
		return true
	}
	x, okX := parseDN(a)
	y, okY := parseDN(b)
	return okX && okY && slices.EqualFunc(x, y, func(p, q rdnSET) bool {
		return slices.EqualFunc(p, q, func(s, t attribute) bool {
			return s.Type.Equal(t.Type) && equalValue(s.Value, t.Value)
		})
	})
}

func parseDN(der []byte) ([]rdnSET, bool) {
	var out []rdnSET
	rest, err := asn1.Unmarshal(der, &out)
	return out, err == nil && len(rest) == 0
}

func equalValue(a, b asn1.RawValue) bool {
	if s, ok := text(a); ok {
		if t, ok := text(b); ok {
			return EqualFoldASCII(s, t)
		}
	}
	return string(a.FullBytes) == string(b.FullBytes)
}

// text is the value of a PrintableString, UTF8String or IA5String, its white
// space in canonical form.
func text(v asn1.RawValue) (string, bool) {
	if v.Class != asn1.ClassUniversal || v.Tag != asn1.TagPrintableString && v.Tag != asn1.TagUTF8String && v.Tag != asn1.TagIA5String {
		return "", false
	}
	return strings.Join(strings.FieldsFunc(string(v.Bytes), func(r rune) bool { return r == ' ' }), " "), true
}

// attributeTypes are the attributes a pattern may name: those of RFC 4945 §3.1.5
// and two of places.
var attributeTypes = map[string]asn1.ObjectIdentifier{
	"CN": {2, 5, 4, 3}, "C": {2, 5, 4, 6}, "L": {2, 5, 4, 7}, "ST": {2, 5, 4, 8}, "O": {2, 5, 4, 10}, "OU": {2, 5, 4, 11},
}

type wanted struct {
	oid   asn1.ObjectIdentifier
	value string
}

func parseAttributes(s string) ([]wanted, error) {
	var out []wanted
	for part := range strings.SplitSeq(s, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		oid, ok := attributeTypes[strings.ToUpper(strings.TrimSpace(name))]
		if !ok {
			return nil, fmt.Errorf("the attribute %q is not one of C, ST, L, O, OU, CN", name)
		}
		if value = strings.Join(strings.Fields(value), " "); value == "" {
			return nil, fmt.Errorf("the attribute %s has no value", name)
		}
		out = append(out, wanted{oid, value})
	}
	return out, nil
}

func hasAttributes(der string, want []wanted) bool {
	dn, ok := parseDN([]byte(der))
	if !ok {
		return false
	}
	for _, w := range want {
		found := slices.ContainsFunc(dn, func(set rdnSET) bool {
			return slices.ContainsFunc(set, func(a attribute) bool {
				v, ok := text(a.Value)
				return ok && a.Type.Equal(w.oid) && EqualFoldASCII(v, w.value)
			})
		})
		if !found {
			return false
		}
	}
	return true
}

// DNString shows a distinguished name in DER as RFC 2253 does; not ok when it
// is none.
func DNString(der []byte) (string, bool) {
	var seq pkix.RDNSequence
	rest, err := asn1.Unmarshal(der, &seq)
	if err != nil || len(rest) != 0 {
		return "", false
	}
	return printable(seq.String()), true
}

// parseDistinguishedName makes an ID_DER_ASN1_DN of attributes in their order.
func parseDistinguishedName(s string) (Identity, error) {
	attributes, err := parseAttributes(s)
	if err != nil {
		return Identity{}, fmt.Errorf("distinguished name %q: %w; want attributes in the certificate's order, such as C=DE, O=Fleet, CN=web-1", s, err)
	}
	var rdns pkix.RDNSequence
	for _, a := range attributes {
		rdns = append(rdns, pkix.RelativeDistinguishedNameSET{{Type: a.oid, Value: a.value}})
	}
	der, err := asn1.Marshal(rdns)
	if err != nil {
		return Identity{}, fmt.Errorf("distinguished name %q: %w", s, err)
	}
	return Identity{IdentityDN, string(der)}, nil
}
