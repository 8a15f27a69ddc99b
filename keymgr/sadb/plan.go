package sadb

import (
	"cmp"
	"slices"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/push"
)

// Plan is how a worker that said hello is brought in line.
type Plan struct {
	// Ops: inbound installs, outbound installs, removals. Reinstalled is to be
	// called for each install that is answered.
	Ops []push.Op
	// Rekey are SAs to replace soon: the worker lost them, so how many packets
	// they carried since the last report is not known.
	Rekey []ipsec.SAID
	// Stuck are outbound SAs that cannot be installed again because no lease is
	// left: they carry nothing until they are rekeyed.
	Stuck []ipsec.SAID
}

// Attach compares what a worker holds with what it should. SAs whose Put is not
// settled are left to Again.
func (n *Node) Attach(now time.Time, incarnation uint64, inventory []push.Held) Plan {
	restarted := n.incarnation != 0 && n.incarnation != incarnation
	n.incarnation = incarnation
	held := make(map[ipsec.SAID]bool, len(inventory))
	var p Plan
	var in, out, remove []push.Op
	for _, h := range inventory {
		held[h.ID] = true
		e := n.sas[h.ID]
		switch {
		case e != nil && e.sa.Direction == ipsec.Inbound:
			e.top = max(e.top, h.Top)
		case e != nil:
			e.use(h.Top)
			if h.LeaseLast < e.next {
				e.from = e.next // what was granted since did not arrive: it does not count as held
			}
		case h.ID < n.base || n.orphans[h.ID].ID != 0 || n.abandoned[h.ID]:
			n.addOrphan(h)
		case n.distrusted:
			n.abandon(h.ID)
			n.addOrphan(h)
		default:
			remove = append(remove, push.Remove{ID: h.ID})
		}
	}
	for id, h := range n.orphans {
		if !held[id] {
			n.forgetOrphan(h)
		}
	}
	for id := range n.abandoned {
		if !held[id] {
			delete(n.abandoned, id)
			n.change(id)
		}
	}
	n.resumed, n.distrusted = false, false
	for id, e := range n.sas {
		restored := e.restored
		e.restored, e.mending = false, 0 // what an earlier link carried is not answered any more
		// A new incarnation does not know how far the old one got in a lease,
		// even if the kernel kept the SA for it.
		lost := !held[id] || restarted && e.sa.Direction == ipsec.Outbound
		if lost {
			e.count.restart()
		}
		if lost && (e.installed || restarted) && restored && e.sa.Direction == ipsec.Outbound {
			// Neither the worker nor, should it be an old copy, the state says for
			// sure which numbers were used.
			e.unsure = true
			n.change(id)
		}
		if e.pending != 0 || e.installed && !lost {
			continue
		}
		if lost && e.installed && !e.unsure {
			p.Rekey = append(p.Rekey, id)
		}
		n.setInstalled(e, false)
		n.change(id)
		op, err := e.reinstall(now)
		switch {
		case err != nil:
			p.Stuck = append(p.Stuck, id)
		case e.sa.Direction == ipsec.Inbound:
			in = append(in, op)
			e.mending++
		default:
			out = append(out, op)
			e.mending++
		}
	}
	byID := func(a, b push.Op) int { return cmp.Compare(a.(push.Install).SA.ID, b.(push.Install).SA.ID) }
	slices.SortFunc(in, byID)
	slices.SortFunc(out, byID)
	p.Ops = slices.Concat(in, out, remove)
	return p
}

// reinstall makes an operation for an SA that a worker may have had before: a
// lease past all others, the replay window's last known top as floor, and what
// is left of its lifetime.
func (e *entry) reinstall(now time.Time) (push.Install, error) {
	sa := e.sa
	if sa.Direction == ipsec.Outbound {
		l, err := e.lease()
		if err != nil {
			return push.Install{}, err
		}
		e.from = l.First
		sa.Lease = l
	} else {
		sa.ReplayFloor = max(sa.ReplayFloor, e.top)
	}
	total := e.count.total()
	sa.Lifetime.Bytes = left(sa.Lifetime.Bytes, total.Bytes)
	sa.Lifetime.Packets = left(sa.Lifetime.Packets, total.Packets)
	l := &sa.Lifetime
	l.TimeSoft, l.TimeHard = timeLeft(l.TimeSoft, l.TimeHard, now.Sub(e.since))
	if first := total.First; !first.IsZero() {
		// Its use has begun: the rest of it runs from now on, packets or not. The worker's
		// clock may be wrong, but nothing was sent before the SA was made.
		if first.Before(e.since) {
			first = e.since
		}
		soft, hard := timeLeft(l.UseSoft, l.UseHard, now.Sub(first))
		l.TimeSoft, l.TimeHard = sooner(l.TimeSoft, soft), sooner(l.TimeHard, hard)
		l.UseSoft, l.UseHard = 0, 0
	}
	return push.Install{SA: sa}, nil
}

func timeLeft(soft, hard, age time.Duration) (time.Duration, time.Duration) {
	t := left(ipsec.Limit{Soft: uint64(soft), Hard: uint64(hard)}, uint64(max(age, 0)))
	return time.Duration(t.Soft), time.Duration(t.Hard)
}

// sooner is the lower of two limits, of which 0 means none.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}

// left is what remains of a limit; 0 means none, so a limit that was passed
// becomes 1, which is met at once and reported again.
func left(l ipsec.Limit, spent uint64) ipsec.Limit {
	sub := func(v uint64) uint64 {
		switch {
		case v == 0:
			return 0
		case v <= spent:
			return 1
		}
		return v - spent
	}
	return ipsec.Limit{Soft: sub(l.Soft), Hard: sub(l.Hard)}
}
