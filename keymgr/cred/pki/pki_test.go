package pki_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/cred"
	"github.com/testudo-ipsec/testudo/keymgr/cred/pki"
)

func parse(t testing.TB, der []byte) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// authority is a CA whose certificates name a server for their status.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	url  string
	n    int64
}

func newAuthority(t testing.TB, url string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, NotBefore: then.Add(-time.Hour), NotAfter: then.Add(1000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	must(t, err)
	return &authority{cert: parse(t, der), key: key, url: url, n: 1}
}

// issue makes a certificate for web.
func (a *authority) issue(t testing.TB) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	a.n++
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(a.n), Subject: pkix.Name{CommonName: "leaf"}, NotBefore: then.Add(-time.Hour), NotAfter: then.Add(1000 * time.Hour),
		DNSNames: []string{web.Data}, OCSPServer: []string{a.url},
	}, a.cert, key.Public(), a.key)
	must(t, err)
	return parse(t, der)
}

// answer is an OCSP answer about the serial number in a request.
func (a *authority) answer(t testing.TB, request []byte, status int, life time.Duration) []byte {
	t.Helper()
	req, err := ocsp.ParseRequest(request)
	must(t, err)
	der, err := ocsp.CreateResponse(a.cert, a.cert, ocsp.Response{Status: status, SerialNumber: req.SerialNumber, ThisUpdate: then, NextUpdate: then.Add(life)}, a.key)
	must(t, err)
	return der
}

// Anchors and Credential make an authority a store of itself.
func (a *authority) Anchors(context.Context, string) (*cred.Anchors, error) {
	return &cred.Anchors{Certificates: []*x509.Certificate{a.cert}}, nil
}

func (a *authority) Credential(_ context.Context, ref string) (*cred.Credential, error) {
	return &cred.Credential{Chain: [][]byte{[]byte(ref)}, NotAfter: then}, nil
}

func (a *authority) question(leaf *x509.Certificate) cred.ChainQuestion {
	return cred.ChainQuestion{Chain: [][]byte{leaf.Raw}, Identity: web, Now: then, Method: ipsec.CertificateAuth{
		Trust: []string{"file:ca"}, Revocation: ipsec.RevocationHard, RevocationURLs: []string{a.url}}}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// responder answers every request at once, until it is told otherwise.
type responder struct {
	t     testing.TB
	a     *authority
	life  time.Duration
	asked atomic.Int32
	away  atomic.Bool
	wait  chan struct{} // an answer waits for it when not nil
}

func (r *responder) RoundTrip(req *http.Request) (*http.Response, error) {
	r.asked.Add(1)
	if r.wait != nil {
		select {
		case <-r.wait:
		case <-req.Context().Done():
			return nil, req.Context().Err()
		}
	}
	if r.away.Load() {
		return nil, errors.New("no route to host")
	}
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader(string(r.a.answer(r.t, body, ocsp.Good, r.life)))), Request: req}, nil
}

func TestAnAnswerIsKeptUntilItEndsAndNoLonger(t *testing.T) {
	a := newAuthority(t, "http://ocsp.example/")
	r := &responder{t: t, a: a, life: time.Hour}
	now := then
	p := pki.New(pki.Config{Stores: map[string]pki.Store{"file": a}, Transport: r, Now: func() time.Time { return now }})
	q := a.question(a.issue(t))
	verdict(t, p, q, "")
	verdict(t, p, q, "")
	now, q.Now = now.Add(59*time.Minute), q.Now.Add(59*time.Minute)
	verdict(t, p, q, "")
	if n := r.asked.Load(); n != 1 {
		t.Errorf("asked %d times for one answer", n)
	}
	// The responder gives the same old answer: it is asked, and not believed.
	now, q.Now = now.Add(2*time.Minute), q.Now.Add(2*time.Minute)
	verdict(t, p, q, pki.WhyStatusUnknown)
	verdict(t, p, q, pki.WhyStatusUnknown)
	if n := r.asked.Load(); n != 2 {
		t.Errorf("asked %d times, want once more after the answer's end", n)
	}
	if s := p.Stats(); s.Hits != 3 || s.Fetches != 2 || s.Answers != 1 {
		t.Errorf("got %+v", s)
	}
}

func TestWhoWantsTheSameAnswerSharesOneQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t, "http://ocsp.example/")
		r := &responder{t: t, a: a, life: time.Hour, wait: make(chan struct{})}
		p := pki.New(pki.Config{Stores: map[string]pki.Store{"file": a}, Transport: r, Now: func() time.Time { return then }})
		q := a.question(a.issue(t))
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() { verdict(t, p, q, "") })
		}
		gone, leave := context.WithCancel(t.Context())
		wg.Go(func() {
			if _, err := p.Verify(gone, q); !errors.Is(err, pki.WhyStatusUnknown) {
				t.Errorf("who left got %v", err)
			}
		})
		synctest.Wait()
		leave() // takes nothing from the others
		synctest.Wait()
		close(r.wait)
		wg.Wait()
		if n := r.asked.Load(); n != 1 {
			t.Errorf("%d questions for 51 callers", n)
		}
	})
}

func TestAServerThatIsAwayIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t, "http://ocsp.example/")
		r := &responder{t: t, a: a, life: time.Hour, wait: make(chan struct{})} // never answers
		p := pki.New(pki.Config{Stores: map[string]pki.Store{"file": a}, Transport: r, Now: func() time.Time { return then.Add(time.Since(epoch)) }})
		began := time.Now()
		verdict(t, p, a.question(a.issue(t)), pki.WhyStatusUnknown)
		if took := time.Since(began); took != 2*time.Second {
			t.Errorf("took %s, want the timeout", took)
		}
		for range 20 { // other peers do not wait for it
			verdict(t, p, a.question(a.issue(t)), pki.WhyStatusUnknown)
		}
		if took := time.Since(began); took != 2*time.Second || r.asked.Load() != 1 {
			t.Errorf("20 more took %s, and %d questions", took-2*time.Second, r.asked.Load())
		}
		close(r.wait)
		time.Sleep(time.Minute) // in the bubble
		verdict(t, p, a.question(a.issue(t)), "")
	})
}

// halfway sends the head of an answer, and never its body.
type halfway struct{ asked atomic.Int32 }

func (h *halfway) RoundTrip(req *http.Request) (*http.Response, error) {
	h.asked.Add(1)
	return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(untilDone{req.Context()}), Request: req}, nil
}

type untilDone struct{ context.Context }

func (u untilDone) Read([]byte) (int, error) {
	<-u.Done()
	return 0, u.Err()
}

func TestAServerThatStopsHalfwayIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t, "http://ocsp.example/")
		h := &halfway{}
		p := pki.New(pki.Config{Stores: map[string]pki.Store{"file": a}, Transport: h, Now: func() time.Time { return then.Add(time.Since(epoch)) }})
		began := time.Now()
		for range 20 {
			verdict(t, p, a.question(a.issue(t)), pki.WhyStatusUnknown)
		}
		if took := time.Since(began); took != 2*time.Second || h.asked.Load() != 1 {
			t.Errorf("20 peers took %s and %d questions, want the one timeout of the first", took, h.asked.Load())
		}
	})
}

// epoch is when synctest's clocks begin.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

func TestNothingIsFetchedForAChainThatIsNotVerified(t *testing.T) {
	a, mallory := newAuthority(t, "http://ocsp.example/"), newAuthority(t, "http://ocsp.example/")
	r := &responder{t: t, a: a, life: time.Hour}
	p := pki.New(pki.Config{Stores: map[string]pki.Store{"file": a}, Transport: r, Now: func() time.Time { return then }})
	verdict(t, p, a.question(mallory.issue(t)), pki.WhyUnknownAuthority)
	stranger := a.question(a.issue(t))
	stranger.Identity.Data = "other.fleet.example"
	verdict(t, p, stranger, pki.WhyIdentity)
	stranger = a.question(a.issue(t))
	stranger.Method.PeerIdentity = "*.other.example"
	verdict(t, p, stranger, pki.WhyPeerIdentity)
	if n := r.asked.Load(); n != 0 {
		t.Errorf("%d questions", n)
	}
}

func TestAnswersKeptAreBounded(t *testing.T) {
	a := newAuthority(t, "http://ocsp.example/")
	r := &responder{t: t, a: a, life: time.Hour}
	p := pki.New(pki.Config{Stores: map[string]pki.Store{"file": a}, Transport: r, Now: func() time.Time { return then }, MaxAnswers: 8})
	for range 20 {
		verdict(t, p, a.question(a.issue(t)), "")
	}
	if s := p.Stats(); s.Answers != 8 || s.Fetches != 20 {
		t.Errorf("got %+v", s)
	}
}

func TestRedirectsAndLargeAnswers(t *testing.T) {
	a := newAuthority(t, "")
	var inside, outside string
	mux := http.NewServeMux()
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		t.Error("the fetch was led out of the list")
	}))
	defer elsewhere.Close()
	srv := httptest.NewServer(mux)
	defer srv.Close()
	inside, outside = srv.URL+"/ocsp/real", elsewhere.URL+"/ocsp/"
	good := func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = w.Write(a.answer(t, body, ocsp.Good, time.Hour))
	}
	mux.HandleFunc("/ocsp/real", good)
	mux.HandleFunc("/ocsp/in", func(w http.ResponseWriter, req *http.Request) {
		http.Redirect(w, req, inside, http.StatusTemporaryRedirect)
	})
	mux.HandleFunc("/ocsp/out", func(w http.ResponseWriter, req *http.Request) {
		http.Redirect(w, req, outside, http.StatusTemporaryRedirect)
	})
	mux.HandleFunc("/ocsp/up", func(w http.ResponseWriter, req *http.Request) {
		http.Redirect(w, req, "/secret", http.StatusTemporaryRedirect)
	})
	mux.HandleFunc("/secret", func(http.ResponseWriter, *http.Request) { t.Error("the fetch was led above the list") })
	mux.HandleFunc("/ocsp/loop", func(w http.ResponseWriter, req *http.Request) { http.Redirect(w, req, "/ocsp/loop", http.StatusFound) })
	mux.HandleFunc("/ocsp/large", func(w http.ResponseWriter, req *http.Request) { _, _ = w.Write(make([]byte, 1<<20)) })
	mux.HandleFunc("/ocsp/error", func(w http.ResponseWriter, req *http.Request) { w.WriteHeader(http.StatusTeapot) })
	for path, why := range map[string]pki.Why{
		"/ocsp/real": "", "/ocsp/in": "", "/ocsp/out": pki.WhyStatusUnknown, "/ocsp/up": pki.WhyStatusUnknown,
		"/ocsp/loop": pki.WhyStatusUnknown, "/ocsp/large": pki.WhyStatusUnknown, "/ocsp/error": pki.WhyStatusUnknown,
	} {
		t.Run(path, func(t *testing.T) {
			a.url = srv.URL + path
			p := pki.New(pki.Config{Stores: map[string]pki.Store{"file": a}, Now: func() time.Time { return then }})
			q := a.question(a.issue(t))
			q.Method.RevocationURLs = []string{srv.URL + "/ocsp/"}
			verdict(t, p, q, why)
		})
	}
}

func TestBoundsOfAChain(t *testing.T) {
	a := newAuthority(t, "http://ocsp.example/")
	p := pki.New(pki.Config{Stores: map[string]pki.Store{"file": a}})
	q := a.question(a.issue(t))
	q.Method.Revocation = ipsec.RevocationNone
	verdict(t, p, q, "")
	leaf := q.Chain[0]
	for range 7 {
		q.Chain = append(q.Chain, leaf)
	}
	verdict(t, p, q, "")
	q.Chain = append(q.Chain, leaf)
	verdict(t, p, q, pki.WhyTooMany)
	q.Chain = [][]byte{leaf, make([]byte, 32<<10)}
	verdict(t, p, q, pki.WhyTooMany)
	q.Chain = [][]byte{leaf, leaf[:100]}
	verdict(t, p, q, pki.WhyMalformed)
	q.Chain = [][]byte{append(slices.Clone(leaf), 0)}
	verdict(t, p, q, pki.WhyMalformed)
	q.Chain = nil
	verdict(t, p, q, pki.WhyMalformed)
	q.Chain, q.Method.Trust = [][]byte{leaf}, nil
	verdict(t, p, q, pki.WhyNoAnchor)
	q.Method.Trust = []string{"vault:pki", "ftp:x"}
	verdict(t, p, q, pki.WhyNoAnchor)
	q.Method.Trust = []string{"vault:pki", "file:ca"} // one that is out of reach does not hide another
	verdict(t, p, q, "")
}

func TestAuthoritiesAreDigestsOfTheirKeys(t *testing.T) {
	p := judge(anchors{t: t}, servers{})
	got, err := p.Authorities(t.Context(), []string{"file:openssl/ca", "file:strongswan/ca", "file:openssl/ca"})
	if err != nil || len(got) != 2 {
		t.Fatalf("got %d, %v", len(got), err)
	}
	h := crypto.SHA1.New()
	h.Write(parse(t, vector(t, "openssl/ca")[0]).RawSubjectPublicKeyInfo)
	if string(h.Sum(nil)) != string(got[0][:]) {
		t.Error("not the SHA-1 of the SubjectPublicKeyInfo (RFC 7296 §3.7)")
	}
}

func TestACredentialComesFromTheStoreOfItsScheme(t *testing.T) {
	a := newAuthority(t, "")
	now := then
	p := pki.New(pki.Config{Stores: map[string]pki.Store{"file": a}, Now: func() time.Time { return now }})
	if c, err := p.Credential(t.Context(), "file:web-1"); err != nil || string(c.Chain[0]) != "file:web-1" {
		t.Errorf("got %v, %v", c, err)
	}
	for _, ref := range []string{"vault:pki/x", "x", ""} {
		if _, err := p.Credential(t.Context(), ref); cred.KindOf(err) != cred.Invalid {
			t.Errorf("%q: got %v", ref, err)
		}
	}
	now = now.Add(time.Second)
	if _, err := p.Credential(t.Context(), "file:web-1"); cred.KindOf(err) != cred.Invalid || !strings.Contains(err.Error(), "renew") {
		t.Errorf("a credential that has ended: got %v", err)
	}
}

func BenchmarkVerify(b *testing.B) {
	for _, name := range []string{"openssl/good-prime256v1", "openssl/good-intermediate", "openssl/good-rsa2048"} {
		b.Run(name, func(b *testing.B) {
			a := anchors{t: b}
			ca, err := a.Anchors(b.Context(), "file:openssl/ca")
			must(b, err)
			p := pki.New(pki.Config{Stores: map[string]pki.Store{"file": fixed{ca}}})
			q := cred.ChainQuestion{Chain: vector(b, name), Identity: web, Now: then, Method: ipsec.CertificateAuth{Trust: []string{"file:ca"}}}
			for b.Loop() {
				if _, err := p.Verify(b.Context(), q); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

type fixed struct{ a *cred.Anchors }

func (f fixed) Anchors(context.Context, string) (*cred.Anchors, error)       { return f.a, nil }
func (f fixed) Credential(context.Context, string) (*cred.Credential, error) { return nil, nil }
