// Package model is what an operator writes: YAML documents of the kinds Node,
// FilterList, FilterAction, Authentication, Policy and Assignment, read
// strictly and linked into a Set.
//
// Reading reports every mistake it can find, not the first one, each as
// "file:line: field: what was got, what was wanted". A key or value that is
// part of the model but that nothing enforces yet is refused by name: a policy
// that is accepted is a policy that is enforced.
//
// Not enforced yet, and refused: ISAKMP/Oakley (keyExchange.version 1), Kerberos,
// AH, connection types other than all, fallbackToClear, defaultResponse: true (a
// node answers IKE for the peers its rules name, and for no others), and
// endpoints given as a DNS name or as a keyword such as gateway or dns.
package model
