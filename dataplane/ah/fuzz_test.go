package ah

import (
	"bytes"
	"testing"

	"github.com/testudo-ipsec/testudo/dataplane/packet"
)

// FuzzOpen: no octets make Open, Strip or Seal panic, or Open succeed but on what
// Seal made. Seeds are sealed under ESN, so that another high half is a forgery.
func FuzzOpen(f *testing.F) {
	var sealers []*Sealer
	var openers []*Opener
	for _, n := range names {
		s, o := pair(f, n, true)
		sealers, openers = append(sealers, s), append(openers, o)
	}
	for i, s := range sealers {
		for _, p := range packets {
			b, at := seal(f, s, p, anyESNSeq)
			f.Add(uint8(i), b, at, uint64(anyESNSeq))
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, b []byte, at int, seq uint64) {
		i := int(which) % len(names)
		before := bytes.Clone(b)
		_, _, why := openers[i].Open(b, at, seq)
		if !bytes.Equal(b, before) {
			t.Fatal("Open changed the packet")
		}
		if why == packet.WhyOK && seq != anyESNSeq {
			t.Fatalf("forged %d octets", len(b))
		}
		if at >= 0 && at <= len(b) {
			if got, why := Strip(bytes.Clone(b), at); why == packet.WhyOK && len(got) >= len(b) {
				t.Fatalf("stripped %d octets to %d", len(b), len(got))
			}
		}
		h, why := packet.Parse(b)
		if why != packet.WhyOK || seq == 0 {
			return
		}
		dst := make([]byte, len(b)+80)
		n, why := sealers[i].SealFrom(dst, b, seq)
		if why != packet.WhyOK {
			return
		}
		if _, _, why := openers[i].Open(dst[:n], int(h.Insert), seq); why != packet.WhyOK {
			t.Fatalf("sealed %x, which does not open: %s", b, why)
		}
	})
}
