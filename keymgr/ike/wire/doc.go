// Package wire reads and writes IKEv2 messages (RFC 7296 §3). It knows formats
// and lengths and nothing of what a message means.
//
// Writing appends to a buffer. Reading copies nothing: what a decoded payload
// holds aliases the datagram, and is valid as long as the datagram is. The SK
// payload is carried as it is: package ikev2 encrypts and decrypts it.
//
// What a peer may make us hold is bounded: MaxMessage, MaxPayloads,
// MaxProposals, MaxTransforms and MaxSelectors.
package wire

// Bounds on one message. A conforming peer stays far below each of them.
const (
	MaxMessage    = 65535 // the largest UDP datagram
	MaxPayloads   = 64
	MaxProposals  = 64
	MaxTransforms = 128 // of one proposal
	MaxAttributes = 8   // of one transform
	MaxSelectors  = 128 // of one TS payload
	MaxDeletes    = 256 // SPIs of one Delete payload
)
