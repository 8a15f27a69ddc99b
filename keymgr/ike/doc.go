// Package ike is the contract between an IKE machine and the engine that runs
// it: the events a machine takes and the effects it asks for.
//
// A machine is one IKE SA. It is pure: Handle(now, event) returns effects in
// the order in which they must happen, and touches no network, clock, file,
// lock or goroutine. Randomness and unique numbers come from Env. The engine
// performs the effects; an effect with an ID is answered by exactly one event
// with the same ID. An effect that needs time (a secret from Vault, a slow key
// exchange, a worker's acknowledgement) never blocks other machines.
//
// A bad message has one of three outcomes: it is dropped (state untouched, a
// Dropped effect counts why), refused (a notify is sent), or fatal (the SA is
// gone: removals, a Failed report and Done are emitted).
package ike
