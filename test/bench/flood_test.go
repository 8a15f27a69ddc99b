package bench

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/test/fleet"
	"github.com/testudo-ipsec/testudo/test/lab"
)

// floodsVar (names of floods) makes the benchmark short, as roundsVar and onlyVar do.
const floodsVar = "TESTUDO_BENCH_FLOODS"

// Ordinary peers set up an IKE SA with PSK and X25519 at a rate that leaves most of
// the processors free; hostile ones do what they can, each from an address of its
// own in four networks. All of them are peers by the policy: a stranger gets no further.
const (
	ordinaryRate  = 100 // set-ups in a second
	ordinaryCount = 600
	ordinaryPeers = "10.66.0.0/26"
	hostilePeers  = 64
)

// ikeFlood is what hostile peers do.
type ikeFlood struct {
	name   string
	suite  string
	peers  hostileGroup
	charon bool // charon 5.9 can do it
}

// hostileGroup is one way in which the responder proves itself to hostile peers,
// by its key; empty for a preshared key.
type hostileGroup struct {
	key  string
	from netip.Prefix
}

var (
	byPSK     = hostileGroup{"", netip.MustParsePrefix("10.66.4.0/22")}
	byRSA2048 = hostileGroup{"rsa", netip.MustParsePrefix("10.66.8.0/22")}
	byRSA4096 = hostileGroup{"rsa4096", netip.MustParsePrefix("10.66.12.0/22")}

	hostileGroups = []hostileGroup{byPSK, byRSA2048, byRSA4096}
)

var ikeFloods = []ikeFlood{
	{name: "modp", suite: "aes256gcm16-prfsha256-modp2048", peers: byPSK, charon: true},
	{name: "modp4096", suite: "aes256gcm16-prfsha256-modp4096", peers: byPSK, charon: true},
	{name: "rsa", suite: ikeSuites[0], peers: byRSA2048, charon: true},
	{name: "rsa4096", suite: ikeSuites[0], peers: byRSA4096, charon: true},
	{name: "x25519", suite: ikeSuites[0], peers: byPSK, charon: true},
	{name: "mlkem", suite: "aes256gcm16-prfsha256-x25519-ke1_mlkem768", peers: byPSK},
}

// floodSuites are those of all floods that charon knows, or all.
func floodSuites(charon bool) (out []string) {
	for _, f := range ikeFloods {
		if (f.charon || !charon) && !slices.Contains(out, f.suite) {
			out = append(out, f.suite)
		}
	}
	return out
}

func (g hostileGroup) name() string { return "hostile" + g.key }

// all are the peers of a group, spread over its four /24.
func (g hostileGroup) all() (out []hostile) {
	first := g.from.Addr().As4()
	for i := range hostilePeers {
		a := first
		a[2] += byte(i % 4)
		a[3] += byte(i / 4)
		out = append(out, hostile{netip.AddrFrom4(a), fmt.Sprintf("%s-%d", g.name(), i)})
	}
	return out
}

// floodBed is a responder with an ordinary load and hostile peers before it.
type floodBed struct {
	ikeBed
	name  string
	certs map[hostileGroup]lab.Cert // of the hostile peers, one for all of a group
	gw    map[hostileGroup]lab.Cert // of the responder
}

func newFloodBed(t *testing.T, name string) *floodBed {
	b := &floodBed{ikeBed: newIKEBed(t, false), name: name, certs: map[hostileGroup]lab.Cert{}, gw: map[hostileGroup]lab.Cert{}}
	b.ca = lab.NewCA(t, "bench")
	for _, g := range hostileGroups[1:] {
		var names []string
		for _, p := range g.all() {
			names = append(names, p.ID)
		}
		b.certs[g], b.gw[g] = b.ca.Issue("p256", names...), b.ca.Issue(g.key, "gw.example")
	}
	return b
}

func oursFlooded(t *testing.T) *floodBed {
	b := newFloodBed(t, "testudo")
	secrets := map[string]string{fleet.PSK: b.psk, "ca.pem": b.ca.PEM()}
	var y strings.Builder
	fmt.Fprintf(&y, "apiVersion: testudo/v1\nkind: Node\nmetadata: {name: b}\nspec: {addresses: [%s], identity: gw.example}\n", b.B.V4.Addr())
	external := func(name, group string, a netip.Addr) {
		fmt.Fprintf(&y, "---\nkind: Node\nmetadata: {name: %s, labels: {group: %q}}\nspec: {addresses: [%s], external: true}\n", name, group, a)
	}
	var rules []string
	rule := func(group, method string) {
		fmt.Fprintf(&y, "---\nkind: FilterList\nmetadata: {name: %s}\nspec: {filters: [{from: {node: b}, to: {labels: {group: %q}}}]}\n", group, group)
		fmt.Fprintf(&y, "---\nkind: Authentication\nmetadata: {name: %s}\nspec: {methods: [{%s}]}\n", group, method)
		rules = append(rules, fmt.Sprintf("{name: %s, filters: %s, action: protect, authentication: %s}", group, group, group))
	}
	psk := `psk: {secret: "file:` + fleet.PSK + `"}`
	p := netip.MustParsePrefix(ordinaryPeers)
	for i, a := 0, p.Addr(); p.Contains(a); i, a = i+1, a.Next() {
		external(fmt.Sprintf("load-%d", i), "load", a)
	}
	rule("load", psk)
	for _, g := range hostileGroups {
		for _, h := range g.all() {
			external(h.ID, g.name(), h.Addr)
		}
		method := psk
		if c, ok := b.gw[g]; ok {
			secrets["gw-"+g.key+".pem"], secrets["gw-"+g.key+"-key.pem"] = c.Chain, c.Key
			method = fmt.Sprintf(`certificate: {trust: "file:ca.pem", credential: "file:gw-%s"}`, g.key)
		}
		rule(g.name(), method)
	}
	f := fleet.New(t, b.Lab, fleet.Options{Hosts: []*lab.Node{b.B.Node}, Secrets: secrets})
	fmt.Fprintf(&y, `---
kind: FilterAction
metadata: {name: protect}
spec: {action: secure, mode: tunnel, security: [{esp: {encryption: aes128gcm16}}]}
---
kind: Policy
metadata: {name: load}
spec:
  keyExchange: {suites: [%s]}
  rules: [%s]
---
kind: Assignment
metadata: {name: b}
spec: {policy: load, to: b}
`, strings.Join(floodSuites(false), ", "), strings.Join(rules, ", "))
	f.Apply(y.String())
	f.WaitInSync()
	return b
}

// swanFlooded is charon as in swanIKE.
func swanFlooded(t *testing.T) *floodBed {
	b := newFloodBed(t, "charon")
	var conns []lab.SwanConn
	conn := func(name string, from netip.Prefix, g hostileGroup) {
		c := lab.SwanConn{
			Name: name, Local: b.B.V4.Addr(), LocalID: "gw.example", RemoteID: "%any",
			LocalTS: []netip.Prefix{netip.PrefixFrom(b.B.V4.Addr(), 32)}, RemoteTS: []netip.Prefix{netip.MustParsePrefix(ikePeers4)},
			IKEProposals: floodSuites(true), ESPProposals: []string{"aes128gcm16"}, Settings: []string{"unique = never", "send_cert = always", "remote_addrs = " + from.String()},
		}
		if gw, ok := b.gw[g]; ok {
			c.Cert, c.CAs = &gw, []*lab.CA{b.ca}
		} else {
			c.PSK = ipsec.NewSecret([]byte(strings.TrimSpace(b.psk)))
		}
		conns = append(conns, c)
	}
	conn("load", netip.MustParsePrefix(ordinaryPeers), byPSK)
	for _, g := range hostileGroups {
		conn(g.name(), g.from, g)
	}
	b.B.Node.StartStrongSwanWith(lab.SwanOptions{ProtectsItself: true, Charon: swanForSpeed}, conns...)
	return b
}

// start lets the hostile peers loose. They run at the lowest priority: it is the
// responder's time that they are to take, not the initiator's.
func (b *floodBed) start(t *testing.T, f ikeFlood) *lab.Process {
	t.Helper()
	o := flooder{To: b.B.V4.Addr(), Peers: f.peers.all(), RemoteID: "gw.example", IKE: f.suite, PSK: strings.TrimSpace(b.psk)}
	if c, ok := b.certs[f.peers]; ok {
		o.PSK, o.Chain, o.Key = "", c.Chain, c.Key
	}
	text, err := json.Marshal(&o)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := b.A.Node.Start(lab.Command{Args: []string{"nice", "-n", "19", self}, Env: []string{flooderVar + "=" + string(text)}})
	p.WaitOutput("flooding", 10*time.Second)
	<-time.After(500 * time.Millisecond) // until its queues are full
	return p
}

// floodRound is what ordinary peers saw, alone or beside a flood.
type floodRound struct {
	p50, p99, max float64
	flood         float64 // set-ups of hostile peers in a second
}

func (b *floodBed) round(t *testing.T, f *ikeFlood) (out floodRound) {
	t.Helper()
	var hostile *lab.Process
	if f != nil {
		hostile = b.start(t, *f)
	}
	p := b.A.Node.Start(lab.Command{Args: append([]string{fleet.Program(t, "testudo"), "bench", "ike", b.B.V4.Addr().String(),
		"--local-id", "load-%d", "--remote-id", "gw.example", "--ike", ikeSuites[0], "--esp", "aes128gcm16", "--from", ordinaryPeers,
		"--count", strconv.Itoa(ordinaryCount), "--rate", strconv.Itoa(ordinaryRate), "--concurrency", strconv.Itoa(ordinaryCount), "-o", "json"}, b.prove...)})
	if err := p.Wait(time.Minute); err != nil {
		t.Fatalf("%s: testudo bench ike: %v\n%s", b.name, err, p.Output())
	}
	if hostile != nil {
		if err := hostile.Stop(); err != nil {
			t.Fatalf("%s: flooder: %v\n%s", b.name, err, hostile.Output())
		}
		_, said, _ := strings.Cut(hostile.Output(), "flooded: ")
		failed := 0
		if _, err := fmt.Sscan(said, &out.flood, &failed); err != nil || out.flood == 0 {
			t.Fatalf("%s: flood of %s: %v %d failed\n%s", b.name, f.name, err, failed, hostile.Output())
		}
	}
	_, report, _ := strings.Cut(p.Output(), "{")
	var load struct {
		Succeeded, Failed   int
		P50Ms, P99Ms, MaxMs float64
	}
	if err := json.Unmarshal([]byte("{"+report), &load); err != nil {
		t.Fatalf("%s: %v in %q", b.name, err, p.Output())
	}
	if load.Succeeded != ordinaryCount || load.Failed != 0 {
		t.Errorf("%s: not all of %d came up\n%s", b.name, ordinaryCount, p.Output())
	}
	out.p50, out.p99, out.max = load.P50Ms, load.P99Ms, load.MaxMs
	return out
}

// TestIKEFlood prints a table and one line of ratios: the 99th percentile of an ordinary
// peer's set-up beside a flood, by what it is without; `make bench-ike`.
func TestIKEFlood(t *testing.T) {
	if os.Getenv(ikeVar) == "" {
		t.Skipf("%s is not set: `make bench-ike` sets it", ikeVar)
	}
	n := rounds(t)
	var names []string
	for _, f := range ikeFloods {
		names = append(names, f.name)
	}
	steps, only := chosen(t, floodsVar, names...), chosen(t, onlyVar, "testudo", "charon")
	var beds []*floodBed
	if slices.Contains(only, "testudo") {
		beds = append(beds, oursFlooded(t))
	}
	if slices.Contains(only, "charon") {
		beds = append(beds, swanFlooded(t))
	}
	type key struct{ bed, flood string }
	got := map[key][]floodRound{}
	for i := range n {
		for k := range beds {
			b := beds[(i+k)%len(beds)]
			alone := b.round(t, nil)
			got[key{b.name, ""}] = append(got[key{b.name, ""}], alone)
			fmt.Printf("round %d of %d  %-8s alone            p50 %6.2f ms  p99 %6.2f ms  max %6.2f ms\n", i+1, n, b.name, alone.p50, alone.p99, alone.max)
			for _, f := range ikeFloods {
				if !slices.Contains(steps, f.name) || b.name == "charon" && !f.charon {
					continue
				}
				x := b.round(t, &f)
				got[key{b.name, f.name}] = append(got[key{b.name, f.name}], x)
				fmt.Printf("round %d of %d  %-8s beside %-9s p50 %6.2f ms  p99 %6.2f ms  max %6.2f ms  %5.0f hostile set-ups/s\n", i+1, n, b.name, f.name, x.p50, x.p99, x.max, x.flood)
			}
		}
	}
	mid := func(k key, f func(floodRound) float64) float64 {
		var v []float64
		for _, x := range got[k] {
			v = append(v, f(x))
		}
		return median(v)
	}
	p50, p99 := func(x floodRound) float64 { return x.p50 }, func(x floodRound) float64 { return x.p99 }
	fmt.Printf("\nmedian of %d, interleaved; %d ordinary set-ups at %d a second (PSK, X25519) beside %d hostile peers at nice 19; all on this machine's processors\n", n, ordinaryCount, ordinaryRate, hostilePeers)
	fmt.Printf("%-8s %-10s %8s %8s %10s %10s %16s\n", "", "beside", "p50 ms", "p99 ms", "p50 ratio", "p99 ratio", "hostile set-ups/s")
	var line strings.Builder
	for _, b := range beds {
		alone := key{b.name, ""}
		fmt.Printf("%-8s %-10s %8.2f %8.2f\n", b.name, "nothing", mid(alone, p50), mid(alone, p99))
		for _, name := range steps {
			k := key{b.name, name}
			if got[k] == nil {
				continue
			}
			ratio := mid(k, p99) / mid(alone, p99)
			fmt.Printf("%-8s %-10s %8.2f %8.2f %10.2f %10.2f %16.0f\n", b.name, name, mid(k, p50), mid(k, p99), mid(k, p50)/mid(alone, p50), ratio,
				mid(k, func(x floodRound) float64 { return x.flood }))
			prefix := ""
			if b.name != "testudo" {
				prefix = b.name + "_"
			}
			fmt.Fprintf(&line, " %s%s_p99_ratio=%.2f", prefix, name, ratio)
		}
	}
	fmt.Printf("\nbench-ike-flood:%s\n", line.String())
}
