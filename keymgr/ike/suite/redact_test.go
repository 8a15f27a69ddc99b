package suite

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// No way of formatting a type that holds keys shows an octet of them, be it alone,
// by pointer, or in an exported field, a slice or a map of something else.
func TestFormattingShowsNoKey(t *testing.T) {
	const octet = 0xd7
	run := func(n int) ipsec.Secret { return ipsec.NewSecret(bytes.Repeat([]byte{octet}, n)) }
	integ, err := NewInteg(transform(t, "sha256"), run(32))
	if err != nil {
		t.Fatal(err)
	}
	holders := map[string]any{
		"Integ":     integ,
		"IKEKeys":   IKEKeys{SKd: run(32), SKai: run(32), SKar: run(32), SKei: run(20), SKer: run(20), SKpi: run(32), SKpr: run(32)},
		"ChildKeys": ChildKeys{EncrI: run(32), IntegI: run(32), EncrR: run(32), IntegR: run(32)},
		"PRF":       newPRF(t, "prfsha256"),
	}
	for _, s := range cipherSuites {
		holders["Cipher "+s] = testCipher(t, s, octet)
	}
	// The key, and the key as HMAC keeps it.
	secrets := [][]byte{bytes.Repeat([]byte{octet}, 4), bytes.Repeat([]byte{octet ^ 0x36}, 4), bytes.Repeat([]byte{octet ^ 0x5c}, 4)}
	for _, m := range keMethods {
		p, err := m.Generate(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		holders[fmt.Sprint("KeyPair ", m.ID)] = p
		// Public is meant to be seen.
		secrets = append(secrets, p.Private.Reveal()[:8])
	}
	type inside struct{ Holder any }
	for name, h := range holders {
		for _, form := range []any{h, &h, []any{h}, inside{h}, map[string]any{"k": h}} {
			for _, verb := range verbs {
				refuseSecrets(t, name+" "+verb, fmt.Sprintf(verb, form), secrets)
			}
		}
		var log bytes.Buffer
		slog.New(slog.NewTextHandler(&log, nil)).Info("x", "holder", h)
		refuseSecrets(t, name+" slog", log.String(), secrets)
		if b, err := json.Marshal(h); err == nil {
			refuseSecrets(t, name+" JSON", string(b), secrets)
		}
	}
}

// In an unexported field fmt looks past a Format method.
func TestFormattingHoldersInUnexportedFieldsShowsNoKey(t *testing.T) {
	const octet = 0xd7
	secrets := [][]byte{bytes.Repeat([]byte{octet}, 4), bytes.Repeat([]byte{octet ^ 0x36}, 4), bytes.Repeat([]byte{octet ^ 0x5c}, 4)}
	type hidden struct {
		c *Cipher
		v Cipher
		i *Integ
		k []privateKey
	}
	var keys []privateKey
	for _, m := range keMethods {
		p, err := m.Generate(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, p.key)
		secrets = append(secrets, p.Private.Reveal()[:8])
	}
	for _, s := range cipherSuites {
		c := testCipher(t, s, octet)
		h := hidden{c: c, v: *c, i: c.k.integ, k: keys}
		for _, verb := range verbs {
			refuseSecrets(t, s+" "+verb, fmt.Sprintf(verb, h), secrets)
			refuseSecrets(t, s+" "+verb, fmt.Sprintf(verb, &h), secrets)
		}
	}
}

var verbs = []string{"%v", "%+v", "%#v", "%x", "%X", "%s", "%q", "%d", "%t", "%f"}

func refuseSecrets(t *testing.T, what, text string, secrets [][]byte) {
	t.Helper()
	for _, s := range secrets {
		for _, spelling := range []string{
			string(s),
			fmt.Sprintf("%x", s), fmt.Sprintf("%X", s),
			strings.Trim(fmt.Sprint(s), "[]"),
			strings.Trim(strings.TrimPrefix(fmt.Sprintf("%#v", s), "[]byte"), "{}"),
			strings.Trim(fmt.Sprintf("%x", strings.Split(string(s), "")), "[]"),
		} {
			if strings.Contains(text, spelling) {
				t.Errorf("%s shows key octets: %.300q", what, text)
				return
			}
		}
	}
}
