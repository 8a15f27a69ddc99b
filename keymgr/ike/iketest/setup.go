package iketest

import (
	"net/netip"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// Side is one end of a Pair, before it becomes a policy.
type Side struct {
	IKE       []string
	ESP       []string
	AH        []string // after those of ESP
	Mode      ipsec.Mode
	PFS       uint16
	Secrets   []string
	Auth      []ipsec.AuthMethod // instead of the pre-shared key
	LocalID   string
	RemoteID  string
	Local     string // prefix
	Remote    string
	Lifetime  time.Duration // of the IKE SA
	Child     ipsec.Lifetime
	DPD       time.Duration
	Encap     bool // forced
	AnyRemote bool // the peer may come from any address
	Resources uint32
	Mobike    bool
	TCP       ipsec.TCPUse
}

// Pair is a network of two hosts, web (10.0.0.1) and db (10.0.0.2), whose
// policies have one rule for each other: "rule".
func Pair(tb testing.TB, seed uint64, change func(web, db *Side)) (n *Net, web, db *Host) {
	w := Side{IKE: []string{"aes128gcm16-prfsha256-x25519"}, ESP: []string{"aes128gcm16"}, Mode: ipsec.ModeTunnel,
		Secrets: []string{"correct horse battery staple"}, LocalID: "web", RemoteID: "db", Local: "10.1.0.0/16", Remote: "10.2.0.0/16"}
	d := w
	d.LocalID, d.RemoteID, d.Local, d.Remote = w.RemoteID, w.LocalID, w.Remote, w.Local
	if change != nil {
		change(&w, &d)
	}
	n = New(tb, seed)
	web = n.Add("web", "10.0.0.1", w.policy(tb, "web", "10.0.0.1", "10.0.0.2"))
	db = n.Add("db", "10.0.0.2", d.policy(tb, "db", "10.0.0.2", "10.0.0.1"))
	web.Secrets["file:psk"], db.Secrets["file:psk"] = w.Secrets, d.Secrets
	return n, web, db
}

func (s Side) policy(tb testing.TB, node, local, remote string) *ipsec.NodePolicy {
	t := &ipsec.Template{Mode: s.Mode, PFS: s.PFS, Lifetime: s.Child, ReplayWindow: 1024, Resources: s.Resources}
	for _, e := range s.ESP {
		t.Proposals = append(t.Proposals, parse(tb, ipsec.ProtocolESP, e))
	}
	for _, e := range s.AH {
		t.Proposals = append(t.Proposals, parse(tb, ipsec.ProtocolAH, e))
	}
	p := ipsec.Peer{Name: "peer", Local: []netip.Addr{netip.MustParseAddr(local)}, Remote: []netip.Addr{netip.MustParseAddr(remote)},
		Auth: []ipsec.AuthMethod{{PSK: "file:psk"}}, Lifetime: s.Lifetime, DPD: s.DPD, ForceEncap: s.Encap, Mobike: s.Mobike, TCP: s.TCP}
	if s.Auth != nil {
		p.Auth = s.Auth
	}
	for _, e := range s.IKE {
		p.Proposals = append(p.Proposals, parse(tb, ipsec.ProtocolIKE, e))
	}
	var err error
	if p.LocalID, err = ipsec.ParseIdentity(s.LocalID); err != nil {
		tb.Fatal(err)
	}
	if p.RemoteID, err = ipsec.ParseIdentity(s.RemoteID); err != nil {
		tb.Fatal(err)
	}
	if s.AnyRemote {
		p.Remote = nil
	}
	return &ipsec.NodePolicy{Node: node, Version: ipsec.Version{Cluster: "test", Revision: 1}, Peers: []ipsec.Peer{p},
		Rules: []ipsec.Rule{{Name: "rule", Policy: "test", Weight: 1, Direction: ipsec.Both, Action: ipsec.ActionSecure, Template: t, Peer: "peer",
			Selector: ipsec.Selector{Local: ipsec.PrefixSelector(netip.MustParsePrefix(s.Local)), Remote: ipsec.PrefixSelector(netip.MustParsePrefix(s.Remote))}}}}
}

func parse(tb testing.TB, p ipsec.Protocol, s string) ipsec.Proposal {
	x, err := ipsec.ParseProposal(p, s)
	if err != nil {
		tb.Fatal(err)
	}
	return x
}
