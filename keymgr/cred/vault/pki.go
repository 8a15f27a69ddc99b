package vault

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/testudo-ipsec/testudo/keymgr/cred"
)

// PKIOptions bound a PKI. The zero value is the defaults.
type PKIOptions struct {
	// Key is the kind of private keys, one of cred.KeyKinds: what the mount's
	// roles accept. Default ecdsa256.
	Key string
	// MaxStale is how long trust anchors are used after Vault last confirmed
	// them. Default 24 h.
	MaxStale time.Duration
	// Refresh is how often trust anchors and their CRLs are read, ±20 %. Default
	// 5 min.
	Refresh time.Duration
}

// PKI takes trust anchors and credentials from PKI mounts:
//
//	vault:pki/fleet                                trust: the authorities whose keys the mount holds, and their CRLs
//	vault:pki/fleet/ike#web-1.fleet.example        credential: a certificate for that name by the mount's role "ike"
//	vault:pki/fleet/ike#web-1.fleet.example,10.0.1.11
//
// A private key is made here and never leaves: Vault sees a request signed with it.
// A credential is replaced at two thirds of its certificate's life; until that
// succeeds the last one is used, to its end.
type PKI struct {
	v           *Vault
	opt         PKIOptions
	credentials *held[*cred.Credential]
	anchors     *held[*cred.Anchors]
}

// NewPKI makes a PKI over v. It does not ask Vault anything.
func NewPKI(v *Vault, opt PKIOptions) (*PKI, error) {
	opt.Key = or(opt.Key, cred.KeyKinds[0])
	if err := cred.CheckKeyKind(opt.Key); err != nil {
		return nil, fmt.Errorf("vault: %w", err)
	}
	if opt.MaxStale <= 0 {
		opt.MaxStale = 24 * time.Hour
	}
	if opt.Refresh <= 0 {
		opt.Refresh = 5 * time.Minute
	}
	p := &PKI{v: v, opt: opt}
	p.credentials = newHeld("a certificate", v, p.sign)
	p.anchors = newHeld("trust anchors", v, p.readAnchors)
	return p, nil
}

func newHeld[T any](what string, v *Vault, ask func(context.Context, string) (T, term, error)) *held[T] {
	return &held[T]{what: what, now: v.conf.Now, log: v.conf.Log, max: maxHeld, ask: ask, byRef: make(map[string]*holding[T])}
}

// Format keeps every verb from reaching the keys.
func (p *PKI) Format(f fmt.State, _ rune) { _, _ = fmt.Fprintf(f, "[certificates of %v]", p.v) }

// Run replaces what comes to its end until ctx ends. Without it, things are
// replaced when they are used.
func (p *PKI) Run(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { p.credentials.run(ctx, time.Second) })
	wg.Go(func() { p.anchors.run(ctx, p.opt.Refresh/10) })
	wg.Wait()
}

// Stats returns the counters of credentials and of trust anchors.
func (p *PKI) Stats() (credentials, anchors HeldStats) {
	return p.credentials.count(), p.anchors.count()
}

// Credential returns a key and the certificate that Vault signed for it.
func (p *PKI) Credential(ctx context.Context, ref string) (*cred.Credential, error) {
	if err := ctx.Err(); err != nil {
		return nil, cred.Errorf(cred.Unavailable, ref, "not asked for: %w", err)
	}
	if _, err := locateRole(ref); err != nil {
		return nil, err
	}
	return p.credentials.get(ctx, ref)
}

// Anchors returns the authorities of a mount and their CRLs.
func (p *PKI) Anchors(ctx context.Context, ref string) (*cred.Anchors, error) {
	if err := ctx.Err(); err != nil {
		return nil, cred.Errorf(cred.Unavailable, ref, "not asked for: %w", err)
	}
	if _, err := locateMount(ref); err != nil {
		return nil, err
	}
	return p.anchors.get(ctx, ref)
}

// role is a reference to a certificate to be had.
type role struct {
	mount, name string
	dns, emails []string
	addrs       []net.IP
}

func locateRole(ref string) (role, error) {
	r, err := cred.ParseRef(ref)
	if err != nil {
		return role{}, err
	}
	i := strings.LastIndexByte(r.Path, '/')
	if r.Scheme != cred.SchemeVault || i < 0 || r.Field == "" {
		return role{}, cred.Errorf(cred.Invalid, ref, "want vault:MOUNT/ROLE#NAME with the names that the certificate is for, such as vault:pki/ike#web-1.fleet.example,10.0.1.11")
	}
	out := role{mount: r.Path[:i], name: r.Path[i+1:]}
	for name := range strings.SplitSeq(r.Field, ",") {
		addr, err := netip.ParseAddr(name)
		switch {
		case name == "":
			return role{}, cred.Errorf(cred.Invalid, ref, "a name after # is empty")
		case err == nil:
			out.addrs = append(out.addrs, addr.AsSlice())
		case strings.Contains(name, "@"):
			out.emails = append(out.emails, name)
		default:
			out.dns = append(out.dns, name)
		}
	}
	return out, nil
}

func locateMount(ref string) (string, error) {
	r, err := cred.ParseRef(ref)
	if err != nil {
		return "", err
	}
	if r.Scheme != cred.SchemeVault || r.Field != "" {
		return "", cred.Errorf(cred.Invalid, ref, "want vault:MOUNT, a mount of the PKI secrets engine, such as vault:pki/fleet")
	}
	return r.Path, nil
}

// sign makes a key and has it certified.
func (p *PKI) sign(ctx context.Context, ref string) (*cred.Credential, term, error) {
	at, err := locateRole(ref)
	if err != nil {
		return nil, term{}, err
	}
	key, err := cred.GenerateKey(p.opt.Key)
	if err != nil {
		return nil, term{}, cred.Errorf(cred.Unavailable, ref, "making a key: %w", err)
	}
	names := slices.Concat(at.dns, at.emails)
	var subject pkix.Name
	if len(names) > 0 {
		subject.CommonName = names[0]
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: subject, DNSNames: at.dns, EmailAddresses: at.emails, IPAddresses: at.addrs,
	}, key)
	if err != nil {
		return nil, term{}, cred.Errorf(cred.Invalid, ref, "the names after # cannot be in a certificate: %w", err)
	}
	var addrs []string
	for _, a := range at.addrs {
		addrs = append(addrs, a.String())
	}
	body, err := json.Marshal(map[string]any{
		"csr":         string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})),
		"common_name": subject.CommonName, "alt_names": strings.Join(names, ","), "ip_sans": strings.Join(addrs, ","), "format": "pem",
	})
	if err != nil {
		return nil, term{}, cred.Errorf(cred.Invalid, ref, "%w", err)
	}
	var answer struct {
		Data struct {
			Certificate string   `json:"certificate"`
			IssuingCA   string   `json:"issuing_ca"`
			Chain       []string `json:"ca_chain"`
		} `json:"data"`
	}
	path := at.mount + "/sign/" + at.name
	err = p.v.do(ctx, ref, func(ctx context.Context, c *api.Client) error {
		resp, err := c.Logical().WriteRawWithContext(ctx, path, body)
		return take(resp, err, path, &answer)
	})
	if err != nil {
		return nil, term{}, permission(err, "update on "+path)
	}
	above := answer.Data.Chain
	if len(above) == 0 {
		above = []string{answer.Data.IssuingCA}
	}
	chain, err := cred.ParseChain(ref, []byte(strings.Join(append([]string{answer.Data.Certificate}, above...), "\n")))
	if err != nil {
		return nil, term{}, err
	}
	c, err := cred.NewCredential(ref, chain, key)
	if err != nil {
		return nil, term{}, err
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, term{}, cred.Errorf(cred.Invalid, ref, "%w", err)
	}
	if missing := at.missing(leaf); len(missing) > 0 {
		return nil, term{}, cred.Errorf(cred.Invalid, ref, "Vault signed a certificate without %s: set use_csr_sans, allow_ip_sans and the domains of the role %s/roles/%s", strings.Join(missing, ", "), at.mount, at.name)
	}
	now := p.v.conf.Now()
	life := leaf.NotAfter.Sub(now)
	if life <= 0 {
		return nil, term{}, cred.Errorf(cred.Invalid, ref, "Vault signed a certificate that ended at %s: are the clocks right?", leaf.NotAfter)
	}
	// Two thirds and a little before or after.
	renew := life*2/3 - life/12 + mathrand.N(life/6+1)
	return c, term{renew: now.Add(renew), ends: leaf.NotAfter}, nil
}

// missing lists the names that a certificate does not have.
func (r role) missing(c *x509.Certificate) (out []string) {
	for _, n := range r.dns {
		if !slices.ContainsFunc(c.DNSNames, func(s string) bool { return strings.EqualFold(s, n) }) {
			out = append(out, n)
		}
	}
	for _, n := range r.emails {
		if !slices.ContainsFunc(c.EmailAddresses, func(s string) bool { return strings.EqualFold(s, n) }) {
			out = append(out, n)
		}
	}
	for _, a := range r.addrs {
		if !slices.ContainsFunc(c.IPAddresses, a.Equal) {
			out = append(out, a.String())
		}
	}
	return out
}

// readAnchors reads the authorities whose private keys a mount holds. Those that it
// only knows, a root above above all, may have certified others: a policy that
// trusts a mount does not trust them.
func (p *PKI) readAnchors(ctx context.Context, ref string) (*cred.Anchors, term, error) {
	mount, err := locateMount(ref)
	if err != nil {
		return nil, term{}, err
	}
	var list struct {
		Data struct {
			Keys []string `json:"keys"`
			Info map[string]struct {
				KeyID string `json:"key_id"`
			} `json:"key_info"`
		} `json:"data"`
	}
	if err := p.read(ctx, ref, mount+"/issuers", url.Values{"list": {"true"}}, &list); err != nil {
		return nil, term{}, permission(err, "list on "+mount+"/issuers")
	}
	var text []string
	for _, id := range list.Data.Keys {
		if list.Data.Info[id].KeyID == "" {
			continue
		}
		if len(text) >= 2*cred.MaxAnchors {
			return nil, term{}, cred.Errorf(cred.Invalid, ref, "the mount has more than %d authorities", cred.MaxAnchors)
		}
		if strings.ContainsAny(id, "/?#%") || id == "." || id == ".." { // not Vault's, which are UUIDs
			return nil, term{}, cred.Errorf(cred.Invalid, ref, "%w", errNotVault)
		}
		var issuer struct {
			Data struct {
				Certificate string `json:"certificate"`
			} `json:"data"`
		}
		var crl struct {
			Data struct {
				CRL string `json:"crl"`
			} `json:"data"`
		}
		if err := p.read(ctx, ref, mount+"/issuer/"+id+"/json", nil, &issuer); err != nil {
			return nil, term{}, permission(err, "read on "+mount+"/issuer/+/json")
		}
		text = append(text, issuer.Data.Certificate)
		// An authority that may not sign CRLs has none.
		if err := p.read(ctx, ref, mount+"/issuer/"+id+"/crl", nil, &crl); err == nil {
			text = append(text, crl.Data.CRL)
		} else if cred.Retryable(err) {
			return nil, term{}, err
		}
	}
	if len(text) == 0 {
		return nil, term{}, cred.Errorf(cred.NotFound, ref, "the mount %s has no authority with a private key; make one, or name the mount that issues", mount)
	}
	a, err := cred.ParseAnchors(ref, []byte(strings.Join(text, "\n")))
	if err != nil {
		return nil, term{}, err
	}
	now := p.v.conf.Now()
	return a, term{renew: now.Add(jitter(p.opt.Refresh)), ends: now.Add(p.opt.MaxStale)}, nil
}

// read reads a path of a mount into out.
func (p *PKI) read(ctx context.Context, ref, path string, query url.Values, out any) error {
	return p.v.do(ctx, ref, func(ctx context.Context, c *api.Client) error {
		resp, err := c.Logical().ReadRawWithDataWithContext(ctx, path, query)
		return take(resp, err, path, out)
	})
}

// take reads an answer from path into out.
func take(resp *api.Response, err error, path string, out any) error {
	if resp != nil {
		defer resp.Body.Close()
	}
	if resp != nil && resp.Request != nil && !strings.HasSuffix(resp.Request.URL.Path, "/v1/"+path) {
		return errNotVault // redirected to something else: a login page
	}
	if err != nil {
		return withRetryAfter(resp, err)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 2*cred.MaxCRL))
	if err != nil {
		return err
	}
	if json.Unmarshal(body, out) != nil {
		return errNotVault
	}
	return nil
}

// permission says which one is missing, when one is.
func permission(err error, want string) error {
	if e, ok := errors.AsType[*cred.Error](err); ok && e.Kind == cred.Denied && strings.HasSuffix(e.Why, kvAdvice) {
		return &cred.Error{Kind: e.Kind, Ref: e.Ref, Err: e.Err, Why: strings.TrimSuffix(e.Why, kvAdvice) + ": the token's policies must allow " + want}
	}
	return err
}

// jitter spreads d by ±20 %, so that a fleet does not ask in step.
func jitter(d time.Duration) time.Duration {
	return d - d/5 + mathrand.N(2*d/5+1)
}
