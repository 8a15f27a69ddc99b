package packet

import "strconv"

// Why is the constant reason for which a packet was not forwarded. It is an
// index: a counter array is [packet.NumWhys]uint64. WhyOK, the zero value,
// means that nothing is wrong.
//
// It lives in the leaf package so that every stage (parser, window, cipher,
// SAD, SPD, engine) counts into the same array. New reasons go at the end of
// their group; the numbers are not stable between builds, the names are.
type Why uint8

const (
	WhyOK Why = iota

	// The packet itself.
	WhyTruncated  // shorter than its headers say
	WhyVersion    // neither IPv4 nor IPv6
	WhyHeader     // malformed IP or extension header
	WhyExtensions // more extension headers, or more octets of them, than we walk
	WhyTTL        // TTL or hop limit ran out
	WhyFragment   // a fragment where none is allowed, or one that cannot be part of a packet
	WhyFragmentOverlap
	WhyFragmentTimeout // the rest of the packet did not come
	WhyFragmentFlood   // more packets in pieces than there is room for, or more pieces
	WhyFamily          // an address family that the SA or the backend does not carry
	WhyNoRoom          // the destination buffer is too short
	WhyTooBig          // larger than the path MTU and not to be fragmented
	WhyECN             // outer CE on an inner packet that is not ECN-capable (RFC 6040 §4.2)
	WhyChecksum        // a checksum that does not verify

	// UDP encapsulation.
	WhyKeepaliveSent // a NAT keepalive of ours (RFC 3948 §4)
	WhyKeepalive     // a NAT keepalive: discarded by design (RFC 3948 §2.3)
	WhyDatagram      // a datagram too short to be ESP or IKE

	// ESP and AH.
	WhyShort    // shorter than the transform's smallest packet
	WhyAlign    // ciphertext is not a multiple of the block or of 4 octets
	WhyAuth     // integrity check failed
	WhyPadding  // padding is not 1, 2, 3, … or longer than the packet (RFC 4303 §2.4)
	WhyDummy    // next header 59: discarded by design (RFC 4303 §2.6)
	WhyNextHead // next header does not fit the mode or the inner packet

	// The anti-replay window.
	WhySeqZero     // sequence number 0 is never sent (RFC 4303 §3.3.3)
	WhyReplay      // seen before
	WhyOld         // left of the window
	WhyReplayFloor // at or below the floor set at take-over
	WhySeqRange    // past the end of the sequence number space

	// The SAD.
	WhyNoSA      // no inbound SA has this SPI
	WhyProtocol  // the SA of this SPI serves the other protocol (ESP, AH)
	WhyNoLease   // outbound: no sequence numbers are left in any lease
	WhyHardBytes // a hard limit of the SA's lifetime
	WhyHardPackets
	WhyHardTime
	WhyHardUse
	WhyRemoved // the SA was removed while the packet was under way

	// The SPD.
	WhyInner        // the inner packet is outside the selectors of its SA (RFC 4301 §5.2)
	WhyBlocked      // a rule blocks it
	WhyNoRule       // no rule matches and the default is block
	WhyClear        // inbound in clear, and a secure rule covers it
	WhyAcquiring    // outbound: waits for an SA that is being negotiated
	WhyQueueFull    // the queue of waiting packets is full
	WhyAcquireFail  // the negotiation failed
	WhyQueueExpired // waited too long
	WhyNesting      // a rule wants what its SA sends protected once more, and that cannot be

	// The edges.
	WhyRead
	WhyWrite
	WhyUnsupported // nothing here can forward it
	WhyPanic       // a batch was lost to a mistake in this program

	// NumWhys is the length of a counter array.
	NumWhys
)

var whyNames = [NumWhys]string{
	WhyOK:         "ok",
	WhyTruncated:  "truncated",
	WhyVersion:    "bad-version",
	WhyHeader:     "bad-header",
	WhyExtensions: "too-many-extensions",
	WhyTTL:        "ttl-exceeded",
	WhyFragment:   "fragment",

	WhyFragmentOverlap: "fragment-overlap",
	WhyFragmentTimeout: "fragment-timeout",
	WhyFragmentFlood:   "fragment-flood",

	WhyFamily:        "wrong-family",
	WhyNoRoom:        "no-room",
	WhyTooBig:        "too-big",
	WhyECN:           "ecn-violation",
	WhyChecksum:      "bad-checksum",
	WhyKeepalive:     "nat-keepalive",
	WhyKeepaliveSent: "nat-keepalive-sent",
	WhyDatagram:      "short-datagram",
	WhyShort:         "short-packet",
	WhyAlign:         "misaligned",
	WhyAuth:          "auth-failed",
	WhyPadding:       "bad-padding",
	WhyDummy:         "dummy",
	WhyNextHead:      "bad-next-header",
	WhySeqZero:       "sequence-zero",
	WhyReplay:        "replayed",
	WhyOld:           "left-of-window",
	WhyReplayFloor:   "below-replay-floor",
	WhySeqRange:      "sequence-exhausted",
	WhyNoSA:          "no-sa",
	WhyProtocol:      "wrong-protocol",
	WhyNoLease:       "no-lease",
	WhyHardBytes:     "hard-bytes",
	WhyHardPackets:   "hard-packets",
	WhyHardTime:      "hard-time",
	WhyHardUse:       "hard-use",
	WhyRemoved:       "sa-removed",
	WhyInner:         "inner-selector",
	WhyBlocked:       "blocked",
	WhyNoRule:        "no-rule",
	WhyClear:         "clear-not-allowed",
	WhyAcquiring:     "acquiring",
	WhyQueueFull:     "queue-full",
	WhyAcquireFail:   "acquire-failed",
	WhyQueueExpired:  "queue-expired",
	WhyNesting:       "cannot-nest",
	WhyRead:          "read-error",
	WhyPanic:         "panic",
	WhyWrite:         "write-error",
	WhyUnsupported:   "unsupported",
}

// String is the reason's stable name, used alike in metrics, logs and explain.
func (w Why) String() string {
	if w < NumWhys {
		return whyNames[w]
	}
	return "why-" + strconv.Itoa(int(w))
}
