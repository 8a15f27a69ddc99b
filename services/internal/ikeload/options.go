package ikeload

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/cred"
)

// Bounds of a run.
const (
	MaxCount       = 1_000_000
	MaxConcurrency = 10_000
	MaxRate        = 100_000
	MaxSources     = 16_384
	MaxTime        = time.Hour
)

// Options say what to set up and with whom.
type Options struct {
	To   netip.AddrPort // the responder; on port 4500 with the non-ESP marker
	From []netip.Addr   // source addresses, used in turn; none for the one that the route has

	LocalID  string // %d stands for the number of the source address, counting from 0
	RemoteID string

	// Both ends prove themselves with a preshared key, or with certificates.
	PSK          ipsec.Secret
	Certificates cred.Certificates
	Credential   string // reference of our key and chain; %d as in LocalID
	Trust        string // reference of the responder's authorities

	IKE       ipsec.Proposal
	ESP       ipsec.Proposal
	Transport bool         // transport mode instead of tunnel mode
	LocalTS   netip.Prefix // zero for the source address
	RemoteTS  netip.Prefix // zero for the responder's address

	Count       int           // IKE SAs, each with one CHILD SA
	Concurrency int           // of these, being set up at a time
	Rate        int           // set-ups begun in a second; 0 for as many as Concurrency lets
	Time        time.Duration // no new ones after this
	Timeout     time.Duration // one that takes longer has failed
	Hold        time.Duration // keep all until this long after the last, then delete; 0 to delete each at once

	// Settled, when set, is called once when all are set up, before Hold begins.
	Settled func(Report)
}

// Check refuses what cannot be run.
func (o *Options) Check() error {
	bad := func(format string, args ...any) error { return fmt.Errorf(format, args...) }
	switch {
	case !o.To.IsValid() || o.To.Port() == 0 || o.To.Addr().IsUnspecified() || o.To.Addr().IsMulticast():
		return bad("responder %s: want the address and port of one host", o.To)
	case o.Count < 1 || o.Count > MaxCount:
		return bad("count %d: want 1 to %d", o.Count, MaxCount)
	case o.Concurrency < 1 || o.Concurrency > MaxConcurrency:
		return bad("concurrency %d: want 1 to %d", o.Concurrency, MaxConcurrency)
	case o.Rate < 0 || o.Rate > MaxRate:
		return bad("rate %d: want 0 to %d", o.Rate, MaxRate)
	case o.Time <= 0 || o.Time > MaxTime:
		return bad("time %s: want up to %s", o.Time, MaxTime)
	case o.Timeout <= 0 || o.Timeout > MaxTime:
		return bad("timeout %s: want up to %s", o.Timeout, MaxTime)
	case o.Hold < 0 || o.Hold > MaxTime:
		return bad("hold %s: want up to %s", o.Hold, MaxTime)
	case len(o.From) > MaxSources:
		return bad("%d source addresses: want at most %d", len(o.From), MaxSources)
	case o.PSK.IsZero() && o.Certificates == nil:
		return bad("neither a preshared key nor certificates")
	case o.Certificates != nil && (o.Credential == "" || o.Trust == ""):
		return bad("certificates: want a credential to show, and whom to trust")
	}
	for _, a := range o.From {
		if a.Is4() != o.To.Addr().Unmap().Is4() {
			return bad("source address %s and responder %s are of two families", a, o.To.Addr())
		}
	}
	for _, id := range []string{o.LocalID, o.RemoteID} {
		if _, err := ipsec.ParseIdentity(id); err != nil {
			return err
		}
	}
	return nil
}

// Sources expands addresses, prefixes and ranges such as 10.0.0.1-10.0.3.255.
func Sources(words []string) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, w := range words {
		first, last, err := sourceRange(w)
		if err != nil {
			return nil, err
		}
		for a := first; a.IsValid() && !last.Less(a); a = a.Next() {
			if len(out) == MaxSources {
				return nil, fmt.Errorf("source %q: more than %d addresses in all", w, MaxSources)
			}
			out = append(out, a)
		}
	}
	return out, nil
}

func sourceRange(w string) (first, last netip.Addr, err error) {
	if p, err := netip.ParsePrefix(w); err == nil {
		s := ipsec.PrefixSelector(p)
		return s.First, s.Last, nil
	}
	a, b, isRange := strings.Cut(w, "-")
	if !isRange {
		b = a
	}
	first, err1 := netip.ParseAddr(a)
	last, err2 := netip.ParseAddr(b)
	if err1 != nil || err2 != nil || first.Is4() != last.Is4() || last.Less(first) {
		return first, last, fmt.Errorf("source %q: want an address, a prefix or a range first-last", w)
	}
	return first, last, nil
}

// identity is LocalID for a source address.
func (o *Options) identity(source int) (ipsec.Identity, error) {
	return ipsec.ParseIdentity(numbered(o.LocalID, source))
}

func numbered(s string, source int) string { return strings.ReplaceAll(s, "%d", strconv.Itoa(source)) }

func (o *Options) auth(source int) ipsec.AuthMethod {
	if o.Certificates == nil {
		return ipsec.AuthMethod{PSK: "psk"}
	}
	return ipsec.AuthMethod{Certificate: &ipsec.CertificateAuth{Credential: numbered(o.Credential, source), Trust: []string{o.Trust}}}
}

const ruleName = "load"

// policy is what a node would have that talks to the responder only.
func (o *Options) policy(source int, local netip.Addr) (*ipsec.NodePolicy, error) {
	id, err := o.identity(source)
	if err != nil {
		return nil, err
	}
	remoteID, err := ipsec.ParseIdentity(o.RemoteID)
	if err != nil {
		return nil, err
	}
	remote := o.To.Addr().Unmap()
	sel := ipsec.Selector{Local: ipsec.AddrSelector(local), Remote: ipsec.AddrSelector(remote)}
	if o.LocalTS.IsValid() {
		sel.Local = ipsec.PrefixSelector(o.LocalTS)
	}
	if o.RemoteTS.IsValid() {
		sel.Remote = ipsec.PrefixSelector(o.RemoteTS)
	}
	mode := ipsec.ModeTunnel
	if o.Transport {
		mode = ipsec.ModeTransport
	}
	return &ipsec.NodePolicy{
		Node: id.String(), Addresses: []netip.Addr{local}, Default: ipsec.ActionPermit,
		Peers: []ipsec.Peer{{
			Name: "responder", Local: []netip.Addr{local}, Remote: []netip.Addr{remote}, LocalID: id, RemoteID: remoteID,
			Auth: []ipsec.AuthMethod{o.auth(source)}, Proposals: []ipsec.Proposal{o.IKE},
		}},
		Rules: []ipsec.Rule{{
			Name: ruleName, Weight: 1, Direction: ipsec.Both, Action: ipsec.ActionSecure, Peer: "responder", Selector: sel,
			Template: &ipsec.Template{Mode: mode, Proposals: []ipsec.Proposal{o.ESP}, ReplayWindow: 64},
		}},
	}, nil
}

// percentile of sorted values.
func percentile(sorted []time.Duration, p int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, len(sorted)*p/100)]
}

func sortDurations(d []time.Duration) []time.Duration {
	d = slices.Clone(d)
	slices.Sort(d)
	return d
}
