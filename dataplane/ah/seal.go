package ah

import (
	"encoding/binary"
	"fmt"

	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/ipsec/mac"
)

// Sealer puts the Authentication Header of one outbound SA into packets.
type Sealer struct{ transform }

// NewSealer makes the sealer of an outbound AH SA. It keeps nothing of sa: the
// caller may wipe the keys afterwards.
func NewSealer(sa *ipsec.SA) (*Sealer, error) {
	if sa.Direction != ipsec.Outbound {
		return nil, fmt.Errorf("ah: %s is an SA of direction %s, want out", sa.ID, sa.Direction)
	}
	t, err := newTransform(sa)
	if err != nil {
		return nil, err
	}
	return &Sealer{t}, nil
}

// Clone makes a sealer of the same SA and keys for another goroutine. The
// sequence numbers of both come from one reservation.
func (s *Sealer) Clone() (*Sealer, error) {
	c := *s
	c.buf = nil
	if s.mac == nil {
		return &c, nil
	}
	var err error
	if c.mac, err = mac.Clone(s.mac); err != nil {
		return nil, fmt.Errorf("ah: %w", err)
	}
	return &c, nil
}

// SealJob is one packet of a burst. In transport mode Src is an IP packet, and Dst
// receives it with its AH: At is 0. In tunnel mode Dst begins with an outer IP
// header of At octets, and Src is the inner packet and Next what it is (4 or 41); a
// nil Src means that Size octets of it lie in place, as in Seal. On return Why says
// whether it was sealed, and Len how long the packet is.
type SealJob struct {
	Dst  []byte
	At   int
	Src  []byte
	Size int // payload octets, when Src is nil
	Next uint8
	Seq  uint64

	Len int
	Why packet.Why
}

// Payload is the number of octets that a lifetime counts: the inner packet, or in
// transport mode what follows the IP headers.
func (j *SealJob) Payload() int {
	if j.Src == nil {
		return j.Size
	}
	if j.At != 0 {
		return len(j.Src)
	}
	h, why := packet.Parse(j.Src)
	if why != packet.WhyOK {
		return 0 // SealFrom will refuse it
	}
	return h.Length - int(h.Insert)
}

// SealBurst seals packets of one SA and returns how many went well. Jobs whose
// Why is set already are left alone.
func (s *Sealer) SealBurst(jobs []SealJob) int {
	n := 0
	for i := range jobs {
		j := &jobs[i]
		if j.Why != packet.WhyOK {
			continue
		}
		if j.Len, j.Why = s.do(j); j.Why == packet.WhyOK {
			n++
		}
	}
	return n
}

func (s *Sealer) do(j *SealJob) (int, packet.Why) {
	if j.At == 0 {
		return s.SealFrom(j.Dst, j.Src, j.Seq)
	}
	size := j.Size
	if j.Src != nil {
		size = len(j.Src)
		if len(j.Dst) == 0 || j.At < 0 || len(j.Dst) < j.At+s.HeaderLen(j.Dst[0]>>4)+size {
			return 0, packet.WhyNoRoom
		}
		copy(j.Dst[j.At+s.HeaderLen(j.Dst[0]>>4):], j.Src)
	}
	return s.Seal(j.Dst, j.At, size, j.Next, j.Seq)
}

// Seal makes the packet in place. dst begins with the at octets of the IP header and
// its extension headers, which are final but for length, next header and checksum;
// room for HeaderLen octets follows, and then the n octets that the header next
// begins. It returns the length of the packet.
//
// seq must never have been given to a sealer of this SA before.
func (s *Sealer) Seal(dst []byte, at, n int, next uint8, seq uint64) (int, packet.Why) {
	if at < ipv4Len || n < 0 || len(dst) < at {
		return 0, packet.WhyNoRoom
	}
	ahLen := s.HeaderLen(dst[0] >> 4)
	size := at + ahLen + n
	switch {
	case len(dst) < size:
		return 0, packet.WhyNoRoom
	case seq == 0:
		return 0, packet.WhySeqZero
	case !s.esn && seq>>32 != 0:
		return 0, packet.WhySeqRange
	}
	nextAt, why := naming(dst, at)
	if why != packet.WhyOK {
		return 0, why
	}
	if why := packet.SetLength(dst, size); why != packet.WhyOK {
		return 0, why
	}
	packet.SetNext(dst, nextAt, packet.ProtoAH)

	h := dst[at : at+ahLen]
	clear(h)
	h[0], h[1] = next, byte(ahLen/4-2) // RFC 4302 §2.2: in words, less 2
	binary.BigEndian.PutUint32(h[4:], s.spi)
	binary.BigEndian.PutUint32(h[8:], uint32(seq))
	if s.ivLen != 0 {
		binary.BigEndian.PutUint64(h[fixedLen:], seq) // RFC 4543 §3.1: a counter
	}
	icv, why := s.integrity(dst[:size], at, ahLen, seq)
	if why != packet.WhyOK {
		return 0, why
	}
	copy(h[fixedLen+int(s.ivLen):], icv)
	return size, packet.WhyOK
}

// SealFrom protects the IP packet src in transport mode: AH goes behind the IP
// header and the hop-by-hop and routing headers (RFC 4302 §3.1.1), before whatever
// comes then, ESP of a bundle too. The result is at dst, which must not overlap src
// and must hold HeaderLen octets more than src.
func (s *Sealer) SealFrom(dst, src []byte, seq uint64) (int, packet.Why) {
	h, why := packet.Parse(src)
	if why != packet.WhyOK {
		return 0, why
	}
	if h.Fragment() {
		return 0, packet.WhyFragment // RFC 4302 §3.3.4
	}
	at := int(h.Insert)
	ahLen := s.HeaderLen(h.Version)
	if len(dst) < h.Length+ahLen {
		return 0, packet.WhyNoRoom
	}
	copy(dst, src[:at])
	copy(dst[at+ahLen:], src[at:h.Length])
	return s.Seal(dst, at, h.Length-at, src[h.InsertNext], seq)
}
