// Package interop shows that our daemons and strongSwan understand each other: on
// one node of a lab our keymgrd and workerd, driven by policy and the testudo
// command, on the other Debian's charon, driven by swanctl, a wire between them that
// is watched, and real traffic through it.
//
// A scenario is a row: a name, what it shows, our policy, strongSwan's connection,
// who starts, and steps. `make interop` prints one line for each,
//
//	PASS ikev2-psk-tunnel-pair-ipv4-initiator: strongSwan 5.9.8, tunnel between two hosts over IPv4, initiator
//
// where the last word is our role, and at the end "N passed, N failed". What all
// daemons printed follows the FAIL lines.
//
// In most of them strongSwan's ESP is kernel-libipsec's: tunnel mode in UDP, without
// ESN. TestKernel has strongSwan in a virtual machine, where the kernel does the rest:
// transport mode, ESP and AH as IP protocols, ESN. TestOpenIKED has OpenIKED there, and
// TestLibreswan Libreswan. `make interop-vm` runs all three.
package interop
