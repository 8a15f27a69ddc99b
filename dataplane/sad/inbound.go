package sad

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/testudo-ipsec/testudo/dataplane/ah"
	"github.com/testudo-ipsec/testudo/dataplane/esp"
	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/dataplane/replay"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// Inbound is an SA that this host receives on. OpenBurst and OpenAHBurst are for one
// goroutine at a time; everything else may be called by any.
type Inbound struct {
	common
	top    atomic.Uint64
	opener esp.Opener // ESP
	ah     *ah.Opener // AH
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
	if sa.Protocol == ipsec.ProtocolAH {
		in.ah, err = ah.NewOpener(sa)
	} else {
		var o *esp.Opener
		if o, err = esp.NewOpener(sa); err == nil {
			in.opener = *o
		}
	}
	if err != nil {
		return nil, fmt.Errorf("sad: %w", err)
	}
	if in.window, err = replay.New(sa.ReplayWindow, sa.Suite.ESN, sa.ReplayFloor); err != nil {
		return nil, fmt.Errorf("sad: %s: %w", sa.ID, err)
	}
	in.top.Store(in.window.Top())
	return in, nil
}

// OpenBurst opens packets of this ESP SA: replay check, verification, decryption,
// window update, lifetime. Of each job it reads Packet, and sets Seq, Payload,
// Next and Why; jobs whose Why is set already are left alone. It returns how many
// went well.
//
// In tunnel mode the payload is cut to the inner packet's own length, which
// removes traffic-flow padding. The inner check against the selectors is the
// caller's, who parses the packet anyway: see Permits.
func (in *Inbound) OpenBurst(now int64, jobs []esp.OpenJob) int {
	if why := in.serves(in.ah == nil, now); why != packet.WhyOK {
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
	t := in.tally()
	n := 0
	for i := range jobs {
		j := &jobs[i]
		if j.Why != packet.WhyOK {
			continue
		}
		if j.Why = in.open(j, &t); j.Why == packet.WhyOK {
			n++
		} else if j.Why != packet.WhyDummy {
			t.errors++
		}
	}
	in.publish(&t, now)
	return n
}

// OpenAHBurst is OpenBurst for an AH SA. Of each job it reads Packet and At.
func (in *Inbound) OpenAHBurst(now int64, jobs []ah.OpenJob) int {
	if why := in.serves(in.ah != nil, now); why != packet.WhyOK {
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
	t := in.tally()
	n := 0
	for i := range jobs {
		j := &jobs[i]
		if j.Why != packet.WhyOK {
			continue
		}
		if j.Why = in.verify(j, &t); j.Why == packet.WhyOK {
			n++
		} else {
			t.errors++
		}
	}
	in.publish(&t, now)
	return n
}

// serves says whether the SA may be used at now for the protocol that was asked
// for, and why not.
func (in *Inbound) serves(right bool, now int64) packet.Why {
	if !right {
		return packet.WhyProtocol
	}
	return in.usable(now)
}

// tally gathers a burst's counts, to be published once.
type tally struct {
	bytes, packets, errors uint64
	authentic              bool
}

func (in *Inbound) tally() tally {
	return tally{bytes: in.bytes.Load(), packets: in.packets.Load()}
}

func (in *Inbound) publish(t *tally, now int64) {
	if t.errors > 0 {
		in.errors.Add(t.errors)
	}
	if t.authentic {
		in.bytes.Store(t.bytes)
		in.packets.Store(t.packets)
		in.top.Store(in.window.Top())
		in.carried(now)
	}
}

func (in *Inbound) open(j *esp.OpenJob, t *tally) (why packet.Why) {
	_, low, ok := esp.Peek(j.Packet)
	if !ok {
		return packet.WhyShort
	}
	if j.Seq, why = in.check(low); why != packet.WhyOK {
		return why
	}
	j.Payload, j.Next, why = in.opener.Open(j.Packet, j.Seq)
	j.Payload, why = in.accept(j.Seq, j.Payload, j.Next, why, t)
	return why
}

func (in *Inbound) verify(j *ah.OpenJob, t *tally) (why packet.Why) {
	if j.At < 0 || j.At > len(j.Packet) {
		return packet.WhyShort
	}
	_, low, ok := ah.Peek(j.Packet[j.At:])
	if !ok {
		return packet.WhyShort
	}
	if j.Seq, why = in.check(low); why != packet.WhyOK {
		return why
	}
	j.Payload, j.Next, why = in.ah.Open(j.Packet, j.At, j.Seq)
	j.Payload, why = in.accept(j.Seq, j.Payload, j.Next, why, t)
	return why
}

// check comes before any cryptography. A hard limit may have been met within this
// burst.
func (in *Inbound) check(low uint32) (seq uint64, why packet.Why) {
	if why := packet.Why(in.dead.Load()); why != packet.WhyOK {
		return 0, why
	}
	return in.window.Check(low)
}

// accept does what follows the cryptography, which said why.
func (in *Inbound) accept(seq uint64, payload []byte, next uint8, why packet.Why, t *tally) ([]byte, packet.Why) {
	switch why {
	case packet.WhyOK, packet.WhyDummy, packet.WhyPadding:
		// Authentic: only now may the window move (RFC 4303 §3.4.3, RFC 4302 §3.4.3).
	default:
		return payload, why
	}
	t.authentic = true
	if seen := in.window.Update(seq); seen != packet.WhyOK {
		return payload, seen
	}
	if why == packet.WhyOK && in.sa.Mode == ipsec.ModeTunnel {
		payload, why = esp.Trim(payload, next)
	}
	if why != packet.WhyOK {
		return payload, why
	}
	l, size := &in.limits, uint64(len(payload))
	if l.bytes.Hard != 0 && t.bytes+size > l.bytes.Hard {
		in.meet(hardBytes)
		return payload, packet.WhyHardBytes
	}
	if l.packets.Hard != 0 && t.packets+1 > l.packets.Hard {
		in.meet(hardPackets)
		return payload, packet.WhyHardPackets
	}
	t.bytes += size
	t.packets++
	in.counted(t.bytes, t.packets)
	return payload, packet.WhyOK
}

// Usable says whether the SA may be used at now, and if not, why.
func (in *Inbound) Usable(now int64) packet.Why { return in.usable(now) }

// Newest says whether a packet of the last burst is the newest one received. Without
// a replay window nobody knows.
func (in *Inbound) Newest(seq uint64) bool { return in.window.Size() != 0 && seq == in.window.Top() }

// Counters is what the SA has counted. Top is the top of the replay window.
func (in *Inbound) Counters() ipsec.SACounters { return in.counters(in.top.Load()) }
