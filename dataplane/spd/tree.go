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
	var lm, rm []int32
	for _, m := range members {
		s := b.t.boxes[m].d[dim]
		if s.first.less(v) {
			lm = append(lm, m)
		}
		if !s.last.less(v) {
			rm = append(rm, m)
		}
	}
	b.budget -= len(lm) + len(rm) - len(members)
	child := int32(len(b.t.nodes))
	b.t.nodes = append(b.t.nodes, node{}, node{})
	b.t.nodes[at] = node{at: v, dim: uint8(dim), left: child}
	b.build(child, lm, left, depth+1)
	b.build(child+1, rm, right, depth+1)
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

// split picks the value that leaves the smallest larger half, over all
// dimensions, and prefers the split that duplicates less.
func (b *builder) split(members []int32, region box) (dim int, v u128, ok bool) {
	best := len(members) * 4
	firsts, lasts := make([]u128, 0, len(members)), make([]u128, 0, len(members))
	for d := range dims {
		firsts, lasts = firsts[:0], lasts[:0]
		for _, m := range members {
			s := b.t.boxes[m].d[d]
			firsts = append(firsts, s.first)
			lasts = append(lasts, s.last.next())
		}
		slices.SortFunc(firsts, compare)
		slices.SortFunc(lasts, compare)
		for _, c := range candidates(firsts, lasts) {
			if !region.d[d].first.less(c) || region.d[d].last.less(c) {
				continue
			}
			// A rule goes left when it starts before c, right when it ends at
			// or after it.
			l, _ := slices.BinarySearchFunc(firsts, c, compare)
			ended, _ := slices.BinarySearchFunc(lasts, c.next(), compare)
			r := len(members) - ended
			if cost := 2*max(l, r) + l + r; l < len(members) && r < len(members) && cost < best {
				best, dim, v, ok = cost, d, c, true
			}
		}
	}
	return dim, v, ok
}

// candidates are a few boundaries around the middle of both lists.
func candidates(firsts, lasts []u128) []u128 {
	n := len(firsts)
	var out []u128
	for _, q := range []int{n / 4, n / 2, n * 3 / 4} {
		out = append(out, firsts[q], lasts[q])
	}
	return append(out, firsts[n-1], lasts[0])
}

func compare(a, b u128) int {
	return cmp.Or(cmp.Compare(a.hi, b.hi), cmp.Compare(a.lo, b.lo))
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
