package model

import (
	"net/url"
	"path"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// Authentication is how IKE peers prove who they are.
type Authentication struct {
	Meta
	Methods []ipsec.AuthMethod // in order of preference; never empty
	PPK     *ipsec.PPK
}

// For is the authentication of one node: what its references say of the node is
// filled in.
func (a *Authentication) For(n *Node) []ipsec.AuthMethod {
	fill := strings.NewReplacer("{node}", n.Name, "{identity}", n.Identity.String())
	out := make([]ipsec.AuthMethod, len(a.Methods))
	for i, m := range a.Methods {
		if m.Certificate != nil {
			c := *m.Certificate
			c.Credential = fill.Replace(c.Credential)
			m.Certificate = &c
		}
		out[i] = m
	}
	return out
}

func readAuthentication(v value, m Meta) *Authentication {
	a := &Authentication{Meta: m}
	v.mapping(
		key{"methods", true, func(v value) {
			before := len(*v.in.errs)
			v.list("methods, such as {psk: {secret: file:name.psk}}", func(_ int, v value) {
				if x, ok := readMethod(v); ok {
					a.Methods = append(a.Methods, x)
				}
			})
			if len(v.node.Content) == 0 {
				v.want("at least one method")
			} else if len(*v.in.errs) == before {
				checkSides(v, a.Methods)
			}
		}},
		key{"ppk", false, func(v value) { a.PPK = readPPK(v) }},
	)
	for _, x := range a.Methods {
		if x.Null && a.PPK != nil && !a.PPK.Required {
			v.fail("null authentication goes with a postquantum preshared key only when that is required (RFC 8784 section 5.2.3); want ppk.required: true")
		}
	}
	return a
}

// checkSides refuses a list by which one of the ends could never prove itself.
func checkSides(v value, methods []ipsec.AuthMethod) {
	var local, remote bool
	for _, m := range methods {
		local, remote = local || m.Local(), remote || m.Remote()
	}
	switch {
	case !local:
		v.fail("no method is for our own side; want one with side: local or without side, a certificate with a credential")
	case !remote:
		v.fail("no method is for the peer's side; want one with side: remote or without side, a certificate with trust")
	}
}

func readMethod(v value) (ipsec.AuthMethod, bool) {
	m := ipsec.AuthMethod{}
	var given []string
	before := len(*v.in.errs)
	v.mapping(
		key{"psk", false, func(v value) {
			given = append(given, "psk")
			v.mapping(key{"secret", true, func(v value) { m.PSK, _ = readSecretRef(v) }})
		}},
		key{"certificate", false, func(v value) {
			given = append(given, "certificate")
			m.Certificate = readCertificate(v)
		}},
		key{"null", false, func(v value) {
			given = append(given, "null")
			m.Null = true
			if v.node.Kind != yaml.MappingNode || len(v.node.Content) != 0 {
				v.want("{}: there is nothing to say of it")
			}
		}},
		key{"side", false, func(v value) {
			switch s := v.text("local or remote"); s {
			case "":
			case "local":
				m.Side = ipsec.AuthLocal
			case "remote":
				m.Side = ipsec.AuthRemote
			default:
				v.want("local (we prove ourselves so), remote (the peer does), or no side for both")
			}
		}},
		key{"kerberos", false, func(v value) {
			v.fail("Kerberos authentication is not enforced yet; want psk, certificate or null")
		}},
	)
	if len(*v.in.errs) > before {
		return m, false
	}
	if len(given) != 1 {
		v.fail("got %d methods in one entry (%s), want exactly one of psk, certificate and null; write each with a dash of its own", len(given), strings.Join(given, ", "))
		return m, false
	}
	if c := m.Certificate; c != nil {
		switch {
		case c.Credential == "" && m.Side != ipsec.AuthRemote:
			v.fail("the certificate has no credential, so that we could not prove ourselves with it; want credential: file:name, or side: remote")
			return m, false
		case len(c.Trust) == 0 && m.Side != ipsec.AuthLocal:
			v.fail("the certificate has no trust, so that no peer could prove itself with one; want trust: file:ca.pem, or side: local")
			return m, false
		}
	}
	return m, true
}

func readCertificate(v value) *ipsec.CertificateAuth {
	c := &ipsec.CertificateAuth{}
	var urls *value
	v.mapping(
		key{"trust", false, func(v value) { c.Trust = readTrust(v) }},
		key{"credential", false, func(v value) {
			const what = "a reference to a key and its certificates: file:name (name.pem and name-key.pem) or vault:mount/role#name; {node} and {identity} stand for the node's"
			c.Credential, _ = readRef(v, what, true)
			if strings.HasPrefix(c.Credential, "vault:") && !strings.Contains(c.Credential, "#") {
				v.want("%s; Vault signs a certificate for the names after #, such as vault:pki/ike#{identity}", what)
			}
		}},
		key{"peerIdentity", false, func(v value) {
			if s := v.text("a pattern such as *.fleet.example"); s != "" {
				if _, err := ipsec.ParseIdentityPattern(s); err != nil {
					v.fail("%v", err)
				}
				c.PeerIdentity = s
			}
		}},
		key{"revocation", false, func(v value) {
			if s := v.text("none, soft or hard"); s != "" {
				var err error
				if c.Revocation, err = ipsec.ParseRevocation(s); err != nil {
					v.want("none, soft or hard")
				}
			}
		}},
		key{"revocationURLs", false, func(v value) {
			urls = &v
			v.list("prefixes of URLs, such as http://crl.fleet.example/", func(_ int, v value) {
				s := v.text("the prefix of a URL")
				u, err := url.Parse(s)
				if s != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Path == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "") {
					v.want("http:// or https://, a host and a path that begins with /, such as http://crl.fleet.example/")
				}
				c.RevocationURLs = append(c.RevocationURLs, s)
			})
		}},
		key{"allowLegacy", false, func(v value) { c.AllowLegacy = v.boolean() }},
	)
	if urls != nil && c.Revocation == ipsec.RevocationNone {
		urls.fail("nothing is fetched while revocation is none; want revocation: soft or hard, or no revocationURLs")
	}
	return c
}

// readTrust reads one reference of trust anchors, or a list of them.
func readTrust(v value) []string {
	const what = "a reference to certificate authorities: file:ca.pem or vault:mount"
	if v.isString() {
		s, _ := readRef(v, what, false)
		return []string{s}
	}
	var out []string
	v.list(what, func(_ int, v value) {
		s, _ := readRef(v, what, false)
		out = append(out, s)
	})
	return out
}

// maxPPKID bounds an identifier that travels in a notify and stands in reports.
const maxPPKID = 64

func readPPK(v value) *ipsec.PPK {
	p := &ipsec.PPK{}
	v.mapping(
		key{"id", true, func(v value) {
			p.ID = v.text("the identifier of the postquantum preshared key, the same on both ends")
			if len(p.ID) > maxPPKID || strings.ContainsFunc(p.ID, func(r rune) bool { return r <= ' ' || r > '~' }) {
				v.want("at most %d printable ASCII characters without spaces", maxPPKID)
			}
		}},
		key{"secret", true, func(v value) { p.Secret, _ = readSecretRef(v) }},
		key{"required", false, func(v value) { p.Required = v.boolean() }},
	)
	return p
}

// readSecretRef reads where a secret is. What looks like the secret itself is
// refused without quoting it.
func readSecretRef(v value) (string, bool) {
	const forms = "a reference to a secret: file:name.psk or vault:mount/path"
	s, ok := readRef(v, forms, false)
	if ok && strings.HasPrefix(s, "vault:") && !strings.Contains(s, "/") {
		v.want("vault:mount/path, such as vault:secret/testudo/web-db")
		return "", false
	}
	return s, ok
}

// readRef reads a reference; with fill its name may have {node} and {identity}.
func readRef(v value, forms string, fill bool) (string, bool) {
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
	if fill {
		name = strings.NewReplacer("{node}", "n", "{identity}", "i").Replace(name)
	}
	if name == "" || path.IsAbs(name) || path.Clean(name) != name || name == ".." || strings.HasPrefix(name, "../") || strings.ContainsAny(name, " \t\r\n\x00{}") {
		v.want("%s, the name relative to the secrets' root and without \"..\", spaces or braces", forms)
		return "", false
	}
	return s, true
}
