package engine

import "net/netip"

// source is whom work is done for: a remote address of a node. The node is part
// of it, since many nodes may have the same gateway as their peer.
type source struct {
	node   string
	remote netip.Addr
}

// network is what holds a source: its /24 or /64.
type network struct {
	node   string
	prefix netip.Prefix
}

// fair is a bounded queue in which nobody waits for what others have put in. Networks
// are served in turn, and in each its addresses: who has many addresses has one
// turn, and peers of one network do not wait for one of them. A network may have as
// much waiting as there is room for yet, so that there is room for the others.
// It has no lock.
type fair[T any] struct {
	bound     int // in all
	ofSource  int // waiting; 0: any number
	atOnce    int // taken and not done, of a source; 0: any number
	ofNetwork int // the same, of a network

	n        int
	sources  map[source]*fairSource[T]
	networks map[network]*fairNetwork[T]
	turn     []*fairNetwork[T] // those that may be served, in order of service
}

type fairNetwork[T any] struct {
	key    network
	turn   []*fairSource[T]
	n      int // waiting
	taken  int
	inTurn bool
}

type fairSource[T any] struct {
	key     source
	network *fairNetwork[T]
	waiting []T
	taken   int
	inTurn  bool
}

func newFair[T any](bound int) fair[T] {
	return fair[T]{bound: bound, sources: make(map[source]*fairSource[T]), networks: make(map[network]*fairNetwork[T])}
}

// put reports whether there was room.
func (f *fair[T]) put(key source, v T) bool {
	s := f.sources[key]
	w := (*fairNetwork[T])(nil)
	nk := network{key.node, prefixOf(key.remote)}
	if s != nil {
		w = s.network
	} else {
		w = f.networks[nk]
	}
	if f.n >= f.bound || w != nil && w.n > f.bound-f.n || s != nil && f.ofSource > 0 && len(s.waiting) >= f.ofSource {
		return false
	}
	if w == nil {
		w = &fairNetwork[T]{key: nk}
		f.networks[nk] = w
	}
	if s == nil {
		s = &fairSource[T]{key: key, network: w}
		f.sources[key] = s
	}
	s.waiting = append(s.waiting, v)
	w.n++
	f.n++
	f.enter(s)
	return true
}

// enter gives a source and its network a turn, unless they have one, or nothing to
// do, or as much under way as they may.
func (f *fair[T]) enter(s *fairSource[T]) {
	w := s.network
	if !s.inTurn && len(s.waiting) > 0 && (f.atOnce == 0 || s.taken < f.atOnce) {
		s.inTurn = true
		w.turn = append(w.turn, s)
	}
	if !w.inTurn && len(w.turn) > 0 && (f.ofNetwork == 0 || w.taken < f.ofNetwork) {
		w.inTurn = true
		f.turn = append(f.turn, w)
	}
}

// ready reports that take has something.
func (f *fair[T]) ready() bool { return len(f.turn) > 0 }

// take returns what is next, and whose it is, for done. It must be ready.
func (f *fair[T]) take() (v T, s *fairSource[T]) {
	w := next(&f.turn)
	s = next(&w.turn)
	v = next(&s.waiting)
	w.inTurn, s.inTurn = false, false
	w.taken++
	s.taken++
	w.n--
	f.n--
	f.enter(s)
	return v, s
}

func (f *fair[T]) done(s *fairSource[T]) {
	w := s.network
	w.taken--
	s.taken--
	f.enter(s)
	if s.taken == 0 && len(s.waiting) == 0 {
		delete(f.sources, s.key)
	}
	if w.taken == 0 && w.n == 0 {
		delete(f.networks, w.key)
	}
}

// next takes the first of a list, of which nothing is kept alive.
func next[T any](list *[]T) T {
	var none T
	v := (*list)[0]
	(*list)[0] = none
	if *list = (*list)[1:]; len(*list) == 0 {
		*list = nil
	}
	return v
}
