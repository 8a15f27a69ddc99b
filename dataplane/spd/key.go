package spd

import (
	"encoding/binary"
	"net/netip"

	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// u128 is an address, port or protocol as a number.
type u128 struct{ hi, lo uint64 }

func (a u128) less(b u128) bool { return a.hi < b.hi || a.hi == b.hi && a.lo < b.lo }

func (a u128) next() u128 {
	if a.lo++; a.lo == 0 {
		a.hi++
	}
	return a
}

// Key is the selector fields of a packet in a form that compares and hashes
// fast. The zero Key belongs to no packet.
type Key struct {
	local  u128
	remote u128
	meta   uint64 // local port<<48, remote port<<32, protocol<<8, flags
}

// Flags in the lowest octet of Key.meta.
const (
	flagIn    = 1 << 0
	flagOut   = 1 << 1
	flagV4    = 1 << 2
	flagV6    = 1 << 3
	flagPorts = 1 << 4
	flagFrag  = 1 << 5 // a fragment
)

func meta(lport, rport uint16, proto, flags uint8) uint64 {
	return uint64(lport)<<48 | uint64(rport)<<32 | uint64(proto)<<8 | uint64(flags)
}

func (k *Key) localPort() uint16  { return uint16(k.meta >> 48) }
func (k *Key) remotePort() uint16 { return uint16(k.meta >> 32) }
func (k *Key) protocol() uint8    { return uint8(k.meta >> 8) }
func (k *Key) flags() uint8       { return uint8(k.meta) }

// PacketKey reads the key from a packet that packet.Parse accepted.
func PacketKey(h *packet.Header, b []byte, dir ipsec.Direction) Key {
	var src, dst u128
	flags := uint8(flagOut)
	if h.Version == 4 {
		src.lo = uint64(binary.BigEndian.Uint32(b[12:16]))
		dst.lo = uint64(binary.BigEndian.Uint32(b[16:20]))
		flags |= flagV4
	} else {
		src = u128{binary.BigEndian.Uint64(b[8:16]), binary.BigEndian.Uint64(b[16:24])}
		dst = u128{binary.BigEndian.Uint64(b[24:32]), binary.BigEndian.Uint64(b[32:40])}
		flags |= flagV6
	}
	sport, dport := h.SrcPort, h.DstPort
	switch {
	case h.Fragment():
		// The first fragment is treated like the others, so that a datagram
		// has one fate.
		flags |= flagFrag
		sport, dport = 0, 0
	case h.HasPorts:
		flags |= flagPorts
	}
	if dir == ipsec.Inbound {
		flags ^= flagIn | flagOut
		return Key{dst, src, meta(dport, sport, h.Protocol, flags)}
	}
	return Key{src, dst, meta(sport, dport, h.Protocol, flags)}
}

// FlowKey is the key of a flow, for explaining what would happen to it.
func FlowKey(f ipsec.Flow, dir ipsec.Direction) Key {
	flags := uint8(flagOut)
	if dir == ipsec.Inbound {
		flags = flagIn
	}
	if f.Local.Unmap().Is4() {
		flags |= flagV4
	} else {
		flags |= flagV6
	}
	switch f.Protocol {
	case packet.ProtoTCP, packet.ProtoUDP, packet.ProtoSCTP, packet.ProtoDCCP, packet.ProtoUDPLite,
		packet.ProtoICMP, packet.ProtoICMPv6, packet.ProtoMobility:
		flags |= flagPorts
	}
	return Key{number(f.Local), number(f.Remote), meta(f.LocalPort, f.RemotePort, f.Protocol, flags)}
}

func number(a netip.Addr) u128 {
	if a = a.Unmap(); a.Is4() {
		b := a.As4()
		return u128{0, uint64(binary.BigEndian.Uint32(b[:]))}
	}
	b := a.As16()
	return u128{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

// addr is the address of a number.
func (a u128) addr(v4 bool) netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], a.hi)
	binary.BigEndian.PutUint64(b[8:], a.lo)
	if v4 {
		return netip.AddrFrom4([4]byte(b[12:]))
	}
	return netip.AddrFrom16(b)
}

// hash mixes all fields; the flow cache takes its low bits.
func (k *Key) hash() uint64 {
	const m1, m2, m3 = 0x9e3779b97f4a7c15, 0xbf58476d1ce4e5b9, 0x94d049bb133111eb
	h := (k.local.lo^k.meta)*m1 ^ (k.remote.lo+k.meta>>7)*m2
	h ^= (k.local.hi*m2 + k.remote.hi) * m3
	h ^= h >> 29
	h *= m3
	return h ^ h>>32
}
