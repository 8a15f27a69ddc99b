// Package spd is the Security Policy Database (RFC 4301 §4.4.1): an ordered list
// of rules compiled into an immutable table, and a cache of what the table said.
//
// The worker sees its packets from the host's side, so one table serves both
// directions: a rule names a direction, and its selector has a local and a
// remote side.
//
// A later fragment carries no ports (RFC 4301 §7), and so that a datagram has one
// fate its first fragment is taken to have none either. A fragment matches a
// rule whose ports are ANY or OPAQUE. Where a rule with narrower ports might
// match the whole packet, the verdict is WhyFragment: reassemble or drop, as
// guessing could send protected data in clear.
package spd
