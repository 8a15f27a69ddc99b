// Package etcd keeps policy documents in etcd, one key each:
//
//	<prefix>/epoch              when the store was created, in Unix milliseconds
//	<prefix>/head               the number of the newest commit
//	<prefix>/log/<number>       a commit: who, why, when, which documents
//	<prefix>/doc/<kind>/<name>  the text of a document
//
// A change is one transaction, on the condition that the head is the one the
// change was made for. A policy revision is the etcd revision of that
// transaction. No key has a lease: nothing here ends because a process does.
package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/policyd/store"
)

// Store is a store in etcd. Make one with Open.
type Store struct {
	client  *clientv3.Client
	prefix  string // ends in '/'
	cluster string
	epoch   uint64
}

var _ store.Store = (*Store)(nil)

// Open uses the keys under prefix, such as /testudo/policy, creating the store
// when there is none. The client stays the caller's to close, after the store
// is no longer used.
func Open(ctx context.Context, client *clientv3.Client, prefix string) (*Store, error) {
	s := &Store{client: client, prefix: strings.TrimSuffix(prefix, "/") + "/"}
	key := s.prefix + "epoch"
	now := strconv.FormatInt(time.Now().UnixMilli(), 10)
	r, err := client.Txn(ctx).
		If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)).
		Then(clientv3.OpPut(key, now), clientv3.OpGet(key)).
		Else(clientv3.OpGet(key)).Commit()
	if err != nil {
		return nil, fmt.Errorf("open policy store: %w", err)
	}
	kvs := r.Responses[len(r.Responses)-1].GetResponseRange().GetKvs()
	if len(kvs) != 1 {
		return nil, fmt.Errorf("open policy store: key %s has gone while it was read; try again", key)
	}
	if s.epoch, err = strconv.ParseUint(string(kvs[0].Value), 10, 64); err != nil {
		return nil, fmt.Errorf("open policy store: key %s holds %q, want a number", key, kvs[0].Value)
	}
	s.cluster = strconv.FormatUint(r.Header.ClusterId, 16)
	return s, nil
}

func (s *Store) version(revision int64) ipsec.Version {
	return ipsec.Version{Cluster: s.cluster, Epoch: s.epoch, Revision: uint64(revision)}
}

func (s *Store) headKey() string             { return s.prefix + "head" }
func (s *Store) logPrefix() string           { return s.prefix + "log/" }
func (s *Store) docPrefix() string           { return s.prefix + "doc/" }
func (s *Store) docKey(k store.Key) string   { return s.docPrefix() + k.String() }
func (s *Store) logKey(number uint64) string { return s.logPrefix() + fmt.Sprintf("%016x", number) }
func (s *Store) keyOf(key string) (k store.Key, ok bool) {
	rest, ok := strings.CutPrefix(key, s.docPrefix())
	if ok {
		k.Kind, k.Name, ok = strings.Cut(rest, "/")
	}
	return k, ok
}

// record is a commit as the log holds it. The version is the key's revision.
type record struct {
	Author  string      `json:"author"`
	Message string      `json:"message"`
	Time    time.Time   `json:"time"`
	Put     []store.Key `json:"put,omitempty"`
	Deleted []store.Key `json:"deleted,omitempty"`
}

func (s *Store) commit(kv *mvccpb.KeyValue) (store.Commit, error) {
	var r record
	if err := json.Unmarshal(kv.Value, &r); err != nil {
		return store.Commit{}, fmt.Errorf("key %s is not a commit: %w", kv.Key, err)
	}
	return store.Commit{Version: s.version(kv.ModRevision), Author: r.Author, Message: r.Message, Time: r.Time, Put: r.Put, Deleted: r.Deleted}, nil
}

// group is how many operations share a nested transaction. etcd limits the
// operations of a transaction and those of the ones nested in it together, so
// that 3000 operations fit its default limit of 128 as 47 groups of 64.
const group = 64

// Put implements store.Store.
func (s *Store) Put(ctx context.Context, c store.Change) (ipsec.Version, error) {
	if err := c.Check(); err != nil {
		return ipsec.Version{}, fmt.Errorf("put policy: %w", err)
	}
	head, number, _, err := s.head(ctx)
	if err != nil {
		return ipsec.Version{}, fmt.Errorf("put policy: %w", err)
	}
	if c.Base != head {
		return ipsec.Version{}, fmt.Errorf("put policy: %w", &store.ConflictError{Base: c.Base, Head: head})
	}
	number++
	rec := record{Author: c.Author, Message: c.Message, Time: time.Now().UTC(), Deleted: c.Delete}
	var ops []clientv3.Op
	for _, d := range c.Put {
		rec.Put = append(rec.Put, d.Key)
		ops = append(ops, clientv3.OpPut(s.docKey(d.Key), string(d.Text)))
	}
	for _, k := range c.Delete {
		ops = append(ops, clientv3.OpDelete(s.docKey(k)))
	}
	text, err := json.Marshal(rec)
	if err != nil {
		return ipsec.Version{}, fmt.Errorf("put policy: %w", err)
	}
	then := []clientv3.Op{
		clientv3.OpPut(s.headKey(), strconv.FormatUint(number, 10)),
		clientv3.OpPut(s.logKey(number), string(text)),
	}
	for part := range slices.Chunk(ops, group) {
		then = append(then, clientv3.OpTxn(nil, part, nil))
	}
	r, err := s.client.Txn(ctx).
		If(clientv3.Compare(clientv3.ModRevision(s.headKey()), "=", int64(c.Base.Revision))).
		Then(then...).
		Else(clientv3.OpGet(s.headKey())).Commit()
	if err != nil {
		return ipsec.Version{}, fmt.Errorf("put policy: %w", err)
	}
	if !r.Succeeded {
		now := s.version(0)
		if kvs := r.Responses[0].GetResponseRange().GetKvs(); len(kvs) == 1 {
			now = s.version(kvs[0].ModRevision)
		}
		return ipsec.Version{}, fmt.Errorf("put policy: %w", &store.ConflictError{Base: c.Base, Head: now})
	}
	return s.version(r.Header.Revision), nil
}

// head is the newest version, its commit's number, and the etcd revision at
// which both were read.
func (s *Store) head(ctx context.Context) (v ipsec.Version, number uint64, now int64, err error) {
	r, err := s.client.Get(ctx, s.headKey())
	if err != nil {
		return ipsec.Version{}, 0, 0, err
	}
	if len(r.Kvs) == 0 {
		return s.version(0), 0, r.Header.Revision, nil
	}
	number, err = strconv.ParseUint(string(r.Kvs[0].Value), 10, 64)
	if err != nil {
		return ipsec.Version{}, 0, 0, fmt.Errorf("key %s holds %q, want a number", s.headKey(), r.Kvs[0].Value)
	}
	return s.version(r.Kvs[0].ModRevision), number, r.Header.Revision, nil
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, revision uint64) (store.Snapshot, error) {
	snap, _, err := s.get(ctx, revision)
	if errors.Is(err, rpctypes.ErrCompacted) {
		return store.Snapshot{}, fmt.Errorf("get policy at revision %d: %w", revision, store.ErrCompacted)
	}
	if errors.Is(err, rpctypes.ErrFutureRev) {
		return store.Snapshot{}, fmt.Errorf("get policy: revision %d is after the head", revision)
	}
	if err != nil {
		return store.Snapshot{}, fmt.Errorf("get policy: %w", err)
	}
	return snap, nil
}

// get reads head and documents in one transaction: one state. The second
// result is the etcd revision of that state, which is never before the head's.
func (s *Store) get(ctx context.Context, revision uint64) (store.Snapshot, int64, error) {
	at := clientv3.WithRev(int64(revision))
	r, err := s.client.Txn(ctx).Then(
		clientv3.OpGet(s.headKey(), at),
		clientv3.OpGet(s.docPrefix(), clientv3.WithPrefix(), at),
	).Commit()
	if err != nil {
		return store.Snapshot{}, 0, err
	}
	snap := store.Snapshot{Version: s.version(0)}
	if kvs := r.Responses[0].GetResponseRange().GetKvs(); len(kvs) == 1 {
		snap.Version = s.version(kvs[0].ModRevision)
	}
	for _, kv := range r.Responses[1].GetResponseRange().GetKvs() {
		if k, ok := s.keyOf(string(kv.Key)); ok {
			snap.Documents = append(snap.Documents, store.Document{Key: k, Text: kv.Value})
		}
	}
	slices.SortFunc(snap.Documents, func(a, b store.Document) int { return a.Key.Compare(b.Key) })
	return snap, r.Header.Revision, nil
}

// History implements store.Store.
func (s *Store) History(ctx context.Context, limit int) ([]store.Commit, error) {
	if limit <= 0 {
		return nil, nil // for etcd 0 would be everything
	}
	r, err := s.client.Get(ctx, s.logPrefix(), clientv3.WithPrefix(), clientv3.WithLimit(int64(limit)),
		clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend))
	if err != nil {
		return nil, fmt.Errorf("policy history: %w", err)
	}
	var out []store.Commit
	for _, kv := range r.Kvs {
		c, err := s.commit(kv)
		if err != nil {
			return nil, fmt.Errorf("policy history: %w", err)
		}
		out = append(out, c)
	}
	return out, nil
}
