package engine

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/testudo-ipsec/testudo/dataplane/netio"
	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// A table of 10,000 rules is replaced again and again under traffic of 256 flows: no
// packet is lost, and none waits for it.
func TestANewTableNeitherLosesNorDelaysPackets(t *testing.T) {
	const (
		rules = 10_000
		flows = 256
		swaps = 5
		// The aim is 1 ms, and 0.1 ms is what it takes on a machine with nothing else to do.
		// A full one, or one that is itself a guest, charges its own pauses to a thread.
		tolerated = 50 * time.Millisecond
	)
	local := ipsec.PrefixSelector(netip.MustParsePrefix("10.1.0.0/16"))
	local.Protocol = packet.ProtoTCP
	w, c, _, x := outAndIn(t, ipsec.ModeTunnel)
	policy := func(turn int) *ipsec.NodePolicy {
		p := &ipsec.NodePolicy{Node: "n", Default: ipsec.ActionBlock}
		for i := range rules {
			a := netip.AddrFrom4([4]byte{10, 2, byte(i >> 6), byte(i << 2)})
			p.Rules = append(p.Rules, ipsec.Rule{
				Name: fmt.Sprint(i), Weight: uint64(rules - i), Direction: ipsec.Both, Action: ipsec.ActionBlock,
				Selector: ipsec.Selector{
					Local:  local,
					Remote: ipsec.TrafficSelector{Protocol: packet.ProtoTCP, First: a, Last: a, PortFirst: uint16(1000 + turn), PortLast: 2000},
				},
			})
		}
		p.Rules = append(p.Rules, ipsec.Rule{
			Name: "r", Direction: ipsec.Both, Action: ipsec.ActionSecure, Peer: "p", Template: &ipsec.Template{Mode: ipsec.ModeTunnel},
			Selector: ipsec.Selector{
				Local: ipsec.PrefixSelector(netip.MustParsePrefix("10.1.0.0/16")), Remote: ipsec.PrefixSelector(netip.MustParsePrefix("10.2.0.0/16")),
			},
		})
		return p
	}
	if err := x.SetPolicy(context.Background(), policy(0)); err != nil {
		t.Fatal(err)
	}
	packets := make([][]byte, flows)
	for i := range packets {
		to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 2, byte(i), 7}), 53)
		packets[i] = append(make([]byte, 0, 2048), udp(netip.MustParseAddrPort("10.1.0.1:1"), to, make([]byte, 64))...)
	}

	var stop atomic.Bool
	done := make(chan error, 1)
	go func() {
		defer stop.Store(true)
		for i := range swaps {
			if err := x.SetPolicy(context.Background(), policy(1+i)); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	// The thread's own clock: other work on this machine is not the table's fault.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var cpu, wall []time.Duration
	sent, sealed, seen := 0, 0, map[uint64]bool{}
	for i := 0; !stop.Load() || i%flows != 0; i++ {
		if i%tunBatch == 0 {
			w.begin()
		}
		seen[w.e.state.Load().stamp] = true
		began, at := time.Now(), threadTime(t)
		w.packet(packets[i%flows], netio.Offload{})
		cpu, wall = append(cpu, threadTime(t)-at), append(wall, time.Since(began))
		if sent++; i%tunBatch == tunBatch-1 {
			w.flush()
			for _, m := range c.last {
				if m.Segment == 0 {
					m.Segment = len(m.Data)
				}
				sealed += (len(m.Data) + m.Segment - 1) / m.Segment
			}
		}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if sealed != sent {
		t.Errorf("%d of %d packets were sent on", sealed, sent)
	}
	if len(seen) < 2 {
		t.Errorf("packets saw %d tables, want several", len(seen))
	}
	slices.Sort(wall)
	slices.Sort(cpu)
	// If packets waited for tables, one would for each: fewer than that are pauses.
	if longest := cpu[len(cpu)-swaps]; longest > tolerated {
		t.Errorf("%d packets took %s of processor time or more, want at most %s", swaps, longest, tolerated)
	}
	t.Logf("%d packets under %d tables of %d rules: the longest took %s of processor time; by the clock half %s, 99.9 %% %s, the longest %s",
		sent, len(seen), rules, cpu[len(cpu)-1], wall[len(wall)/2], wall[len(wall)*999/1000], wall[len(wall)-1])
}

func threadTime(t *testing.T) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ts.Nano())
}
