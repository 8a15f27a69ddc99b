// Package ah protects IP packets with the Authentication Header (RFC 4302).
//
//	transport:  | IP, extensions | AH | payload                |
//	tunnel:     | outer IP       | AH | the whole inner packet |
//
//	+------+-----+----------+-----+-----+---------+-----+---------+
//	| next | len | reserved | SPI | Seq | IV (0,8)| ICV | padding |
//	+------+-----+----------+-----+-----+---------+-----+---------+
//	|<-------------------- HeaderLen(version) ------------------->|
//
// The ICV covers the packet from its outermost IP header on, with the fields
// that routers change set to zero or to what they will be at the destination
// (package file mutable.go), so sealing comes last: whatever else is to be written
// into the headers has to be there already.
//
// A Sealer or an Opener serves one SA and one goroutine; Sealer.Clone makes
// another for a second goroutine that shares the keys. Neither allocates per
// packet once it has seen the largest headers. Neither knows the replay window or
// lifetimes: package sad does.
//
// Bundles (RFC 4301 §4.1, transport adjacency): a sealed ESP packet is an IP packet
// like any other to SealFrom, which puts AH before ESP. On receipt Strip gives back
// the IP packet with ESP in it, once the AH is verified.
//
// AH does not pass a NAT, and there is no UDP encapsulation of it.
package ah
