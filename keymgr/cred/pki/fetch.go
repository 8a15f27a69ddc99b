package pki

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path"
	"strings"
	"sync"
	"time"
)

var errCrowded = errors.New("too many CRLs or OCSP answers are being fetched; try again")

// maxOCSP bounds an OCSP answer, with a responder's certificate in it.
const maxOCSP = 64 << 10

// maxRedirects bounds how often a fetch is sent elsewhere, inside the list.
const maxRedirects = 3

// fetcher gets CRLs and OCSP answers from allowed URLs.
type fetcher struct {
	transport http.RoundTripper
	timeout   time.Duration
	slots     chan struct{}
	now       func() time.Time
	pause     time.Duration

	mu   sync.Mutex
	away map[string]time.Time // servers that did not answer, and until when they are left alone
}

// maxAway bounds the servers remembered.
const maxAway = 1024

func newFetcher(conf Config) *fetcher {
	t := conf.Transport
	if t == nil {
		t = &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DialContext:            (&net.Dialer{Timeout: conf.FetchTimeout}).DialContext,
			TLSHandshakeTimeout:    conf.FetchTimeout,
			MaxResponseHeaderBytes: 16 << 10,
			MaxIdleConnsPerHost:    2,
			IdleConnTimeout:        time.Minute,
			DisableCompression:     true, // a bound on what arrives is a bound on what is read
		}
	}
	return &fetcher{
		transport: t, timeout: conf.FetchTimeout, slots: make(chan struct{}, conf.Fetches),
		now: conf.Now, pause: conf.Retry, away: make(map[string]time.Time),
	}
}

// left reports that host did not answer a short while ago: many peers must not
// wait for it one after the other.
func (f *fetcher) left(host string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now().Before(f.away[host])
}

func (f *fetcher) leave(host string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.away) >= maxAway {
		clear(f.away)
	}
	f.away[host] = f.now().Add(f.pause)
}

// get fetches target, by POST when there is a body, within one deadline. The
// answer has at most limit octets.
func (f *fetcher) get(target string, body []byte, contentType string, allowed []string, limit int) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), f.timeout)
	defer cancel()
	select {
	case f.slots <- struct{}{}:
		defer func() { <-f.slots }()
	case <-ctx.Done():
		return nil, errCrowded
	}
	method := http.MethodGet
	if body != nil {
		method = http.MethodPost
	}
	req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return nil, errors.New("the URL cannot be read")
	}
	if f.left(req.URL.Host) {
		return nil, fmt.Errorf("%s did not answer lately and is left alone for a while", quote(req.URL.Host))
	}
	if body != nil {
		req.Header.Set("Content-Type", contentType)
	}
	client := http.Client{Transport: f.transport, CheckRedirect: func(req *http.Request, via []*http.Request) error {
		if len(via) > maxRedirects {
			return fmt.Errorf("more than %d redirects", maxRedirects)
		}
		if !allows(allowed, req.URL.String()) {
			return fmt.Errorf("it redirects to %s, which is not below certificate.revocationURLs", quote(req.URL.String()))
		}
		return nil
	}}
	resp, err := client.Do(req)
	if err != nil {
		f.leave(req.URL.Host)
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answered %d, want 200", quote(req.URL.Host), resp.StatusCode)
	}
	got, err := io.ReadAll(io.LimitReader(resp.Body, int64(limit)+1))
	if err != nil {
		f.leave(req.URL.Host)
		return nil, err
	}
	if len(got) > limit {
		return nil, fmt.Errorf("%s sent more than %d octets", quote(req.URL.Host), limit)
	}
	return got, nil
}

// allows reports whether target lies below one of the prefixes: the same scheme
// and authority, and a path that goes on where the prefix ends at a slash. What
// could be read in two ways is not allowed.
func allows(prefixes []string, target string) bool {
	u, ok := plainURL(target)
	if !ok {
		return false
	}
	for _, prefix := range prefixes {
		p, ok := plainURL(prefix)
		if !ok || u.Scheme != p.Scheme || !strings.EqualFold(u.Host, p.Host) {
			continue
		}
		base := strings.TrimSuffix(p.Path, "/")
		if u.Path == p.Path || u.Path == base || strings.HasPrefix(u.Path, base+"/") {
			return true
		}
	}
	return false
}

func plainURL(s string) (*url.URL, bool) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.Opaque != "" || u.Fragment != "" {
		return nil, false
	}
	if strings.ContainsAny(s, "\\\x00") || strings.Contains(strings.ToLower(u.EscapedPath()), "%2") {
		return nil, false // %2e and %2f among others
	}
	if u.Path != "" && path.Clean(u.Path) != strings.TrimSuffix(u.Path, "/") && u.Path != "/" {
		return nil, false
	}
	return u, true
}
