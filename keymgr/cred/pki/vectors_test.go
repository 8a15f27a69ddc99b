package pki_test

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/cred"
	"github.com/testudo-ipsec/testudo/keymgr/cred/pki"
)

// then is when the vectors (testdata/make.sh) are judged.
var then = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

var web = ipsec.Identity{Kind: ipsec.IdentityFQDN, Data: "web-1.fleet.example"}

// vector reads the certificates of a vector, such as openssl/expired.
func vector(t testing.TB, name string) [][]byte {
	t.Helper()
	var chain [][]byte
	rest := file(t, name+".pem")
	for block, rest := pem.Decode(rest); block != nil; block, rest = pem.Decode(rest) {
		chain = append(chain, block.Bytes)
	}
	if len(chain) == 0 {
		t.Fatalf("%s holds no certificate", name)
	}
	return chain
}

func file(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// anchors is a store of trust anchors: vectors by name after "file:".
type anchors struct {
	t    testing.TB
	crls []string // files that lie beside
}

func (a anchors) Anchors(_ context.Context, ref string) (*cred.Anchors, error) {
	text, err := os.ReadFile(filepath.Join("testdata", strings.TrimPrefix(ref, "file:")+".pem"))
	if err != nil {
		return nil, cred.Errorf(cred.NotFound, ref, "%w", err)
	}
	for _, c := range a.crls {
		der := file(a.t, c)
		if block, _ := pem.Decode(der); block != nil {
			der = block.Bytes
		}
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})...)
	}
	return cred.ParseAnchors(ref, text)
}

func (a anchors) Credential(context.Context, string) (*cred.Credential, error) {
	panic("not asked for")
}

// web serves files by URL, and counts.
type servers map[string]string

func (s servers) RoundTrip(req *http.Request) (*http.Response, error) {
	name, ok := s[req.URL.String()]
	if !ok {
		return nil, errors.New("nobody serves " + req.URL.String())
	}
	b, err := os.ReadFile(filepath.Join("testdata", name))
	return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(bytes.NewReader(b)), Request: req}, err
}

func judge(a anchors, s http.RoundTripper) *pki.PKI {
	return pki.New(pki.Config{Stores: map[string]pki.Store{"file": a}, Transport: s, Now: func() time.Time { return then }})
}

// verdict checks what became of a chain: accepted when why is empty.
func verdict(t *testing.T, p *pki.PKI, q cred.ChainQuestion, why pki.Why) {
	t.Helper()
	key, err := p.Verify(t.Context(), q)
	switch {
	case why == "" && err != nil:
		t.Errorf("refused: %v", err)
	case why == "" && key == nil:
		t.Error("accepted without a key")
	case why != "" && err == nil:
		t.Errorf("accepted, want %q", why)
	case why != "" && !errors.Is(err, why):
		t.Errorf("got %v, want %q", err, why)
	case why != "":
		if e, ok := errors.AsType[*cred.Error](err); !ok || why != pki.WhyNoAnchor && e.Kind != cred.Refused && e.Kind != cred.Unavailable || key != nil || !strings.Contains(e.Why, ": ") {
			t.Errorf("got %#v", err)
		}
	}
}

func TestVectors(t *testing.T) {
	id := func(s string) ipsec.Identity {
		i, err := ipsec.ParseIdentity(s)
		if err != nil {
			t.Fatal(err)
		}
		return i
	}
	for _, tt := range []struct {
		chain, trust string
		why          pki.Why
		id           ipsec.Identity // web when zero
	}{
		{chain: "openssl/good-rsa2048"}, {chain: "openssl/good-rsa3072"}, {chain: "openssl/good-prime256v1"}, {chain: "openssl/good-secp384r1"},
		{chain: "openssl/good-secp521r1"}, {chain: "openssl/good-ed25519"}, {chain: "openssl/good-pss"},
		{chain: "openssl/good-signed-pss", trust: "openssl/pss-ca"}, {chain: "openssl/good-signed-ed25519", trust: "openssl/ed-ca"},
		{chain: "openssl/good-eku-1.3.6.1.5.5.7.3.17"}, {chain: "openssl/good-eku-serverAuth"}, {chain: "openssl/good-eku-clientAuth"},
		{chain: "openssl/good-eku-anyExtendedKeyUsage"}, {chain: "openssl/good-nonrepudiation"}, {chain: "openssl/good-no-usage"},
		{chain: "openssl/good-intermediate"}, {chain: "openssl/good-with-root"},
		{chain: "openssl/good-constraint", id: id("web-1.db.fleet.example")},
		{chain: "openssl/good-constraint", id: id("10.0.2.11")},
		{chain: "openssl/self-signed", trust: "openssl/self-signed"}, // pinned

		{chain: "openssl/expired", why: pki.WhyExpired},
		{chain: "openssl/future", why: pki.WhyNotYetValid},
		{chain: "openssl/below-expired", why: pki.WhyExpired},
		{chain: "openssl/eku-emailProtection", why: pki.WhyExtKeyUsage},
		{chain: "openssl/eku-codeSigning", why: pki.WhyExtKeyUsage},
		{chain: "openssl/eku-ipsecEndSystem", why: pki.WhyExtKeyUsage},
		{chain: "openssl/eku-OCSPSigning", why: pki.WhyExtKeyUsage},
		{chain: "openssl/below-email", why: pki.WhyExtKeyUsage},
		{chain: "openssl/usage-encipherment", why: pki.WhyKeyUsage},
		{chain: "openssl/usage-keycertsign", why: pki.WhyKeyUsage},
		{chain: "openssl/critical-extension", why: pki.WhyCriticalExtension},
		{chain: "openssl/sha1", why: pki.WhyWeakSignature},
		{chain: "openssl/below-sha1", why: pki.WhyWeakSignature},
		{chain: "openssl/rsa1024", why: pki.WhyWeakKey},
		{chain: "openssl/p224", why: pki.WhyWeakKey},
		{chain: "openssl/below-1024", why: pki.WhyWeakKey},
		{chain: "openssl/below-weak-ca", trust: "openssl/weak-ca", why: pki.WhyWeakKey},
		{chain: "openssl/missing-intermediate", why: pki.WhyUnknownAuthority},
		{chain: "openssl/same-name-other-key", why: pki.WhyUnknownAuthority},
		{chain: "openssl/good-prime256v1", trust: "openssl/other-ca", why: pki.WhyUnknownAuthority},
		{chain: "openssl/self-signed", why: pki.WhySelfSigned},
		{chain: "openssl/below-leaf", why: pki.WhyNotAuthority},
		{chain: "openssl/path-length", why: pki.WhyPathLength},
		{chain: "openssl/name-constraint", why: pki.WhyNameConstraint},
		{chain: "openssl/address-constraint", id: id("10.0.1.11"), why: pki.WhyNameConstraint},
		{chain: "openssl/directory-constraint", why: pki.WhyCriticalExtension},
		{chain: "openssl/good-prime256v1", trust: "openssl/nothing", why: pki.WhyNoAnchor},

		{chain: "openssl/good-prime256v1", id: id("WEB-1.fleet.Example")},
		{chain: "openssl/good-prime256v1", id: id("ops@fleet.example")},
		{chain: "openssl/good-prime256v1", id: id("10.0.1.11")},
		{chain: "openssl/good-prime256v1", id: id("2001:db8::11")},
		{chain: "openssl/good-prime256v1", id: id("10.0.1.12"), why: pki.WhyIdentity},
		{chain: "openssl/good-prime256v1", id: id("web-2.fleet.example"), why: pki.WhyIdentity},
		{chain: "openssl/good-prime256v1", id: id("fleet.example"), why: pki.WhyIdentity},
		{chain: "openssl/good-prime256v1", id: id("keyid:web-1.fleet.example"), why: pki.WhyIdentityKind},
		{chain: "openssl/good-prime256v1", id: ipsec.Identity{Kind: ipsec.IdentityFQDN, Data: "web-1.fleet.example\x00"}, why: pki.WhyIdentity},
		{chain: "openssl/good-prime256v1", id: ipsec.Identity{Kind: ipsec.IdentityFQDN, Data: "10.0.1.11"}, why: pki.WhyIdentity},
		{chain: "openssl/good-prime256v1", id: ipsec.Identity{Kind: ipsec.IdentityIPv4, Data: "10.0.1.11"}, why: pki.WhyIdentity},
		{chain: "openssl/good-prime256v1", id: ipsec.Identity{Kind: ipsec.IdentityIPv6, Data: string(netip.MustParseAddr("::ffff:10.0.1.11").AsSlice())}, why: pki.WhyIdentity},
		{chain: "openssl/good-prime256v1", id: ipsec.Identity{Kind: ipsec.IdentityEmail, Data: "web-1.fleet.example"}, why: pki.WhyIdentity},
		{chain: "openssl/name-in-cn", why: pki.WhyIdentity},
		{chain: "openssl/no-names", why: pki.WhyIdentity},
		{chain: "openssl/wildcard", why: pki.WhyIdentity},
		{chain: "openssl/wildcard", id: ipsec.Identity{Kind: ipsec.IdentityFQDN, Data: "*.fleet.example"}, why: pki.WhyIdentity},
		{chain: "openssl/look-alike", why: pki.WhyIdentity},

		{chain: "strongswan/good-rsa-2048", trust: "strongswan/ca"}, {chain: "strongswan/good-ecdsa-256", trust: "strongswan/ca"},
		{chain: "strongswan/good-ecdsa-384", trust: "strongswan/ca"}, {chain: "strongswan/good-ecdsa-521", trust: "strongswan/ca"},
		{chain: "strongswan/good-ed25519-0", trust: "strongswan/ca"}, {chain: "strongswan/good-intermediate", trust: "strongswan/ca"},
		{chain: "strongswan/good-ike-usage", trust: "strongswan/ca"},
		{chain: "strongswan/good-ecdsa-256", trust: "strongswan/ca", id: id("10.0.1.11")},
		{chain: "strongswan/good-ecdsa-256", why: pki.WhyUnknownAuthority},
		{chain: "strongswan/expired", trust: "strongswan/ca", why: pki.WhyExpired},
		{chain: "strongswan/future", trust: "strongswan/ca", why: pki.WhyNotYetValid},
		{chain: "strongswan/usage-ocsp", trust: "strongswan/ca", why: pki.WhyExtKeyUsage},
		{chain: "strongswan/sha1", trust: "strongswan/ca", why: pki.WhyWeakSignature},
		{chain: "strongswan/rsa-1024", trust: "strongswan/ca", why: pki.WhyWeakKey},
	} {
		if tt.trust == "" {
			tt.trust = "openssl/ca"
		}
		if tt.id.IsZero() {
			tt.id = web
		}
		t.Run(tt.chain+" as "+tt.id.String()+" below "+tt.trust, func(t *testing.T) {
			p := judge(anchors{t: t}, servers{})
			q := cred.ChainQuestion{Chain: vector(t, tt.chain), Identity: tt.id, Now: then, Method: ipsec.CertificateAuth{Trust: []string{"file:" + tt.trust}}}
			verdict(t, p, q, tt.why)
			if tt.why != "" && p.Stats().Refused[tt.why] != 1 {
				t.Errorf("not counted: %v", p.Stats())
			}
		})
	}
}

func TestDistinguishedNamesAsIdentity(t *testing.T) {
	p := judge(anchors{t: t}, servers{})
	subject := func(name string) ipsec.Identity {
		return ipsec.Identity{Kind: ipsec.IdentityDN, Data: string(parse(t, vector(t, name)[0]).RawSubject)}
	}
	q := cred.ChainQuestion{Chain: vector(t, "openssl/good-rsa2048"), Now: then, Method: ipsec.CertificateAuth{Trust: []string{"file:openssl/ca"}}}
	q.Identity = subject("openssl/good-rsa2048")
	verdict(t, p, q, "")
	q.Identity = subject("openssl/name-in-cn")
	verdict(t, p, q, pki.WhyIdentity)
	q.Identity.Data = ""
	verdict(t, p, q, pki.WhyIdentity)
	// The other encoding of the same name: strongSwan writes UTF8String where
	// openssl writes PrintableString.
	q.Identity = subject("strongswan/good-rsa-2048")
	verdict(t, p, q, "")

	q.Method.PeerIdentity = "O=Fleet, OU=Web"
	verdict(t, p, q, "")
	q.Method.PeerIdentity = "O=Fleet, OU=Database"
	verdict(t, p, q, pki.WhyPeerIdentity)
	q.Method.PeerIdentity = "*.fleet.example" // the certificate has such a name, but the peer is somebody else
	verdict(t, p, q, pki.WhyPeerIdentity)
	q.Identity = web
	verdict(t, p, q, "")
}

func TestRevocationVectors(t *testing.T) {
	const crlURL, ocspURL = "http://pki.fleet.example/ca.crl", "http://ocsp.fleet.example/"
	all := []string{"http://pki.fleet.example/", "http://ocsp.fleet.example"}
	for _, tt := range []struct {
		name, chain string
		local       []string
		crl, ocsp   string // what the servers have
		urls        []string
		hard        pki.Why // "" for accepted
		soft        pki.Why
	}{
		{"no source", "openssl/good-rsa2048", nil, "", "", all, pki.WhyStatusUnknown, ""},
		{"local CRL", "openssl/good-rsa2048", []string{"openssl/ca.crl"}, "", "", nil, "", ""},
		{"revoked by the local CRL", "openssl/revoked", []string{"openssl/ca.crl"}, "", "", nil, pki.WhyRevoked, pki.WhyRevoked},
		{"a local CRL that has ended says revoked", "openssl/revoked", []string{"openssl/ended.crl"}, "", "", nil, pki.WhyRevoked, pki.WhyRevoked},
		{"a local CRL that has ended says nothing", "openssl/with-urls", []string{"openssl/ended.crl"}, "", "", nil, pki.WhyStatusUnknown, ""},
		{"an older CRL", "openssl/revoked", []string{"openssl/empty.crl"}, "", "", nil, "", ""},
		{"an older and a newer CRL", "openssl/revoked", []string{"openssl/empty.crl", "openssl/ca.crl"}, "", "", nil, pki.WhyRevoked, pki.WhyRevoked},
		{"a CRL of the namesake", "openssl/with-urls", []string{"openssl/other.crl"}, "", "", nil, pki.WhyStatusUnknown, ""},
		{"a CRL signed with SHA-1", "openssl/with-urls", []string{"openssl/sha1.crl"}, "", "", nil, pki.WhyStatusUnknown, ""},

		{"fetched CRL", "openssl/with-urls", nil, "openssl/ca.crl", "", all, "", ""},
		{"revoked by the fetched CRL", "openssl/revoked", nil, "openssl/ca.crl", "", all, pki.WhyRevoked, pki.WhyRevoked},
		{"URLs that are not allowed", "openssl/revoked", nil, "openssl/ca.crl", "openssl/revoked.ocsp", nil, pki.WhyStatusUnknown, ""},
		{"other URLs are allowed", "openssl/revoked", nil, "openssl/ca.crl", "openssl/revoked.ocsp", []string{"http://pki.fleet.example.evil.example/", "http://pki.fleet.example/c", "https://ocsp.fleet.example/"}, pki.WhyStatusUnknown, ""},
		{"a fetched CRL of the namesake", "openssl/revoked", nil, "openssl/other.crl", "", all, pki.WhyStatusUnknown, ""},
		{"no CRL where it should be", "openssl/revoked", nil, "openssl/ca.pem", "", all, pki.WhyStatusUnknown, ""},

		{"OCSP by the authority", "openssl/with-urls", nil, "", "openssl/good-by-ca.ocsp", all, "", ""},
		{"OCSP by a responder", "openssl/with-urls", nil, "", "openssl/good-by-responder.ocsp", all, "", ""},
		{"revoked by OCSP", "openssl/revoked", nil, "", "openssl/revoked.ocsp", all, pki.WhyRevoked, pki.WhyRevoked},
		{"revoked by OCSP, the local CRL older", "openssl/revoked", []string{"openssl/empty.crl"}, "", "openssl/revoked.ocsp", all, pki.WhyRevoked, pki.WhyRevoked},
		{"OCSP away, the local CRL there", "openssl/with-urls", []string{"openssl/ca.crl"}, "", "", all, "", ""},
		{"OCSP by one that is no responder", "openssl/with-urls", nil, "", "openssl/by-not-responder.ocsp", all, pki.WhyStatusUnknown, ""},
		{"OCSP by a responder that has expired", "openssl/with-urls", nil, "", "openssl/by-old-responder.ocsp", all, pki.WhyStatusUnknown, ""},
		{"OCSP by a responder of the namesake", "openssl/with-urls", nil, "", "openssl/by-other-responder.ocsp", all, pki.WhyStatusUnknown, ""},
		{"OCSP about another certificate", "openssl/with-urls", nil, "", "openssl/revoked.ocsp", all, pki.WhyStatusUnknown, ""},
		{"OCSP about the namesake's certificate", "openssl/with-urls", nil, "", "openssl/other-authority.ocsp", all, pki.WhyStatusUnknown, ""},
		{"OCSP that has ended", "openssl/with-urls", nil, "", "openssl/ended.ocsp", all, pki.WhyStatusUnknown, ""},
		{"OCSP signed with SHA-1", "openssl/with-urls", nil, "", "openssl/sha1.ocsp", all, pki.WhyStatusUnknown, ""},
		{"no OCSP answer, and then the CRL", "openssl/revoked", nil, "openssl/ca.crl", "openssl/ca.pem", all, pki.WhyRevoked, pki.WhyRevoked},

		{"strongSwan's CRL", "strongswan/good-rsa-2048", []string{"strongswan/ca.crl"}, "", "", nil, "", ""},
		{"revoked by strongSwan's CRL", "strongswan/revoked", []string{"strongswan/ca.crl"}, "", "", nil, pki.WhyRevoked, pki.WhyRevoked},
		{"an intermediate and no CRL of it", "strongswan/good-intermediate", []string{"strongswan/ca.crl"}, "", "", nil, pki.WhyStatusUnknown, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := servers{}
			if tt.crl != "" {
				s[crlURL] = tt.crl
			}
			if tt.ocsp != "" {
				s[ocspURL] = tt.ocsp
			}
			dir, _, _ := strings.Cut(tt.chain, "/")
			q := cred.ChainQuestion{Chain: vector(t, tt.chain), Identity: web, Now: then,
				Method: ipsec.CertificateAuth{Trust: []string{"file:" + dir + "/ca"}, RevocationURLs: tt.urls, Revocation: ipsec.RevocationHard}}
			verdict(t, judge(anchors{t, tt.local}, s), q, tt.hard)
			q.Method.Revocation = ipsec.RevocationSoft
			p := judge(anchors{t, tt.local}, s)
			verdict(t, p, q, tt.soft)
			if soft := p.Stats().Soft == 1; soft != (tt.hard != tt.soft) {
				t.Errorf("%+v: a status that could not be had is counted only when it is passed over", p.Stats())
			}
			q.Method.Revocation = ipsec.RevocationNone
			verdict(t, judge(anchors{t, tt.local}, s), q, "")
		})
	}
}
