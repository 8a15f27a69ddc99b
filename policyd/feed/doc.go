// Package feed sends each subscriber the compiled policy it asked for, and from
// then on only what changes: per-resource versions, one delta at a time, each
// answered by an ACK or a NACK, resumed after a reconnect from the versions the
// subscriber holds. It knows no transport.
//
// A Hub holds the newest state and no queue. A subscriber that is slow, or that
// has not answered yet, is owed the difference between what it acknowledged and
// the newest state, whatever came in between; that difference is made when it
// is asked for. States are immutable and shared, so what a subscriber costs
// does not depend on how far behind it is.
//
// A delta changes each node it speaks of completely or, when refused, not at
// all. What was refused is not sent again until it changes.
//
// Until the first Publish nothing is sent: a policyd that has just started does
// not know yet what there is, and must not tell anybody to remove what they have.
package feed
