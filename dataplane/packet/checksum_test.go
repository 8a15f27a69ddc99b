package packet

import (
	"math/rand/v2"
	"strconv"
	"testing"
)

// slowSum is RFC 1071 §1 word for word.
func slowSum(b []byte, initial uint16) uint16 {
	s := uint64(initial)
	for len(b) >= 2 {
		s += uint64(b[0])<<8 | uint64(b[1])
		b = b[2:]
	}
	if len(b) == 1 {
		s += uint64(b[0]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// same compares sums: 0 and 0xffff are one value (RFC 1624 §3).
func same(a, b uint16) bool { return a%0xffff == b%0xffff && (a == 0) == (b == 0) }

// RFC 1071 §3: the example sum.
func TestRFC1071Example(t *testing.T) {
	b := []byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}
	if got := Sum(b, 0); got != 0xddf2 {
		t.Fatalf("sum %#04x, want 0xddf2", got)
	}
}

func TestSumAgainstReference(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	buf := make([]byte, 4096)
	for round := range 3 {
		for i := range buf {
			switch round {
			case 0:
				buf[i] = byte(r.Uint32())
			case 1:
				buf[i] = 0xff
			case 2:
				buf[i] = 0
			}
		}
		for n := range 2101 {
			for _, at := range []int{0, 1, 3} {
				for _, init := range []uint16{0, 1, 0xfffe, 0xffff, uint16(r.Uint32())} {
					if got, want := Sum(buf[at:at+n], init), slowSum(buf[at:at+n], init); !same(got, want) {
						t.Fatalf("round %d, %d octets at %d from %#04x: %#04x, want %#04x", round, n, at, init, got, want)
					}
				}
			}
		}
	}
}

// The wide registers and the loop in Go are twins: they agree to the bit, on what
// makes the wide lanes largest and smallest too, and beyond what one call takes.
func TestSumTwins(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	buf := make([]byte, 300<<10)
	for _, fill := range []func() byte{
		func() byte { return 0 },
		func() byte { return 0x7f },
		func() byte { return 0x80 },
		func() byte { return 0xff },
		func() byte { return byte(r.Uint32()) },
	} {
		for i := range buf {
			buf[i] = fill()
		}
		for _, n := range []int{wide - 1, wide, wide + 1, 255, 256, 257, 1400, 9001, 65535, 128 << 10, 128<<10 + 127, len(buf) - 1} {
			for _, at := range []int{0, 1} {
				b := buf[at : at+n]
				if got, want := Sum(b, 0x1234), sumWords(b, uint64(swap(0x1234))); got != want {
					t.Errorf("%d octets of %#02x at %d: %#04x, want %#04x", n, b[0], at, got, want)
				}
			}
		}
	}
}

func FuzzSum(f *testing.F) {
	f.Add([]byte{1, 2, 3}, uint16(7), uint8(1))
	f.Add(make([]byte, 500), uint16(0xffff), uint8(200))
	f.Fuzz(func(t *testing.T, b []byte, init uint16, cut uint8) {
		want := slowSum(b, init)
		if got, twin := Sum(b, init), sumWords(b, uint64(swap(init))); got != twin {
			t.Fatalf("%#04x, its twin in Go says %#04x", got, twin)
		}
		if got := Sum(b, init); !same(got, want) {
			t.Fatalf("%#04x, want %#04x", got, want)
		}
		at := min(int(cut)&^1, len(b)) // parts of even length add up
		if at%2 == 0 {
			if got := Sum(b[at:], Sum(b[:at], init)); !same(got, want) {
				t.Fatalf("in two parts %#04x, want %#04x", got, want)
			}
		}
	})
}

// Incremental updates end where a full computation does (RFC 1624).
func TestUpdate(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	b := make([]byte, 20)
	for range 100_000 {
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		b[0] = 0x45
		SetChecksum4(b)
		set4(b, []int{2, 4, 6, 8, 12, 14, 16, 18}[r.IntN(8)], uint16(r.Uint32()))
		if why := VerifyChecksum4(b); why != WhyOK {
			t.Fatalf("%x: %s", b, why)
		}
	}
}

func BenchmarkSum(b *testing.B) {
	for name, f := range map[string]func([]byte, uint16) uint16{
		"wide": Sum, "go": func(b []byte, s uint16) uint16 { return sumWords(b, uint64(s)) }, "reference": slowSum,
	} {
		for _, n := range []int{20, 64, 256, 1400, 9000} {
			buf := make([]byte, n)
			b.Run(name+"/"+strconv.Itoa(n), func(b *testing.B) {
				b.SetBytes(int64(n))
				for b.Loop() {
					f(buf, 0)
				}
			})
		}
	}
}
