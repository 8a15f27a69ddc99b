package model

import (
	"path"
	"strings"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// Authentication is how IKE peers prove who they are.
type Authentication struct {
	Meta
	Methods []ipsec.AuthMethod // in order of preference; never empty
}

func readAuthentication(v value, m Meta) *Authentication {
	a := &Authentication{Meta: m}
	v.mapping(key{"methods", true, func(v value) {
		v.list("methods, such as {psk: {secret: file:name.psk}}", func(_ int, v value) {
			v.mapping(
				key{"psk", false, func(v value) {
					v.mapping(key{"secret", true, func(v value) {
						if s, ok := readSecretRef(v); ok {
							a.Methods = append(a.Methods, ipsec.AuthMethod{PSK: s})
						}
					}})
				}},
				key{"certificate", false, func(v value) {
					v.fail("certificate authentication is not enforced yet; want psk: {secret: file:... or vault:...}")
				}},
				key{"kerberos", false, func(v value) {
					v.fail("Kerberos authentication is not enforced yet; want psk: {secret: file:... or vault:...}")
				}},
			)
		})
		if len(v.node.Content) == 0 {
			v.want("at least one method")
		}
	}})
	return a
}

// readSecretRef reads where a secret is. What looks like the secret itself is
// refused without quoting it.
func readSecretRef(v value) (string, bool) {
	const forms = "a reference to a secret: file:name.psk or vault:mount/path"
	if !v.isString() {
		v.fail("want %s", forms)
		return "", false
	}
	s := v.node.Value
	scheme, name, _ := strings.Cut(s, ":")
	if scheme != "file" && scheme != "vault" {
		v.fail("want %s (a secret itself never belongs in a policy)", forms)
		return "", false
	}
	if name == "" || path.IsAbs(name) || path.Clean(name) != name || name == ".." || strings.HasPrefix(name, "../") || strings.ContainsAny(name, " \t\r\n\x00") {
		v.want("%s, the name relative to the secrets' root and without \"..\" or spaces", forms)
		return "", false
	}
	if scheme == "vault" && !strings.Contains(name, "/") {
		v.want("vault:mount/path, such as vault:secret/testudo/web-db")
		return "", false
	}
	return s, true
}
