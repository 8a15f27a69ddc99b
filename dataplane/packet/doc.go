// Package packet reads and edits IP packets in place, and builds the outer
// headers of tunnel mode. It allocates nothing and keeps no state.
//
// A caller parses once, into a Header of offsets, and passes octets and Header
// together from then on. Every function that takes a Header trusts that it was
// made by Parse from the same octets.
package packet
