package spd

import (
	"cmp"
	"slices"
)

// A tree finds the first rule that matches a key. It is a decision tree over
// the ranges of the rules: each node splits one dimension at a value, a rule
// that lies on both sides goes down both, and inside a node everything behind a
// rule that covers the whole node is cut off. Leaves are scanned in order.
type tree struct {
	nodes []node
	lists []int32 // leaf lists, one after another: rule numbers in order
	boxes []box   // by rule number
}

// node is a split (dim < dims: keys below at go to left, others to left+1) or a
// leaf (dim == dims: lists[left:right]).
type node struct {
	at          u128
	left, right int32
	dim         uint8
}

const (
	leafSize = 6
	// growth bounds how many list entries a tree may hold for each rule. When
	// it is reached, leaves stay as large as they are: slower, still correct.
	growth = 24
)

// newTree compiles the boxes of rules, given in order of precedence. covers
// says whether a rule decides every key inside its box.
func newTree(boxes []box, members []int32, covers func(int32) bool) *tree {
	t := &tree{boxes: boxes}
	if len(members) == 0 {
		return t
	}
	var whole box
	whole.d = boxes[members[0]].d
	for _, m := range members {
		for i, s := range boxes[m].d {
			if s.first.less(whole.d[i].first) {
				whole.d[i].first = s.first
			}
			if whole.d[i].last.less(s.last) {
				whole.d[i].last = s.last
			}
		}
	}
	// Keys outside of every rule's range go to leaves too; their scan fails.
	b := builder{t: t, covers: covers, budget: growth*len(members) + 1024}
	t.nodes = append(t.nodes, node{})
	b.build(0, members, whole, 0)
	return t
}

type builder struct {
	t      *tree
	covers func(int32) bool
	budget int

	stack         []int32 // the members of the nodes from the root to the one at hand
	firsts, lasts []u128  // scratch
}

func (b *builder) build(at int32, members []int32, region box, depth int) {
	members = b.prune(members, region)
	if len(members) <= leafSize || depth == 48 || b.budget <= 0 {
		b.leaf(at, members)
		return
	}
	dim, v, ok := b.split(members, region)
	if !ok {
		b.leaf(at, members)
		return
	}
	left, right := region, region
	left.d[dim].last = before(v)
	right.d[dim].first = v
	start := len(b.stack)
	for _, m := range members {
		if b.t.boxes[m].d[dim].first.less(v) {
			b.stack = append(b.stack, m)
		}
	}
	middle := len(b.stack)
	for _, m := range members {
		if !b.t.boxes[m].d[dim].last.less(v) {
			b.stack = append(b.stack, m)
		}
	}
	lm, rm := b.stack[start:middle], b.stack[middle:]
	b.budget -= len(lm) + len(rm) - len(members)
	child := int32(len(b.t.nodes))
	b.t.nodes = append(b.t.nodes, node{}, node{})
	b.t.nodes[at] = node{at: v, dim: uint8(dim), left: child}
	b.build(child, lm, left, depth+1)
	b.build(child+1, rm, right, depth+1)
	b.stack = b.stack[:start]
}

// before is v-1; v is never the first value of a region.
func before(v u128) u128 {
	if v.lo == 0 {
		v.hi--
	}
	v.lo--
	return v
}

func (b *builder) leaf(at int32, members []int32) {
	first := int32(len(b.t.lists))
	b.t.lists = append(b.t.lists, members...)
	b.t.nodes[at] = node{dim: dims, left: first, right: int32(len(b.t.lists))}
}

// prune cuts what can never be reached behind a rule that covers the region.
func (b *builder) prune(members []int32, region box) []int32 {
	for i, m := range members {
		if !b.covers(m) {
			continue
		}
		all := true
		for d := range dims {
			all = all && b.t.boxes[m].d[d].covers(region.d[d])
		}
		if all {
			return members[:i+1]
		}
	}
	return members
}

// sample is how many members propose where to split.
const sample = 64

// split picks the value that leaves the smallest larger half, over all
// dimensions, and prefers the split that duplicates less. It chooses among a few
// boundaries, around the middle of those of a sample.
func (b *builder) split(members []int32, region box) (dim int, v u128, ok bool) {
	best := len(members) * 4
	for d := range dims {
		r := region.d[d]
		firsts, lasts := b.firsts[:0], b.lasts[:0]
		// The last to begin and the first to end are always asked.
		begin, end, inside := r.first, r.last, false
		step := (len(members) + sample - 1) / sample
		for i, m := range members {
			s := &b.t.boxes[m].d[d]
			if r.first.less(s.first) {
				inside = true
				if begin.less(s.first) {
					begin = s.first
				}
			}
			if s.last.less(r.last) {
				inside = true
				if s.last.less(end) {
					end = s.last
				}
			}
			if i%step == 0 {
				firsts, lasts = append(firsts, s.first), append(lasts, s.last.next())
			}
		}
		b.firsts, b.lasts = firsts, lasts
		if !inside {
			continue // every rule covers the whole of it
		}
		slices.SortFunc(firsts, compare)
		slices.SortFunc(lasts, compare)
		n := len(firsts)
		for _, c := range [...]u128{
			firsts[n/4], lasts[n/4], firsts[n/2], lasts[n/2], firsts[n*3/4], lasts[n*3/4], begin, end.next(),
		} {
			if !r.first.less(c) || r.last.less(c) {
				continue
			}
			// A rule goes left when it starts before c, right when it ends at or after it.
			left, right := 0, 0
			for _, m := range members {
				s := &b.t.boxes[m].d[d]
				if s.first.less(c) {
					left++
				}
				if !s.last.less(c) {
					right++
				}
			}
			if cost := 2*max(left, right) + left + right; left < len(members) && right < len(members) && cost < best {
				best, dim, v, ok = cost, d, c, true
			}
		}
	}
	return dim, v, ok
}

func compare(a, b u128) int {
	if c := cmp.Compare(a.hi, b.hi); c != 0 {
		return c
	}
	return cmp.Compare(a.lo, b.lo)
}

// find is the leaf list of a key.
func (t *tree) find(k *Key) []int32 {
	if len(t.nodes) == 0 {
		return nil
	}
	n := &t.nodes[0]
	for n.dim != dims {
		var v u128
		switch n.dim {
		case dimRemote:
			v = k.remote
		case dimLocal:
			v = k.local
		case dimRemotePort:
			v.lo = uint64(k.remotePort())
		case dimLocalPort:
			v.lo = uint64(k.localPort())
		default:
			v.lo = uint64(k.protocol())
		}
		next := n.left
		if !v.less(n.at) {
			next++
		}
		n = &t.nodes[next]
	}
	return t.lists[n.left:n.right]
}
