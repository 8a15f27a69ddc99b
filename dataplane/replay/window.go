// Package replay is the anti-replay window of ESP and AH: RFC 4303 §3.4.3 and
// Appendix A, kept in a ring of words as RFC 6479 describes.
//
// A Window has one owner at a time and takes no lock.
package replay

import (
	"fmt"

	"github.com/testudo-ipsec/testudo/dataplane/packet"
)

// Sizes that New accepts, in packets; a size is a multiple of MinSize. RFC 4303
// §3.4.3 asks for at least 32 and suggests 64 as the default.
const (
	MinSize = 64
	MaxSize = 8192
)

// Window is the receiver's memory of sequence numbers.
//
// The ring has at least one word more than the window needs, so that moving the
// top clears whole words and never shifts (RFC 6479 §2).
type Window struct {
	ring  []uint64
	top   uint64 // highest number authenticated so far, T in RFC 4303
	floor uint64
	size  uint32 // W; 0 switches the check off
	esn   bool
}

// New makes a window of size packets. Numbers up to and including floor are
// rejected: it is 0 for a fresh SA, and the highest number known to have been
// received for one that was taken over. Size 0 switches the check off; with ESN
// the top is still followed, because the high half is inferred from it.
func New(size uint32, esn bool, floor uint64) (Window, error) {
	if size != 0 && (size < MinSize || size > MaxSize || size%64 != 0) {
		return Window{}, fmt.Errorf("replay window of %d packets: want 0 (off) or a multiple of 64 from %d to %d", size, MinSize, MaxSize)
	}
	if !esn && floor > 1<<32-1 {
		return Window{}, fmt.Errorf("replay floor %d: without extended sequence numbers the highest is %d", floor, uint32(1<<32-1))
	}
	w := Window{size: size, esn: esn, top: floor, floor: floor}
	if size != 0 {
		words := 2
		for words < int(size)/64+1 {
			words *= 2
		}
		w.ring = make([]uint64, words)
	}
	return w, nil
}

// Check is the test before authentication: it infers the full number of a
// received packet and says whether that number may still be accepted. The
// number is returned for every outcome but WhySeqRange. Nothing changes until
// Update.
func (w *Window) Check(low uint32) (uint64, packet.Why) {
	seq := uint64(low)
	if w.esn {
		var ok bool
		if seq, ok = w.infer(low); !ok {
			return 0, packet.WhySeqRange
		}
	}
	return seq, w.test(seq)
}

// infer finds the high half of a number (RFC 4303 Appendix A2.2).
func (w *Window) infer(low uint32) (uint64, bool) {
	width := w.size
	if width == 0 {
		// No window to place: take the number closest to the top.
		width = 1 << 31
	}
	th, tl := uint32(w.top>>32), uint32(w.top)
	bottom := tl - width + 1
	if tl >= width-1 { // case A
		if low < bottom {
			if th == 1<<32-1 {
				return 0, false
			}
			th++
		}
	} else if low >= bottom && th != 0 { // case B
		// With Th = 0 there is no subspace below: the number lies ahead.
		th--
	}
	return uint64(th)<<32 | uint64(low), true
}

func (w *Window) test(seq uint64) packet.Why {
	switch {
	case seq <= w.floor && w.floor != 0:
		return packet.WhyReplayFloor
	case w.size == 0:
		// The sender may let its counter wrap (RFC 4303 §3.3.3), so 0 is valid.
		return packet.WhyOK
	case seq == 0:
		return packet.WhySeqZero
	case seq > w.top:
		return packet.WhyOK
	case w.top-seq >= uint64(w.size):
		return packet.WhyOld
	case w.ring[w.word(seq)]&(1<<(seq&63)) != 0:
		return packet.WhyReplay
	}
	return packet.WhyOK
}

func (w *Window) word(seq uint64) int { return int(seq/64) & (len(w.ring) - 1) }

// Update records a number that was authenticated. It tests again, so that of
// two copies checked before either was recorded only one passes; on any other
// answer than WhyOK the packet must be dropped.
func (w *Window) Update(seq uint64) packet.Why {
	if why := w.test(seq); why != packet.WhyOK {
		return why
	}
	if w.size == 0 {
		w.top = max(w.top, seq)
		return packet.WhyOK
	}
	if seq > w.top {
		first, n := w.top/64+1, seq/64-w.top/64
		for i := range min(n, uint64(len(w.ring))) {
			w.ring[w.word((first+i)*64)] = 0
		}
		w.top = seq
	}
	w.ring[w.word(seq)] |= 1 << (seq & 63)
	return packet.WhyOK
}

// Top is the highest number authenticated so far (or the floor).
func (w *Window) Top() uint64 { return w.top }

// Size is W, 0 when the check is off.
func (w *Window) Size() uint32 { return w.size }
