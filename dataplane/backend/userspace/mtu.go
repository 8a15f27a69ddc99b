package userspace

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// defaultMTU is assumed where no interface says otherwise.
const defaultMTU = 1500

// underlayMTU is the least MTU of the interfaces that have one of the addresses.
func underlayMTU(addresses []netip.Addr) (int, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return 0, fmt.Errorf("list devices: %w", err)
	}
	ours := map[netip.Addr]bool{}
	for _, a := range addresses {
		ours[a.Unmap()] = true
	}
	mtu := 0
	for _, l := range links {
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return 0, fmt.Errorf("list addresses of %s: %w", l.Attrs().Name, err)
		}
		for _, x := range addrs {
			if a, ok := netip.AddrFromSlice(x.IP); ok && ours[a.Unmap()] && (mtu == 0 || l.Attrs().MTU < mtu) {
				mtu = l.Attrs().MTU
			}
		}
	}
	if mtu == 0 {
		mtu = defaultMTU
	}
	return mtu, nil
}

// mtus are the sizes of a policy.
type mtus struct {
	device int // of the TUN: what each SA carries alone
	nested int // what those carry whose packets go through the TUN once more
}

// mtusOf works them out. An SA inside another one has no more room than the TUN.
func mtusOf(p *ipsec.NodePolicy, underlay int) mtus {
	m := innerMTU(p, underlay)
	for i := range p.Rules {
		if r := &p.Rules[i]; r.Action == ipsec.ActionSecure && r.Selector.IPsec() {
			return mtus{m, innerMTU(p, m)}
		}
	}
	return mtus{m, m}
}

// innerMTU is the largest packet that any secure rule's worst suite carries
// without outer fragments: in UDP, because a NAT may be met at any time, and
// over IPv6 when a peer has such an address.
func innerMTU(p *ipsec.NodePolicy, underlay int) int {
	outer := 20
	for _, peer := range p.Peers {
		for _, a := range append(append([]netip.Addr(nil), peer.Local...), peer.Remote...) {
			if a.Is6() && !a.Is4In6() {
				outer = 40
			}
		}
	}
	room := underlay - outer - 8 // UDP
	inner := underlay
	for i := range p.Rules {
		t := p.Rules[i].Template
		if t == nil {
			continue
		}
		for _, prop := range t.Proposals {
			n := suiteRoom(prop, room)
			if t.Mode == ipsec.ModeTransport {
				n += 20 // the outer header is the packet's own
			}
			inner = min(inner, n)
		}
	}
	if inner == underlay {
		// No suite is known yet: the largest common overhead.
		inner = room - 8 - 16 - 17 - 16
	}
	return max(inner, minInner)
}

// minInner is the least MTU that IPv6 allows on a link (RFC 8200 §5).
const minInner = 1280

// suiteRoom is how much payload the worst choice within a proposal leaves of
// room octets for an ESP packet (RFC 4303 §2) or for what AH protects (RFC 4302 §2).
func suiteRoom(p ipsec.Proposal, room int) int {
	iv, block, icv := 0, 4, 0
	for _, t := range p.Transforms {
		a, ok := ipsec.LookupAlgorithm(t)
		if !ok {
			continue
		}
		iv, block = max(iv, a.IVLen), max(block, a.Block)
		if a.Type == ipsec.TransformENCR || a.Type == ipsec.TransformINTEG {
			icv = max(icv, a.ICVLen)
		}
	}
	if p.Protocol == ipsec.ProtocolAH {
		return room - (12+iv+icv+7)/8*8 // its header is a multiple of 8 octets over IPv6
	}
	return (room-8-iv-icv)/block*block - 2
}
