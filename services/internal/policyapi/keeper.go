package policyapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/policyd/compile"
	"github.com/testudo-ipsec/testudo/policyd/feed"
	"github.com/testudo-ipsec/testudo/policyd/model"
	"github.com/testudo-ipsec/testudo/policyd/store"
)

// Keeper follows the store: it compiles each state and publishes the result to
// the feed. When a stored state does not compile, the last one that did stays
// in force.
type Keeper struct {
	Store store.Store
	Hub   *feed.Hub
	Log   *slog.Logger

	mu      sync.RWMutex
	current state
	broken  error
}

// state is one compiled state of the store. It is not changed once made.
type state struct {
	snapshot store.Snapshot
	docs     map[store.Key]model.Document
	compiler *compile.Compiler
	policies map[string]ipsec.NodePolicy
}

// Current is the state in force, and why a newer one is not.
func (k *Keeper) Current() (state, error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.current, k.broken
}

// Healthy is nil when the newest state of the store is in force.
func (k *Keeper) Healthy() error {
	_, err := k.Current()
	if err == nil {
		if _, ok := k.Hub.Version(); !ok {
			return errors.New("the store was not read yet")
		}
	}
	return err
}

// Run follows the store until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	snap := store.Snapshot{}
	for wait := time.Second; ; {
		err := k.Store.Watch(ctx, snap.Version, func(e store.Event) error {
			snap = snap.Apply(e)
			wait = time.Second
			k.take(snap)
			return nil
		})
		if ctx.Err() != nil {
			return nil
		}
		k.Log.Warn("the policy store is away; the policy in force stays", "error", err, "retry_in", wait)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait/2 + rand.N(wait)):
		}
		wait = min(2*wait, 30*time.Second)
	}
}

func (k *Keeper) take(snap store.Snapshot) {
	old, _ := k.Current()
	start := time.Now()
	next, err := compileState(old, snap)
	k.mu.Lock()
	k.broken = err
	if err == nil {
		k.current = next
	}
	k.mu.Unlock()
	if err != nil {
		k.Log.Error("the stored policy does not compile; the one in force stays", "revision", snap.Version.Revision, "error", err)
		return
	}
	k.Hub.Publish(snap.Version, next.policies)
	k.Log.Info("policy in force", "revision", snap.Version.Revision, "documents", len(snap.Documents), "nodes", len(next.policies), "took", time.Since(start))
}

// compileState parses the documents that differ from old's, links and compiles.
// On error the state holds the snapshot and those documents that can be read.
func compileState(old state, snap store.Snapshot) (state, error) {
	s := state{snapshot: snap, docs: make(map[store.Key]model.Document, len(snap.Documents))}
	var errs []error
	for _, d := range snap.Documents {
		if was, ok := old.docs[d.Key]; ok && bytes.Equal(was.Text, d.Text) {
			s.docs[d.Key] = was
			continue
		}
		parsed, err := model.Parse("stored "+d.Key.String(), d.Text)
		switch {
		case err != nil:
			errs = append(errs, err)
		case len(parsed) != 1 || keyOf(parsed[0]) != d.Key:
			errs = append(errs, fmt.Errorf("stored document %s holds something else", d.Key))
		default:
			s.docs[d.Key] = parsed[0]
		}
	}
	if errs != nil {
		return s, errors.Join(errs...)
	}
	return s, s.compile()
}

func (s *state) compile() error {
	docs := make([]model.Document, 0, len(s.docs))
	for _, key := range slices.SortedFunc(maps.Keys(s.docs), store.Key.Compare) {
		docs = append(docs, s.docs[key])
	}
	set, err := model.Load(docs)
	if err != nil {
		return err
	}
	if s.policies, err = compile.All(set); err != nil {
		return err
	}
	for n, p := range s.policies {
		p.Version = s.snapshot.Version
		s.policies[n] = p
	}
	s.compiler = compile.New(set)
	return nil
}

func keyOf(d model.Document) store.Key { return store.Key{Kind: string(d.Kind), Name: d.Name} }

// differing lists the nodes whose policy is not the same in both.
func differing(a, b map[string]ipsec.NodePolicy) []string {
	var out []string
	for n, p := range b {
		if q, ok := a[n]; !ok || !samePolicy(p, q) {
			out = append(out, n)
		}
	}
	for n := range a {
		if _, ok := b[n]; !ok {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out
}

func samePolicy(a, b ipsec.NodePolicy) bool {
	if compile.SettingsVersion(compile.SettingsOf(a)) != compile.SettingsVersion(compile.SettingsOf(b)) {
		return false
	}
	return slices.EqualFunc(a.Rules, b.Rules, func(x, y ipsec.Rule) bool { return compile.RuleVersion(&x) == compile.RuleVersion(&y) }) &&
		slices.EqualFunc(a.Peers, b.Peers, func(x, y ipsec.Peer) bool { return compile.PeerVersion(&x) == compile.PeerVersion(&y) })
}
