package netio

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// AH protects most of the IP header in front of it, so messages of an AH socket
// have theirs, both ways. Over IPv4 the kernel gives it and takes it (IP_HDRINCL).
// Over IPv6 it does neither, but nothing in the header is left to chance: what
// receiver and sender cannot foresee AH does not cover (RFC 4302 §3.3.3.1.2.1).

const (
	ipv6Header = 40

	// fragmentSize is the length of the IPv4 fragments that we make: what a link
	// has to carry for IPv6, and less than what is common.
	fragmentSize = 1280
)

// headRoom is how much of a message's data the kernel does not give or take.
func (c SocketConfig) headRoom() int {
	if c.AH && c.IPv6 {
		return ipv6Header
	}
	return 0
}

// putHeader completes a message that an AH socket has received. The IPv6 header is
// made of what the socket said. A packet with extension headers before AH, of which
// it says nothing, gets a header that does not verify.
func (s *Socket) putHeader(m *Message) bool {
	b := m.Data
	if !s.cfg.IPv6 {
		return len(b) >= ipv4Header
	}
	src, dst := m.Remote.Addr(), m.Local.Addr()
	if len(b)-ipv6Header > 65535 || !dst.Is6() {
		return false
	}
	binary.BigEndian.PutUint32(b, 6<<28|uint32(m.TOS)<<20)
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)-ipv6Header))
	b[6], b[7] = unix.IPPROTO_AH, 64 // the hop limit has done its work
	from, to := src.As16(), dst.As16()
	copy(b[8:], from[:])
	copy(b[24:], to[:])
	return true
}

// fragment sends a whole IPv4 packet in fragments, which the kernel does not do for
// those that come with their header. Its identification must be unique.
func (t *SocketSender) fragment(m *Message) error {
	head := int(m.Data[0]&15) * 4
	if head != ipv4Header || len(m.Data) <= head {
		return unix.EMSGSIZE // options are not copied to each fragment alike
	}
	payload := m.Data[head:]
	buf := make([]byte, fragmentSize)
	const each = (fragmentSize - ipv4Header) &^ 7
	for at := 0; at < len(payload); at += each {
		part := payload[at:min(at+each, len(payload))]
		f := buf[:head+len(part)]
		copy(f, m.Data[:head])
		copy(f[head:], part)
		flags := uint16(at / 8)
		if at+each < len(payload) {
			flags |= 0x2000 // more fragments
		}
		// Length and checksum the kernel writes itself.
		binary.BigEndian.PutUint16(f[6:], flags)
		t.one[0] = *m
		t.one[0].Data = f
		t.fill(0, &t.one[0])
		t.one[0].Data = nil
		if _, err := t.flush(1); err != nil {
			return err
		}
	}
	return nil
}
