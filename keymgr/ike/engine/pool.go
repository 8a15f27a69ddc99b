package engine

import (
	"net/netip"
	"runtime"
	"sync"
)

// poolKey is whom a slow job is done for: a remote address of a node. The node
// is part of it, since many nodes may have the same gateway as their peer.
type poolKey struct {
	node   string
	remote netip.Addr
}

// pool runs slow jobs on a fixed number of goroutines. Each peer has a queue,
// and the queues are served in turn, so that one busy or hostile peer delays
// itself only. For the same reason a peer has at most a quarter of the goroutines
// at a time: with all of them, one peer whose secret store hangs would make all
// others wait until it times out.
type pool struct {
	perPeer, inAll int
	share          int // goroutines of one peer

	mu     sync.Mutex
	more   *sync.Cond
	peers  map[poolKey]*poolPeer
	turn   []*poolPeer // peers that may be served, in order of service
	n      int
	closed bool
}

// poolPeer is a peer with jobs that wait or run.
type poolPeer struct {
	key     poolKey
	jobs    []func()
	running int
	inTurn  bool
}

func newPool(perPeer, inAll int) *pool {
	p := &pool{perPeer: perPeer, inAll: inAll, share: 1, peers: make(map[poolKey]*poolPeer)}
	p.more = sync.NewCond(&p.mu)
	return p
}

func (p *pool) start(g *sync.WaitGroup, workers int) {
	p.mu.Lock()
	p.share = max(1, workers/4)
	p.mu.Unlock()
	for range workers {
		g.Go(p.work)
	}
}

// submit queues a job and reports whether there was room.
func (p *pool) submit(key poolKey, job func()) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	q := p.peers[key]
	if p.closed || p.n >= p.inAll || q != nil && len(q.jobs) >= p.perPeer {
		return false
	}
	if q == nil {
		q = &poolPeer{key: key}
		p.peers[key] = q
	}
	q.jobs = append(q.jobs, job)
	p.n++
	p.enter(q)
	return true
}

// enter gives a peer a turn, unless it has one, or nothing to do, or its share.
func (p *pool) enter(q *poolPeer) {
	if !q.inTurn && len(q.jobs) > 0 && q.running < p.share {
		q.inTurn = true
		p.turn = append(p.turn, q)
		p.more.Signal()
	}
}

func (p *pool) work() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		for len(p.turn) == 0 && !p.closed {
			p.more.Wait()
		}
		if p.closed {
			return
		}
		q := p.turn[0]
		p.turn[0] = nil
		p.turn = p.turn[1:]
		job := q.jobs[0]
		q.jobs[0] = nil
		q.jobs = q.jobs[1:]
		p.n--
		q.inTurn = false
		q.running++
		p.enter(q)
		p.mu.Unlock()
		job()
		// The answer has made a shard runnable on this processor: it goes first.
		runtime.Gosched()
		p.mu.Lock()
		q.running--
		p.enter(q)
		if q.running == 0 && len(q.jobs) == 0 {
			delete(p.peers, q.key)
		}
	}
}

func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.more.Broadcast()
}
