package engine

import (
	"container/list"
	"net/netip"
	"slices"
	"sync"

	"github.com/testudo-ipsec/testudo/keymgr/ike"
)

// Bounds of what is remembered of failures.
const (
	failuresPerPeer = 16
	failurePeers    = 4096
)

// failures remembers the latest failures of each peer of each node. The peer
// that failed longest ago is forgotten first.
type failures struct {
	mu    sync.Mutex
	byKey map[failureKey]*list.Element
	order *list.List // of *failureLog, the latest in front
}

type failureKey struct{ node, peer string }

type failureLog struct {
	key  failureKey
	list []Failure // oldest first
}

func (l *failures) init() {
	l.byKey = make(map[failureKey]*list.Element)
	l.order = list.New()
}

func (l *failures) add(node string, f ike.Failure) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := failureKey{node, f.Peer}
	if f.Peer == "" {
		k.peer = f.Remote
	}
	el := l.byKey[k]
	if el == nil {
		if len(l.byKey) >= failurePeers {
			last := l.order.Back()
			delete(l.byKey, l.order.Remove(last).(*failureLog).key)
		}
		el = l.order.PushFront(&failureLog{key: k})
		l.byKey[k] = el
	}
	l.order.MoveToFront(el)
	log := el.Value.(*failureLog)
	if n := len(log.list); n > 0 && sameFailure(log.list[n-1].Failure, f) {
		log.list[n-1].Failure = f
		log.list[n-1].Repeated++
		return
	}
	if len(log.list) == failuresPerPeer {
		log.list = slices.Delete(log.list, 0, 1)
	}
	log.list = append(log.list, Failure{Failure: f, Node: node, Repeated: 1})
}

func sameFailure(a, b ike.Failure) bool {
	return a.Why == b.Why && a.Rule == b.Rule && a.Role == b.Role && a.Exchange == b.Exchange && a.RemoteID == b.RemoteID && a.Detail == b.Detail
}

// Failures returns the latest failures, newest first, of a peer (profile name,
// remote address or identity) and node; empty for all.
func (e *Engine) Failures(node, peer string) []Failure {
	l := &e.failures
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []Failure
	for el := l.order.Front(); el != nil; el = el.Next() {
		for _, f := range el.Value.(*failureLog).list {
			if (node == "" || node == f.Node) && (peer == "" || peer == f.Peer || peer == f.RemoteID || peer == f.Remote || peer == addrOf(f.Remote)) {
				out = append(out, f)
			}
		}
	}
	slices.SortStableFunc(out, func(a, b Failure) int { return b.Time.Compare(a.Time) })
	return out
}

func addrOf(s string) string {
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap.Addr().String()
	}
	return s
}
