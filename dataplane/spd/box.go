package spd

import "github.com/testudo-ipsec/testudo/ipsec"

// The dimensions of a selector.
const (
	dimRemote = iota
	dimLocal
	dimRemotePort
	dimLocalPort
	dimProtocol
	dims
)

// span is an inclusive range.
type span struct{ first, last u128 }

func (s span) contains(v u128) bool { return !v.less(s.first) && !s.last.less(v) }
func (s span) covers(o span) bool   { return !o.first.less(s.first) && !s.last.less(o.last) }

// box is a selector as ranges of numbers.
type box struct {
	d     [dims]span
	v4    bool
	ports portKind
}

// portKind sorts selectors by what they say of packets without ports.
type portKind uint8

const (
	portsAny    portKind = iota // both sides ANY: with and without ports
	portsOpaque                 // OPAQUE: only packets whose ports cannot be seen
	portsNarrow                 // only packets with ports
)

func boxOf(s ipsec.Selector) box {
	b := box{v4: s.Local.First.Unmap().Is4()}
	b.d[dimLocal] = span{number(s.Local.First), number(s.Local.Last)}
	b.d[dimRemote] = span{number(s.Remote.First), number(s.Remote.Last)}
	b.d[dimLocalPort] = span{u128{0, uint64(s.Local.PortFirst)}, u128{0, uint64(s.Local.PortLast)}}
	b.d[dimRemotePort] = span{u128{0, uint64(s.Remote.PortFirst)}, u128{0, uint64(s.Remote.PortLast)}}
	proto := uint64(s.Local.Protocol)
	b.d[dimProtocol] = span{u128{0, proto}, u128{0, proto}}
	if proto == 0 {
		b.d[dimProtocol].last.lo = 255
	}
	switch {
	case s.Local.Opaque() || s.Remote.Opaque():
		b.ports = portsOpaque
	case !s.Local.AnyPort() || !s.Remote.AnyPort():
		b.ports = portsNarrow
	}
	return b
}

// withoutPorts widens the ports, for the tree of packets that have none.
func (b box) withoutPorts() box {
	b.d[dimLocalPort] = span{last: u128{0, 65535}}
	b.d[dimRemotePort] = b.d[dimLocalPort]
	return b
}

// matchesAddr looks at the addresses and the protocol.
func (b *box) matchesAddr(k *Key) bool {
	return b.d[dimRemote].contains(k.remote) && b.d[dimLocal].contains(k.local) &&
		b.d[dimProtocol].contains(u128{0, uint64(k.protocol())})
}

// matchesPorts looks at the ports.
func (b *box) matchesPorts(k *Key) bool {
	return b.d[dimRemotePort].contains(u128{0, uint64(k.remotePort())}) &&
		b.d[dimLocalPort].contains(u128{0, uint64(k.localPort())})
}
