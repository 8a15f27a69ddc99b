package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/test/fleet"
	"github.com/testudo-ipsec/testudo/test/lab"
)

// udp sends a datagram from one address and port to another and reports whether it
// arrives in time. A refusal to send is a no.
func udp(t *testing.T, from *lab.Interface, sport uint16, to *lab.Interface, dport uint16, in time.Duration) bool {
	t.Helper()
	var l, c *net.UDPConn
	if err := to.Node.Do(func() (err error) {
		l, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(to.V4.Addr(), dport)))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if err := from.Node.Do(func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from.V4.Addr(), sport)))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = l.SetReadDeadline(time.Now().Add(in))
	_, _ = c.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(to.V4.Addr(), dport))
	_, err := l.Read(make([]byte, 10))
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	return err == nil
}

// inVain is how long to wait for what must not come.
const inVain = 300 * time.Millisecond

// rises waits until the worker has counted more under a why than before.
func rises(t *testing.T, worker *fleet.Daemon, why string, before float64) {
	t.Helper()
	lab.WaitFor(t, limit, why+" to go up", func() error {
		if n := packets(worker, why); n <= before {
			return fmt.Errorf("it is %v, as before", n)
		}
		return nil
	})
}

// tcp reports whether a connection from one host to another comes about.
func tcp(from *lab.Node, to *lab.Interface) error {
	var l net.Listener
	if err := to.Node.Do(func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(to.V4.Addr(), 0).String())
		return err
	}); err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	return from.Do(func() error {
		c, err := net.DialTimeout("tcp", l.Addr().String(), 500*time.Millisecond)
		if err != nil {
			return err
		}
		return c.Close()
	})
}

func TestPermitBlockSecureAndDefault(t *testing.T) {
	filter := func(name, more string) string {
		return filters(name, fmt.Sprintf("{from: {node: a}, to: {node: b}, %s}", more))
	}
	b := newPair(t, policy(hostA, hostB, fleetPSK,
		filter("tcp", "protocol: tcp"), filter("ping", "protocol: icmp"),
		filter("discard", "protocol: udp, toPort: 9"), filter("echo", "protocol: udp, toPort: 7"),
		action("secure", "action: secure"), action("permit", "action: permit"), action("block", "action: block"),
		rules("p", "default: block", "{name: tcp, filters: tcp, action: secure, authentication: psk}",
			"{name: ping, filters: ping, action: permit}", "{name: discard, filters: discard, action: block}",
			"{name: echo, filters: echo, action: permit}"),
		assign("p", "a"), assign("p", "b")), fleet.Options{})
	b.clearAllowed()
	a, worker := b.A.Node, b.Worker("a")

	a.Transfer(b.B, false, megabyte)
	b.B.Node.Transfer(b.A, false, megabyte)
	b.wire.RequireProtected(1000) // TCP is all there was so far

	a.Ping(b.B.V4.Addr(), lab.PingOptions{Count: 3})
	if n := b.wire.Count(lab.Cleartext); n != 6 {
		t.Errorf("%d packets in clear after 3 pings that a rule permits; want 6", n)
	}
	if !udp(t, b.A, 4007, b.B, 7, limit) || !udp(t, b.B, 7, b.A, 4007, limit) {
		t.Error("UDP to or from port 7, which a rule permits, does not arrive")
	}
	clear := b.wire.Count(lab.Cleartext)
	for _, why := range []struct {
		name         string
		sport, dport uint16
	}{{"blocked", 4009, 9}, {"no-rule", 4010, 10}} {
		before := packets(worker, why.name)
		if udp(t, b.A, why.sport, b.B, why.dport, inVain) {
			t.Errorf("UDP to port %d arrives; want it to be %s", why.dport, why.name)
		}
		rises(t, worker, why.name, before)
	}
	if n := b.wire.Count(lab.Cleartext); n != clear {
		t.Errorf("%d packets more in clear; want none of what is blocked", n-clear)
	}

	// Now b sends what it likes, and in clear.
	b.Worker("b").Stop()
	for _, why := range []struct {
		name         string
		sport, dport uint16
	}{{"blocked", 9, 4009}, {"no-rule", 10, 4010}} {
		before := packets(worker, why.name)
		if udp(t, b.B, why.sport, b.A, why.dport, inVain) {
			t.Errorf("UDP from port %d arrives; want it to be %s", why.sport, why.name)
		}
		rises(t, worker, why.name, before)
	}
	before := packets(worker, "clear-not-allowed")
	if err := tcp(b.B.Node, b.A); err == nil {
		t.Error("TCP in clear gets through to a host that secures it")
	}
	rises(t, worker, "clear-not-allowed", before)
}
