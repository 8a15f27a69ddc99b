package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/test/fleet"
	"github.com/testudo-ipsec/testudo/test/lab"
)

// ikeVar is set to run the benchmark of IKE; see benchVar. roundsVar, stepsVar (names
// of rows) and onlyVar (testudo or charon) make it short.
const ikeVar = "TESTUDO_BENCH_IKE"

// Each round sets up one IKE SA with one CHILD SA for each of so many peers,
// holds them all, and deletes them. The peers have addresses of ikePeers4, which
// is one /20 so that half-open limits per prefix do not matter.
const (
	ikePeers  = 1024
	ikePeers4 = "10.66.0.0/20"
)

// So many are set up at a time: as when a fleet comes back, which is when a key
// manager's speed counts; and few, so that whoever is measured falls asleep between
// messages.
const (
	ikeMany = 64
	ikeFew  = 8
)

// ikeSuites are measured one after the other. All are named in the responders'
// configurations; the initiator offers one. The first is the one of the targets.
var ikeSuites = []string{
	"aes256gcm16-prfsha256-x25519",
	"aes256gcm16-prfsha256-ecp256",
	"aes256gcm16-prfsha256-modp2048",
}

// ikeResponder is one key manager with what it needs to have CHILD SAs in place.
type ikeResponder struct {
	name   string
	client *lab.Node
	prove  []string        // flags of the load that prove who it is
	cpu    []func() uint64 // nanoseconds used by each of its processes so far
	memory func() float64  // octets in use
}

// ikeBed is where a responder is measured: its node, and one whose loopback has
// the addresses of all peers, with what they prove themselves by.
type ikeBed struct {
	*lab.Pair
	psk   string
	ca    *lab.CA // nil without certificates
	gw    lab.Cert
	prove []string
}

func newIKEBed(t *testing.T, certificates bool) ikeBed {
	t.Helper()
	b := ikeBed{Pair: lab.NewPair(t, lab.PairOptions{}), psk: fleet.RandomPSK()}
	client := b.A.Node
	client.IP("route", "add", "local", ikePeers4, "dev", "lo")
	b.B.Node.Route(netip.MustParsePrefix(ikePeers4), b.A.V4.Addr())
	if !certificates {
		b.prove = []string{"--psk-file", client.WriteFile("load.psk", b.psk)}
		return b
	}
	b.ca = lab.NewCA(t, "bench")
	b.gw = b.ca.Issue("p256", "gw.example")
	dir := filepath.Join(client.Dir(), "pki")
	write := func(name, content string) {
		if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	write("ca.pem", b.ca.PEM())
	for i := range ikePeers {
		c := b.ca.Issue("p256", fmt.Sprint("load-", i))
		write(fmt.Sprintf("load-%d.pem", i), c.Chain)
		write(fmt.Sprintf("load-%d-key.pem", i), c.Key)
	}
	b.prove = []string{"--secrets", dir, "--credential", "file:load-%d", "--trust", "file:ca.pem"}
	return b
}

// oursIKE is keymgrd, and a workerd that relays IKE to it and takes the SAs.
func oursIKE(t *testing.T, certificates bool) ikeResponder {
	t.Helper()
	p := newIKEBed(t, certificates)
	secrets, method := map[string]string{fleet.PSK: p.psk}, `psk: {secret: "file:`+fleet.PSK+`"}`
	if certificates {
		secrets["ca.pem"], secrets["gw.pem"], secrets["gw-key.pem"] = p.ca.PEM(), p.gw.Chain, p.gw.Key
		method = `certificate: {trust: "file:ca.pem", credential: "file:gw"}`
	}
	f := fleet.New(t, p.Lab, fleet.Options{Hosts: []*lab.Node{p.B.Node}, Secrets: secrets})
	var y strings.Builder
	fmt.Fprintf(&y, "apiVersion: testudo/v1\nkind: Node\nmetadata: {name: b}\nspec: {addresses: [%s], identity: gw.example}\n", p.B.V4.Addr())
	a := netip.MustParsePrefix(ikePeers4).Addr()
	for i := range ikePeers {
		fmt.Fprintf(&y, "---\nkind: Node\nmetadata: {name: load-%d, labels: {load: \"yes\"}}\nspec: {addresses: [%s], external: true}\n", i, a)
		a = a.Next()
	}
	fmt.Fprintf(&y, `---
kind: FilterList
metadata: {name: load}
spec: {filters: [{from: {node: b}, to: {labels: {load: "yes"}}}]}
---
kind: FilterAction
metadata: {name: protect}
spec: {action: secure, mode: tunnel, security: [{esp: {encryption: aes128gcm16}}]}
---
kind: Authentication
metadata: {name: fleet}
spec: {methods: [{%s}]}
---
kind: Policy
metadata: {name: load}
spec:
  keyExchange: {suites: [%s]}
  rules: [{name: all, filters: load, action: protect, authentication: fleet}]
---
kind: Assignment
metadata: {name: b}
spec: {policy: load, to: b}
`, method, strings.Join(ikeSuites, ", "))
	f.Apply(y.String())
	f.WaitInSync()
	heap := func() float64 { return f.Keymgrd.Metrics()["go_memstats_heap_alloc_bytes"] }
	return ikeResponder{
		name: "testudo", client: p.A.Node, prove: p.prove,
		cpu:    []func() uint64{cpuOf(t, f.Keymgrd.Process().PID()), cpuOf(t, f.Worker("b").Process().PID())},
		memory: func() float64 { f.Keymgrd.CollectGarbage(); return heap() },
	}
}

const swanQuiet = "default = -1\n\tike = -1\n\tcfg = -1\n\tknl = -1\n\tesp = -1"

// swanForSpeed is charon's part of strongswan.conf for swanIKE.
var swanForSpeed = []string{
	"threads = 16", "cookie_threshold = 0", "block_threshold = 0", "init_limit_half_open = 0", "init_limit_job_load = 0",
	"ikesa_table_size = 4096", "ikesa_table_segments = 16", "install_routes = no",
	"filelog { stderr {\n\t" + swanQuiet + "\n\t} }", "journal {\n\t" + swanQuiet + "\n\t}", "syslog { daemon {\n\t" + swanQuiet + "\n\t} auth {\n\t" + swanQuiet + "\n\t} }",
}

// swanIKE is Debian's charon, set up so that nothing but its speed is measured:
// no limits on half-open IKE SAs, no cookies, a table for many IKE SAs, no log,
// and ESP in the plugin kernel-libipsec, whose installation of an SA is a few
// entries in its own tables. It protects itself, by a mark on its packets: the
// selectors hold the peers' own addresses, and without it charon would put its
// IKE messages into the tunnel for ever.
func swanIKE(t *testing.T, certificates bool) ikeResponder {
	t.Helper()
	p := newIKEBed(t, certificates)
	conn := lab.SwanConn{
		Name: "load", Local: p.B.V4.Addr(), LocalID: "gw.example", RemoteID: "%any",
		LocalTS: []netip.Prefix{netip.PrefixFrom(p.B.V4.Addr(), 32)}, RemoteTS: []netip.Prefix{netip.MustParsePrefix(ikePeers4)},
		IKEProposals: ikeSuites, ESPProposals: []string{"aes128gcm16"}, Settings: []string{"unique = never"},
	}
	if certificates {
		conn.Cert, conn.CAs = &p.gw, []*lab.CA{p.ca}
	} else {
		conn.PSK = ipsec.NewSecret([]byte(strings.TrimSpace(p.psk)))
	}
	s := p.B.Node.StartStrongSwanWith(lab.SwanOptions{ProtectsItself: true, Charon: swanForSpeed}, conn)
	return ikeResponder{
		name: "charon", client: p.A.Node, prove: p.prove,
		cpu:    []func() uint64{cpuOf(t, s.PID())},
		memory: func() float64 { return float64(residentSet(t, s.PID())) },
	}
}

// ikeRound is what one round showed.
type ikeRound struct {
	cpu       []float64 // milliseconds for each IKE SA with its CHILD SA, by process
	perSecond float64
	p50, p99  float64
	octets    float64 // of memory for each
}

func (r ikeResponder) round(t *testing.T, suite string, concurrency int) ikeRound {
	t.Helper()
	before := r.memory()
	start := make([]uint64, len(r.cpu))
	for i, cpu := range r.cpu {
		start[i] = cpu()
	}
	p := r.client.Start(lab.Command{Args: append([]string{fleet.Program(t, "testudo"), "bench", "ike", "192.0.2.2",
		"--local-id", "load-%d", "--remote-id", "gw.example", "--ike", suite, "--esp", "aes128gcm16", "--from", ikePeers4,
		"--count", strconv.Itoa(ikePeers), "--concurrency", strconv.Itoa(concurrency), "--hold", "2s", "-o", "json"}, r.prove...)})
	p.WaitOutput("held for", time.Minute)
	var out ikeRound
	for i, cpu := range r.cpu {
		out.cpu = append(out.cpu, float64(cpu()-start[i])/1e6/ikePeers)
	}
	out.octets = (r.memory() - before) / ikePeers
	if err := p.Wait(time.Minute); err != nil {
		t.Fatalf("%s: testudo bench ike: %v\n%s", r.name, err, p.Output())
	}
	_, report, _ := strings.Cut(p.Output(), "{")
	var load struct {
		Succeeded, Failed, Lost int
		SetupsPerSecond         float64
		P50Ms, P99Ms            float64
	}
	if err := json.Unmarshal([]byte("{"+report), &load); err != nil {
		t.Fatalf("%s: %v in %q", r.name, err, p.Output())
	}
	if load.Succeeded != ikePeers || load.Failed != 0 || load.Lost != 0 {
		t.Fatalf("%s: not all of %d came up and stayed\n%s", r.name, ikePeers, p.Output())
	}
	out.perSecond, out.p50, out.p99 = load.SetupsPerSecond, load.P50Ms, load.P99Ms
	return out
}

// TestIKE prints a table and one line of figures; `make bench-ike`.
func TestIKE(t *testing.T) {
	if os.Getenv(ikeVar) == "" {
		t.Skipf("%s is not set: `make bench-ike` sets it", ikeVar)
	}
	n := rounds(t)
	type row struct {
		name, suite  string
		concurrency  int
		certificates bool
		rivals       []ikeResponder // ours and charon
	}
	first := ikeSuites[0]
	all := []row{{name: first, suite: first, concurrency: ikeMany}, {name: first + " few", suite: first, concurrency: ikeFew}}
	for _, s := range ikeSuites[1:] {
		all = append(all, row{name: s, suite: s, concurrency: ikeMany})
	}
	all = append(all, row{name: first + " ecdsa", suite: first, concurrency: ikeMany, certificates: true})
	var names []string
	for _, r := range all {
		names = append(names, r.name)
	}
	steps, only := chosen(t, stepsVar, names...), chosen(t, onlyVar, "testudo", "charon")
	rivals := func(certificates bool) (out []ikeResponder) {
		if slices.Contains(only, "testudo") {
			out = append(out, oursIKE(t, certificates))
		}
		if slices.Contains(only, "charon") {
			out = append(out, swanIKE(t, certificates))
		}
		return out
	}
	by := map[bool][]ikeResponder{}
	var rows []row
	for _, r := range all {
		if !slices.Contains(steps, r.name) {
			continue
		}
		if by[r.certificates] == nil {
			by[r.certificates] = rivals(r.certificates)
		}
		r.rivals = by[r.certificates]
		rows = append(rows, r)
	}
	got := map[string][]ikeRound{}
	key := func(r ikeResponder, name string) string { return r.name + " " + name }
	for i := range n {
		for _, row := range rows {
			for k := range row.rivals {
				r, suite := row.rivals[(i+k)%len(row.rivals)], row.name
				x := r.round(t, row.suite, row.concurrency)
				got[key(r, suite)] = append(got[key(r, suite)], x)
				fmt.Printf("round %d of %d  %-8s %-34s %.3f ms CPU %.3f  %5.0f set-ups/s  p50 %.1f ms  p99 %.1f ms  %6.0f octets\n",
					i+1, n, r.name, suite, sum(x.cpu), x.cpu, x.perSecond, x.p50, x.p99, x.octets)
			}
		}
	}
	mid := func(r ikeResponder, suite string, f func(ikeRound) float64) float64 {
		var v []float64
		for _, x := range got[key(r, suite)] {
			v = append(v, f(x))
		}
		return median(v)
	}
	cpu := func(x ikeRound) float64 { return sum(x.cpu) }
	fmt.Printf("\nmedian of %d, interleaved; %d peers, %d at a time (few: %d), PSK or certificates (ecdsa), one CHILD SA each; initiator and responder on this machine's processors\n", n, ikePeers, ikeMany, ikeFew)
	fmt.Printf("%-34s %-8s %12s %12s %12s %12s %8s %8s %10s\n", "", "", "CPU ms/SA", "keymgrd", "workerd", "set-ups/s", "p50 ms", "p99 ms", "octets/SA")
	for _, row := range rows {
		suite := row.name
		for _, r := range row.rivals {
			share := []string{"-", "-"}
			if len(r.cpu) == 2 {
				for i := range share {
					share[i] = fmt.Sprintf("%.3f", mid(r, suite, func(x ikeRound) float64 { return x.cpu[i] }))
				}
			}
			fmt.Printf("%-34s %-8s %12.3f %12s %12s %12.0f %8.1f %8.1f %10.0f\n", suite, r.name, mid(r, suite, cpu), share[0], share[1],
				mid(r, suite, func(x ikeRound) float64 { return x.perSecond }), mid(r, suite, func(x ikeRound) float64 { return x.p50 }),
				mid(r, suite, func(x ikeRound) float64 { return x.p99 }), mid(r, suite, func(x ikeRound) float64 { return x.octets }))
		}
	}
	fmt.Println("octets: live heap of keymgrd after a collection; growth of charon's resident set, which shows in its first round only")
	for _, row := range slices.Backward(rows) { // the one of the targets is the last line
		if len(row.rivals) != 2 || row.suite != first {
			continue
		}
		a, b, s := row.rivals[0], row.rivals[1], row.name
		fmt.Printf("bench-ike%s: ours_cpu_ms=%.3f charon_cpu_ms=%.3f ratio=%.2f setups_per_s=%.0f p99_ms=%.1f bytes_per_sa=%.0f\n",
			strings.Replace(strings.TrimPrefix(s, first), " ", "-", 1),
			mid(a, s, cpu), mid(b, s, cpu), mid(a, s, cpu)/mid(b, s, cpu), mid(a, s, func(x ikeRound) float64 { return x.perSecond }),
			mid(a, s, func(x ikeRound) float64 { return x.p99 }), mid(a, s, func(x ikeRound) float64 { return x.octets }))
	}
}
