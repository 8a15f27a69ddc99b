package main

import (
	"github.com/testudo-ipsec/testudo/ipsec"
	ipsecv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/ipsec/v1"
	policyv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/policy/v1"
	"github.com/testudo-ipsec/testudo/services/internal/convert"
)

// ruleView is a rule as operators read it.
type ruleView struct {
	Name         string   `json:"name"`
	Weight       uint64   `json:"weight"`
	Action       string   `json:"action"`
	Direction    string   `json:"direction"`
	Local        string   `json:"local"`
	Remote       string   `json:"remote"`
	Mode         string   `json:"mode,omitempty"`
	Peer         string   `json:"peer,omitempty"`
	Suites       []string `json:"suites,omitempty"`
	AcceptClear  bool     `json:"acceptClear,omitempty"`
	ReplayWindow uint32   `json:"replayWindow,omitempty"`
}

type peerView struct {
	Name     string   `json:"name"`
	LocalID  string   `json:"localId"`
	RemoteID string   `json:"remoteId"`
	Local    []string `json:"local"`
	Remote   []string `json:"remote"`
	Auth     []string `json:"authentication"`
	Suites   []string `json:"suites"`
}

type effective struct {
	Revision uint64 `json:"revision"`
	Default  string `json:"default"`

	FailClosed bool `json:"failClosed"`
	ClampMSS   bool `json:"clampMSS"`

	Rules []ruleView `json:"rules"`
	Peers []peerView `json:"peers"`
}

func (e effective) withoutWorker() string {
	if e.FailClosed {
		return "blocked"
	}
	return "permitted after a clean stop and before the first start"
}

func (e effective) mss() string {
	if e.ClampMSS {
		return "clamped"
	}
	return "kept"
}

func suites(ps []ipsec.Proposal) []string {
	var out []string
	for _, p := range ps {
		out = append(out, p.String())
	}
	return out
}

func viewRule(m *policyv1.Rule) (ruleView, error) {
	r, err := convert.FromRule(m)
	if err != nil {
		return ruleView{}, err
	}
	v := ruleView{
		Name: r.Name, Weight: r.Weight, Action: r.Action.String(), Direction: r.Direction.String(),
		Local: r.Selector.Local.String(), Remote: r.Selector.Remote.String(), Peer: r.Peer,
	}
	if t := r.Template; t != nil {
		v.Mode, v.Suites, v.AcceptClear, v.ReplayWindow = t.Mode.String(), suites(t.Proposals), t.AcceptClear, t.ReplayWindow
	}
	return v, nil
}

func viewPeer(m *policyv1.Peer) (peerView, error) {
	p, err := convert.FromPeer(m)
	if err != nil {
		return peerView{}, err
	}
	v := peerView{Name: p.Name, LocalID: p.LocalID.String(), RemoteID: p.RemoteID.String(), Suites: suites(p.Proposals)}
	for _, a := range p.Local {
		v.Local = append(v.Local, a.String())
	}
	for _, a := range p.Remote {
		v.Remote = append(v.Remote, a.String())
	}
	for _, a := range p.Auth {
		v.Auth = append(v.Auth, a.String())
	}
	if p.PPK != nil {
		v.Auth = append(v.Auth, "ppk "+p.PPK.String())
	}
	return v, nil
}

func effectiveView(r *policyv1.EffectiveResponse) (effective, error) {
	s := r.GetSettings()
	v := effective{Revision: r.GetVersion().GetRevision(), Default: action(s.GetDefaultAction()), FailClosed: s.GetFailClosed(), ClampMSS: !s.GetKeepMss()}
	for _, m := range r.GetRules() {
		rv, err := viewRule(m)
		if err != nil {
			return v, err
		}
		v.Rules = append(v.Rules, rv)
	}
	for _, m := range r.GetPeers() {
		pv, err := viewPeer(m)
		if err != nil {
			return v, err
		}
		v.Peers = append(v.Peers, pv)
	}
	return v, nil
}

func action(a ipsecv1.Action) string { return ipsec.Action(a).String() }
