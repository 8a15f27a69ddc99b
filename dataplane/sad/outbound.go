package sad

import (
	"fmt"
	"sync"
	"time"

	"github.com/testudo-ipsec/testudo/dataplane/ah"
	"github.com/testudo-ipsec/testudo/dataplane/esp"
	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// Outbound is an SA that this host sends on.
type Outbound struct {
	common
	leases leases

	mu     sync.Mutex  // guards the sealer, which is only ever cloned
	sealer *esp.Sealer // ESP
	ah     *ah.Sealer  // AH
}

func newOutbound(sa *ipsec.SA, now time.Time, e *events) (*Outbound, error) {
	o := &Outbound{}
	if err := o.init(sa, now, e); err != nil {
		return nil, err
	}
	var err error
	if sa.Protocol == ipsec.ProtocolAH {
		o.ah, err = ah.NewSealer(sa)
	} else {
		o.sealer, err = esp.NewSealer(sa)
	}
	if err != nil {
		return nil, fmt.Errorf("sad: %w", err)
	}
	o.leases.esn = sa.Suite.ESN
	if sa.Lease != (ipsec.Lease{}) {
		if err := o.AddLease(sa.Lease); err != nil {
			return nil, err
		}
	}
	return o, nil
}

// AddLease queues a further range of sequence numbers.
func (o *Outbound) AddLease(l ipsec.Lease) error {
	if err := o.leases.add(l); err != nil {
		return fmt.Errorf("sad: %s: %w", o.sa.ID, err)
	}
	return nil
}

// NewSealer makes a sealer of this ESP SA for one goroutine.
func (o *Outbound) NewSealer() (*esp.Sealer, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.sealer == nil {
		return nil, fmt.Errorf("sad: %s is an SA of protocol %s, want esp", o.sa.ID, o.sa.Protocol)
	}
	return o.sealer.Clone()
}

// NewAHSealer makes a sealer of this AH SA for one goroutine.
func (o *Outbound) NewAHSealer() (*ah.Sealer, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ah == nil {
		return nil, fmt.Errorf("sad: %s is an SA of protocol %s, want ah", o.sa.ID, o.sa.Protocol)
	}
	return o.ah.Clone()
}

// Usable says whether the SA may be used at now, and if not, why. Lack of a
// lease does not count.
func (o *Outbound) Usable(now int64) packet.Why { return o.usable(now) }

// SealBurst reserves sequence numbers for the jobs, charges the lifetime, and
// seals. It returns how many went well; each other job's Why says why it did
// not. Jobs whose Why is set already are left alone.
func (o *Outbound) SealBurst(now int64, s *esp.Sealer, jobs []esp.SealJob) int {
	want := o.Reserve(now, jobs)
	if want == 0 {
		return 0
	}
	n := s.SealBurst(jobs)
	if n < want {
		o.errors.Add(uint64(want - n))
	}
	return n
}

// SealAHBurst is SealBurst for an AH SA.
func (o *Outbound) SealAHBurst(now int64, s *ah.Sealer, jobs []ah.SealJob) int {
	want := 0
	// Numbers and lifetime do not depend on the protocol: jobs of ESP stand in for
	// those of AH, some at a time.
	var stand [32]esp.SealJob
	for first := 0; first < len(jobs); first += len(stand) {
		some := jobs[first:min(first+len(stand), len(jobs))]
		for i := range some {
			stand[i] = esp.SealJob{Why: some[i].Why}
			if some[i].Why == packet.WhyOK {
				stand[i].Size = some[i].Payload()
			}
		}
		want += o.Reserve(now, stand[:len(some)])
		for i := range some {
			some[i].Seq, some[i].Why = stand[i].Seq, stand[i].Why
		}
	}
	n := s.SealBurst(jobs)
	if n < want {
		o.errors.Add(uint64(want - n))
	}
	return n
}

// Reserve gives each job a sequence number and charges it to the lifetime,
// before anything is sealed, so that neither a lease nor a hard limit is
// overrun, however many goroutines share the SA. It returns how many jobs were
// served, in order; the others get the reason. Numbers reserved but not sealed
// are lost, never used again.
func (o *Outbound) Reserve(now int64, jobs []esp.SealJob) int {
	if why := o.usable(now); why != packet.WhyOK {
		o.refuse(jobs, why)
		return 0
	}
	count := 0
	for i := range jobs {
		if jobs[i].Why == packet.WhyOK {
			count++
		}
	}
	if count == 0 {
		return 0
	}
	served := 0
	for at := 0; served < count; {
		first, granted, low := o.leases.take(uint64(count - served))
		if low {
			o.events.push(ipsec.Expiry{ID: o.sa.ID, Cause: "lease"})
		}
		if granted == 0 {
			o.refuse(jobs[at:], packet.WhyNoLease)
			break
		}
		served += int(granted)
		for ; granted > 0; at++ {
			if jobs[at].Why == packet.WhyOK {
				jobs[at].Seq = first
				first++
				granted--
			}
		}
	}
	if served == 0 {
		return 0
	}
	o.carried(now)
	return o.charge(jobs, served)
}

// charge counts the served jobs against the lifetime. Those that would overrun
// a hard limit are refused, which ends the SA; so numbers wasted here are no loss.
func (o *Outbound) charge(jobs []esp.SealJob, served int) int {
	var size uint64
	for i := range jobs {
		if jobs[i].Why == packet.WhyOK {
			size += uint64(jobs[i].Payload())
		}
	}
	l := &o.limits
	bytes, packets := o.bytes.Add(size), o.packets.Add(uint64(served))
	if (l.bytes.Hard == 0 || bytes <= l.bytes.Hard) && (l.packets.Hard == 0 || packets <= l.packets.Hard) {
		o.counted(bytes, packets)
		return served
	}
	// The burst does not fit as a whole: give it back and serve what fits.
	o.bytes.Add(-size)
	o.packets.Add(-uint64(served))
	done := 0
	for i := range jobs {
		if jobs[i].Why != packet.WhyOK {
			continue
		}
		if why := o.spend(uint64(jobs[i].Payload())); why != packet.WhyOK {
			o.refuse(jobs[i:], why)
			break
		}
		done++
	}
	return done
}

// spend charges one packet under hard limits.
func (o *Outbound) spend(size uint64) packet.Why {
	l := &o.limits
	packets := o.packets.Add(1)
	if l.packets.Hard != 0 && packets > l.packets.Hard {
		o.packets.Add(^uint64(0))
		o.meet(hardPackets)
		return packet.WhyHardPackets
	}
	bytes := o.bytes.Add(size)
	if l.bytes.Hard != 0 && bytes > l.bytes.Hard {
		o.bytes.Add(-size)
		o.packets.Add(^uint64(0))
		o.meet(hardBytes)
		return packet.WhyHardBytes
	}
	o.counted(bytes, packets)
	return packet.WhyOK
}

// refuse marks jobs as dropped.
func (o *Outbound) refuse(jobs []esp.SealJob, why packet.Why) {
	n := uint64(0)
	for i := range jobs {
		if jobs[i].Why == packet.WhyOK {
			jobs[i].Why, jobs[i].Len = why, 0
			n++
		}
	}
	o.errors.Add(n)
}

// Counters is what the SA has counted. Top is the highest sequence number
// reserved.
func (o *Outbound) Counters() ipsec.SACounters { return o.counters(o.leases.used()) }

// LeaseLeft is how many sequence numbers may still be taken.
func (o *Outbound) LeaseLeft() uint64 { return o.leases.left() }

// LeaseRoom is how many leases may still be added.
func (o *Outbound) LeaseRoom() int { return o.leases.room() }
