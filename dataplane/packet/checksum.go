package packet

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// Sum adds b to a ones' complement sum (RFC 1071) and folds it to 16 bits. It is
// not complemented: a checksum field holds ^Sum(...). Parts other than the last
// must have an even length.
//
// It works in the machine's byte order and in words of any multiple of 16 bits,
// and folds and swaps afterwards: ones' complement sums allow both (RFC 1071 §2
// B, C). Where the processor has AVX2 a long b is summed there (sumBlocks).
func Sum(b []byte, initial uint16) uint16 {
	if len(b) < wide {
		return sumWords(b, uint64(swap(initial)))
	}
	sum, rest := sumBlocks(b)
	return sumWords(rest, sum+uint64(swap(initial)))
}

// wide is where it begins to pay to look for wider registers.
const wide = 192

// sumWords adds b to acc 8 octets at a time, with the carry of the addition before.
func sumWords(b []byte, acc uint64) uint16 {
	carry := uint64(0)
	for len(b) >= 64 {
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(b[0:8]), carry)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(b[8:16]), carry)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(b[16:24]), carry)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(b[24:32]), carry)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(b[32:40]), carry)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(b[40:48]), carry)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(b[48:56]), carry)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(b[56:64]), carry)
		b = b[64:]
	}
	for len(b) >= 8 {
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(b), carry)
		b = b[8:]
	}
	if len(b) >= 4 {
		acc, carry = bits.Add64(acc, uint64(binary.NativeEndian.Uint32(b)), carry)
		b = b[4:]
	}
	if len(b) >= 2 {
		acc, carry = bits.Add64(acc, uint64(binary.NativeEndian.Uint16(b)), carry)
		b = b[2:]
	}
	if len(b) == 1 { // padded with a zero octet
		acc, carry = bits.Add64(acc, uint64(swap(uint16(b[0])<<8)), carry)
	}
	acc, carry = bits.Add64(acc, 0, carry)
	return swap(fold(acc + carry))
}

// swap changes between network and machine byte order.
func swap(s uint16) uint16 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], s)
	return binary.BigEndian.Uint16(b[:])
}

// fold brings a 64-bit ones' complement sum to 16 bits.
func fold(s uint64) uint16 {
	s = s>>32 + s&0xffffffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	return uint16(s)
}

// Fold brings a sum of few words to 16 bits.
func Fold(s uint32) uint16 {
	s = s>>16 + s&0xffff
	return uint16(s>>16 + s)
}

// add is the ones' complement sum of two folded sums.
func add(a, b uint16) uint16 {
	s := uint32(a) + uint32(b)
	return uint16(s + s>>16)
}

// NonZero replaces a UDP checksum of 0, which would say "none", by its other
// form (RFC 768).
func NonZero(checksum uint16) uint16 {
	if checksum == 0 {
		return 0xffff
	}
	return checksum
}

// PseudoSum is the sum over the pseudo header of TCP, UDP or ICMPv6 (RFC 793
// §3.1, RFC 8200 §8.1). n is the upper-layer length. Both addresses are of one
// family.
func PseudoSum(src, dst netip.Addr, proto uint8, n int) uint16 {
	s := fold(uint64(proto) + uint64(uint32(n)))
	if src.Is4() {
		a, b := src.As4(), dst.As4()
		return Sum(b[:], Sum(a[:], s))
	}
	a, b := src.As16(), dst.As16()
	return Sum(b[:], Sum(a[:], s))
}
