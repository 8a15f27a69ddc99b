package etcd

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/policyd/store"
)

// errCompacted ends a run of watch that has to start from the whole state.
var errCompacted = errors.New("compacted")

// Watch implements store.Store.
func (s *Store) Watch(ctx context.Context, from ipsec.Version, f func(store.Event) error) error {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel() // ends the client's own goroutine of this watch
	next, err := s.resume(ctx, from, f)
	for err == nil {
		if err = s.run(ctx, next, f); errors.Is(err, errCompacted) {
			next, err = s.reset(ctx, f)
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("watch policy: %w", err)
}

// resume finds the etcd revision to watch from.
func (s *Store) resume(ctx context.Context, from ipsec.Version, f func(store.Event) error) (int64, error) {
	head, _, now, err := s.head(ctx)
	if err != nil {
		return 0, err
	}
	if from == head {
		return now + 1, nil // however old the head is, nothing came after it
	}
	if from != s.version(int64(from.Revision)) || from.Revision > head.Revision {
		return s.reset(ctx, f)
	}
	return int64(from.Revision) + 1, nil
}

func (s *Store) reset(ctx context.Context, f func(store.Event) error) (int64, error) {
	snap, revision, err := s.get(ctx, 0)
	if err != nil {
		return 0, err
	}
	e := store.Event{Commit: store.Commit{Version: snap.Version}, Reset: true, Put: snap.Documents}
	if newest, err := s.History(ctx, 1); err != nil {
		return 0, err
	} else if len(newest) == 1 && newest[0].Version == snap.Version {
		e.Commit = newest[0]
		e.Commit.Put, e.Commit.Deleted = nil, nil
	}
	return revision + 1, f(e)
}

// run watches until something ends it. Progress notifications move the
// client's place forward while policy rests and other keys change, so that a
// reconnect rarely meets a compacted revision.
func (s *Store) run(ctx context.Context, next int64, f func(store.Event) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for r := range s.client.Watch(ctx, s.prefix, clientv3.WithPrefix(), clientv3.WithRev(next), clientv3.WithProgressNotify()) {
		if r.CompactRevision != 0 {
			return errCompacted
		}
		if err := r.Err(); errors.Is(err, rpctypes.ErrCompacted) {
			return errCompacted
		} else if err != nil {
			return err
		}
		// All events of a transaction come in one response; a response may hold
		// several transactions, in order.
		for low := 0; low < len(r.Events); {
			high := low + 1
			for high < len(r.Events) && r.Events[high].Kv.ModRevision == r.Events[low].Kv.ModRevision {
				high++
			}
			if err := s.deliver(r.Events[low:high], f); err != nil {
				return err
			}
			low = high
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return errors.New("etcd ended the watch; watch again")
}

// deliver passes on the events of one transaction, if it was a commit.
func (s *Store) deliver(events []*clientv3.Event, f func(store.Event) error) error {
	var out store.Event
	committed := false
	for _, e := range events {
		key := string(e.Kv.Key)
		if k, ok := s.keyOf(key); ok {
			if e.Type == clientv3.EventTypePut {
				out.Put = append(out.Put, store.Document{Key: k, Text: e.Kv.Value})
			}
			continue
		}
		if e.Type == clientv3.EventTypePut && len(key) > len(s.logPrefix()) && key[:len(s.logPrefix())] == s.logPrefix() {
			var err error
			if out.Commit, err = s.commit(e.Kv); err != nil {
				return err
			}
			committed = true
		}
	}
	if !committed {
		return nil
	}
	return f(out)
}
