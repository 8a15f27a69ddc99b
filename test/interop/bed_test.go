package interop

import (
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	keymgrv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/keymgr/v1"
	"github.com/testudo-ipsec/testudo/test/fleet"
	"github.com/testudo-ipsec/testudo/test/lab"
)

const (
	ourID        = "us.example"
	theirID      = "swan.example"
	secretFile   = "interop.psk"
	secret       = "a secret that two people agreed on"
	conn         = "tunnel" // strongSwan's connection, and its first CHILD SA
	defaultSuite = "aes256gcm16-prfsha256-x25519"

	// limit is for what takes a moment: a loaded machine must not fail a scenario.
	limit = 2 * time.Minute
)

// bed is what a scenario runs on.
type bed struct {
	*testing.T
	scenario

	us, them           *lab.Interface // where both daemons are
	ourHost, theirHost *lab.Interface // who talks through the tunnel
	wan                *lab.Node      // the router between the gateways; nil for a pair
	node               string         // ours in policy
	f                  *fleet.Fleet
	peer               *lab.StrongSwan
	conn               lab.SwanConn // as loaded
	ends               ends         // of the policy
	policy             string       // as applied
	pki                made         // when a program made the certificates
	wire               []*lab.Sniffer
	pinged             bool
}

func newBed(t *testing.T, s scenario) *bed {
	b := &bed{T: t, scenario: s}
	l, natted := b.network()
	b.node = fleet.Name(b.us.Node)
	for _, w := range b.wire {
		t.Cleanup(func() { t.Log(w.Summary()) })
	}

	ours, theirs := b.us.V4.Addr(), b.them.V4.Addr()
	if s.v6 {
		ours, theirs = b.us.V6.Addr(), b.them.V6.Addr()
	}
	theySee, weSee := ours, theirs
	if natted.IsValid() && s.role == initiator {
		theySee = natted
	} else if natted.IsValid() {
		weSee = natted
	}
	if b.ours.local == nil {
		b.ours.local, b.ours.remote = b.selectors()
	}
	b.ours.raw = b.kernel
	b.ends = ends{node: b.node, ours: ours, theirs: weSee}
	b.policy = b.ours.yaml(b.ends)
	b.conn = lab.SwanConn{
		Name: conn, Local: theirs, Remote: theySee, LocalID: theirID, RemoteID: ourID, PSK: ipsec.NewSecret([]byte(secret)),
		LocalTS: unique(b.ours.remote), RemoteTS: unique(b.ours.local),
		IKEProposals: []string{defaultSuite}, ESPProposals: []string{"aes128gcm16"},
	}
	files := map[string]string{secretFile: secret + "\n"}
	maps.Copy(files, s.files)
	if s.certs != nil {
		ca := lab.NewCA(t, "interop")
		mine, theirs := s.certs(ca)
		files["ca.pem"], files["us.pem"], files["us-key.pem"] = ca.PEM(), mine.Chain, mine.Key
		b.conn.Cert, b.conn.CAs = &theirs, []*lab.CA{ca}
	}
	if s.made != nil {
		m := s.made(t)
		b.pki = m
		maps.Copy(files, m.files())
		b.conn.PSK, b.conn.Cert, b.conn.CAs, b.conn.CRLs = ipsec.Secret{}, &m.theirs, []*lab.CA{lab.ReadCA(t, m.trust)}, m.crls()
	}
	if s.swan != nil {
		s.swan(&b.conn)
	}
	b.f = fleet.New(t, l, fleet.Options{Hosts: []*lab.Node{b.us.Node}, Secrets: files})
	b.scenario.peer.ProtectsItself = s.at == pair
	if s.other == "" {
		b.peer = b.them.Node.StartStrongSwanWith(b.scenario.peer, b.conn)
	}
	b.f.Apply(b.policy)
	b.f.WaitInSync()
	t.Cleanup(b.explain)
	return b
}

// network makes the topology and returns the address that a NAT hides one side behind.
func (b *bed) network() (*lab.Lab, netip.Addr) {
	if b.at == pair {
		p := lab.NewPair(b.T, lab.PairOptions{Machine: b.kernel})
		b.us, b.them, b.ourHost, b.theirHost = p.A, p.B, p.A, p.B
		b.wire = []*lab.Sniffer{p.A.Sniff()}
		return p.Lab, netip.Addr{}
	}
	s := lab.NewSites(b.T, lab.SitesOptions{NAT: b.at == sitesNAT, Machine: b.kernel})
	b.wan = s.WAN()
	b.wire = []*lab.Sniffer{s.WANA.Sniff(), s.WANB.Sniff()}
	// Site A is the one behind the NAT, so it is whose that starts.
	if b.at == sitesNAT && b.role == responder {
		b.us, b.ourHost, b.them, b.theirHost = s.GWB, s.HostB, s.GWA, s.HostA
	} else {
		b.us, b.ourHost, b.them, b.theirHost = s.GWA, s.HostA, s.GWB, s.HostB
	}
	if b.at != sitesNAT {
		return s.Lab, netip.Addr{}
	}
	if b.v6 {
		return s.Lab, s.WANB.V6.Addr()
	}
	return s.Lab, s.WANB.V4.Addr()
}

// selectors are what the topology's tunnel protects by default.
func (b *bed) selectors() (local, remote []netip.Prefix) {
	of := func(i *lab.Interface) []netip.Prefix {
		p := i.V4
		if b.v6 {
			p = i.V6
		}
		if b.at == pair {
			p = netip.PrefixFrom(p.Addr(), p.Addr().BitLen())
		}
		return []netip.Prefix{p.Masked()}
	}
	return of(b.ourHost), of(b.theirHost)
}

func unique(ps []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	seen := map[netip.Prefix]bool{}
	for _, p := range ps {
		if !seen[p] {
			out = append(out, p)
		}
		seen[p] = true
	}
	return out
}

func (b *bed) must(err error) {
	if err != nil {
		b.Helper()
		b.Fatal(err)
	}
}

// rule is the name of our n-th rule that protects.
func (b *bed) rule(n int) string {
	b.Helper()
	rules := b.f.Rules(b.node, "swan")
	for _, r := range rules {
		if strings.Contains(r, fmt.Sprintf("#%d", n)) {
			return r
		}
	}
	b.Fatalf("no rule %d in %q", n, rules)
	return ""
}

// tryStart negotiates as the scenario's role says.
func (b *bed) tryStart() error {
	b.Helper()
	if b.role == initiator {
		var flags []string
		if b.kernel { // it may have to load an algorithm first, with an emulated processor
			flags = []string{"--timeout", "2m"}
		}
		_, err := b.f.TryInitiate(b.node, b.rule(0), flags...)
		return err
	}
	return b.peer.Initiate(conn)
}

// start is tryStart that must succeed; it returns both ends' view.
func (b *bed) start() (*keymgrv1.IkeSa, lab.SwanSA) {
	b.Helper()
	b.must(b.tryStart())
	return b.up()
}

// up waits until both ends have one IKE SA with the same SPIs, whose CHILD SAs are
// in place, and returns both views of it.
func (b *bed) up() (ours *keymgrv1.IkeSa, theirs lab.SwanSA) {
	b.Helper()
	lab.WaitFor(b, limit, "both ends to agree on one IKE SA with CHILD SAs", func() error {
		us, them := b.f.SAs(b.node), b.peer.SAs()
		if len(us) != 1 || us[0].GetState() != "established" || len(us[0].GetChildren()) == 0 ||
			len(them) != 1 || them[0].State != "ESTABLISHED" || them[0].Child("INSTALLED") == nil {
			return fmt.Errorf("ours %v, theirs %+v", us, them)
		}
		ours, theirs = us[0], them[0]
		mine := theirs.ResponderSPI
		if ours.GetInitiator() {
			mine = theirs.InitiatorSPI
		}
		if mine != fmt.Sprintf("%016x", ours.GetLocalSpi()) {
			return fmt.Errorf("our IKE SPI is %016x; strongSwan has %+v", ours.GetLocalSpi(), theirs)
		}
		return b.sameChildren(ours, theirs)
	})
	return ours, theirs
}

// sameChildren compares the SPIs of the CHILD SAs of both ends.
func (b *bed) sameChildren(ours *keymgrv1.IkeSa, theirs lab.SwanSA) error {
	has := map[[2]uint32]bool{}
	n := 0
	for _, c := range theirs.Children {
		if c.State == "INSTALLED" {
			has[[2]uint32{c.SPIIn, c.SPIOut}] = true
			n++
		}
	}
	for _, c := range ours.GetChildren() {
		if !has[[2]uint32{c.GetSpiOut(), c.GetSpiIn()}] {
			return fmt.Errorf("our CHILD SA %08x/%08x is not strongSwan's: %+v", c.GetSpiIn(), c.GetSpiOut(), theirs.Children)
		}
	}
	if n != len(ours.GetChildren()) {
		return fmt.Errorf("we have %d CHILD SAs, strongSwan %d", len(ours.GetChildren()), n)
	}
	return nil
}

// gone waits until no end has an SA.
func (b *bed) gone(limit time.Duration) {
	b.Helper()
	lab.WaitFor(b, limit, "both ends to have no SA", func() error {
		us := b.f.SAs(b.node)
		if b.peer.Running() == nil {
			if them := b.peer.SAs(); len(them) > 0 {
				return fmt.Errorf("strongSwan has %+v", them)
			}
		}
		if len(us) > 0 {
			return fmt.Errorf("we have %v", us)
		}
		return nil
	})
}

// ping goes three times each way.
func (b *bed) ping() {
	b.Helper()
	b.ourHost.Node.Ping(b.addr(b.theirHost), lab.PingOptions{Count: 3})
	b.theirHost.Node.Ping(b.addr(b.ourHost), lab.PingOptions{Count: 3})
	b.pinged = true
}

// transfer moves so many octets of TCP each way.
func (b *bed) transfer(size int64) {
	b.Helper()
	if b.kernel && b.at == pair {
		b.iperf(size)
		return
	}
	out := b.ourHost.Node.Transfer(b.theirHost, b.v6, size)
	in := b.theirHost.Node.Transfer(b.ourHost, b.v6, size)
	b.Logf("TCP: out %.0f Mbit/s, in %.0f Mbit/s", out.BitsPerSecond()/1e6, in.BitsPerSecond()/1e6)
}

// iperf is transfer with a machine, in which only programs run.
func (b *bed) iperf(size int64) {
	b.Helper()
	to := b.addr(b.theirHost).String()
	for _, way := range [][]string{nil, {"--reverse"}} {
		server := b.theirHost.Node.Start(lab.Command{Args: []string{"iperf3", "--server", "--one-off", "--forceflush", "--bind", to}})
		server.WaitOutput("Server listening", limit)
		b.ourHost.Node.Run(append([]string{"iperf3", "--client", to, "--bytes", fmt.Sprint(size)}, way...)...)
		b.must(server.Wait(limit))
	}
}

func (b *bed) addr(i *lab.Interface) netip.Addr {
	if b.v6 {
		return i.V6.Addr()
	}
	return i.V4.Addr()
}

// noFailures fails the scenario when our key manager knows of a failed negotiation.
func (b *bed) noFailures() {
	b.Helper()
	if fs := b.f.Failures(""); len(fs) > 0 {
		b.Errorf("failed negotiations: %v; want none", fs)
	}
}

// requireFailure wants one of our failures to have one of these whys, a detail and
// advice: an operator must learn what to do.
func (b *bed) requireFailure(whys ...string) *keymgrv1.Failure {
	b.Helper()
	var found *keymgrv1.Failure
	lab.WaitFor(b, limit, fmt.Sprintf("a failure %q to be explained", whys), func() error {
		fs := b.f.Failures("")
		for _, f := range fs {
			for _, w := range whys {
				if f.GetWhy() == w {
					found = f
					return nil
				}
			}
		}
		return fmt.Errorf("there are %v", fs)
	})
	if found.GetDetail() == "" || found.GetAdvice() == "" {
		b.Errorf("failure %v; want a detail and advice", found)
	}
	return found
}

// peerSaid waits for a line of strongSwan's log.
func (b *bed) peerSaid(text string) {
	b.Helper()
	b.peer.WaitOutput(text, limit)
}

// requireProtected looks at the wires: nothing in clear, no sequence number used twice,
// and where a ping went through, ESP.
func (b *bed) requireProtected() {
	var min uint64
	if b.pinged {
		min = 12 // three requests and three answers, each way
	}
	for _, w := range b.wire {
		w.RequireProtected(min)
	}
}

// requireHealthy wants our daemons to have survived whatever happened.
func (b *bed) requireHealthy() {
	for _, d := range []*fleet.Daemon{b.f.Policyd, b.f.Keymgrd, b.f.Worker(b.node)} {
		if err := d.Running(); err != nil {
			b.Error(err)
		}
	}
	if n := b.f.Keymgrd.Metrics()["testudo_keymgr_panics_total"]; n != 0 {
		b.Errorf("%v IKE SAs ended by a panic", n)
	}
}

// explain leaves what is needed to find out why a scenario failed.
func (b *bed) explain() {
	if !b.Failed() {
		return
	}
	b.Logf("our policy:\n%s", b.policy)
	for _, args := range [][]string{{"status"}, {"sa", "list"}, {"ike", "explain"}, {"ike", "trace", "--last", "0"}, {"worker", "status", "--admin", "unix://" + fleet.Admin(b.us.Node)}} {
		out, err := b.f.TryCLI(args...)
		b.Logf("testudo %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	looks := [][]string{{"ip", "route", "show", "table", "all"}, {"nft", "list", "ruleset"}}
	if b.kernel {
		looks = append(looks, []string{"ip", "-s", "xfrm", "state"}, []string{"ip", "xfrm", "policy"}, []string{"cat", "/proc/net/xfrm_stat"})
	}
	for _, args := range looks {
		for _, n := range []*lab.Node{b.us.Node, b.them.Node} {
			out, err := n.Try(args...)
			b.Logf("%s: %s: %v\n%s", n.Name, strings.Join(args, " "), err, out)
		}
	}
}

func errChild(sa any) error { return fmt.Errorf("there is a CHILD SA: %v", sa) }
