package engine

import (
	"net/netip"
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
// itself only.
type pool struct {
	perPeer, inAll int

	mu     sync.Mutex
	more   *sync.Cond
	queues map[poolKey][]func()
	turn   []poolKey // peers with waiting jobs, in order of service
	n      int
	closed bool
}

func newPool(perPeer, inAll int) *pool {
	p := &pool{perPeer: perPeer, inAll: inAll, queues: make(map[poolKey][]func())}
	p.more = sync.NewCond(&p.mu)
	return p
}

func (p *pool) start(g *sync.WaitGroup, workers int) {
	for range workers {
		g.Go(p.work)
	}
}

// submit queues a job and reports whether there was room.
func (p *pool) submit(peer poolKey, job func()) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	q := p.queues[peer]
	if p.closed || p.n >= p.inAll || len(q) >= p.perPeer {
		return false
	}
	if len(q) == 0 {
		p.turn = append(p.turn, peer)
	}
	p.queues[peer] = append(q, job)
	p.n++
	p.more.Signal()
	return true
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
		peer := p.turn[0]
		p.turn = p.turn[1:]
		q := p.queues[peer]
		job := q[0]
		q[0] = nil
		if q = q[1:]; len(q) == 0 {
			delete(p.queues, peer)
		} else {
			p.queues[peer] = q
			p.turn = append(p.turn, peer)
		}
		p.n--
		p.mu.Unlock()
		job()
		p.mu.Lock()
	}
}

func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.more.Broadcast()
}
