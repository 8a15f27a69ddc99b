package netio

import (
	"golang.org/x/sys/unix"
)

// Packets of one inbound SA come to one socket of several, so that one goroutine owns
// its window and the order of its packets: classic BPF, which every kernel since 4.5
// has, takes the SPI modulo the number of sockets. What has no SPI (IKE with its
// non-ESP marker of zeros, a NAT-keepalive) comes to the first.
//
// Sockets for UDP share a port by SO_REUSEPORT, and one program chooses among them.
// Raw sockets all get a copy of every packet, and each has a filter that lets its own
// pass.

// steer is called before the socket is bound.
func (c SocketConfig) steer(fd int) error {
	n := uint32(c.Queues)
	if c.port() {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
			return err
		}
		if c.Queue > 0 {
			return nil // the program is the group's
		}
		return attach(fd, unix.SO_ATTACH_REUSEPORT_CBPF, []unix.SockFilter{
			// The program sees what follows the UDP header. Where that is shorter than
			// a word the load ends it with 0.
			{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS},
			{Code: unix.BPF_ALU | unix.BPF_MOD | unix.BPF_K, K: n},
			{Code: unix.BPF_RET | unix.BPF_A},
		})
	}
	load := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}}
	if !c.IPv6 { // there the program sees the IP header too
		load = []unix.SockFilter{
			{Code: unix.BPF_LDX | unix.BPF_B | unix.BPF_MSH},
			{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_IND},
		}
	}
	return attach(fd, unix.SO_ATTACH_FILTER, append(load,
		unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_MOD | unix.BPF_K, K: n},
		unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(c.Queue), Jf: 1},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 1<<32 - 1}, // all of it
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K},
	))
}

func attach(fd, option int, program []unix.SockFilter) error {
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, option, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
}
