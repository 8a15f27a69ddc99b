// Package userspace is the backend that moves packets itself: a TUN device, ESP
// in this process, and UDP and raw sockets. It needs no IPsec in the kernel, and
// of privileges only CAP_NET_ADMIN and CAP_NET_RAW in its network namespace.
//
// What it puts on the host, all under names and numbers of its Config:
//   - a TUN device with no address;
//   - an nftables table "inet testudo_<name>": it marks outbound packets that a
//     secure rule covers, drops what a block rule covers, and drops inbound
//     packets in clear that a secure rule covers;
//   - ip rules and a routing table that lead marked packets into the TUN, or,
//     when the TUN is gone, into a blackhole.
//
// Routing chooses source addresses as if the backend were not there: a packet is
// marked after that, and routed once more. So a host needs some route to a
// destination before it can send to it, protected or not.
//
// What comes out of an SA does not go into another one: a hub does not relay between
// two peers with both of which policy secures it. Such packets are dropped.
//
// When the process dies the kernel removes the TUN; the table and the blackhole
// stay, so that nothing that policy secures goes out or comes in in clear. The
// next Start takes them over. Close removes everything, or with FailClosed, in the
// configuration or in the policy, or before any policy what was taken over, only the TUN. Block puts them there before a
// worker has ever run, at boot.
package userspace
