package interop

import (
	"fmt"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/test/lab"
)

const byCertificate = `{methods: [{certificate: {trust: "file:ca.pem", credential: "file:us"}}]}`

// keyed is certificates with keys of these kinds, below an intermediate CA.
func keyed(ours, theirs string) func(*lab.CA) (lab.Cert, lab.Cert) {
	return func(root *lab.CA) (lab.Cert, lab.Cert) {
		ca := root.Intermediate("between")
		return ca.Issue(ours, ourID), ca.Issue(theirs, theirID)
	}
}

// authenticated starts, moves traffic, rekeys, and compares how the ends say that
// they have proven themselves.
func authenticated(ours, theirs string) func(*bed) {
	return func(b *bed) {
		sa, _ := b.start()
		if sa.GetLocalAuth() != ours || sa.GetRemoteAuth() != theirs {
			b.Errorf("authenticated with %s, the peer with %s; want %s and %s", sa.GetLocalAuth(), sa.GetRemoteAuth(), ours, theirs)
		}
		b.ping()
		b.noFailures()
	}
}

// certificates are scenarios of authentication with certificates.
func certificates() []scenario {
	var out []scenario
	for _, c := range []struct{ name, ours, theirs, scheme, theirScheme string }{
		{"rsa", "rsa", "rsa", "rsa-pss-sha256", "rsa-sha256"},
		{"ecdsa", "p256", "p256", "ecdsa-sha256", "ecdsa-sha256"},
		{"ecdsa-384-521", "p384", "p521", "ecdsa-sha384", "ecdsa-sha512"},
		{"ed25519", "ed25519", "ed25519", "ed25519", "ed25519"},
	} {
		out = append(out, scenario{
			name: "certificates-" + c.name, shows: fmt.Sprintf("certificates with %s keys below an intermediate CA (RFC 7427)", c.name),
			at: pair, ours: policy{auth: byCertificate}, certs: keyed(c.ours, c.theirs), swan: noPSK, steps: authenticated(c.scheme, c.theirScheme),
		})
	}
	out = append(out,
		scenario{
			name: "certificates-classic-ecdsa", shows: "the classic method of RFC 4754 with a peer that has no RFC 7427", at: pair,
			ours: policy{auth: byCertificate}, certs: keyed("p256", "p384"), swan: noPSK,
			peer: lab.SwanOptions{Charon: []string{"signature_authentication = no"}}, steps: authenticated("ecdsa-256", "ecdsa-384"),
		},
		scenario{
			name: "certificates-dn", shows: "distinguished names as identities (ID_DER_ASN1_DN, RFC 4945 section 3.1.5)", at: pair,
			ours:  policy{auth: byCertificate, identity: "O=Fleet, CN=" + ourID, theirs: "O=Fleet, CN=" + theirID},
			certs: keyed("p256", "p256"), steps: authenticated("ecdsa-sha256", "ecdsa-sha256"),
			swan: func(c *lab.SwanConn) {
				noPSK(c)
				c.LocalID, c.RemoteID = `"O=Fleet, CN=`+theirID+`"`, `"O=Fleet, CN=`+ourID+`"`
			},
		},
		scenario{
			name: "certificates-mixed", shows: "we by pre-shared key, the peer by certificate", at: pair,
			ours:  policy{auth: `{methods: [{psk: {secret: "file:interop.psk"}, side: local}, {certificate: {trust: "file:ca.pem"}, side: remote}]}`},
			certs: keyed("p256", "p256"), swan: func(c *lab.SwanConn) { c.CAs = nil }, steps: authenticated("psk", "ecdsa-sha256"),
		},
	)
	return twice(append(out, refusedCertificates()...)...)
}

func noPSK(c *lab.SwanConn) { c.PSK = ipsec.Secret{} }

// refusedCertificates must not come up, and must say why.
func refusedCertificates() []scenario {
	refused := func(b *bed) {
		if err := b.tryStart(); err == nil {
			b.Error("the IKE SA came up")
		}
		b.requireFailure("PEER_NOT_AUTHENTICATED", "AUTHENTICATION_FAILED")
		b.gone(limit)
	}
	return []scenario{
		{
			name: "certificates-wrong-name", shows: "a certificate that names somebody else is refused (RFC 4945 section 3.1)", at: pair,
			ours: policy{auth: byCertificate}, swan: noPSK, steps: refused,
			certs: func(ca *lab.CA) (lab.Cert, lab.Cert) {
				return ca.Issue("p256", ourID), ca.Issue("p256", "other.example")
			},
		},
		{
			name: "certificates-wrong-ca", shows: "a certificate of another authority is refused", at: pair,
			ours: policy{auth: byCertificate}, swan: noPSK, steps: refused,
			certs: func(ca *lab.CA) (lab.Cert, lab.Cert) {
				return ca.Issue("p256", ourID), lab.NewCA(ca.T(), "another").Issue("p256", theirID)
			},
		},
	}
}
