package engine

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"log/slog"
	"math/bits"
	mrand "math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
)

// ErrClosed: the engine was closed.
var ErrClosed = errors.New("engine is closed")

// Engine runs the IKE machines of all nodes. Its methods may be called from
// any goroutine.
type Engine struct {
	cfg      Config
	shards   []*shard
	next     atomic.Uint32 // round robin over shards
	ids      atomic.Uint64
	traceIDs atomic.Uint64
	firstID  ipsec.SAID
	started  time.Time
	lost     map[uint64]*node // nodes of IKE SAs that could not be restored, by their SPIs; does not change

	index       index
	half        halfOpen
	cookies     cookies
	secrets     *pool
	kes         *pool
	authorities authorities
	watchers    watchers
	failures    failures
	stats       counters
	panics      logLimit
	weak        logLimit // legacy algorithms
	unread      logLimit // optional secrets
	unasked     replyLimit
	durable     *durable // nil without a store
	seed        maphash.Seed

	mu     sync.RWMutex // guards nodes
	nodes  map[string]*node
	closed chan struct{}
	close  sync.Once
	group  sync.WaitGroup
}

func (c Config) withDefaults() Config {
	or := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	orTime := func(v *time.Duration, d time.Duration) {
		if *v <= 0 {
			*v = d
		}
	}
	or(&c.Shards, runtime.GOMAXPROCS(0))
	or(&c.Inbox, 4096)
	or(&c.SecretWorkers, 32)
	or(&c.PeerQueue, 64)
	or(&c.PoolQueue, 16384)
	if c.HalfOpenRest == 0 {
		c.HalfOpenRest = 256
	}
	or(&c.HalfOpenCookie, 512)
	or(&c.HalfOpenMax, 32768)
	or(&c.HalfOpenPrefixCookie, 64)
	or(&c.HalfOpenPrefixMax, 1024)
	orTime(&c.SecretTimeout, 5*time.Second)
	orTime(&c.HalfOpenTimeout, time.Minute)
	orTime(&c.RetryMin, time.Second)
	orTime(&c.RetryMax, 5*time.Minute)
	orTime(&c.Drain, 30*time.Second)
	orTime(&c.Jitter, 30*time.Second)
	orTime(&c.Detached, 10*time.Second)
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// New starts an engine. Machines and Secrets must be set.
func New(cfg Config) (*Engine, error) {
	if cfg.Machines == nil || cfg.Secrets == nil {
		return nil, fmt.Errorf("engine: Machines and Secrets must both be set, got %t and %t", cfg.Machines != nil, cfg.Secrets != nil)
	}
	e := &Engine{cfg: cfg.withDefaults(), nodes: make(map[string]*node), closed: make(chan struct{}), seed: maphash.MakeSeed(), started: time.Now()}
	// SA IDs are never reused, over restarts too: counting on from the clock
	// stays ahead as long as fewer than 10^9 are made in a second.
	e.firstID = ipsec.SAID(time.Now().UnixNano())
	e.ids.Store(uint64(e.firstID))
	e.index.init()
	e.half.init()
	if err := e.cookies.init(e.cfg.Rand, time.Now()); err != nil {
		return nil, fmt.Errorf("engine: %w", err)
	}
	e.failures.init()
	e.stats.init()
	e.watchers.dropped = &e.stats.eventsDropped
	// One processor is left to the shards: with slow groups on all of them, set-ups
	// with fast ones would wait for the scheduler.
	computers := max(1, runtime.GOMAXPROCS(0)-1)
	e.secrets = newPool(e.cfg.PeerQueue, e.cfg.PoolQueue, e.cfg.SecretWorkers)
	e.kes = newPool(e.cfg.PeerQueue, e.cfg.PoolQueue, computers)
	for range e.cfg.Shards {
		e.shards = append(e.shards, newShard(e))
	}
	if cfg.Store != nil {
		e.durable = newDurable(e, cfg.Store)
		if err := e.restore(); err != nil {
			return nil, err
		}
		e.group.Go(e.durable.run)
	}
	for range e.cfg.SecretWorkers {
		e.group.Go(e.secrets.work)
	}
	for range computers {
		e.group.Go(e.kes.compute)
	}
	for _, s := range e.shards {
		e.group.Go(s.run)
	}
	return e, nil
}

// Close stops the engine and its goroutines, and closes all links. It sends no
// deletes and removes no SA: workers go on with what they have.
func (e *Engine) Close() {
	e.close.Do(func() {
		close(e.closed)
		e.secrets.close()
		e.kes.close()
		if e.durable != nil {
			e.durable.close()
		}
		e.group.Wait()
		if e.durable != nil {
			if err := e.durable.store.Close(); err != nil {
				e.cfg.Log.Warn("closing the store", "error", err)
			}
		}
		for _, n := range e.allNodes() {
			n.mu.Lock()
			if s := n.session; s != nil {
				n.session = nil
				s.link.Close("key manager stops")
			}
			n.mu.Unlock()
		}
		e.watchers.close()
	})
}

func (e *Engine) isClosed() bool {
	select {
	case <-e.closed:
		return true
	default:
		return false
	}
}

// node returns a node's record, made at its first use.
func (e *Engine) node(name string) *node {
	if n := e.knownNode(name); n != nil {
		return n
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	n := e.nodes[name]
	if n == nil {
		n = newNode(e, name)
		e.nodes[name] = n
	}
	return n
}

func (e *Engine) knownNode(name string) *node {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.nodes[name]
}

func (e *Engine) allNodes() []*node {
	e.mu.RLock()
	defer e.mu.RUnlock()
	out := make([]*node, 0, len(e.nodes))
	for _, n := range e.nodes {
		out = append(out, n)
	}
	return out
}

// env is what a machine of the node takes from outside.
func (e *Engine) env(n *node) ike.Env {
	env := ike.Env{
		Rand:     e.cfg.Rand,
		AllocSPI: func() ipsec.SPI { return n.allocSPI(e.cfg.Rand) },
		NextID:   func() uint64 { return e.ids.Add(1) },
		Alone:    n.alone,
	}
	if len(e.cfg.CrashSecrets) != 0 {
		env.IKESPI = e.newSPI
		env.Tokens = n.tokens
	}
	return env
}

// allocSPI picks a random SPI that no SA of the node has. It is not reserved:
// that two negotiations pick the same one before either is installed happens
// once in 2^32, and the second install then fails.
func (n *node) allocSPI(r io.Reader) ipsec.SPI {
	n.mu.Lock()
	defer n.mu.Unlock()
	var b [4]byte
	for range 1000 {
		if _, err := io.ReadFull(r, b[:]); err != nil {
			panic("no randomness: " + err.Error()) // ends this machine only
		}
		if spi := ipsec.SPI(binary.BigEndian.Uint32(b[:])); n.sadb.SPIFree(spi) {
			return spi
		}
	}
	panic("no free inbound SPI in 1000 random ones") // ends this machine only
}

// after runs fn once, d from now, unless the engine is closed by then.
func (e *Engine) after(d time.Duration, fn func()) *time.Timer {
	return time.AfterFunc(d, func() {
		if !e.isClosed() {
			fn()
		}
	})
}

// spread is a random part of d, so that many do not act at once.
func spread(d time.Duration) time.Duration { return mrand.N(d + 1) }

// backOff is how long to wait after n failures in a row: doubling, with half of
// it random, so that two ends that failed together do not meet again.
func (c *Config) backOff(n int) time.Duration {
	d := c.RetryMax
	if n = max(n, 1); n < bits.Len64(uint64(c.RetryMax/c.RetryMin))+1 {
		d = min(d, c.RetryMin<<(n-1))
	}
	return d/2 + mrand.N(d/2+1)
}
