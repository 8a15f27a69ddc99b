package replay

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/testudo-ipsec/testudo/dataplane/packet"
)

func open(t testing.TB, size uint32, esn bool, floor uint64) *Window {
	t.Helper()
	w, err := New(size, esn, floor)
	if err != nil {
		t.Fatal(err)
	}
	return &w
}

// receive is what an SA does with an authentic packet.
func receive(w *Window, low uint32) (uint64, packet.Why) {
	seq, why := w.Check(low)
	if why == packet.WhyOK {
		why = w.Update(seq)
	}
	return seq, why
}

func TestNewRefuses(t *testing.T) {
	for _, size := range []uint32{1, 32, 63, 65, 100, 8193, 8256, 1 << 31} {
		if _, err := New(size, true, 0); err == nil {
			t.Errorf("a window of %d was made", size)
		}
	}
	for _, size := range []uint32{0, 64, 128, 192, 1024, 4096, 8192} {
		if _, err := New(size, true, 1<<40); err != nil {
			t.Errorf("window of %d: %v", size, err)
		}
	}
	if _, err := New(64, false, 1<<32); err == nil {
		t.Error("a floor past the 32-bit numbers was taken")
	}
}

// RFC 4303 Appendix A2.2: which high half a received low half means. T is the
// top of the window, W its size.
func TestAppendixA22(t *testing.T) {
	const w = 64
	for _, v := range []struct {
		name string
		top  uint64
		low  uint32
		want uint64
	}{
		{"case A, inside the window", 5<<32 | 1000, 990, 5<<32 | 990},
		{"case A, at its bottom", 5<<32 | 1000, 1000 - w + 1, 5<<32 | 1000 - w + 1},
		{"case A, ahead", 5<<32 | 1000, 1001, 5<<32 | 1001},
		{"case A, far ahead in this subspace", 5<<32 | 1000, 0xffffffff, 5<<32 | 0xffffffff},
		{"case A, below the bottom: next subspace", 5<<32 | 1000, 1000 - w, 6<<32 | 1000 - w},
		{"case A, zero: next subspace", 5<<32 | 1000, 0, 6 << 32},
		{"case A, Tl = W-1, bottom is 0", 5<<32 | w - 1, 0, 5 << 32},
		{"case A at the end of a subspace, ahead by wrap", 5<<32 | 0xffffffff, 3, 6<<32 | 3},
		{"case B, below zero: the subspace before", 5<<32 | 10, 0xfffffff0, 4<<32 | 0xfffffff0},
		{"case B, at the bottom", 5<<32 | 10, uint32(10 - w + 1 + 1<<32), 4<<32 | uint64(uint32(10-w+1+1<<32))},
		{"case B, one under the bottom is ahead", 5<<32 | 10, uint32(10 - w + 1<<32), 5<<32 | uint64(uint32(10-w+1<<32))},
		{"case B, at or under Tl", 5<<32 | 10, 4, 5<<32 | 4},
		{"case B, ahead", 5<<32 | 10, 11, 5<<32 | 11},
		// Th = 0 has no subspace below it: the number can only lie ahead.
		{"case B, Th = 0, low half near the end", 10, 0xfffffff0, 0xfffffff0},
		{"case B, Th = 0, first packet", 0, 1, 1},
		{"case B, Th = 0, first packet is the last of the subspace", 0, 0xffffffff, 0xffffffff},
	} {
		x := open(t, w, true, 0)
		x.top = v.top
		if got, ok := x.infer(v.low); !ok || got != v.want {
			t.Errorf("%s: T=%#x, low %#x: %#x %v, want %#x", v.name, v.top, v.low, got, ok, v.want)
		}
	}
	x := open(t, w, true, 0)
	x.top = 0xffffffff<<32 | 1000
	if _, why := x.Check(5); why != packet.WhySeqRange {
		t.Errorf("past the last subspace: %s, want %s", why, packet.WhySeqRange)
	}
}

func TestZero(t *testing.T) {
	if _, why := open(t, 64, false, 0).Check(0); why != packet.WhySeqZero {
		t.Errorf("0 without ESN: %s", why)
	}
	if _, why := open(t, 64, true, 0).Check(0); why != packet.WhySeqZero {
		t.Errorf("0 as the first with ESN: %s", why)
	}
	// The low half 0 of a later subspace is a number like any other.
	w := open(t, 64, true, 0xfffffffe)
	if seq, why := receive(w, 0); why != packet.WhyOK || seq != 1<<32 {
		t.Errorf("2^32: %#x, %s", seq, why)
	}
}

// "The window is updated only if the integrity verification succeeds" (RFC 4303
// §3.4.3): checks alone leave no trace.
func TestCheckChangesNothing(t *testing.T) {
	w := open(t, 64, true, 0)
	for range 3 {
		if _, why := w.Check(1 << 20); why != packet.WhyOK || w.Top() != 0 {
			t.Fatalf("%s, top %d", why, w.Top())
		}
	}
	// Two copies checked before either was recorded: one passes.
	if a, b := w.Update(9), w.Update(9); a != packet.WhyOK || b != packet.WhyReplay {
		t.Fatalf("%s, %s", a, b)
	}
}

func TestFloor(t *testing.T) {
	w := open(t, 128, true, 7<<32|500)
	for low, want := range map[uint32]packet.Why{500: packet.WhyReplayFloor, 499: packet.WhyReplayFloor, 400: packet.WhyReplayFloor, 501: packet.WhyOK, 90000: packet.WhyOK} {
		if seq, why := w.Check(low); why != want || seq>>32 != 7 {
			t.Errorf("%d: %#x %s, want %s", low, seq, why, want)
		}
	}
	receive(w, 510)
	if _, why := w.Check(500); why != packet.WhyReplayFloor {
		t.Errorf("under the floor after a packet: %s", why)
	}
	if _, why := w.Check(505); why != packet.WhyOK {
		t.Errorf("between floor and top: %s", why)
	}
}

// Without a window nothing is a replay, but ESN is still inferred and a floor
// still holds.
func TestOff(t *testing.T) {
	w := open(t, 0, false, 0)
	for _, low := range []uint32{5, 5, 1, 0, 0xffffffff, 5} {
		if seq, why := receive(w, low); why != packet.WhyOK || seq != uint64(low) {
			t.Errorf("%d: %#x %s", low, seq, why)
		}
	}
	e := open(t, 0, true, 0)
	for _, v := range []struct {
		low  uint32
		want uint64
	}{{1, 1}, {0x7fffffff, 0x7fffffff}, {0xf0000000, 0xf0000000}, {5, 1<<32 | 5}, {0xf0000001, 0xf0000001}, {5, 1<<32 | 5}} {
		if seq, why := receive(e, v.low); why != packet.WhyOK || seq != v.want {
			t.Errorf("ESN %#x: %#x %s, want %#x", v.low, seq, why, v.want)
		}
	}
}

// model is a window as Appendix A words it, with a set instead of a ring.
type model struct {
	size, top, floor uint64
	seen             map[uint64]bool
}

func (m *model) verdict(seq uint64) packet.Why {
	switch {
	case seq+m.size <= m.top:
		return packet.WhyOld
	case m.floor != 0 && seq <= m.floor:
		return packet.WhyReplayFloor
	case seq == 0:
		return packet.WhySeqZero
	case m.seen[seq]:
		return packet.WhyReplay
	}
	return packet.WhyOK
}

func (m *model) update(seq uint64) {
	m.seen[seq] = true
	m.top = max(m.top, seq)
}

func TestAgainstModel(t *testing.T) {
	for _, size := range []uint32{64, 128, 192, 320, 1024, 8192} {
		for _, floor := range []uint64{0, 1, 1<<32 - 40, 9<<32 + 70} {
			t.Run(fmt.Sprintf("%d from %d", size, floor), func(t *testing.T) {
				runModel(t, size, floor, rand.New(rand.NewPCG(uint64(size), floor)))
			})
		}
	}
}

func runModel(t *testing.T, size uint32, floor uint64, r *rand.Rand) {
	w := open(t, size, true, floor)
	m := &model{size: uint64(size), top: floor, floor: floor, seen: map[uint64]bool{}}
	for range 20_000 {
		// Most packets near the top, some at the edges, some leaps.
		var seq uint64
		switch r.IntN(10) {
		case 0:
			seq = m.top + uint64(r.IntN(3*int(size)))
		case 1:
			seq = m.top - min(m.top, uint64(size)-uint64(r.IntN(3)))
		case 2:
			seq = m.top - min(m.top, uint64(r.IntN(int(size))))
		case 3:
			if r.IntN(50) == 0 {
				seq = m.top + 1<<31 - uint64(r.IntN(10))
				break
			}
			fallthrough
		default:
			seq = m.top + uint64(r.IntN(3))
		}
		want := m.verdict(seq)
		got, why := w.Check(uint32(seq))
		if want == packet.WhyOld {
			// From outside the window the low half means a number ahead.
			if why == packet.WhyOK && got <= m.top {
				t.Fatalf("T=%d: old %d became %d", m.top, seq, got)
			}
			continue
		}
		if got != seq || why != want {
			t.Fatalf("T=%d: %d: inferred %d, %s, want %s", m.top, seq, got, why, want)
		}
		if why == packet.WhyOK && r.IntN(8) > 0 { // the rest fail authentication
			if why := w.Update(seq); why != packet.WhyOK {
				t.Fatalf("Update(%d): %s", seq, why)
			}
			m.update(seq)
		}
		if w.Top() != m.top {
			t.Fatalf("top %d, want %d", w.Top(), m.top)
		}
	}
}

func FuzzWindow(f *testing.F) {
	f.Add(uint8(1), false, uint64(0), []byte{1, 2, 3, 0, 255})
	f.Add(uint8(3), true, uint64(1<<32-3), []byte{0, 0, 0, 0, 1, 0, 0, 0})
	f.Fuzz(func(t *testing.T, words uint8, esn bool, floor uint64, moves []byte) {
		size := (uint32(words)%(MaxSize/64) + 1) * 64
		floor >>= 16 // leave room ahead: the end of the number space has a test of its own
		if !esn {
			floor = uint64(uint32(floor)) >> 1
		}
		w := open(t, size, esn, floor)
		m := &model{size: uint64(size), top: floor, floor: floor, seen: map[uint64]bool{}}
		for _, d := range moves {
			seq := m.top + uint64(d) - min(m.top, uint64(size)/2)
			if m.top > 0 && m.top-min(m.top, uint64(size)-1) > seq {
				continue
			}
			got, why := w.Check(uint32(seq))
			if want := m.verdict(seq); want != packet.WhyOld && (got != seq || why != want) {
				t.Fatalf("T=%d W=%d: %d: %d %s, want %s", m.top, size, seq, got, why, want)
			}
			if why == packet.WhyOK {
				if why := w.Update(got); why != packet.WhyOK {
					t.Fatal(why)
				}
				m.update(got)
			}
		}
	})
}

func BenchmarkWindow(b *testing.B) {
	w := open(b, 1024, true, 0)
	seq := uint32(0)
	for b.Loop() {
		seq++
		receive(w, seq)
	}
}
