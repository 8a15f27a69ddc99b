package engine

import (
	"runtime"
	"sync"
	"syscall"
)

// pool runs slow jobs on a fixed number of goroutines, fairly, so that one busy or
// hostile peer delays itself only. For the same reason a peer has at most a quarter
// of the goroutines at a time, and its network half: with all of them, one whose secret
// store hangs would make all others wait until it times out.
type pool struct {
	mu     sync.Mutex
	more   *sync.Cond
	jobs   fair[func()]
	closed bool
}

func newPool(perPeer, inAll, workers int) *pool {
	p := &pool{jobs: newFair[func()](inAll)}
	p.jobs.ofSource, p.jobs.atOnce, p.jobs.ofNetwork = perPeer, max(1, workers/4), max(1, workers/2)
	p.more = sync.NewCond(&p.mu)
	return p
}

// submit queues a job and reports whether there was room.
func (p *pool) submit(key source, job func()) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || !p.jobs.put(key, job) {
		return false
	}
	p.more.Signal()
	return true
}

func (p *pool) work() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		for !p.jobs.ready() && !p.closed {
			p.more.Wait()
		}
		if p.closed {
			return
		}
		job, s := p.jobs.take()
		p.mu.Unlock()
		job()
		// The answer has made a shard runnable on this processor: it goes first.
		runtime.Gosched()
		p.mu.Lock()
		p.jobs.done(s)
	}
}

// computing is the nice value of threads that do nothing but compute. Whoever wakes
// up beside one of them gets the processor at once or soon: set-ups that need
// no slow work, and the workers' packets. It is not the highest, because of the runtime: to
// collect garbage it waits for every thread that runs Go, also for one that the kernel
// keeps waiting. One round each, with two busy loops on two processors: the 99th
// percentile of an ordinary set-up beside a flood of MODP-2048 was 28 ms with 0, 27 ms with
// 10, 73 ms with 19 and 219 ms with SCHED_IDLE; without the loops 11 to 15, 6 to 7, 7 and 6 ms.
const computing = 10

// compute is work on a thread of its own, which ends with it.
func (p *pool) compute() {
	runtime.LockOSThread()
	// In Linux this is of the calling thread. It is never refused: it takes no privilege
	// to be nicer, and a process that is nicer yet stays as it is.
	if now, err := syscall.Getpriority(syscall.PRIO_PROCESS, 0); err == nil && 20-now < computing {
		_ = syscall.Setpriority(syscall.PRIO_PROCESS, 0, computing)
	}
	p.work()
}

func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.more.Broadcast()
}
