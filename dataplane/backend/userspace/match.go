package userspace

import (
	"net/netip"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// way says which side of a selector is a packet's source.
type way bool

const (
	outward way = true  // the local side is
	inward  way = false // the remote side is
)

// matches are the matches, any of which suffices, for the packets of a selector.
func matches(s ipsec.Selector, w way) [][]expr.Any {
	if s.Local.Opaque() || s.Remote.Opaque() {
		// Only fragments have no ports; the engine tells them apart.
		return fragmentOf(s, w)
	}
	m := addresses(s, w)
	if s.Local.AnyPort() && s.Remote.AnyPort() {
		return [][]expr.Any{m}
	}
	protos := []byte{s.Local.Protocol}
	if s.Local.Protocol == 0 {
		// Ports without a protocol: of every protocol that has them.
		protos = []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP, unix.IPPROTO_DCCP, unix.IPPROTO_UDPLITE}
	}
	var out [][]expr.Any
	for _, p := range protos {
		x := append(m[:len(m):len(m)], ports(s, w, p)...)
		if s.Local.Protocol == 0 {
			x = append(append(m[:len(m):len(m)], l4proto(p)...), ports(s, w, p)...)
		}
		out = append(out, x)
	}
	return out
}

// fragmentMatches are the matches for later fragments that a selector with
// narrow ports may or may not cover (RFC 4301 §7).
func fragmentMatches(s ipsec.Selector, w way) [][]expr.Any {
	if s.Local.AnyPort() && s.Remote.AnyPort() || s.Local.Opaque() || s.Remote.Opaque() {
		return nil
	}
	return fragmentOf(s, w)
}

func fragmentOf(s ipsec.Selector, w way) [][]expr.Any {
	return [][]expr.Any{append(addresses(s, w), laterFragment(s.Local.First.Unmap().Is4())...)}
}

// laterFragment matches a fragment other than the first.
func laterFragment(v4 bool) []expr.Any {
	nonZero := &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{0, 0}}
	if v4 {
		return []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 6, Len: 2},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 2, Mask: []byte{0x1f, 0xff}, Xor: []byte{0, 0}},
			nonZero,
		}
	}
	return []expr.Any{
		&expr.Exthdr{DestRegister: 1, Type: unix.IPPROTO_FRAGMENT, Offset: 2, Len: 2, Op: expr.ExthdrOpIpv6},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 2, Mask: []byte{0xff, 0xf8}, Xor: []byte{0, 0}},
		nonZero,
	}
}

// addresses matches family, addresses and protocol.
func addresses(s ipsec.Selector, w way) []expr.Any {
	src, dst := s.Local, s.Remote
	if w == inward {
		src, dst = dst, src
	}
	v4 := s.Local.First.Unmap().Is4()
	var m []expr.Any
	if v4 {
		m = nfproto(unix.NFPROTO_IPV4)
		m = append(m, address(src, 12, 4)...)
		m = append(m, address(dst, 16, 4)...)
	} else {
		m = nfproto(unix.NFPROTO_IPV6)
		m = append(m, address(src, 8, 16)...)
		m = append(m, address(dst, 24, 16)...)
	}
	if s.Local.Protocol != 0 {
		m = append(m, l4proto(s.Local.Protocol)...)
	}
	return m
}

// address matches one address range at an offset of the IP header.
func address(t ipsec.TrafficSelector, offset, size uint32) []expr.Any {
	first, last := t.First.Unmap().AsSlice(), t.Last.Unmap().AsSlice()
	load := &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size}
	if p, ok := t.Prefix(); ok {
		switch p.Bits() {
		case 0:
			return nil
		case p.Addr().BitLen():
			return []expr.Any{load, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: first}}
		}
		return []expr.Any{
			load,
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: prefixMask(p), Xor: make([]byte, size)},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: first},
		}
	}
	return []expr.Any{load, &expr.Range{Op: expr.CmpOpEq, Register: 1, FromData: first, ToData: last}}
}

func prefixMask(p netip.Prefix) []byte {
	b := make([]byte, p.Addr().BitLen()/8)
	for i := range p.Bits() {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return b
}

// espInUDP matches what arrives in UDP of the ESP that a selector covers: a rule that
// wants ESP protected once more wants that too. IKE on that port has zeros where ESP
// has its SPI (RFC 3948 §2.2).
func espInUDP(s ipsec.Selector, port uint16) []expr.Any {
	s.Local.Protocol, s.Remote.Protocol = unix.IPPROTO_UDP, unix.IPPROTO_UDP
	return append(addresses(s, inward), append(dport(port),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 8, Len: 4},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{0, 0, 0, 0}})...)
}

// ports matches both port ranges; for ICMP they are type and code, which stand
// once in the packet.
func ports(s ipsec.Selector, w way, proto byte) []expr.Any {
	src, dst := s.Local, s.Remote
	if w == inward {
		src, dst = dst, src
	}
	if proto == unix.IPPROTO_ICMP || proto == unix.IPPROTO_ICMPV6 {
		return append(portRange(src, 0), portRange(dst, 0)...)
	}
	return append(portRange(src, 0), portRange(dst, 2)...)
}

func portRange(t ipsec.TrafficSelector, offset uint32) []expr.Any {
	if t.AnyPort() {
		return nil
	}
	load := &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2}
	if t.PortFirst == t.PortLast {
		return []expr.Any{load, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(t.PortFirst)}}
	}
	return []expr.Any{load, &expr.Range{
		Op: expr.CmpOpEq, Register: 1,
		FromData: binaryutil.BigEndian.PutUint16(t.PortFirst), ToData: binaryutil.BigEndian.PutUint16(t.PortLast),
	}}
}
