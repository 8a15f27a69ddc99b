package netio

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// controlRoom holds the control messages that a socket of ours sends or
// receives: packet info, TOS or traffic class, TTL, flow label and the segment size;
// on receive also what the kernel may add.
const controlRoom = 160

// control builds the ancillary data of one message.
type control struct {
	buf [controlRoom]byte
	n   int
}

func (c *control) add(level, kind int32, n int) []byte {
	h := (*unix.Cmsghdr)(unsafe.Pointer(&c.buf[c.n]))
	h.Level, h.Type = level, kind
	h.SetLen(unix.CmsgLen(n))
	data := c.buf[c.n+unix.CmsgLen(0):][:n]
	clear(data)
	c.n += unix.CmsgSpace(n)
	return data
}

// source makes the kernel send from an address of this host.
func (c *control) source(a netip.Addr) {
	if a.Is4() {
		// struct in_pktinfo: ifindex, spec_dst, addr
		b := a.As4()
		copy(c.add(unix.IPPROTO_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo)[4:], b[:])
		return
	}
	b := a.As16()
	copy(c.add(unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo), b[:])
}

func (c *control) tos(v4 bool, tos uint8) {
	if v4 {
		binary.NativeEndian.PutUint32(c.add(unix.IPPROTO_IP, unix.IP_TOS, 4), uint32(tos))
		return
	}
	binary.NativeEndian.PutUint32(c.add(unix.IPPROTO_IPV6, unix.IPV6_TCLASS, 4), uint32(tos))
}

func (c *control) ttl(v4 bool, ttl uint8) {
	if v4 {
		binary.NativeEndian.PutUint32(c.add(unix.IPPROTO_IP, unix.IP_TTL, 4), uint32(ttl))
		return
	}
	binary.NativeEndian.PutUint32(c.add(unix.IPPROTO_IPV6, unix.IPV6_HOPLIMIT, 4), uint32(ttl))
}

// flowLabel is of IPv6 only. The kernel takes it without a lease (IPV6_FLOWLABEL_MGR)
// as long as nobody on the host has an exclusive one (ping -F, for one).
func (c *control) flowLabel(label uint32) {
	const flowinfo = 11 // IPV6_FLOWINFO of linux/in6.h
	binary.BigEndian.PutUint32(c.add(unix.IPPROTO_IPV6, flowinfo, 4), label)
}

func (c *control) segment(n int) {
	binary.NativeEndian.PutUint16(c.add(unix.SOL_UDP, unix.UDP_SEGMENT, 2), uint16(n))
}

// readControl takes what a received message says of itself into m, whose Local
// keeps its port.
func readControl(b []byte, m *Message) {
	for len(b) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		n := int(h.Len)
		if n < unix.SizeofCmsghdr || n > len(b) {
			return
		}
		data := b[unix.CmsgLen(0):n]
		switch {
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= 12:
			m.Local = netip.AddrPortFrom(netip.AddrFrom4([4]byte(data[8:12])), m.Local.Port())
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= 16:
			m.Local = netip.AddrPortFrom(netip.AddrFrom16([16]byte(data[:16])), m.Local.Port())
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_TOS && len(data) >= 1:
			m.TOS = data[0]
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_TCLASS && len(data) >= 4:
			m.TOS = uint8(binary.NativeEndian.Uint32(data))
		case h.Level == unix.SOL_UDP && h.Type == unix.UDP_GRO && len(data) >= 4:
			m.Segment = int(binary.NativeEndian.Uint32(data))
		}
		b = b[min(len(b), unix.CmsgSpace(n-unix.CmsgLen(0))):]
	}
}
