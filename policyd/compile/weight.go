package compile

import (
	"math/bits"
	"net/netip"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// Tier is the part of a weight that comes before any selector.
type Tier uint8

const (
	TierPolicy Tier = 8
	TierIPsec  Tier = 15 // exemptions, and rules for the packets of IPsec itself
)

// TierOf is the tier of a rule of a policy. Rules for ESP, AH and IKE come before
// those for any protocol: else a host's rule for all traffic would protect the ESP
// that it makes, and not the one that nests it.
func TierOf(s ipsec.Selector) Tier {
	if s.IPsec() {
		return TierIPsec
	}
	return TierPolicy
}

// Weight says how specific a rule is; of the rules that match a packet the
// heaviest decides. From the high bits down:
//
//	 4  tier
//	 9  addresses: prefix length of the local side plus that of the remote side;
//	    a range counts as the smallest power of two that holds it
//	 1  a protocol is named
//	17  ports: 65536 minus the number of ports, of both sides together
//	 1  one direction only
//	32  zero
//
// Two properties are what it is made for. A selector inside another never
// weighs less. And swapping local with remote changes nothing, so that both
// ends of a connection put the same filters in the same order.
func Weight(tier Tier, s ipsec.Selector, d ipsec.Direction) uint64 {
	w := uint64(tier) << 60
	w |= uint64(addrBits(s.Local)+addrBits(s.Remote)) << 51
	if s.Local.Protocol != 0 {
		w |= 1 << 50
	}
	w |= uint64(portBits(s.Local)+portBits(s.Remote)) << 33
	if d != ipsec.Both {
		w |= 1 << 32
	}
	return w
}

// addrBits is the prefix length of the smallest power of two of addresses that
// is not smaller than the range.
func addrBits(t ipsec.TrafficSelector) int {
	fh, fl := halves(t.First)
	lh, ll := halves(t.Last)
	low, borrow := bits.Sub64(ll, fl, 0)
	high, _ := bits.Sub64(lh, fh, borrow)
	size := bits.Len64(low)
	if high != 0 {
		size = 64 + bits.Len64(high)
	}
	return t.First.BitLen() - size
}

func halves(a netip.Addr) (high, low uint64) {
	b := a.As16()
	for i := range 8 {
		high = high<<8 | uint64(b[i])
		low = low<<8 | uint64(b[8+i])
	}
	return high, low
}

func portBits(t ipsec.TrafficSelector) int { return 65535 - (int(t.PortLast) - int(t.PortFirst)) }
