// Package natt is UDP encapsulation of ESP (RFC 3948): what a datagram on the
// NAT traversal port is, and the octets around what is sent there.
package natt

import (
	"encoding/binary"
	"net/netip"

	"github.com/testudo-ipsec/testudo/dataplane/packet"
)

// Port is where IKE and ESP share UDP (RFC 3948 §2, RFC 7296 §2.23).
const Port = 4500

// MarkerLen is the length of the non-ESP marker: four zero octets where ESP has
// its SPI (RFC 3948 §2.2).
const MarkerLen = 4

// UDPLen is the length of a UDP header.
const UDPLen = 8

// Kind is what a datagram holds.
type Kind uint8

const (
	ESP       Kind = iota + 1
	IKE            // a non-ESP marker, then an IKE message
	Keepalive      // one octet 0xff (RFC 3948 §2.3)
	Malformed      // too short to be any of these
)

var kindNames = [...]string{ESP: "esp", IKE: "ike", Keepalive: "keepalive", Malformed: "malformed"}

func (k Kind) String() string {
	if k >= ESP && k <= Malformed {
		return kindNames[k]
	}
	return "kind-?"
}

// minESP is the least that can be looked up and counted: SPI, sequence number
// and something after them (RFC 4303 §2).
const minESP = 9

// Demux says what the UDP payload d is, and returns what is inside: the ESP
// packet from its SPI on, or the IKE message without the marker. Anything else
// has nothing inside.
func Demux(d []byte) (Kind, []byte) {
	switch {
	case len(d) == 1 && d[0] == 0xff:
		return Keepalive, nil
	case len(d) < MarkerLen:
		return Malformed, nil
	case binary.BigEndian.Uint32(d) == 0:
		if len(d) == MarkerLen {
			return Malformed, nil
		}
		return IKE, d[MarkerLen:]
	case len(d) < minESP:
		return Malformed, nil
	}
	return ESP, d
}

// AppendIKE appends the non-ESP marker and an IKE message.
func AppendIKE(dst, message []byte) []byte {
	return append(append(dst, 0, 0, 0, 0), message...)
}

// AppendKeepalive appends a NAT keepalive's payload.
func AppendKeepalive(dst []byte) []byte { return append(dst, 0xff) }

// PutUDP writes the UDP header at the start of b, which is the whole datagram:
// 8 octets of room, then the payload. The checksum is zero, as RFC 3948 §2.1
// asks for over IPv4. It reports WhyTooBig for more than a datagram can say.
func PutUDP(b []byte, src, dst uint16) packet.Why {
	switch {
	case len(b) < UDPLen:
		return packet.WhyNoRoom
	case len(b) > 65535:
		return packet.WhyTooBig
	}
	binary.BigEndian.PutUint16(b, src)
	binary.BigEndian.PutUint16(b[2:], dst)
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)))
	binary.BigEndian.PutUint16(b[6:], 0)
	return packet.WhyOK
}

// PutUDP6 is PutUDP with a checksum, which IPv6 receivers that have not been
// told otherwise require (RFC 8200 §8.1).
func PutUDP6(b []byte, from, to netip.AddrPort) packet.Why {
	if why := PutUDP(b, from.Port(), to.Port()); why != packet.WhyOK {
		return why
	}
	sum := packet.PseudoSum(from.Addr(), to.Addr(), packet.ProtoUDP, len(b))
	binary.BigEndian.PutUint16(b[6:], packet.NonZero(^packet.Sum(b, sum)))
	return packet.WhyOK
}
