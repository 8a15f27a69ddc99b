package feed_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/policyd/feed"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func version(n int) ipsec.Version {
	return ipsec.Version{Cluster: "c", Epoch: 1, Revision: uint64(n)}
}

// policy makes a node policy from words: a word is a rule of that name, a word
// with '=' a rule whose content is what follows.
func policy(words string) ipsec.NodePolicy {
	p := ipsec.NodePolicy{Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, Default: ipsec.ActionPermit}
	for w := range strings.FieldsSeq(words) {
		name, content, _ := strings.Cut(w, "=")
		p.Rules = append(p.Rules, ipsec.Rule{Name: name, Policy: content, Action: ipsec.ActionBlock})
	}
	return p
}

func policies(nodes ...string) map[string]ipsec.NodePolicy {
	out := map[string]ipsec.NodePolicy{}
	for _, n := range nodes {
		name, words, _ := strings.Cut(n, ":")
		out[name] = policy(words)
	}
	return out
}

// client is a subscriber that holds what it was sent.
type client struct {
	sub  *feed.Subscription
	have map[feed.ID]feed.Resource
}

func connect(t interface{ Fatal(...any) }, h *feed.Hub, name, node string, have map[feed.ID]feed.Resource) *client {
	versions := map[feed.ID]string{}
	for id, r := range have {
		versions[id] = r.Version
	}
	s, err := h.Subscribe(feed.Request{Subscriber: name, Node: node, Versions: versions})
	if err != nil {
		t.Fatal(err)
	}
	if have == nil {
		have = map[feed.ID]feed.Resource{}
	}
	return &client{s, have}
}

func (c *client) apply(d feed.Delta) {
	for _, r := range d.Upserts {
		c.have[r.ID] = r
	}
	for _, id := range d.Removed {
		delete(c.have, id)
	}
}

func (c *client) next(t *testing.T) feed.Delta {
	t.Helper()
	d, err := c.sub.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// idle checks that Next has nothing.
func (c *client) idle(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second) // fake time inside synctest
	defer cancel()
	if d, err := c.sub.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %s, %v, want nothing", show(d), err)
	}
}

func show(d feed.Delta) string {
	var out []string
	for _, r := range d.Upserts {
		out = append(out, "+"+r.Node+"/"+r.Name)
	}
	for _, id := range d.Removed {
		out = append(out, "-"+id.Node+"/"+id.Name)
	}
	return strings.Join(out, " ")
}

func (c *client) expect(t *testing.T, want string, at int) feed.Delta {
	t.Helper()
	d := c.next(t)
	if show(d) != want || d.Version != version(at) {
		t.Fatalf("got %q at %s, want %q at revision %d", show(d), d.Version, want, at)
	}
	return d
}

func (c *client) ack(t *testing.T, d feed.Delta) {
	t.Helper()
	if err := c.sub.Ack(d.Nonce); err != nil {
		t.Fatal(err)
	}
	c.apply(d)
}

func TestOnlyWhatDiffersIsSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h feed.Hub
		defer h.Close()
		a, all := connect(t, &h, "a", "a", nil), connect(t, &h, "all", "", nil)
		a.idle(t) // nothing is known yet, so nothing is said
		h.Publish(version(1), policies("a:x y", "b:z"))
		a.ack(t, a.expect(t, "+a/ +a/x +a/y", 1))
		all.ack(t, all.expect(t, "+a/ +a/x +a/y +b/ +b/z", 1))
		h.Publish(version(2), policies("a:x y", "b:z=2"))
		a.idle(t)
		all.ack(t, all.expect(t, "+b/z", 2))
		h.Publish(version(3), policies("a:y"))
		a.ack(t, a.expect(t, "-a/x", 3))
		all.ack(t, all.expect(t, "-a/x -b/ -b/z", 3))
		h.Publish(version(4), policies("a:y"))
		a.idle(t)
		all.idle(t)
		h.Update(version(5), policies("c:n"), []string{"a", "never-there"})
		a.ack(t, a.expect(t, "-a/ -a/y", 5))
		all.ack(t, all.expect(t, "+c/ +c/n -a/ -a/y", 5))
	})
}

func TestNothingIsSentBeforeTheAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h feed.Hub
		defer h.Close()
		a := connect(t, &h, "a", "a", nil)
		h.Publish(version(1), policies("a:x"))
		first := a.next(t)
		for i := range 100 {
			h.Publish(version(2+i), policies(fmt.Sprintf("a:x=%d r%d", i, i)))
		}
		a.idle(t)
		if err := a.sub.Ack(first.Nonce + 1); err == nil {
			t.Fatal("an answer to a nonce never sent was taken")
		}
		a.ack(t, first)
		a.ack(t, a.expect(t, "+a/r99 +a/x", 101)) // a hundred revisions in one delta
		a.idle(t)
		if err := a.sub.Ack(first.Nonce); err == nil {
			t.Fatal("an answer was taken twice")
		}
	})
}

func TestResumeSendsOnlyDifferences(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h feed.Hub
		defer h.Close()
		h.Publish(version(1), policies("a:same new changed=2"))
		var before feed.Hub
		old := connect(t, &before, "a", "a", nil)
		before.Publish(version(1), policies("a:same gone changed=1"))
		old.ack(t, old.next(t))
		before.Close()

		a := connect(t, &h, "a", "a", old.have) // another process, another epoch: content decides
		a.ack(t, a.expect(t, "+a/changed +a/new -a/gone", 1))
		a.sub.Close()
		a = connect(t, &h, "a", "a", a.have)
		d := a.expect(t, "", 1) // in sync, and told so
		a.ack(t, d)
		a.idle(t)
	})
}

func TestRefusedIsNotSentAgainUntilItChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h feed.Hub
		defer h.Close()
		all := connect(t, &h, "all", "", nil)
		h.Publish(version(1), policies("a:x", "b:y"))
		d := all.next(t)
		bad := feed.ID{Kind: feed.KindRule, Node: "a", Name: "x"}
		if err := all.sub.Nack(d.Nonce, bad, strings.Repeat("no ", 1000)); err != nil {
			t.Fatal(err)
		}
		all.ack(t, all.expect(t, "+b/ +b/y", 1)) // the others are not held up
		all.idle(t)
		st := h.Status()[0]
		if st.InSync || st.Nack == nil || st.Nack.Resource != bad || len(st.Nack.Why) > 512 || st.Nack.Version != version(1) || st.Acked != version(1) {
			t.Fatalf("status after a refusal: %+v", st)
		}
		h.Publish(version(2), policies("a:x", "b:y=2"))
		all.ack(t, all.expect(t, "+b/y", 2))
		h.Publish(version(3), policies("a:x=good", "b:y=2"))
		all.ack(t, all.expect(t, "+a/ +a/x", 3))
		if st := h.Status()[0]; !st.InSync || st.Nack != nil || st.Acked != version(3) {
			t.Fatalf("status after the fix: %+v", st)
		}
	})
}

func TestStatusOfEverySubscriber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h feed.Hub
		a, b := connect(t, &h, "a", "a", nil), connect(t, &h, "b", "b", nil)
		h.Publish(version(1), policies("a:x", "b:x"))
		a.ack(t, a.next(t))
		b.next(t)
		got := h.Status()
		if len(got) != 2 || !got[0].Connected || !got[0].InSync || got[0].Acked != version(1) || got[1].InSync || got[1].Acked != (ipsec.Version{}) {
			t.Fatalf("got %+v", got)
		}
		newer := connect(t, &h, "a", "a", a.have)
		if _, err := a.sub.Next(t.Context()); !errors.Is(err, feed.ErrReplaced) {
			t.Fatalf("the older subscription: got %v, want ErrReplaced", err)
		}
		a.sub.Close() // late, and without effect on the newer one
		newer.ack(t, newer.next(t))
		b.sub.Close()
		got = h.Status()
		if len(got) != 2 || !got[0].Connected || !got[0].InSync || got[1].Connected || got[1].InSync {
			t.Fatalf("got %+v", got)
		}
		h.Close()
		if _, err := newer.sub.Next(t.Context()); !errors.Is(err, feed.ErrClosed) {
			t.Fatalf("got %v, want ErrClosed", err)
		}
		if _, err := h.Subscribe(feed.Request{Subscriber: "late"}); !errors.Is(err, feed.ErrClosed) {
			t.Fatalf("got %v, want ErrClosed", err)
		}
	})
}

func TestALargeStateComesInParts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h feed.Hub
		defer h.Close()
		all := connect(t, &h, "all", "", nil)
		many := map[string]ipsec.NodePolicy{}
		words := ""
		for i := range 900 {
			words += fmt.Sprintf("r%d ", i)
		}
		for i := range 5 {
			many[fmt.Sprint("n", i)] = policy(words)
		}
		h.Publish(version(1), many)
		for _, want := range []struct {
			n    int
			more bool
		}{{2703, true}, {1802, false}} {
			d := all.next(t)
			if len(d.Upserts) != want.n || d.More != want.more {
				t.Fatalf("got %d resources, more %v, want %+v", len(d.Upserts), d.More, want)
			}
			all.ack(t, d)
		}
		all.idle(t)
	})
}

func TestSubscribeRefusesNonsense(t *testing.T) {
	var h feed.Hub
	defer h.Close()
	for _, r := range []feed.Request{
		{},
		{Subscriber: "a", Node: "a", Versions: map[feed.ID]string{{Kind: feed.KindRule, Node: "b", Name: "x"}: "1"}},
		{Subscriber: "a", Versions: map[feed.ID]string{{Kind: "secret", Node: "b", Name: "x"}: "1"}},
	} {
		if _, err := h.Subscribe(r); err == nil {
			t.Errorf("%+v was taken", r)
		}
	}
}

// Whatever happens in whatever order, a subscriber that answers ends up with
// exactly the newest state, except for nodes it refused.
func TestSubscribersConverge(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var h feed.Hub
		defer h.Close()
		nodes := []string{"a", "b", "c"}
		current := map[string]ipsec.NodePolicy{}
		rev := 0
		clients := map[string]*client{"all": connect(t, &h, "all", "", nil), "a": connect(t, &h, "a", "a", nil)}
		pending := map[string]*feed.Delta{}
		poll := func(name string) {
			if pending[name] != nil {
				return
			}
			if d, ok := try(clients[name]); ok {
				pending[name] = &d
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"publish": func(t *rapid.T) {
				rev++
				n := rapid.SampledFrom(nodes).Draw(t, "node")
				if rapid.IntRange(0, 4).Draw(t, "gone") == 0 {
					delete(current, n)
				} else {
					words := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"x", "y", "z"}), 0, 3, rapid.ID).Draw(t, "rules")
					for i := range words {
						words[i] += "=" + rapid.SampledFrom([]string{"1", "2"}).Draw(t, "content")
					}
					current[n] = policy(strings.Join(words, " "))
				}
				h.Publish(version(rev), maps.Clone(current))
			},
			"receive": func(t *rapid.T) { poll(rapid.SampledFrom([]string{"all", "a"}).Draw(t, "who")) },
			"ack": func(t *rapid.T) {
				who := rapid.SampledFrom([]string{"all", "a"}).Draw(t, "who")
				if d := pending[who]; d != nil {
					if err := clients[who].sub.Ack(d.Nonce); err != nil {
						t.Fatal(err)
					}
					clients[who].apply(*d)
					pending[who] = nil
				}
			},
			"reconnect": func(t *rapid.T) {
				who := rapid.SampledFrom([]string{"all", "a"}).Draw(t, "who")
				node := map[string]string{"all": "", "a": "a"}[who]
				clients[who] = connect(t, &h, who, node, clients[who].have)
				pending[who] = nil
			},
			"nack": func(t *rapid.T) {
				if d := pending["all"]; d != nil && len(d.Upserts) > 0 {
					if err := clients["all"].sub.Nack(d.Nonce, d.Upserts[0].ID, "no"); err != nil {
						t.Fatal(err)
					}
					pending["all"] = nil
				}
			},
		})
		if rev == 0 {
			return
		}
		for who, c := range clients { // refusals end at a reconnect
			c = connect(t, &h, who, map[string]string{"all": "", "a": "a"}[who], c.have)
			for {
				d, ok := try(c)
				if !ok {
					break
				}
				if err := c.sub.Ack(d.Nonce); err != nil {
					t.Fatal(err)
				}
				c.apply(d)
			}
			if got, want := holding(c), expected(current, who); !slices.Equal(got, want) {
				t.Fatalf("%s holds %v, want %v", who, got, want)
			}
		}
		for _, s := range h.Status() {
			if !s.InSync {
				t.Fatalf("not in sync at the end: %+v", s)
			}
		}
	})
}

// try is Next without waiting: its context ends at its first wait.
func try(c *client) (feed.Delta, bool) {
	ctx := &onlyLook{Context: context.Background()}
	d, err := c.sub.Next(ctx)
	return d, err == nil
}

// onlyLook is a context that has ended when somebody waits for it.
type onlyLook struct {
	context.Context
	waited bool
}

func (o *onlyLook) Done() <-chan struct{} {
	o.waited = true
	done := make(chan struct{})
	close(done)
	return done
}

func (o *onlyLook) Err() error {
	if o.waited {
		return context.Canceled
	}
	return nil
}

func holding(c *client) []string {
	var out []string
	for id, r := range c.have {
		if rule, ok := r.Value.(ipsec.Rule); ok {
			out = append(out, id.Node+"/"+rule.Name+"="+rule.Policy)
		} else {
			out = append(out, id.Node+"/"+string(id.Kind))
		}
	}
	slices.Sort(out)
	return out
}

func expected(current map[string]ipsec.NodePolicy, who string) []string {
	var out []string
	for n, p := range current {
		if who != "all" && who != n {
			continue
		}
		out = append(out, n+"/settings")
		for _, r := range p.Rules {
			out = append(out, n+"/"+r.Name+"="+r.Policy)
		}
	}
	slices.Sort(out)
	return out
}

// Publishers, subscribers and readers of the status at the same time; run it
// with -race.
func TestConcurrentUse(t *testing.T) {
	var h feed.Hub
	const last = 200
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			node := fmt.Sprint("n", i%4)
			c := connect(t, &h, fmt.Sprint("s", i), node, nil)
			for {
				d, err := c.sub.Next(ctx)
				if err != nil {
					t.Error(err)
					return
				}
				c.apply(d)
				if err := c.sub.Ack(d.Nonce); err != nil {
					t.Error(err)
					return
				}
				if slices.Contains(holding(c), fmt.Sprintf("%s/r=%d", node, last)) {
					return
				}
			}
		})
	}
	wg.Go(func() {
		for i := 1; i <= last; i++ {
			next := map[string]ipsec.NodePolicy{}
			for n := range 4 {
				next[fmt.Sprint("n", n)] = policy(fmt.Sprintf("r=%d", i))
			}
			h.Publish(version(i), next)
			h.Status()
		}
	})
	wg.Wait()
	h.Close()
}
