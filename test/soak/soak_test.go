// Package soak runs two hosts under mixed traffic for a long time, with SAs that
// are replaced every few seconds and daemons that are killed at random.
package soak

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/test/fleet"
	"github.com/testudo-ipsec/testudo/test/lab"
)

// durationVar is how long to soak, such as 10m.
const durationVar = "TESTUDO_SOAK"

func TestMain(m *testing.M) { lab.Main(m) }

const policy = `apiVersion: testudo/v1
kind: Node
metadata: {name: a}
spec: {addresses: [192.0.2.1, "2001:db8::1"]}
---
kind: Node
metadata: {name: b}
spec: {addresses: [192.0.2.2, "2001:db8::2"]}
---
kind: FilterList
metadata: {name: pair}
spec:
  filters:
  - {from: {node: a}, to: {node: b}}
---
kind: FilterAction
metadata: {name: protect}
spec:
  action: secure
  mode: transport
  security: [{esp: {encryption: aes128gcm16}}]
  pfs: x25519
  forceEncap: true
  lifetime: {time: 10s, packets: 20000}
---
kind: Authentication
metadata: {name: fleet}
spec: {methods: [{psk: {secret: "file:fleet.psk"}}]}
---
kind: Policy
metadata: {name: pair}
spec:
  keyExchange: {lifetime: 1m}
  rules:
  - {name: all, filters: pair, action: protect, authentication: fleet}
---
kind: Assignment
metadata: {name: a}
spec: {policy: pair, to: a}
---
kind: Assignment
metadata: {name: b}
spec: {policy: pair, to: b}
`

// restart is a daemon to kill, and what that may cost at most: the keymgrd and
// the policyd nothing, a worker the time until its SAs are back.
type restart struct {
	name  string
	d     *fleet.Daemon
	costs bool
}

// pause between two restarts: time enough for rekeys that no restart disturbs.
const pause = 20 * time.Second

func TestSoak(t *testing.T) {
	text := os.Getenv(durationVar)
	if text == "" {
		t.Skipf("%s is not set: `make soak` sets it", durationVar)
	}
	duration, err := time.ParseDuration(text)
	if err != nil || duration < 2*pause {
		t.Fatalf("%s=%q; want a duration of at least %v", durationVar, text, 2*pause)
	}
	p := lab.NewPair(t, lab.PairOptions{})
	wire := p.A.Sniff()
	f := fleet.New(t, p.Lab, fleet.Options{Hosts: []*lab.Node{p.A.Node, p.B.Node}})
	f.Apply(policy)
	f.WaitInSync()
	p.A.Node.WaitPing(p.B.V4.Addr(), 10*time.Second)
	p.A.Node.WaitPing(p.B.V6.Addr(), 10*time.Second)

	restarts := []restart{
		{"keymgrd", f.Keymgrd, false}, {"policyd", f.Policyd, false},
		{"workerd on a", f.Worker("a"), true}, {"workerd on b", f.Worker("b"), true},
	}
	stop := make(chan struct{})
	var bulk sync.WaitGroup
	var moved int
	bulk.Go(func() { moved = transfers(p, stop) })

	var quietLost, quietSent uint64
	var first, last map[string]int
	for end := time.Now().Add(duration); time.Now().Before(end); {
		// A quiet time: rekeys only. It must cost nothing.
		v4, v6 := p.A.Node.StartProbe(p.B, false, 10*time.Millisecond), p.A.Node.StartProbe(p.B, true, 10*time.Millisecond)
		<-time.After(pause)
		for _, r := range []lab.ProbeResult{v4.Stop(), v6.Stop()} {
			quietLost, quietSent = quietLost+r.Lost, quietSent+r.Sent
		}
		last = memory(t, restarts)
		if first == nil {
			first = last
		}
		// Then a restart, whose cost is bounded.
		x := restarts[rand.IntN(len(restarts))]
		probe := p.A.Node.StartProbe(p.B, false, 10*time.Millisecond)
		x.d.Restart()
		f.WaitInSync()
		lab.WaitFor(t, 20*time.Second, "answers after "+x.name+" came back", func() error {
			return p.A.Node.TryPing(p.B.V4.Addr(), lab.PingOptions{})
		})
		cost := probe.Stop()
		fmt.Printf("soak: %s killed: %s\n", x.name, cost)
		if !x.costs && cost.Lost > 0 {
			t.Errorf("%s was killed and %d probes were lost; want 0: workers go on", x.name, cost.Lost)
		}
	}
	close(stop)
	bulk.Wait()
	for _, v := range wire.Violations() {
		t.Error(v)
	}
	for name, octets := range last {
		// Twice and 16 MiB: heaps breathe; what leaks goes on growing.
		if octets > 2*first[name]+16<<20 {
			t.Errorf("%s grew from %d to %d KiB", name, first[name]>>10, octets>>10)
		}
	}
	if quietLost > 0 {
		t.Errorf("%d of %d probes were lost while nothing but rekeys happened; want 0", quietLost, quietSent)
	}
	fmt.Printf("soak: %s; %d SAs on the wire, %d MiB of TCP, %d of %d probes lost outside restarts, %d violations\n",
		duration, len(wire.SAs()), moved, quietLost, quietSent, len(wire.Violations()))
}

// transfers sends a MiB each way again and again until stop; it returns how many
// arrived in whole. A transfer that a restart cut is tried again.
func transfers(p *lab.Pair, stop <-chan struct{}) (n int) {
	for i := 0; ; i++ {
		select {
		case <-stop:
			return n
		default:
		}
		from, to := p.A, p.B
		if i%2 == 1 {
			from, to = to, from
		}
		if _, err := from.Node.TryTransfer(to, i%4 >= 2, 1<<20); err == nil {
			n++
		}
		select {
		case <-stop:
			return n
		case <-time.After(200 * time.Millisecond): // some idle time, too
		}
	}
}

// memory is the resident set of each daemon in octets.
func memory(t *testing.T, ds []restart) map[string]int {
	t.Helper()
	out := map[string]int{}
	for _, d := range ds {
		b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(d.d.Process().PID()), "statm"))
		if err != nil {
			t.Fatal(err)
		}
		var size, resident int
		if _, err := fmt.Sscan(string(b), &size, &resident); err != nil {
			t.Fatal(err)
		}
		out[d.name] = resident * os.Getpagesize()
	}
	return out
}
