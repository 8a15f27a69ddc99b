//go:build !purego

package packet

import "golang.org/x/sys/cpu"

const (
	// sumBlock is how many octets sumAVX2 takes at a time, and sumLimit the most
	// blocks that its 32-bit lanes can add up, with a margin of 8.
	sumBlock = 128
	sumLimit = 1 << 10

	// sumLeast is what pays for a call: less is summed in Go.
	sumLeast = wide
)

var hasAVX2 = cpu.X86.HasAVX2

// sumBlocks adds up the 16-bit words, in machine byte order, of as much of b as
// the processor's wide registers take, and returns what is left of b. It leaves
// a short b alone.
func sumBlocks(b []byte) (sum uint64, rest []byte) {
	if !hasAVX2 {
		return 0, b
	}
	for len(b) >= sumLeast {
		n := min(len(b)/sumBlock, sumLimit)
		sum += sumAVX2(&b[0], n)
		b = b[n*sumBlock:]
	}
	return sum, b
}

// sumAVX2 is the sum of the 16-bit words of blocks*128 octets from b on. blocks
// is 1 to sumLimit.
//
//go:noescape
func sumAVX2(b *byte, blocks int) (words uint64)
