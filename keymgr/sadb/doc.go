// Package sadb is the key manager's record of the SAs of one node: those that
// should be in its worker, those that the worker acknowledged, the sequence
// numbers it was granted, and the SAs it still holds from an earlier key
// manager. It is pure and has one owner: it sends nothing and keeps no time.
//
// Leases. A grant is recorded here before the operation that carries it is
// returned, and never taken back, so that no two grants of an SA overlap
// whatever happens to the worker, the link or the batch.
//
// Restarts. Changes and Restore carry the record over to the next process: see
// saved.go. What a worker reports and the record does not know are orphans: they go on
// working with the leases they have, get no new ones, and are removed when fresh SAs
// have replaced them.
package sadb
