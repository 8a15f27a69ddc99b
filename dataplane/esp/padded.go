package esp

import (
	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// SealPadded is Seal with traffic-flow confidentiality padding (RFC 4303 §2.7):
// after the n octets of payload come zeros, so that the ESP packet has total
// octets, or the few less that alignment asks for (SealedLen of MaxPayload of
// total). A payload that needs more is refused with WhyTooBig: it would stand
// out.
//
// The receiver finds the end of the payload in the inner IP header, so tunnel
// mode only; in transport mode it is WhyUnsupported.
func (s *Sealer) SealPadded(dst []byte, n, total int, next uint8, seq uint64) (int, packet.Why) {
	if s.mode != ipsec.ModeTunnel {
		return 0, packet.WhyUnsupported
	}
	return s.fill(dst, n, total, next, seq)
}

// SealDummy makes a dummy packet of total octets or the few less that alignment
// asks for, which the receiver authenticates and discards (RFC 4303 §2.6). It
// takes a sequence number like any other.
func (s *Sealer) SealDummy(dst []byte, total int, seq uint64) (int, packet.Why) {
	return s.fill(dst, 0, total, packet.ProtoNone, seq)
}

func (s *Sealer) fill(dst []byte, n, total int, next uint8, seq uint64) (int, packet.Why) {
	room := s.MaxPayload(total)
	if n < 0 || room < n {
		return 0, packet.WhyTooBig
	}
	if len(dst) < s.SealedLen(room) {
		return 0, packet.WhyNoRoom
	}
	head := s.HeaderLen()
	clear(dst[head+n : head+room])
	return s.Seal(dst, room, next, seq)
}

// sealTotal does a job with a Total.
func (s *Sealer) sealTotal(j *SealJob) (int, packet.Why) {
	n := j.Payload()
	if n == 0 && j.Next == packet.ProtoNone {
		return s.SealDummy(j.Dst, j.Total, j.Seq)
	}
	if len(j.Dst) < s.SealedLen(n) {
		return 0, packet.WhyNoRoom
	}
	copy(j.Dst[s.HeaderLen():], j.Src)
	return s.SealPadded(j.Dst, n, j.Total, j.Next, j.Seq)
}
