// Package backend is the seam between a worker and the thing that moves its
// packets: backend/userspace (a TUN device and our own ESP) or a kernel's XFRM.
//
// The worker translates WorkerLink and PolicyFeed messages into calls of a
// Backend, and a Backend's events into messages. A Backend keeps working with
// the policy and SAs it has when nobody calls it.
package backend
