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
// counted when it is full, so a worker's reader never waits. Networks (/24, /64) are
// served in turn, then their addresses, and none fills it alone. Answers and
// commands are not dropped: each is asked for by an effect or an operator, and
// those are bounded. Half-open machines are bounded globally and per prefix,
// behind cookies (RFC 7296 §2.6). Slow work runs on bounded pools that serve
// networks and peers in turn, and of which one peer has a quarter at most; what computes
// does so on threads that give way to all others. What is remembered
// of failures and of exchanges (Failures, Traces) is bounded too.
//
// Failure. A panic in a machine ends that machine only; its SAs go on working
// until fresh ones replace them. Close deletes nothing: workers keep their SAs.
//
// Restarts. With a Store an engine goes on where the last one stopped, kill -9
// included: letout.go says what is written before what is let out, durable.go how
// it is grouped, restore.go how it is taken up. IKE SAs that are not authenticated
// yet are forgotten. A store that cannot be written holds back what established IKE
// SAs would send, and grants of leases, until it can; handshakes and traffic go on.
// Without a store, or with one that was lost, the SAs that workers still have go on
// as orphans until fresh ones replace them (see package sadb).
//
// An older copy of a store, put back, would repeat what was said since. What keeps
// that from being harmful: a worker that knows of a lease or an outbound SA which the
// store does not gives it away, and then nothing of the node's is resumed; when the
// worker has lost its memory too, no restored outbound SA is granted numbers again, but
// is rekeyed; and a restored machine's IVs begin far from those it had. Message IDs
// of an old copy are not noticed at once: such an IKE SA ends by silence.
//
// Whoever asks under an IKE SA that was lost is told so, with a token (qcd.go).
//
// Limitations. IKEv1 is dropped and counted.
package engine
