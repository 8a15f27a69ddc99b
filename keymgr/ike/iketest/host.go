package iketest

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/ike/ikev2"
	"github.com/testudo-ipsec/testudo/keymgr/ike/wire"
)

// Host is one node: its machines, and its worker's SAs.
type Host struct {
	Name    string
	Addr    netip.Addr
	Also    []netip.Addr // further addresses
	Policy  *ipsec.NodePolicy
	Secrets map[string][]string // by reference, best first
	NAT     *NAT                // in front of this host, or nil
	Cookies ipsec.Secret        // ask for cookies, when set
	Alone   bool                // it has no IKE SA with anybody
	Nonces  [][]byte            // what the next nonces begin with

	Credentials map[string]Credential // by reference
	Anchors     map[string]*CA

	// Answer, when set, may change or hold back (nil) an answer to an effect.
	Answer func(ike.Effect, ike.Event) ike.Event

	Machines  []ike.Machine // that are not done
	SAs       []ipsec.SA    // of the worker, in the order of installation
	Log       []string      // install and remove, in order
	Up        []ike.Child
	Down      []ike.ChildDown
	Failures  []ike.Failure
	Drops     map[string]int
	Done      []string
	Contacts  int // InitialContact
	Reauths   int // Reauthenticate
	Moves     []ike.Move
	Needs     map[string]int // psk, ke, authorities, signature and verification
	Installed int            // SAs ever installed
	InFlight  int            // the most requests of one IKE SA that were ever unanswered at once
	Rested    []int          // octets of machines, each time that one rested

	net  *Net
	env  ike.Env
	spi  ipsec.SPI
	id   uint64
	init map[uint64]ike.Machine // responders by the initiator's SPI

	unanswered map[ikeSA][]uint32 // message IDs of requests
	numbered   map[ikeSA]uint32   // the next one
}

type ikeSA struct{ spiI, spiR uint64 }

// NAT rewrites the source of what its host sends.
type NAT struct {
	Public netip.Addr
	ports  map[netip.AddrPort]uint16 // inside to outside
	next   uint16
}

// Rebind forgets all mappings: what comes next leaves from other ports.
func (x *NAT) Rebind() { x.ports = nil }

func (x *NAT) out(a netip.AddrPort) netip.AddrPort {
	if x.ports == nil {
		x.ports = map[netip.AddrPort]uint16{}
	}
	if x.next == 0 {
		x.next = 20000
	}
	if _, ok := x.ports[a]; !ok {
		x.ports[a] = x.next
		x.next++
	}
	return netip.AddrPortFrom(x.Public, x.ports[a])
}

func (x *NAT) in(a netip.AddrPort) (netip.AddrPort, bool) {
	for inside, port := range x.ports {
		if port == a.Port() && a.Addr() == x.Public {
			return inside, true
		}
	}
	return netip.AddrPort{}, false
}

type source struct {
	r *rand.Rand
	h *Host
}

func (s source) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte(s.r.Uint32())
	}
	if len(b) == 32 && len(s.h.Nonces) > 0 { // nothing else draws as much
		copy(b, s.h.Nonces[0])
		s.h.Nonces = s.h.Nonces[1:]
	}
	return len(b), nil
}

// Add adds a host.
func (n *Net) Add(name, addr string, policy *ipsec.NodePolicy) *Host {
	h := &Host{unanswered: map[ikeSA][]uint32{}, numbered: map[ikeSA]uint32{}, Name: name, Addr: netip.MustParseAddr(addr), Policy: policy, Secrets: map[string][]string{},
		Credentials: map[string]Credential{}, Anchors: map[string]*CA{},
		Drops: map[string]int{}, Needs: map[string]int{}, net: n, init: map[uint64]ike.Machine{}, spi: ipsec.SPI(0x1000 * (len(n.hosts) + 1))}
	h.env = ike.Env{
		Rand:     source{rand.New(rand.NewPCG(n.Rand.Uint64(), 2)), h},
		AllocSPI: func() ipsec.SPI { h.spi++; return h.spi },
		NextID:   func() uint64 { h.id++; return h.id },
		Alone:    func(string, ipsec.Identity) bool { return h.Alone },
	}
	n.hosts = append(n.hosts, h)
	return h
}

// Connect starts a negotiation with the first peer, for a rule; without one, of an
// IKE SA without a CHILD SA.
func (h *Host) Connect(rule string, packet *ipsec.Flow) *ikev2.Machine {
	p := h.Policy.Peers[0]
	m := ikev2.NewInitiator(h.env, h.Policy, p, ike.Path{Node: h.Name,
		Local: netip.AddrPortFrom(h.Addr, 500), Remote: netip.AddrPortFrom(p.Remote[0], 500)})
	h.Machines = append(h.Machines, m)
	h.handle(m, h.addresses())
	if rule == "" {
		h.handle(m, ike.Connect{})
	} else {
		h.handle(m, ike.CreateChild{Rule: rule, Packet: packet})
	}
	return m
}

// Machine is the newest machine in a state.
func (h *Host) Machine(states ...string) *ikev2.Machine {
	for _, m := range slices.Backward(h.Machines) {
		if len(states) == 0 || slices.Contains(states, m.Info().State) {
			return m.(*ikev2.Machine)
		}
	}
	return nil
}

// Do gives an event to the newest machine.
func (h *Host) Do(ev ike.Event) {
	m := h.Machine()
	if m == nil {
		h.net.TB.Fatalf("%s has no machine for %T", h.Name, ev)
	}
	h.handle(m, ev)
}

// Tell gives an event to a machine.
func (h *Host) Tell(m ike.Machine, ev ike.Event) { h.handle(m, ev) }

// Restart ends a machine as a kill of its key manager does, and goes on from what it
// saved; false for one that is not to be saved.
func (h *Host) Restart(m ike.Machine) bool {
	b, ok := m.Save(nil)
	if !ok {
		return false
	}
	again, err := ikev2.Restore(h.env, b)
	if err != nil {
		h.net.TB.Fatalf("%s: %v\n%s", h.Name, err, h.net.LadderText(40))
	}
	h.net.answers = slices.DeleteFunc(h.net.answers, func(a answer) bool { return a.m == m })
	h.Machines[slices.Index(h.Machines, m)] = again
	// The engine compares what the worker has with what the IKE SAs own.
	owned := map[ipsec.SAID]bool{}
	for _, m := range h.Machines {
		i := m.Info()
		for _, c := range i.Children {
			owned[c.In], owned[c.Out] = true, true
		}
		for _, id := range i.Draining {
			owned[id] = true
		}
	}
	h.SAs = slices.DeleteFunc(h.SAs, func(s ipsec.SA) bool { return !owned[s.ID] })
	h.handle(again, ike.Restored{})
	h.handle(again, ike.PolicyChanged{Policy: h.Policy})
	h.handle(again, h.addresses())
	return true
}

func (h *Host) addresses() ike.Addresses {
	return ike.Addresses{Local: append([]netip.Addr{h.Addr}, h.Also...)}
}

// Children are the CHILD SAs of all machines.
func (h *Host) Children() []ike.Child {
	var out []ike.Child
	for _, m := range h.Machines {
		out = append(out, m.Info().Children...)
	}
	return out
}

// Failure is the last failure, zero for none.
func (h *Host) Failure() ike.Failure {
	if len(h.Failures) == 0 {
		return ike.Failure{}
	}
	return h.Failures[len(h.Failures)-1]
}

// deliver takes a packet from the network.
func (h *Host) deliver(p Packet) {
	local := p.Dst
	if h.NAT != nil {
		inside, ok := h.NAT.in(p.Dst)
		if !ok {
			h.Drops["nat"]++
			return
		}
		local = inside
	}
	path := ike.Path{Node: h.Name, Local: local, Remote: p.Src, TCP: p.TCP}
	ev := ike.Datagram{Path: path, Data: slices.Clone(p.Data)}
	hd, _ := wire.ParseHeader(p.Data)
	if hd.Response() {
		sa := ikeSA{hd.SPIi, hd.SPIr}
		h.unanswered[sa] = slices.DeleteFunc(h.unanswered[sa], func(id uint32) bool { return id == hd.MessageID })
	}
	if m := h.route(hd); m != nil {
		h.handle(m, ev)
		return
	}
	if hd.Exchange != wire.IKESAInit || hd.Response() || hd.SPIr != 0 || hd.SPIi == 0 {
		h.Drops["no machine"]++
		return
	}
	if !h.Cookies.IsZero() {
		challenge, ok := ikev2.CheckCookie([]ipsec.Secret{h.Cookies}, ev)
		if !ok {
			if challenge != nil {
				h.send(nil, ike.Send{Path: path, Data: challenge})
			}
			return
		}
	}
	m := ikev2.NewResponder(h.env, h.Policy, h.Policy.Peers, path)
	h.Machines = append(h.Machines, m)
	h.init[hd.SPIi] = m
	h.handle(m, h.addresses())
	h.handle(m, ev)
}

func (h *Host) route(hd wire.Header) ike.Machine {
	if hd.Exchange == wire.IKESAInit && !hd.Response() {
		if m := h.init[hd.SPIi]; m != nil && slices.Contains(h.Machines, m) {
			return m
		}
		return nil
	}
	own := hd.SPIi
	if hd.FromInitiator() {
		own = hd.SPIr
	}
	for _, m := range h.Machines {
		if i := m.Info(); i.LocalSPI == own && own != 0 && i.Initiator != hd.FromInitiator() {
			return m
		}
	}
	return nil
}

// rest makes a machine rest, if it can, and wakes it at once: what it does not take
// along is missed by what comes next.
func (h *Host) rest(m ike.Machine) {
	x, ok := m.(*ikev2.Machine)
	if !ok {
		return
	}
	b, ok := x.Rest(nil)
	if !ok {
		return
	}
	h.Rested = append(h.Rested, len(b))
	again, err := ikev2.Wake(h.env, h.Policy, h.Policy.Peers, b)
	if err != nil {
		h.net.TB.Fatalf("%s: a machine does not wake: %v", h.Name, err)
	}
	*x = *again
}

// handle gives an event to a machine and performs its effects.
func (h *Host) handle(m ike.Machine, ev ike.Event) {
	effects := m.Handle(h.net.Now, ev)
	h.rest(m)
	for _, e := range effects {
		switch e := e.(type) {
		case ike.Send:
			h.send(m, e)
		case ike.Install:
			for _, sa := range e.SAs {
				if i := slices.IndexFunc(h.SAs, func(s ipsec.SA) bool { return s.ID == sa.ID }); i >= 0 {
					h.SAs[i] = sa // asked for again after a restart
					continue
				}
				h.Log = append(h.Log, "install "+sa.Direction.String()+" "+sa.SPI.String())
				h.Installed++
				h.SAs = append(h.SAs, sa)
			}
			h.answer(m, e, ike.Installed{ID: e.ID})
		case ike.Remove:
			for _, id := range e.SAs {
				i := slices.IndexFunc(h.SAs, func(s ipsec.SA) bool { return s.ID == id })
				if i < 0 {
					h.net.TB.Errorf("%s removes %s, which is not installed", h.Name, id)
					continue
				}
				h.Log = append(h.Log, "remove "+h.SAs[i].Direction.String()+" "+h.SAs[i].SPI.String())
				h.SAs = slices.Delete(h.SAs, i, i+1)
			}
		case ike.NeedPSK:
			h.Needs["psk"]++
			a := ike.PSKs{ID: e.ID}
			for _, ref := range e.Refs {
				for _, s := range h.Secrets[ref] {
					a.Secrets = append(a.Secrets, ipsec.NewSecret([]byte(s)))
				}
			}
			if a.Secrets == nil {
				a.Err = errors.New("no secret " + e.Refs[0])
			}
			h.answer(m, e, a)
		case ike.NeedKE:
			h.Needs["ke"]++
			h.answer(m, e, ikev2.PerformKE(h.env.Rand, e))
		case ike.Reauthenticate:
			h.Reauths++
		case ike.NeedAuthorities:
			h.Needs["authorities"]++
			h.answer(m, e, h.Certificates(e))
		case ike.NeedSignature:
			h.Needs["signature"]++
			h.answer(m, e, h.Certificates(e))
		case ike.NeedVerification:
			h.Needs["verification"]++
			h.answer(m, e, h.Certificates(e))
		case ike.Spawn:
			h.Machines = append(h.Machines, e.Machine)
			h.net.answers = append(h.net.answers, answer{h, e.Machine, ike.PolicyChanged{Policy: h.Policy}, h.net.Now, h.net.next()},
				answer{h, e.Machine, h.addresses(), h.net.Now, h.net.next()})
		case ike.Dropped:
			h.Drops[e.Why]++
		case ike.ChildUp:
			h.Up = append(h.Up, e.Child)
		case ike.ChildDown:
			h.Down = append(h.Down, e)
		case ike.Failed:
			h.Failures = append(h.Failures, e.Failure)
		case ike.InitialContact:
			h.Contacts++
		case ike.Move:
			h.move(e)
		case ike.Established:
		case ike.Done:
			h.Done = append(h.Done, e.Why)
			h.Machines = slices.DeleteFunc(h.Machines, func(x ike.Machine) bool { return x == m })
		}
	}
}

func (h *Host) has(a netip.Addr) bool { return a == h.Addr || slices.Contains(h.Also, a) }

// Readdress changes a host's addresses and tells its machines.
func (h *Host) Readdress(addrs ...string) {
	var all []netip.Addr
	for _, a := range addrs {
		all = append(all, netip.MustParseAddr(a))
	}
	h.Addr, h.Also = all[0], all[1:]
	for _, m := range slices.Clone(h.Machines) {
		h.handle(m, ike.Addresses{Local: all})
	}
}

func (h *Host) move(e ike.Move) {
	h.Moves = append(h.Moves, e)
	for i := range h.SAs {
		if slices.Contains(e.SAs, h.SAs[i].ID) {
			h.SAs[i].Local, h.SAs[i].Remote, h.SAs[i].Encap = e.Local, e.Remote, e.Encap
		}
	}
}

func (h *Host) answer(m ike.Machine, e ike.Effect, ev ike.Event) {
	if h.Answer != nil {
		if ev = h.Answer(e, ev); ev == nil {
			return
		}
	}
	if a, ok := ev.(ike.Installed); ok && a.Err != nil { // all or none
		for _, sa := range e.(ike.Install).SAs {
			h.SAs = slices.DeleteFunc(h.SAs, func(s ipsec.SA) bool { return s.ID == sa.ID })
		}
	}
	d := delay / 5
	if h.net.AnswerDelay != nil {
		d = h.net.AnswerDelay()
	}
	h.net.answers = append(h.net.answers, answer{host: h, m: m, ev: ev, at: h.net.Now.Add(d), order: h.net.next()})
}

func (h *Host) send(m ike.Machine, e ike.Send) {
	src := e.Path.Local
	if !h.has(src.Addr()) {
		h.Drops["not our address"]++
		return
	}
	if h.NAT != nil {
		src = h.NAT.out(src)
	}
	p := Packet{From: h, Src: src, Dst: e.Path.Remote, TCP: e.Path.TCP, Data: e.Data}
	if x, ok := m.(*ikev2.Machine); ok {
		p.Text = x.Describe(e.Data, true)
	} else if hd, ps, err := wire.Parse(e.Data); err == nil {
		p.Text = wire.Describe(hd, ps)
	}
	h.watchWindow(e.Data)
	for _, to := range h.net.hosts {
		if to.NAT == nil && to.has(p.Dst.Addr()) || to.NAT != nil && to.NAT.Public == p.Dst.Addr() {
			p.To = to
			h.net.send(p)
			return
		}
	}
	h.Drops["no such address"]++
}

// Tick gives the machines of a host a traffic report: inbound traffic now.
func (h *Host) Tick() {
	for _, m := range slices.Clone(h.Machines) {
		h.handle(m, ike.ChildActivity{Received: h.net.Now.Add(-time.Millisecond)})
	}
}
