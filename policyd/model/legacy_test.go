package model

import (
	"strings"
	"testing"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// RFC 8221 §5 and §6: 3DES SHOULD NOT, DES and MD5 MUST NOT. They work when
// they are asked for by name, and not otherwise.
func TestLegacyNeedsAllowLegacy(t *testing.T) {
	const doc = `apiVersion: testudo/v1
kind: FilterAction
metadata: {name: old-router}
spec:
  action: secure
  mode: tunnel
  security: [{esp: {encryption: 3des, integrity: sha1}}]
`
	if _, err := Parse("f", []byte(doc)); err == nil || !strings.Contains(err.Error(), "3des is a legacy algorithm") || !strings.Contains(err.Error(), "f:7:") {
		t.Errorf("without allowLegacy: %v; want 3des refused at its line", err)
	}
	docs, err := Parse("f", []byte(doc+"  allowLegacy: true\n"))
	if err != nil {
		t.Fatal(err)
	}
	a := docs[0].Spec.(*FilterAction)
	if got := strings.Join(a.Legacy, " "); got != "3des sha1" {
		t.Errorf("legacy algorithms in use: %q, want 3des and sha1", got)
	}
	if len(a.Template.Proposals) != 1 || a.Template.Proposals[0].OfType(ipsec.TransformENCR)[0].ID != ipsec.Encr3DES {
		t.Errorf("proposals %v, want 3des", a.Template.Proposals)
	}
	if a.Template.Lifetime.Bytes.Soft != shortBlockBytes {
		t.Errorf("an SA with 64-bit blocks lives for %d octets, want %d", a.Template.Lifetime.Bytes.Soft, shortBlockBytes)
	}
}

// RFC 8221 §6: AH takes the integrity algorithms of ESP, and GMAC ones of its own.
func TestAHInSecurity(t *testing.T) {
	docs, err := Parse("f", []byte(`apiVersion: testudo/v1
kind: FilterAction
metadata: {name: authentic}
spec:
  action: secure
  security: [{ah: {integrity: sha256}}, {ah: {integrity: authaes128gmac}}, {esp: {encryption: aes256, integrity: sha256}}]
`))
	if err != nil {
		t.Fatal(err)
	}
	ps := docs[0].Spec.(*FilterAction).Template.Proposals
	if len(ps) != 3 || ps[0].Protocol != ipsec.ProtocolAH || ps[1].Protocol != ipsec.ProtocolAH || ps[2].Protocol != ipsec.ProtocolESP {
		t.Fatalf("proposals %+v", ps)
	}
	if got := ps[0].String(); got != "sha256-esn-noesn" {
		t.Errorf("got %s", got)
	}
}
