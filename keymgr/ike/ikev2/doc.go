// Package ikev2 is the IKEv2 machine (RFC 7296): one Machine is one IKE SA and
// its CHILD SAs. It is pure, as package ike describes.
//
// A machine does two kinds of things at a time, one for each message window (RFC 7296
// §2.3). A task is an exchange that it initiates: tasks wait in a bounded queue, and up
// to four are under way, as far as they concern different CHILD SAs and the peer's window
// has room. A serve is a request of the peer that is being answered, one at a time, in
// order. Either may wait for an answer of the engine (a secret, a slow key exchange, an
// installation); what it then goes on with is in its phase. A responder that has answered
// and waits for its peer rests: rest.go.
//
// Each exchange is one file with its rows (which payloads a message must and may
// have, and who handles it) beside the handlers of both roles:
// ike_sa_init.go, intermediate.go, ike_auth.go, create_child.go, rekey_ike.go,
// followup.go, informational.go.
// What happens when the two ends want different things at the same time is in
// collide.go.
//
// Order of installation. The responder of an exchange installs inbound, sends
// its response when the worker has acknowledged, and then installs outbound. The
// initiator installs inbound, then outbound. At a rekey the responder keeps
// sending on the old SA until the delete of the old SA arrives: only then does
// it know that the initiator's new inbound SA is in place (RFC 7296 §2.8).
//
// Authentication is in authn*.go: each end proves itself by a method of its own,
// pre-shared key, certificate or nothing, and is judged by the other; ppk.go mixes a
// postquantum preshared key in, reauth.go says when it is time to do it again.
//
// Limitations: a peer that wants EAP gets AUTHENTICATION_FAILED. Certificates are
// X.509 in CERT payloads: hash-and-URL and raw public keys are passed over. A list
// of authentication methods too long for IKE_SA_INIT is not expected in
// IKE_INTERMEDIATE (RFC 9593 §3.1). No configuration payload. A peer is given up after
// about a minute of retransmissions, which is less than RFC 7296 §2.4 asks for: see
// retransmit.go. NAT keepalives are the worker's.
package ikev2
