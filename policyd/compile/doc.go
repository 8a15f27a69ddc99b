// Package compile turns a linked set of documents into what each node enforces.
// It is a pure function: the same documents give the same result, whatever
// their order.
//
// # From filters to rules
//
// A filter speaks of two sets of hosts. A node that is in one of them gets
// rules in which its own side is Local and the other side is Remote; a node in
// both gets both. Its own side is, in the words of the filter:
//
//   - me, a node, labels or a unit: the node's own addresses;
//   - an address, subnet or range: the part of it that the node owns or protects;
//   - any: all that the node owns or protects and, when the action is permit or
//     block, in a rule of lower weight every other address too (broadcast,
//     multicast, what a router forwards).
//
// In transport mode the node's side is its own addresses only: RFC 4301 §4.1
// keeps transport mode to the hosts that are the ends of the traffic.
//
// # Who the peer is
//
// The peer of a secure rule is the gateway that the policy's rule names, else
// whoever the documents say owns the remote side: in tunnel mode the node that
// protects it, else the node whose address it is, else, for a single address,
// that address. What is left of a subnet or of any belongs to nobody known: it
// gets a rule whose peer "any" only answers, so that its traffic is dropped,
// never sent in clear, until somebody there starts IKE.
//
// The IPv4 and the IPv6 addresses of a remote node are two peers, name and
// name/v6, because in transport mode the IKE SA runs between the addresses that
// it protects.
//
// # Order
//
// Rules are ordered by Weight, a function of the selector alone. Two of equal
// weight that overlap and do different things are an error.
package compile
