// Package engine runs IKE machines: it finds the machine a datagram belongs to,
// performs the effects machines ask for, keeps their timers, decides when to
// start a negotiation, and keeps workers in line with what was negotiated.
//
// Shards. Each shard is one goroutine that owns its machines and one heap of
// their deadlines; nothing else calls a machine. What shards share (nodes, the
// SPI index, half-open counts) is behind short mutexes. Lock order: node, then
// anything else; the others are leaves.
//
// Bounds. Datagrams wait in a bounded inbox per shard and are dropped and
// counted when it is full, so a worker's reader never waits. Answers and
// commands are not dropped: each is asked for by an effect or an operator, and
// those are bounded. Half-open machines are bounded globally and per prefix,
// behind cookies (RFC 7296 §2.6). Slow work runs on bounded pools that serve
// peers in turn.
//
// Failure. A panic in a machine ends that machine only; its SAs go on working
// until fresh ones replace them. Close deletes nothing: workers keep their SAs.
//
// Limitations. IKE SAs live in memory: after a restart the SAs that workers
// still have go on as orphans until they are replaced (see package sadb).
// INITIAL_CONTACT is neither sent nor acted on: a peer's stale IKE SA ends by
// its liveness check, which costs no packet. IKEv1 is dropped and counted.
// INVALID_IKE_SPI is never sent.
package engine
