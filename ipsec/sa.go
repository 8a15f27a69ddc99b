package ipsec

import (
	"fmt"
	"net/netip"
	"strconv"
	"time"
)

// SPI is a Security Parameters Index. 0 to 255 are reserved (RFC 4303 §2.1).
type SPI uint32

// FirstSPI is the lowest SPI that may be allocated.
const FirstSPI SPI = 256

func (s SPI) String() string { return fmt.Sprintf("%08x", uint32(s)) }

// Mode is transport or tunnel (RFC 4301 §4.1).
type Mode uint8

const (
	ModeTunnel    Mode = 1
	ModeTransport Mode = 2
)

func (m Mode) String() string {
	switch m {
	case ModeTunnel:
		return "tunnel"
	case ModeTransport:
		return "transport"
	}
	return fmt.Sprintf("mode-%d", uint8(m))
}

// ParseMode reads "tunnel" or "transport".
func ParseMode(s string) (Mode, error) {
	switch s {
	case "tunnel":
		return ModeTunnel, nil
	case "transport":
		return ModeTransport, nil
	}
	return 0, fmt.Errorf("mode %q: want tunnel or transport", s)
}

// Direction of an SA or a rule as the host sees it.
type Direction uint8

const (
	Inbound  Direction = 1
	Outbound Direction = 2
	Both     Direction = 3 // rules only
)

func (d Direction) String() string {
	switch d {
	case Inbound:
		return "in"
	case Outbound:
		return "out"
	case Both:
		return "both"
	}
	return fmt.Sprintf("direction-%d", uint8(d))
}

// SAID names one simplex SA between key manager and worker. It is unique for
// the life of a key manager and never reused; SPIs are not (a peer picks them).
type SAID uint64

func (i SAID) String() string { return fmt.Sprintf("sa-%d", uint64(i)) }

// Lease is a half-open range [First, Last) of outbound sequence numbers that a
// worker may use. A worker without a lease sends nothing. Two leases of one SA
// never overlap, which is what makes the IV of an AEAD suite unique.
type Lease struct {
	First uint64
	Last  uint64
}

// Limit is a pair of bounds; 0 is "none". At Soft the worker reports once, at
// Hard it stops using the SA at once.
type Limit struct {
	Soft uint64
	Hard uint64
}

// Lifetime bounds an SA (RFC 4301 §4.4.2.1). Bytes count the protected payload:
// the inner packet in tunnel mode, the transport payload in transport mode,
// without padding. Time counts from installation, use from the first packet that
// the SA carried.
type Lifetime struct {
	Bytes    Limit
	Packets  Limit
	TimeSoft time.Duration
	TimeHard time.Duration
	UseSoft  time.Duration
	UseHard  time.Duration
}

// Encap says that ESP travels in UDP (RFC 3948) or in a TCP connection (RFC
// 9329), with these ports.
type Encap struct {
	LocalPort  uint16
	RemotePort uint16
	TCP        bool
}

func (e Encap) String() string {
	if e.TCP {
		return "TCP"
	}
	return "UDP"
}

// TCPUse says when IKE and ESP travel in TCP (RFC 9329 §5).
type TCPUse uint8

const (
	TCPNever    TCPUse = 0
	TCPFallback TCPUse = 1 // when the peer does not answer over UDP; answered when the peer does it
	TCPAlways   TCPUse = 2
)

var tcpUses = [...]string{TCPNever: "never", TCPFallback: "fallback", TCPAlways: "always"}

func (u TCPUse) String() string {
	if int(u) < len(tcpUses) {
		return tcpUses[u]
	}
	return fmt.Sprintf("tcp-use-%d", uint8(u))
}

// ParseTCPUse reads "never", "fallback" or "always".
func ParseTCPUse(s string) (TCPUse, error) {
	for i, name := range tcpUses {
		if s == name {
			return TCPUse(i), nil
		}
	}
	return 0, fmt.Errorf("use of TCP %q: want never, fallback or always", s)
}

// SA is one simplex security association as a worker needs it: nothing in it
// has to be looked up elsewhere.
type SA struct {
	ID        SAID
	Direction Direction // Inbound or Outbound
	Protocol  Protocol
	SPI       SPI
	Mode      Mode
	Local     netip.Addr // this host's outer address
	Remote    netip.Addr // the peer's outer address
	Encap     *Encap     // nil: ESP directly over IP

	Suite    Suite  // Encr, Integ and ESN are used
	EncrKey  Secret // key and, for AEAD and CTR, the salt after it
	IntegKey Secret

	Selectors    []Selector // any of them; the inner check uses the same list
	ReplayWindow uint32     // inbound, in packets; 0 switches the check off
	ReplayFloor  uint64     // inbound: numbers up to this one are rejected
	Lease        Lease      // outbound
	Lifetime     Lifetime

	Rule  string // the policy rule it serves
	Peer  string // the peer profile it was negotiated with
	Child uint64 // the CHILD SA it belongs to: an inbound and an outbound SA share it

	// Resource says who sends on an outbound SA (RFC 9611): 0 is the fallback SA,
	// which any queue may use; n is for queue n-1. Inbound it says nothing.
	Resource uint32

	// PadTo hides how long packets are (RFC 4303 §2.7): outbound, in tunnel mode with
	// ESP, those of fewer octets are padded to so many; 0 for none, PadToMTU for as many
	// as the path carries.
	PadTo uint16
}

// PadToMTU is above all MTUs.
const PadToMTU = 65535

// PadName is PadTo as policy has it.
func PadName(n uint16) string {
	if n == PadToMTU {
		return "mtu"
	}
	return strconv.Itoa(int(n))
}

// SACounters is what a worker reports of an SA.
type SACounters struct {
	ID      SAID
	Bytes   uint64 // as Lifetime.Bytes counts
	Packets uint64
	Top     uint64    // outbound: highest number used; inbound: top of the replay window
	Errors  uint64    // packets discarded on this SA
	First   time.Time // when it carried its first packet, which Lifetime's use counts from
	Used    time.Time // when it carried its last
}

// Expiry is a worker's report that an SA met a limit.
type Expiry struct {
	ID    SAID
	Hard  bool
	Cause string // time, use, bytes, packets or lease
}
