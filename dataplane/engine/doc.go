// Package engine is the packet path of a worker in user space: TUN to sockets
// (outbound) and sockets to TUN (inbound), between the SPD and the SAD.
//
// One goroutine runs each TUN queue and each socket, from reading a batch to
// writing it: there is no queue between cores. With several TUN queues there are as
// many sockets for ESP, among which the kernel chooses by SPI. What they share is read through
// one atomic pointer (state), which the control side replaces as a whole; its
// stamp makes every cached decision stale. Control calls take Engine.mu.
//
// The outer IP and UDP headers are written by the kernel's sockets, unless policy
// wants of them what no socket offers. So outer
// fragments are reassembled and outer routes followed there, and the engine sees
// ESP only.
//
// Fragments from the TUN travel as they are in tunnel mode on SAs whose ports
// are ANY, and are reassembled otherwise. So are inner fragments from the network.
// A whole IPv6 packet that is too large for a router to forward is cut again.
//
// Limits. Transport mode does not carry IPv4 options or IPv6 extension headers
// that stand before ESP.
package engine
