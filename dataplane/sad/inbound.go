package sad

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/testudo-ipsec/testudo/dataplane/esp"
	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/dataplane/replay"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// Inbound is an SA that this host receives on. OpenBurst is for one goroutine
// at a time; everything else may be called by any.
type Inbound struct {
	common
	top    atomic.Uint64
	opener *esp.Opener
	window replay.Window
}

func newInbound(sa *ipsec.SA, now time.Time, e *events) (*Inbound, error) {
	if sa.Direction != ipsec.Inbound {
		return nil, fmt.Errorf("sad: %s is an SA of direction %s, want in or out", sa.ID, sa.Direction)
	}
	in := &Inbound{}
	if err := in.init(sa, now, e); err != nil {
		return nil, err
	}
	var err error
	if in.opener, err = esp.NewOpener(sa); err != nil {
		return nil, fmt.Errorf("sad: %w", err)
	}
	if in.window, err = replay.New(sa.ReplayWindow, sa.Suite.ESN, sa.ReplayFloor); err != nil {
		return nil, fmt.Errorf("sad: %s: %w", sa.ID, err)
	}
	in.top.Store(in.window.Top())
	return in, nil
}

// OpenBurst opens packets of this SA: replay check, verification, decryption,
// window update, lifetime. Of each job it reads Packet, and sets Seq, Payload,
// Next and Why; jobs whose Why is set already are left alone. It returns how many
// went well.
//
// In tunnel mode the payload is cut to the inner packet's own length, which
// removes traffic-flow padding. The inner check against the selectors is the
// caller's, who parses the packet anyway: see Permits.
func (in *Inbound) OpenBurst(now int64, jobs []esp.OpenJob) int {
	if why := in.usable(now); why != packet.WhyOK {
		n := uint64(0)
		for i := range jobs {
			if jobs[i].Why == packet.WhyOK {
				jobs[i].Why = why
				n++
			}
		}
		in.errors.Add(n)
		return 0
	}
	t := tally{bytes: in.bytes.Load(), packets: in.packets.Load()}
	n := 0
	for i := range jobs {
		j := &jobs[i]
		if j.Why != packet.WhyOK {
			continue
		}
		if j.Why = packet.Why(in.dead.Load()); j.Why != packet.WhyOK {
			t.errors++ // a hard limit was met within this burst
			continue
		}
		if j.Why = in.open(j, &t); j.Why == packet.WhyOK {
			n++
		} else if j.Why != packet.WhyDummy {
			t.errors++
		}
	}
	if t.errors > 0 {
		in.errors.Add(t.errors)
	}
	if t.authentic {
		in.bytes.Store(t.bytes)
		in.packets.Store(t.packets)
		in.top.Store(in.window.Top())
		in.used.Store(now)
	}
	return n
}

// tally gathers a burst's counts, to be published once.
type tally struct {
	bytes, packets, errors uint64
	authentic              bool
}

func (in *Inbound) open(j *esp.OpenJob, t *tally) packet.Why {
	_, low, ok := esp.Peek(j.Packet)
	if !ok {
		return packet.WhyShort
	}
	var why packet.Why
	if j.Seq, why = in.window.Check(low); why != packet.WhyOK {
		return why
	}
	j.Payload, j.Next, why = in.opener.Open(j.Packet, j.Seq)
	switch why {
	case packet.WhyOK, packet.WhyDummy, packet.WhyPadding:
		// Authentic: only now may the window move (RFC 4303 §3.4.3).
	default:
		return why
	}
	t.authentic = true
	if seen := in.window.Update(j.Seq); seen != packet.WhyOK {
		return seen
	}
	if why == packet.WhyOK && in.sa.Mode == ipsec.ModeTunnel {
		j.Payload, why = esp.Trim(j.Payload, j.Next)
	}
	if why != packet.WhyOK {
		return why
	}
	l, size := &in.sa.Lifetime, uint64(len(j.Payload))
	if l.Bytes.Hard != 0 && t.bytes+size > l.Bytes.Hard {
		in.meet(hardBytes)
		return packet.WhyHardBytes
	}
	if l.Packets.Hard != 0 && t.packets+1 > l.Packets.Hard {
		in.meet(hardPackets)
		return packet.WhyHardPackets
	}
	t.bytes += size
	t.packets++
	in.counted(t.bytes, t.packets)
	return packet.WhyOK
}

// Usable says whether the SA may be used at now, and if not, why.
func (in *Inbound) Usable(now int64) packet.Why { return in.usable(now) }

// Counters is what the SA has counted. Top is the top of the replay window.
func (in *Inbound) Counters() ipsec.SACounters { return in.counters(in.top.Load()) }
