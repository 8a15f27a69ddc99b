package ikeload

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/cred"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/ikev2"
)

// Whys of failures that no machine tells.
const (
	whyTimeout     = "TIMEOUT"
	whyInterrupted = "INTERRUPTED"
	whyUnsupported = "NOT_SUPPORTED"
)

// deleteTime is how long the answer to a delete is waited for.
const deleteTime = 5 * time.Second

// Run sets up the IKE SAs and deletes them again. It ends early, with a report
// of what was done, when ctx does.
func Run(ctx context.Context, o Options) (Report, error) {
	if err := o.Check(); err != nil {
		return Report{}, err
	}
	net, err := open(&o)
	if err != nil {
		return Report{}, err
	}
	defer net.close()
	policies := make([]*ipsec.NodePolicy, len(net.sockets))
	for i, s := range net.sockets {
		if policies[i], err = o.policy(i, s.local.Addr()); err != nil {
			return Report{}, err
		}
	}
	r := &run{ctx: ctx, o: &o, net: net, began: time.Now(), release: make(chan struct{})}
	until, cancel := context.WithTimeout(ctx, o.Time)
	defer cancel()
	slots := make(chan struct{}, o.Concurrency)
	var settled, ended sync.WaitGroup
	for i := range o.Count {
		if o.Rate > 0 {
			select {
			case <-time.After(time.Until(r.began.Add(time.Duration(i) * time.Second / time.Duration(o.Rate)))):
			case <-until.Done():
			}
		}
		select {
		case slots <- struct{}{}:
		case <-until.Done():
		}
		if until.Err() != nil {
			break
		}
		s := &session{run: r, socket: net.sockets[i%len(net.sockets)], policy: policies[i%len(policies)]}
		settled.Add(1)
		ended.Go(func() { s.live(ctx, func() { <-slots; settled.Done() }) })
	}
	settled.Wait()
	report := func() Report {
		p := r.tally.report(&o, r.began)
		p.Sent, p.Received, p.Ignored = net.sent.Load(), net.received.Load(), net.ignored.Load()
		return p
	}
	if o.Settled != nil {
		o.Settled(report())
	}
	if o.Hold > 0 {
		select {
		case <-time.After(o.Hold):
		case <-ctx.Done():
		}
	}
	close(r.release)
	ended.Wait()
	return report(), nil
}

// run is what the sessions of one Run share.
type run struct {
	ctx     context.Context // of Run
	o       *Options
	net     *network
	tally   tally
	ids     atomic.Uint64
	began   time.Time
	release chan struct{} // closed: delete what is held
}

// session is one IKE SA. One goroutine runs it.
type session struct {
	*run
	socket  *socket
	policy  *ipsec.NodePolicy
	machine ike.Machine
	spi     uint64
	up      bool // the CHILD SA is
	gone    bool
	why     string // of the failure
	detail  string
	ended   string
}

// live sets the IKE SA up, calls settled, keeps it, and deletes it.
func (s *session) live(ctx context.Context, settled func()) {
	inbox := make(chan ike.Event, 16)
	start := time.Now()
	env := ike.Env{
		Rand:     rand.Reader,
		AllocSPI: func() ipsec.SPI { return ipsec.FirstSPI + ipsec.SPI(s.ids.Add(1)) },
		NextID:   func() uint64 { return s.ids.Add(1) },
	}
	p := s.policy.Peers[0]
	s.machine = ikev2.NewInitiator(env, s.policy, p, ike.Path{Node: s.policy.Node, Local: s.socket.local, Remote: s.o.To})
	defer func() { s.net.forget(s.spi) }()
	s.handle(ike.CreateChild{Rule: ruleName}, inbox)
	s.pump(ctx, inbox, start.Add(s.o.Timeout), nil, func() bool { return s.up || s.why != "" })
	switch {
	case s.up:
		s.tally.success(time.Since(start))
	case s.why != "":
		s.tally.failure(s.why, s.detail)
	case ctx.Err() != nil:
		s.tally.failure(whyInterrupted, "the run was interrupted")
	case s.gone:
		s.tally.failure(s.ended, "the IKE SA ended")
	default:
		s.tally.failure(whyTimeout, fmt.Sprintf("no CHILD SA within %s", s.o.Timeout))
	}
	settled()
	if s.up && s.o.Hold > 0 {
		s.pump(ctx, inbox, time.Time{}, s.release, func() bool { return false })
		if s.gone {
			s.tally.loss()
		}
	}
	if !s.gone {
		s.handle(ike.Terminate{Why: "the measurement has ended"}, inbox)
		// Also after an interrupt: a delete is what leaves the responder clean.
		s.pump(context.WithoutCancel(ctx), inbox, time.Now().Add(deleteTime), nil, func() bool { return false })
	}
}

// pump gives the machine its datagrams and timers until done, its end, the
// deadline (zero for none), stop or the end of ctx.
func (s *session) pump(ctx context.Context, inbox chan ike.Event, until time.Time, stop <-chan struct{}, done func() bool) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for !s.gone && !done() {
		at := s.machine.Deadline()
		if at.IsZero() || !until.IsZero() && until.Before(at) {
			at = until
		}
		wait := time.Hour
		if !at.IsZero() {
			wait = time.Until(at)
		}
		timer.Reset(wait)
		select {
		case ev := <-inbox:
			s.handle(ev, inbox)
		case <-timer.C:
			if !until.IsZero() && !time.Now().Before(until) {
				return
			}
			s.handle(ike.Timer{}, inbox)
		case <-stop:
			return
		case <-ctx.Done():
			return
		}
	}
}

// handle gives the machine one event, and its effects' answers until none is left.
func (s *session) handle(ev ike.Event, inbox chan ike.Event) {
	todo := []ike.Event{ev}
	for len(todo) > 0 && !s.gone {
		ev, todo = todo[0], todo[1:]
		for _, f := range s.machine.Handle(time.Now(), ev) {
			if answer := s.perform(f, inbox); answer != nil {
				todo = append(todo, answer)
			}
		}
	}
}

func (s *session) perform(f ike.Effect, inbox chan ike.Event) ike.Event {
	switch f := f.(type) {
	case ike.Send:
		if s.spi == 0 {
			s.spi = binary.BigEndian.Uint64(f.Data)
			s.net.listen(s.spi, inbox)
		}
		s.socket.send(f.Path, f.Data)
	case ike.NeedPSK:
		return ike.PSKs{ID: f.ID, Secrets: []ipsec.Secret{s.o.PSK}}
	case ike.NeedAuthorities:
		keys, err := s.o.Certificates.Authorities(s.ctx, f.Trust)
		return ike.Authorities{ID: f.ID, Keys: keys, Err: err}
	case ike.NeedSignature:
		x, err := s.o.Certificates.Credential(s.ctx, f.Credentials[0].Credential)
		if err != nil {
			return ike.Signed{ID: f.ID, Err: err}
		}
		return ikev2.PerformSignature(rand.Reader, f, x.Signer, x.Chain)
	case ike.NeedVerification:
		key, err := s.o.Certificates.Verify(s.ctx, cred.ChainQuestion{Chain: f.Chain, Identity: f.Identity, Method: f.Methods[0], Now: time.Now()})
		if err != nil {
			return ike.Verified{ID: f.ID, Err: err}
		}
		return ikev2.PerformVerification(f, key)
	case ike.NeedKE:
		return ikev2.PerformKE(rand.Reader, f)
	case ike.Install:
		return ike.Installed{ID: f.ID}
	case ike.ChildUp:
		s.up = true
	case ike.Failed:
		s.why, s.detail = f.Failure.Why, f.Failure.Detail
	case ike.Done:
		s.gone, s.ended = true, f.Why
	case ike.Remove, ike.Move, ike.InitialContact, ike.Dropped, ike.Established, ike.ChildDown, ike.Spawn:
	default:
		s.why, s.detail = whyUnsupported, fmt.Sprintf("this load cannot do %T", f)
	}
	return nil
}
