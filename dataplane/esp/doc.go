// Package esp seals and opens ESP packets (RFC 4303).
//
// A packet, as Seal writes it and Open reads it, starts at the SPI: outer IP and
// UDP headers are the caller's.
//
//	+-----+-----+-------------+---------+-----+--------+------+-----+
//	| SPI | Seq | IV (0,8,16) | payload | pad | padlen | next | ICV |
//	+-----+-----+-------------+---------+-----+--------+------+-----+
//	|<--- HeaderLen() ------->|         |<-- at most TrailerLen() ->|
//
// A Sealer or an Opener serves one SA and one goroutine; Sealer.Clone makes
// another for a second goroutine that shares the keys. Neither allocates per
// packet. Neither knows the replay window or lifetimes: package sad does.
//
// IVs. For AEAD suites and counter mode the IV is the 64-bit sequence number (RFC
// 4106 §3.1, RFC 3686 §3.1, RFC 4309 §3.1, RFC 4543 §3.1, RFC 7634 §2), unique
// because sequence numbers are reserved from leases. For CBC it must also be
// unpredictable: it is the sequence number encrypted under a random key of the
// Sealer's own (NIST SP 800-38A Appendix C).
//
// Extended sequence numbers. AEAD suites authenticate SPI, high half, low half
// (RFC 4106 §5); a separate integrity algorithm runs over the packet and the
// high half after it, which is not sent (RFC 4303 §2.2.1).
//
// Traffic-flow confidentiality (RFC 4303 §2.6, §2.7) is the caller's to ask for:
// SealPadded, SealDummy, and Trim on receipt.
package esp
