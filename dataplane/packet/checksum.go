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
// It adds 8 octets at a time with the carry of the addition before: ones'
// complement sums may be taken in words of any size that is a multiple of 16
// bits and folded afterwards (RFC 1071 §2).
func Sum(b []byte, initial uint16) uint16 {
	acc, carry := uint64(initial), uint64(0)
	for len(b) >= 64 {
		w := b[:64]
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(w[0:]), carry)
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(w[8:]), carry)
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(w[16:]), carry)
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(w[24:]), carry)
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(w[32:]), carry)
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(w[40:]), carry)
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(w[48:]), carry)
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(w[56:]), carry)
		b = b[64:]
	}
	for len(b) >= 8 {
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(b), carry)
		b = b[8:]
	}
	var tail uint64
	for i, c := range b { // at most 7 octets, padded with zeros at the end
		tail |= uint64(c) << (56 - 8*i)
	}
	acc, carry = bits.Add64(acc, tail, carry)
	acc, carry = bits.Add64(acc, 0, carry)
	acc += carry
	return fold(acc)
}

// fold brings a 64-bit ones' complement sum to 16 bits.
func fold(s uint64) uint16 {
	s = s>>32 + s&0xffffffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	return uint16(s)
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
