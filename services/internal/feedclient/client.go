// Package feedclient follows the policy feed: it subscribes, resumes after a
// lost connection with the versions it has, puts each delta in force as a whole
// and answers with an acknowledgement or a refusal. A worker's policy survives
// a reboot in a last-known-good file.
package feedclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/testudo-ipsec/testudo/ipsec"
	policyv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/policy/v1"
)

// Client follows the feed for one daemon.
type Client struct {
	Conn       grpc.ClientConnInterface
	Subscriber string // name in policyd's status
	Role       string // "worker" or "keymgr"
	Node       string // to follow; "": all
	File       string // last-known-good file; "" keeps none
	Log        *slog.Logger

	// Use puts one node's policy in force; nil takes it away. An error refuses
	// the whole delta. It is called from one goroutine.
	Use func(ctx context.Context, node string, p *ipsec.NodePolicy) error

	state     *state
	connected atomic.Bool
	revision  atomic.Uint64
	fromFile  atomic.Bool
}

// Connected reports whether the feed is up.
func (c *Client) Connected() bool { return c.connected.Load() }

// Revision is the revision in force, and whether it came from the file.
func (c *Client) Revision() (uint64, bool) { return c.revision.Load(), c.fromFile.Load() }

// Run follows the feed until ctx ends.
func (c *Client) Run(ctx context.Context) error {
	c.state = newState(c.Node)
	if err := c.loadFile(ctx); err != nil {
		c.Log.Warn("the last-known-good policy cannot be used; waiting for policyd", "file", c.File, "error", err)
	}
	for wait := minWait; ; {
		start := time.Now()
		err := c.stream(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if c.connected.Swap(false) || time.Since(start) > maxWait {
			wait = minWait
		}
		c.Log.Warn("policy feed is down; keeping the policy in force", "error", err, "retry_in", wait)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait + rand.N(wait)):
		}
		wait = min(2*wait, maxWait)
	}
}

const (
	minWait = 100 * time.Millisecond
	maxWait = 5 * time.Second
)

func (c *Client) stream(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	st, err := policyv1.NewPolicyFeedClient(c.Conn).Subscribe(ctx)
	if err != nil {
		return err
	}
	err = st.Send(&policyv1.SubscribeRequest{Message: &policyv1.SubscribeRequest_Subscription{Subscription: &policyv1.Subscription{
		Subscriber: c.Subscriber, Role: c.Role, Node: c.Node, Have: c.state.have(),
	}}})
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	for {
		d, err := st.Recv()
		if err != nil {
			return err
		}
		if !c.connected.Swap(true) {
			c.Log.Info("policy feed is up", "revision", d.GetStore().GetRevision())
		}
		answer := &policyv1.SubscribeRequest{Message: &policyv1.SubscribeRequest_Ack{Ack: d.GetNonce()}}
		if err := c.put(ctx, d); err != nil {
			c.Log.Error("policy change refused; keeping the policy in force", "revision", d.GetStore().GetRevision(), "error", err)
			nack := &policyv1.FeedNack{Nonce: d.GetNonce(), Why: err.Error()}
			if r := (*refusal)(nil); errors.As(err, &r) {
				nack.Key = r.key.proto()
			}
			answer = &policyv1.SubscribeRequest{Message: &policyv1.SubscribeRequest_Nack{Nack: nack}}
		}
		if err := st.Send(answer); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
	}
}

// put brings a delta into force and then onto the disk.
func (c *Client) put(ctx context.Context, d *policyv1.SubscribeResponse) error {
	next, nodes, err := c.state.with(d)
	if err != nil {
		return err
	}
	if err := c.use(ctx, next, nodes); err != nil {
		return err
	}
	c.fromFile.Store(false)
	if err := c.saveFile(); err != nil {
		c.Log.Error("the last-known-good policy was not saved; after a reboot an older one is used", "file", c.File, "error", err)
	}
	return nil
}

// use puts a state in force for the nodes that it changes, all or none.
func (c *Client) use(ctx context.Context, next *state, nodes []string) error {
	for i, n := range nodes {
		err := c.Use(ctx, n, next.policy(n))
		if err == nil {
			continue
		}
		for _, done := range nodes[:i] {
			if undo := c.Use(ctx, done, c.state.policy(done)); undo != nil {
				err = errors.Join(err, fmt.Errorf("putting back the policy of node %s: %w", done, undo))
			}
		}
		return &refusal{key{node: n}, err}
	}
	c.state = next
	c.revision.Store(next.store.Revision)
	return nil
}
