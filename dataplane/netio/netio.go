// Package netio moves packets between the kernel and the engine in batches: a
// TUN device on one side, UDP, raw ESP and raw AH sockets on the other. It
// knows nothing of IPsec.
//
// A train is many packets of one flow in one buffer, as the kernel's
// segmentation offloads hand them over: on the TUN a TCP or UDP packet of up
// to 64 KiB with its segment size, on a UDP socket many datagrams of equal
// length one after the other, of which the last may be shorter.
package netio

import "net/netip"

// MaxPacket is the room that a buffer needs to receive any packet or train.
const MaxPacket = 65535

// Packet is a packet or train from or for a TUN device.
type Packet struct {
	Data    []byte // from the IP header on
	Offload Offload
}

// Tun is one queue of a TUN device.
type Tun interface {
	// Read waits for at least one packet, then takes those that are there
	// already, up to len(ps). It stores into each Data from its start, within
	// its capacity (at least MaxPacket), and sets its length and Offload. The
	// buffers stay the caller's. One goroutine reads.
	Read(ps []Packet) (int, error)

	// Writer makes a writer; each is for one goroutine.
	Writer() TunWriter

	Close() error
}

// TunWriter writes to a Tun.
type TunWriter interface {
	// Write delivers one packet or train, gathered from parts, of which the
	// first begins with the IP header and holds all headers. Parts are not
	// kept or changed. The error is about this packet, but for os.ErrClosed,
	// which says that the device is gone.
	Write(o Offload, parts [][]byte) error
}

// Message is one datagram or a train of them. For a raw ESP socket the payload
// starts after the IP header. For a raw AH socket it starts with the IP header,
// which AH protects.
type Message struct {
	Data    []byte
	Segment int // length of each datagram but the last; 0: a single one
	Local   netip.AddrPort
	Remote  netip.AddrPort
	TOS     uint8 // DSCP and ECN of the outer header
	TTL     uint8 // sending only: TTL or hop limit; 0 for the kernel's default

	// FlowLabel of the outer IPv6 header, sending only; 0 for the kernel's choice.
	FlowLabel uint32
}

// Conn is one socket.
type Conn interface {
	// Recv waits for at least one message, then takes those that are there
	// already, up to len(ms). It stores into each Data within its capacity (at
	// least MaxPacket). One goroutine receives. The buffers stay the caller's.
	Recv(ms []Message) (int, error)

	// Sender makes a sender; each is for one goroutine.
	Sender() Sender

	Close() error
}

// Sender sends on a Conn.
type Sender interface {
	// Send hands messages to the network and returns how many were accepted in
	// whole. It goes on after a message that cannot be sent; err is the first
	// reason. Trains are cut up where the kernel does not take them. A message
	// without a Local address is sent from the one the kernel chooses.
	Send(ms []Message) (int, error)
}
