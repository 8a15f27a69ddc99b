// Package ikeload sets up many IKE SAs with a responder, to learn how fast it
// is: the load behind `testudo bench ike`.
//
// Each IKE SA is a machine of package ikev2, as keymgrd runs it, so what the
// responder sees is a real peer. Around it is the least that a machine needs: a
// UDP socket for each source address, and one goroutine for each IKE SA. CHILD
// SAs are negotiated and go nowhere: no packet is ever protected with them.
//
// Limitation: an IKE SA that the responder rekeys while it is held counts as
// lost, because nothing here runs the one that replaces it.
package ikeload
