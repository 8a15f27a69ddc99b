package pki

import (
	"context"
	"crypto"
	"crypto/sha1" // RFC 7296 §3.7 names it; nothing depends on its strength
	"crypto/x509"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/testudo-ipsec/testudo/keymgr/cred"
)

// Store holds trust anchors and credentials behind references of one scheme. Its
// methods may be called often: a store keeps what is costly to get or to parse.
// What it returns is shared and never changes.
type Store interface { // static.Store and vault.PKI are two
	Anchors(ctx context.Context, ref string) (*cred.Anchors, error)
	Credential(ctx context.Context, ref string) (*cred.Credential, error)
}

// Config is what a PKI needs and its bounds. Zero bounds take the default
// written behind them.
type Config struct {
	Stores map[string]Store // by scheme
	Log    *slog.Logger     // slog.Default
	Now    func() time.Time // the clock of caches; time.Now

	Transport    http.RoundTripper // for CRLs and OCSP; one of its own
	FetchTimeout time.Duration     // of one CRL or OCSP answer: 2 s
	Fetches      int               // concurrent ones: 16
	MaxAnswers   int               // OCSP answers kept: 8192
	MaxCRLs      int               // fetched CRLs kept: 32
	MaxFresh     time.Duration     // an answer is asked for again after this, even if it says that it lasts longer: 24 h
	Retry        time.Duration     // a failed fetch is not tried again before: 30 s
}

func (c *Config) setDefaults() {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	setDefault(&c.FetchTimeout, 2*time.Second)
	setDefault(&c.Fetches, 16)
	setDefault(&c.MaxAnswers, 8192)
	setDefault(&c.MaxCRLs, 32)
	setDefault(&c.MaxFresh, 24*time.Hour)
	setDefault(&c.Retry, 30*time.Second)
}

func setDefault[T int | time.Duration](v *T, def T) {
	if *v <= 0 {
		*v = def
	}
}

// PKI implements cred.Certificates over stores. It is safe for concurrent use.
type PKI struct {
	conf    Config
	fetcher *fetcher
	answers *answers[answerKey, *answer] // of OCSP
	crls    *answers[crlKey, *crl]

	mu    sync.Mutex
	pools map[string]*pool // by the references of trust, joined
	stats Stats
}

// Stats counts what a PKI did since it was made.
type Stats struct {
	Accepted uint64
	Refused  map[Why]uint64
	Soft     uint64 // accepted although the status could not be had
	Fetches  uint64 // of CRLs and OCSP answers
	Failures uint64 // of those, without a usable answer
	Hits     uint64 // answers served from memory
	Answers  int    // OCSP answers kept now
	CRLs     int    // fetched CRLs kept now
}

// New makes a PKI.
func New(conf Config) *PKI {
	conf.setDefaults()
	return &PKI{
		conf:    conf,
		fetcher: newFetcher(conf),
		answers: newAnswers[answerKey, *answer](conf.MaxAnswers, conf),
		crls:    newAnswers[crlKey, *crl](conf.MaxCRLs, conf),
		pools:   make(map[string]*pool),
		stats:   Stats{Refused: make(map[Why]uint64)},
	}
}

// Stats returns the counters.
func (p *PKI) Stats() Stats {
	p.mu.Lock()
	s := p.stats
	s.Refused = maps.Clone(s.Refused)
	p.mu.Unlock()
	for _, count := range []func() (uint64, uint64, uint64, int){p.answers.count, p.crls.count} {
		fetches, failures, hits, _ := count()
		s.Fetches, s.Failures, s.Hits = s.Fetches+fetches, s.Failures+failures, s.Hits+hits
	}
	_, _, _, s.Answers = p.answers.count()
	_, _, _, s.CRLs = p.crls.count()
	return s
}

// Credential implements cred.Certificates. One that has ended is refused here,
// where its operator sees it, and not by every peer.
func (p *PKI) Credential(ctx context.Context, ref string) (*cred.Credential, error) {
	s, err := p.store(ref)
	if err != nil {
		return nil, err
	}
	c, err := s.Credential(ctx, ref)
	if err != nil {
		return nil, err
	}
	if now := p.conf.Now(); now.After(c.NotAfter) {
		return nil, cred.Errorf(cred.Invalid, ref, "our own certificate ended at %s, and it is %s: renew it, or set the clock", stamp(c.NotAfter), stamp(now))
	}
	return c, nil
}

func (p *PKI) store(ref string) (Store, error) {
	parsed, err := cred.ParseRef(ref)
	if err != nil {
		return nil, err
	}
	s, ok := p.conf.Stores[parsed.Scheme]
	if !ok {
		have := strings.Join(slices.Sorted(maps.Keys(p.conf.Stores)), ", ")
		return nil, cred.Errorf(cred.Invalid, ref, "this key manager is not configured for %s: references (it has: %s)", parsed.Scheme, have)
	}
	return s, nil
}

// Authorities implements cred.Certificates.
func (p *PKI) Authorities(ctx context.Context, trust []string) ([][20]byte, error) {
	pool, err := p.pool(ctx, trust)
	if err != nil {
		return nil, err
	}
	return pool.authorities, nil
}

// pool is what stands behind a list of trust references.
type pool struct {
	from        []*cred.Anchors // what it was made from, to see that it changed
	roots       *x509.CertPool
	authorities [][20]byte
	crls        []*crl
}

// maxPools bounds the pools kept: one for each list of trust in the policies.
const maxPools = 256

// pool returns the anchors behind references. One reference that is out of reach
// does not hide another.
func (p *PKI) pool(ctx context.Context, trust []string) (*pool, error) {
	var from []*cred.Anchors
	var errs []error
	for _, ref := range trust {
		s, err := p.store(ref)
		var a *cred.Anchors
		if err == nil {
			a, err = s.Anchors(ctx, ref)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		from = append(from, a)
	}
	if len(from) == 0 {
		err := errors.Join(errs...)
		if err == nil {
			return nil, refuse(WhyNoAnchor, "the policy names none; give certificate.trust a reference such as file:fleet-ca.pem")
		}
		e := refuse(WhyNoAnchor, "%v", err)
		e.Kind, e.Err = cred.KindOf(err), errors.Join(WhyNoAnchor, err)
		return nil, e
	}
	key := strings.Join(trust, " ")
	p.mu.Lock()
	defer p.mu.Unlock()
	if have := p.pools[key]; have != nil && slices.Equal(have.from, from) {
		return have, nil
	}
	made := &pool{from: from, roots: x509.NewCertPool()}
	for _, a := range from {
		for _, cert := range a.Certificates {
			made.roots.AddCert(cert)
			if h := sha1.Sum(cert.RawSubjectPublicKeyInfo); !slices.Contains(made.authorities, h) {
				made.authorities = append(made.authorities, h)
			}
		}
		for _, list := range a.CRLs {
			made.crls = append(made.crls, newCRL(list))
		}
	}
	if len(p.pools) >= maxPools {
		clear(p.pools)
	}
	p.pools[key] = made
	return made, nil
}

// Verify implements cred.Certificates.
func (p *PKI) Verify(ctx context.Context, q cred.ChainQuestion) (crypto.PublicKey, error) {
	key, soft, err := p.verify(ctx, q)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		if why, ok := errors.AsType[Why](err); ok {
			p.stats.Refused[why]++
		}
		return nil, err
	}
	p.stats.Accepted++
	if soft {
		p.stats.Soft++
	}
	return key, nil
}

func (p *PKI) verify(ctx context.Context, q cred.ChainQuestion) (key crypto.PublicKey, soft bool, err error) {
	certs, err := parseChain(q.Chain)
	if err != nil {
		return nil, false, err
	}
	anchors, err := p.pool(ctx, q.Method.Trust)
	if err != nil {
		return nil, false, err
	}
	chains, err := verifyChain(certs, anchors.roots, q.Now)
	if err != nil {
		return nil, false, err
	}
	leaf := certs[0]
	if err := checkIdentity(leaf, q.Identity, q.Method.PeerIdentity); err != nil {
		return nil, false, err
	}
	// Any chain will do: an authority may be cross-signed, and one of the
	// signatures revoked.
	var first error
	for _, chain := range chains {
		soft, err := p.checkRevocation(ctx, chain, anchors.crls, q)
		if err == nil {
			return leaf.PublicKey, soft, nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, false, first
}
