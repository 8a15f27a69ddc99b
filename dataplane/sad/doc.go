// Package sad is the security association database of a worker (RFC 4301
// §4.4.2): the keys, windows, counters, leases and lifetimes of SAs in use.
//
// Who owns what:
//   - SAD: Apply, Advance and the reports are for the control side, and take a
//     lock. The packet path has pointers to its SAs and does not come here.
//   - Inbound: one goroutine opens packets of it, at most, at any time. Counters
//     may be read by others.
//   - Outbound: any goroutine reserves numbers; each seals with a Sealer of its
//     own (NewSealer).
//
// Time is passed in, as Unix nanoseconds on the packet path and time.Time on
// the control side.
package sad
