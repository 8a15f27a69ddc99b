package compile

import (
	"fmt"
	"strings"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// Text writes a node policy for people: its rules by falling weight, how the
// secure ones protect, and its peers.
func Text(p ipsec.NodePolicy) string {
	var w strings.Builder
	fmt.Fprintf(&w, "node %s, addresses %s, default %s", p.Node, join(p.Addresses), p.Default)
	flag(&w, p.FailClosed, "fail closed")
	flag(&w, p.KeepMSS, "TCP's MSS kept")
	w.WriteByte('\n')
	for _, r := range p.Rules {
		fmt.Fprintf(&w, "%016x %-4s %-6s %s  %s\n", r.Weight, r.Direction, r.Action, r.Selector, r.Name)
		if t := r.Template; t != nil {
			fmt.Fprintf(&w, "    %s with %s, %s", t.Mode, r.Peer, suites(t.Proposals))
			if t.PFS != ipsec.KENone {
				fmt.Fprintf(&w, ", pfs %s", ipsec.Transform{Type: ipsec.TransformKE, ID: t.PFS})
			}
			fmt.Fprintf(&w, ", life %s/%s bytes %d/%d packets %d/%d, window %d", t.Lifetime.TimeSoft, t.Lifetime.TimeHard,
				t.Lifetime.Bytes.Soft, t.Lifetime.Bytes.Hard, t.Lifetime.Packets.Soft, t.Lifetime.Packets.Hard, t.ReplayWindow)
			flag(&w, t.Lifetime.UseSoft > 0, fmt.Sprintf("life in use %s/%s", t.Lifetime.UseSoft, t.Lifetime.UseHard))
			flag(&w, t.PadTo > 0, "padded to "+ipsec.PadName(t.PadTo))
			flag(&w, t.Resources > 0, fmt.Sprintf("%d more for queues", t.Resources))
			flag(&w, t.ForceEncap, "force encap")
			flag(&w, t.AcceptClear, "accept clear")
			flag(&w, t.FallbackClear, "fallback to clear")
			flag(&w, t.Outer.DF != ipsec.DFAuto, "outer DF "+t.Outer.DF.String())
			flag(&w, t.Outer.FixedDSCP, fmt.Sprintf("outer DSCP %d", t.Outer.DSCP))
			flag(&w, t.Outer.CopyLabel, "outer flow label copied")
			w.WriteByte('\n')
		}
	}
	for _, x := range p.Peers {
		remote := join(x.Remote)
		if len(x.Remote) == 0 {
			remote = "anybody (answers only)"
		}
		more := ""
		if x.Mobike {
			more = ", mobike"
		}
		if x.TCP != ipsec.TCPNever {
			more += ", tcp " + x.TCP.String()
		}
		fmt.Fprintf(&w, "peer %s: %s (%s) to %s (%s)\n    %s, life %s, dpd %s%s", x.Name, join(x.Local), x.LocalID, remote, x.RemoteID,
			join(x.Proposals), x.Lifetime, dpd(x.DPD), more)
		for _, a := range x.Auth {
			w.WriteString(", " + a.String())
		}
		if k := x.PPK; k != nil {
			fmt.Fprintf(&w, ", ppk %s", k)
		}
		if x.Reauth != 0 {
			fmt.Fprintf(&w, ", reauthentication %s", x.Reauth)
		}
		flag(&w, x.ForceEncap, "force encap")
		w.WriteByte('\n')
	}
	return w.String()
}

func flag(w *strings.Builder, set bool, text string) {
	if set {
		w.WriteString(", " + text)
	}
}

// suites names those of AH so: an ESP suite goes without saying.
func suites(ps []ipsec.Proposal) string {
	out := make([]string, len(ps))
	for i, p := range ps {
		if out[i] = p.String(); p.Protocol == ipsec.ProtocolAH {
			out[i] = "ah:" + out[i]
		}
	}
	return strings.Join(out, " ")
}

func dpd(d time.Duration) string {
	if d == 0 {
		return "never"
	}
	return d.String()
}

func join[T fmt.Stringer](all []T) string {
	s := make([]string, len(all))
	for i, x := range all {
		s[i] = x.String()
	}
	return strings.Join(s, " ")
}
