package ikev2_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/iketest"
)

// collision is two ends that act at the same time.
type collision struct {
	name string
	// do is what happens: "web rekey-child; 3ms db delete-child". A time is a pause.
	do string
	// net is what the network does, once the IKE SA is up: "db create-response
	// late 300ms; web info-request lost 2; twice".
	net string
	// lowest is the end whose exchange has the lowest nonce: it is the one closed.
	// "same": all nonces are equal.
	lowest string
	setup  func(w, d *iketest.Side)
	slow   time.Duration // every answer of a worker and of a slow key exchange

	ike      int    // IKE SAs left
	children int    // CHILD SAs left
	rekeyed  uint32 // of the CHILD SA of the first rule
	keeps    string // the end whose new IKE SA or CHILD SA is left
	gap      bool   // something is deleted: there may be moments without an SA
}

func pfs(methods string) func(w, d *iketest.Side) {
	return func(w, d *iketest.Side) {
		web, db, _ := strings.Cut(methods, "/")
		w.ESP, d.ESP = []string{"aes128gcm16-" + web}, []string{"aes128gcm16-" + db}
	}
}

func kes(methods string) func(w, d *iketest.Side) {
	return func(w, d *iketest.Side) {
		web, db, _ := strings.Cut(methods, "/")
		w.IKE, d.IKE = []string{"aes128gcm16-prfsha256-" + web}, []string{"aes128gcm16-prfsha256-" + db}
	}
}

// Exchanges about the IKE SA that meet others (RFC 7296 §2.8.2, §2.25.2).
var ikeCollisions = []collision{
	{name: "rekey/rekey: web's has the lowest nonce", do: "web rekey-ike; db rekey-ike", lowest: "web", ike: 1, children: 1, keeps: "db"},
	{name: "rekey/rekey: db's has the lowest nonce", do: "web rekey-ike; db rekey-ike", lowest: "db", ike: 1, children: 1, keeps: "web"},
	{name: "rekey/rekey: all nonces are the same", do: "web rekey-ike; db rekey-ike", lowest: "same", ike: 1, children: 1, keeps: "web"},
	{name: "rekey/rekey: the winner's response is late", do: "web rekey-ike; db rekey-ike", net: "web create-response late 700ms", lowest: "web", ike: 1, children: 1, keeps: "db"},
	{name: "rekey/rekey: the loser's response is late", do: "web rekey-ike; db rekey-ike", net: "db create-response late 700ms", lowest: "web", ike: 1, children: 1, keeps: "db"},
	{name: "rekey/rekey: a response is lost", do: "web rekey-ike; db rekey-ike", net: "db create-response lost", lowest: "db", ike: 1, children: 1, keeps: "web"},
	{name: "rekey/rekey: both responses are lost", do: "web rekey-ike; db rekey-ike", net: "db create-response lost; web create-response lost", lowest: "db", ike: 1, children: 1, keeps: "web"},
	{name: "rekey/rekey: a request is so late that the other one is complete", do: "web rekey-ike; db rekey-ike", net: "db create-request late 500ms", ike: 1, children: 1, keeps: "web"},
	{name: "rekey/rekey: a request is lost", do: "web rekey-ike; db rekey-ike", net: "web create-request lost", ike: 1, children: 1, keeps: "db"},
	{name: "rekey/rekey: everything comes twice", do: "web rekey-ike; db rekey-ike", net: "twice", lowest: "web", ike: 1, children: 1, keeps: "db"},
	{name: "rekey/rekey: one gets INVALID_KE_PAYLOAD", do: "web rekey-ike; db rekey-ike", setup: kes("x25519-ecp256/ecp256-x25519"), ike: 1, children: 1},
	{name: "rekey/rekey: slow key exchange on both ends", do: "web rekey-ike; 30ms db rekey-ike", setup: kes("modp2048/modp2048"), slow: 150 * time.Millisecond, ike: 1, children: 1},
	{name: "rekey/rekey: ours is complete while theirs is computed", do: "web rekey-ike; db rekey-ike", net: "db create-request late 100ms", setup: kes("modp2048/modp2048"), slow: 150 * time.Millisecond, ike: 1, children: 1},
	{name: "rekey/delete", do: "web rekey-ike; db delete-ike", gap: true},
	{name: "delete/rekey", do: "web delete-ike; db rekey-ike", gap: true},
	{name: "rekey/delete: the delete is late", do: "web rekey-ike; db delete-ike", net: "db info-request late 300ms", gap: true},
	{name: "delete/delete", do: "web delete-ike; db delete-ike", gap: true},
	{name: "delete/delete: a response is lost", do: "web delete-ike; db delete-ike", net: "db info-response lost", gap: true},
	{name: "rekey/rekey CHILD", do: "web rekey-ike; db rekey-child", ike: 1, children: 1, rekeyed: 1, keeps: "web"},
	{name: "rekey/rekey CHILD: the child's request is late", do: "web rekey-ike; db rekey-child", net: "db create-request late 300ms", ike: 1, children: 1, rekeyed: 1, keeps: "web"},
	{name: "rekey/new CHILD", do: "web rekey-ike; db new-child", ike: 1, children: 2, keeps: "web"},
	{name: "rekey/delete CHILD", do: "web rekey-ike; db delete-child", ike: 1, keeps: "web", gap: true},
	{name: "rekey/delete CHILD: the delete is late", do: "web rekey-ike; db delete-child", net: "db info-request late 400ms", ike: 1, keeps: "web", gap: true},
	{name: "rekey/liveness", do: "web rekey-ike; db check", ike: 1, children: 1, keeps: "web"},
	{name: "rekey twice in a row by both", do: "web rekey-ike; db rekey-ike; 60ms web rekey-ike; db rekey-ike", ike: 1, children: 1},
	{name: "the delete of the old one is late, the new one is used", do: "web rekey-ike; 100ms db rekey-child", net: "web info-request late 800ms", ike: 1, children: 1, rekeyed: 1, keeps: "web"},
	{name: "the delete of the old one is lost", do: "web rekey-ike", net: "web info-request lost", ike: 1, children: 1, keeps: "web"},
}

// Exchanges about a CHILD SA that meet others (RFC 7296 §2.8.1, §2.25.1).
var childCollisions = []collision{
	{name: "rekey/rekey: web's has the lowest nonce", do: "web rekey-child; db rekey-child", lowest: "web", ike: 1, children: 1, rekeyed: 1, keeps: "db"},
	{name: "rekey/rekey: db's has the lowest nonce", do: "web rekey-child; db rekey-child", lowest: "db", ike: 1, children: 1, rekeyed: 1, keeps: "web"},
	{name: "rekey/rekey: all nonces are the same", do: "web rekey-child; db rekey-child", lowest: "same", ike: 1, children: 1, rekeyed: 1, keeps: "web"},
	{name: "rekey/rekey: the winner's response is late", do: "web rekey-child; db rekey-child", net: "web create-response late 700ms", lowest: "web", ike: 1, children: 1, rekeyed: 1, keeps: "db"},
	{name: "rekey/rekey: the loser's response is late", do: "web rekey-child; db rekey-child", net: "db create-response late 700ms", lowest: "web", ike: 1, children: 1, rekeyed: 1, keeps: "db"},
	{name: "rekey/rekey: a response is lost", do: "web rekey-child; db rekey-child", net: "db create-response lost", lowest: "db", ike: 1, children: 1, rekeyed: 1, keeps: "web"},
	{name: "rekey/rekey: both responses are lost", do: "web rekey-child; db rekey-child", net: "db create-response lost 2; web create-response lost", lowest: "web", ike: 1, children: 1, rekeyed: 1, keeps: "db"},
	{name: "rekey/rekey: a request is lost", do: "web rekey-child; db rekey-child", net: "db create-request lost", ike: 1, children: 1, rekeyed: 1, keeps: "web"},
	{name: "rekey/rekey: a request arrives while the old one is being deleted", do: "web rekey-child; db rekey-child", net: "db create-request late 16ms", ike: 1, children: 1, rekeyed: 1, keeps: "web"},
	{name: "rekey/rekey: everything comes twice", do: "web rekey-child; db rekey-child", net: "twice", lowest: "db", ike: 1, children: 1, rekeyed: 1, keeps: "web"},
	{name: "rekey/rekey: with key exchange", do: "web rekey-child; db rekey-child", setup: pfs("x25519/x25519"), lowest: "db", ike: 1, children: 1, rekeyed: 1, keeps: "web"},
	{name: "rekey/rekey: one gets INVALID_KE_PAYLOAD", do: "web rekey-child; db rekey-child", setup: pfs("x25519-ecp256/ecp256"), ike: 1, children: 1, rekeyed: 1},
	{name: "rekey/rekey: both get INVALID_KE_PAYLOAD", do: "web rekey-child; db rekey-child", setup: pfs("x25519-ecp256/ecp256-x25519"), ike: 1, children: 1, rekeyed: 1},
	{name: "rekey/rekey: slow key exchange on both ends", do: "web rekey-child; 20ms db rekey-child", setup: pfs("modp2048/modp2048"), slow: 150 * time.Millisecond, ike: 1, children: 1, rekeyed: 1},
	{name: "rekey/rekey: ours is complete while the worker installs theirs", do: "web rekey-child; db rekey-child", net: "db create-request late 100ms", slow: 150 * time.Millisecond, ike: 1, children: 1, rekeyed: 1},
	{name: "rekey/rekey: the delete of the redundant one is late", do: "web rekey-child; db rekey-child", net: "web info-request late 900ms", lowest: "web", ike: 1, children: 1, rekeyed: 1, keeps: "db"},
	{name: "rekey/rekey: the delete of the old one is lost", do: "web rekey-child; db rekey-child", net: "db info-request lost", lowest: "web", ike: 1, children: 1, rekeyed: 1, keeps: "db"},
	{name: "rekey/rekey: and again by both", do: "web rekey-child; db rekey-child; 40ms web rekey-child; db rekey-child", ike: 1, children: 1, rekeyed: 2},
	{name: "rekey/delete", do: "web rekey-child; db delete-child", ike: 1, gap: true},
	{name: "delete/rekey", do: "web delete-child; db rekey-child", ike: 1, gap: true},
	{name: "rekey/delete: the delete is late", do: "web rekey-child; db delete-child", net: "db info-request late 300ms", ike: 1, gap: true},
	{name: "rekey/delete: the response to the rekey is late", do: "web rekey-child; 7ms db delete-child", net: "db create-response late 300ms", ike: 1, children: 1, rekeyed: 1, gap: true},
	{name: "rekey/delete of the new one, before its response arrives", do: "web rekey-child; 40ms db delete-newest", net: "db create-response late 300ms", ike: 1, children: 1, rekeyed: 1, gap: true},
	{name: "delete/delete", do: "web delete-child; db delete-child", ike: 1, gap: true},
	{name: "delete/delete: a response is lost", do: "web delete-child; db delete-child", net: "web info-response lost", ike: 1, gap: true},
	{name: "delete/delete: a request is late", do: "web delete-child; db delete-child", net: "web info-request late 400ms", ike: 1, gap: true},
	{name: "new/new for the same rule", do: "web new-child; db new-child", ike: 1, children: 3},
	{name: "new/rekey of another", do: "web new-child; db rekey-child", ike: 1, children: 2, rekeyed: 1},
	{name: "new/delete of another", do: "web new-child; db delete-child", ike: 1, children: 1, gap: true},
	{name: "new/rekey of it, before its response arrives", do: "web new-child; 40ms db rekey-newest", net: "db create-response late 300ms", ike: 1, children: 2},
	{name: "new/delete of it, before its response arrives", do: "web new-child; 40ms db delete-newest", net: "db create-response late 300ms", ike: 1, children: 1, gap: true},
	{name: "rekey/rekey IKE, tried again after TEMPORARY_FAILURE", do: "web rekey-child; db rekey-ike", ike: 1, children: 1, rekeyed: 1},
	{name: "new/rekey IKE, tried again after TEMPORARY_FAILURE", do: "web new-child; db rekey-ike", ike: 1, children: 2},
	{name: "delete/rekey IKE, tried again after TEMPORARY_FAILURE", do: "web delete-child; db rekey-ike", ike: 1, gap: true},
	{name: "rekey/delete IKE", do: "web rekey-child; db delete-ike", gap: true},
	{name: "new/delete IKE", do: "web new-child; db delete-ike", gap: true},
	{name: "rekey/delete IKE: the delete is late", do: "web rekey-child; db delete-ike", net: "db info-request late 300ms", gap: true},
	{name: "rekey, and the old one expires meanwhile", do: "web rekey-child; 3ms db expire-child", ike: 1, gap: true},
	{name: "rekey/liveness", do: "web rekey-child; db check", ike: 1, children: 1, rekeyed: 1, keeps: "web"},
	{name: "rekey again before the delete of the old one is answered", do: "web rekey-child; 30ms db rekey-newest", net: "db info-response late 400ms", ike: 1, children: 1, rekeyed: 2},
}

func TestCollisions(t *testing.T) {
	for _, set := range []struct {
		name  string
		least int
		cases []collision
	}{{"IKE", 18, ikeCollisions}, {"CHILD", 30, childCollisions}} {
		t.Run(set.name, func(t *testing.T) {
			if len(set.cases) < set.least {
				t.Errorf("%d cases, want %d at least", len(set.cases), set.least)
			}
			for _, c := range set.cases {
				t.Run(c.name, func(t *testing.T) {
					for seed := range uint64(8) {
						c.run(t, seed)
						if t.Failed() {
							return
						}
					}
				})
			}
		})
	}
}

func (c *collision) run(t *testing.T, seed uint64) {
	n, web, db := iketest.Pair(t, seed, c.setup)
	for _, h := range []*iketest.Host{web, db} { // a second rule, for new CHILD SAs
		r := h.Policy.Rules[0]
		r.Name = "other"
		net1, net2 := netip.MustParsePrefix("10.3.0.0/16"), netip.MustParsePrefix("10.4.0.0/16")
		if h == db {
			net1, net2 = net2, net1
		}
		r.Selector = ipsec.Selector{Local: ipsec.PrefixSelector(net1), Remote: ipsec.PrefixSelector(net2)}
		h.Policy.Rules = append(h.Policy.Rules, r)
	}
	web.Connect("rule", nil)
	n.Run(time.Second)
	mustBeUp(t, n, web, db)
	if c.slow > 0 {
		n.AnswerDelay = func() time.Duration { return c.slow }
	}
	if c.lowest != "" {
		low := map[string]byte{"web": 0x40, "db": 0x40, c.lowest: 0x20} // of the initiators'; the responders' are 0x80
		for _, h := range []*iketest.Host{web, db} {
			h.Nonces = [][]byte{{low[h.Name]}, {0x80}, {0x80}, {0x80}} // some are of a key exchange
			if c.lowest == "same" {
				h.Nonces = slices.Repeat([][]byte{bytes.Repeat([]byte{1}, 32)}, 4)
			}
		}
	}
	first := map[*iketest.Host]ipsec.SPI{web: web.Children()[0].SPIIn, db: db.Children()[0].SPIIn}
	before := len(n.Ladder)
	n.Hook = faults(t, c.net)
	if !c.gap {
		n.Step = func() {
			for _, p := range [][2]*iketest.Host{{web, db}, {db, web}} {
				if err := iketest.Reachable(p[0], p[1]); err != nil && !t.Failed() {
					t.Errorf("seed %d: %v, after\n%s", seed, err, ladder(n, before))
				}
			}
		}
	}
	for act := range strings.SplitSeq(c.do, ";") {
		act = strings.TrimSpace(act)
		if d, rest, timed := strings.Cut(act, "ms "); timed {
			ms, err := strconv.Atoi(d)
			if err != nil {
				t.Fatal(err)
			}
			n.Run(time.Duration(ms) * time.Millisecond)
			act = rest
		}
		who, what, _ := strings.Cut(act, " ")
		h := web
		if who == "db" {
			h = db
		}
		if m := h.Machine("established", "rekeying"); m != nil {
			h.Tell(m, command(t, h, what))
		}
	}
	n.Run(3 * time.Minute)
	if err := c.check(n, web, db, first, before); err != nil {
		t.Errorf("seed %d: %v\nfailures %+v %+v\n%s", seed, err, web.Failures, db.Failures, ladder(n, before))
	}
}

func ladder(n *iketest.Net, from int) string { return strings.Join(n.Ladder[from:], "\n") }

func command(t *testing.T, h *iketest.Host, what string) ike.Event {
	kids := h.Children()
	oldest, newest := uint64(0), uint64(0)
	if len(kids) > 0 {
		oldest, newest = kids[0].ID, kids[len(kids)-1].ID
	}
	switch what {
	case "rekey-ike":
		return ike.RekeyIKE{}
	case "delete-ike":
		return ike.Terminate{Why: "test"}
	case "rekey-child":
		return ike.RekeyChild{Child: oldest}
	case "rekey-newest":
		return ike.RekeyChild{Child: newest}
	case "delete-child":
		return ike.DeleteChild{Child: oldest}
	case "delete-newest":
		return ike.DeleteChild{Child: newest}
	case "expire-child":
		return ike.ChildExpired{Child: oldest, Hard: true, Cause: "bytes"}
	case "new-child":
		return ike.CreateChild{Rule: "other"}
	case "check":
		return ike.CheckPeer{}
	}
	t.Fatalf("what is %q?", what)
	return nil
}

// faults reads what the network does to the first messages of a kind.
func faults(t *testing.T, spec string) func(iketest.Packet) []iketest.Packet {
	type fault struct {
		from, text string
		lose       int
		late       time.Duration
	}
	var fs []*fault
	twice := false
	for s := range strings.SplitSeq(spec, ";") {
		w := strings.Fields(s)
		switch {
		case len(w) == 0:
			continue
		case w[0] == "twice":
			twice = true
			continue
		}
		f := &fault{from: w[0]}
		exchange, kind, _ := strings.Cut(w[1], "-")
		f.text = map[string]string{"create": "CREATE_CHILD_SA ", "info": "INFORMATIONAL "}[exchange] + kind
		var err error
		switch {
		case w[2] == "lost" && len(w) == 3:
			f.lose = 1
		case w[2] == "lost":
			f.lose, err = strconv.Atoi(w[3])
		case w[2] == "late":
			f.late, err = time.ParseDuration(w[3])
		default:
			err = fmt.Errorf("what is %q?", s)
		}
		if err != nil {
			t.Fatal(err)
		}
		fs = append(fs, f)
	}
	return func(p iketest.Packet) []iketest.Packet {
		for _, f := range fs {
			if f.from != p.From.Name || !strings.HasPrefix(p.Text, f.text) {
				continue
			}
			switch {
			case f.lose > 0:
				f.lose--
				return nil
			case f.late > 0:
				p.At = p.At.Add(f.late)
				f.late = 0
			}
		}
		out := []iketest.Packet{p}
		if twice {
			p.At = p.At.Add(3 * time.Millisecond)
			out = append(out, p)
		}
		return out
	}
}

func (c *collision) check(n *iketest.Net, web, db *iketest.Host, first map[*iketest.Host]ipsec.SPI, before int) error {
	if err := iketest.Agree(web, db); err != nil {
		return err
	}
	for _, h := range []*iketest.Host{web, db} {
		kids := h.Children()
		if len(h.Machines) != c.ike || len(kids) != c.children || len(h.SAs) != 2*c.children {
			return fmt.Errorf("%s ends with %d IKE SAs, %d CHILD SAs and %d SAs in the worker, want %d, %d and %d: %+v", h.Name,
				len(h.Machines), len(kids), len(h.SAs), c.ike, c.children, 2*c.children, kids)
		}
		if i := slices.IndexFunc(kids, func(k ike.Child) bool { return k.Rule == "rule" }); i >= 0 && kids[i].Rekeyed != c.rekeyed {
			return fmt.Errorf("%s: the CHILD SA was rekeyed %d times, want %d", h.Name, kids[i].Rekeyed, c.rekeyed)
		}
		for _, f := range h.Failures {
			if !(c.gap && f.Why == "CLOSING") {
				return fmt.Errorf("%s reports a failure", h.Name)
			}
		}
		if c.keeps == "" {
			continue
		}
		if strings.Contains(c.do, "rekey-ike") {
			if i := h.Machine().Info(); i.Initiator != (h.Name == c.keeps) {
				return fmt.Errorf("the IKE SA that is left is not the one %s made", c.keeps)
			}
			continue
		}
		// The end that wins closes the old CHILD SA, the other one closes its own.
		for _, line := range n.Ladder[before:] {
			var spi ipsec.SPI
			at := strings.Index(line, " request ")
			if !strings.HasPrefix(line, h.Name+" -> ") || at < 0 || !strings.Contains(line, "D([") {
				continue
			}
			if _, err := fmt.Sscanf(line[strings.Index(line, "D([")+3:], "%x", &spi); err != nil {
				return err
			}
			if (spi == first[h]) != (h.Name == c.keeps) {
				return fmt.Errorf("%s closes %s, its first CHILD SA was %s, and %s's rekey is to be kept", h.Name, spi, first[h], c.keeps)
			}
		}
	}
	return nil
}
