// Package iketest runs IKE machines against each other without a network: a Net
// with a virtual clock carries datagrams between Hosts, and loses, repeats,
// delays or rewrites them as a test asks. A Host is a small engine: it finds the
// machine of a datagram, answers what machines need, and keeps the SAs that they
// install as a worker would.
//
// Everything is deterministic: a seed gives the same run, octet by octet (key
// exchanges apart, which draw from the system).
package iketest
