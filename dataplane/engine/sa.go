package engine

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/testudo-ipsec/testudo/dataplane/ah"
	"github.com/testudo-ipsec/testudo/dataplane/backend"
	"github.com/testudo-ipsec/testudo/dataplane/esp"
	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/dataplane/sad"
	"github.com/testudo-ipsec/testudo/dataplane/spd"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// outSA is an outbound SA as the packet path uses it.
type outSA struct {
	*sad.Outbound
	sel spd.Selectors
	// By worker: a sealer is for one goroutine, which makes it when it first sends
	// on the SA. Of thousands of SAs most are idle.
	sealers []sealer
	path    atomic.Pointer[path]
	lease   ipsec.Lease // the last one granted; guarded by Engine.mu
}

// sealer is one of the SA's protocol.
type sealer struct {
	esp *esp.Sealer
	ah  *ah.Sealer
}

// sealer is the one of a worker; only that worker may ask.
func (o *outSA) sealer(worker int) *sealer {
	s := &o.sealers[worker]
	if s.esp == nil && s.ah == nil {
		o.addSealer(s)
	}
	return s
}

// addSealer keeps what sealer returns short enough to be inlined. It cannot fail: the
// SAD has made a sealer of the same algorithms.
func (o *outSA) addSealer(s *sealer) {
	if o.SA().Protocol == ipsec.ProtocolAH {
		s.ah, _ = o.NewAHSealer()
		return
	}
	s.esp, _ = o.NewSealer()
}

// path is where an SA sends to. It is replaced whole when a peer moves.
type path struct {
	local  netip.AddrPort
	remote netip.AddrPort
	encap  *ipsec.Encap
	socket int32

	// What policy says of the outer header of tunnel mode; outer is nil where the
	// kernel's is right. room is how much of it is written here: 0 when a socket does.
	header ipsec.OuterHeader
	room   uint8
	outer  *packet.Outer

	learnt atomic.Uint64 // the MTU that ICMP told of, and above it when (Unix seconds); 0 for none
}

// pathMTULife is how long a learnt MTU is believed.
const pathMTULife = 10 * time.Minute

func (p *path) learn(mtu int, now int64) {
	if old := p.known(now); old != 0 && mtu > old {
		return
	}
	p.learnt.Store(uint64(now/int64(time.Second))<<16 | uint64(min(mtu, 65535)))
}

// known is the learnt MTU, 0 for none.
func (p *path) known(now int64) int {
	l := p.learnt.Load()
	if l == 0 || now/int64(time.Second)-int64(l>>16) >= int64(pathMTULife/time.Second) {
		return 0
	}
	return int(l & 65535)
}

// innerMTU is the largest packet that fits into m octets once sealed; 0 when no limit
// is known beyond the TUN's own.
func (o *outSA) innerMTU(p *path, s *esp.Sealer, mode ipsec.Mode, m int) int {
	if m == 0 || p.encap != nil && p.encap.TCP { // a stream cuts as it likes
		return 0
	}
	ip := 20
	if p.remote.Addr().Is6() {
		ip = 40
	}
	m -= ip
	if p.encap != nil {
		m -= 8
	}
	n := s.MaxPayload(m)
	if mode == ipsec.ModeTransport {
		n += ip
	}
	return max(n, 1)
}

// newPath finds the socket for an SA's addresses.
func (e *Engine) newPath(sa *ipsec.SA) (*path, error) {
	var lport, rport uint16
	isAH := sa.Protocol == ipsec.ProtocolAH
	if isAH && sa.Encap != nil {
		return nil, fmt.Errorf("%w: AH cannot travel in UDP (RFC 3948 has no such encapsulation); want esp", backend.ErrNotUsable)
	}
	if sa.Protocol != ipsec.ProtocolESP && !isAH {
		return nil, fmt.Errorf("%w: this backend carries esp and ah, got %s", backend.ErrNotUsable, sa.Protocol)
	}
	if sa.Encap != nil {
		if lport, rport = sa.Encap.LocalPort, sa.Encap.RemotePort; lport == 0 || rport == 0 {
			return nil, fmt.Errorf("%w: encapsulation from port %d to %d; want both ports", backend.ErrNotUsable, lport, rport)
		}
	}
	s := e.socket(sa.Local.Is6(), lport, isAH, sa.Encap != nil && sa.Encap.TCP)
	if s < 0 || sa.Encap != nil && !e.cfg.Sockets[s].Encap {
		how := "raw " + strings.ToUpper(sa.Protocol.String())
		if sa.Encap != nil {
			how = fmt.Sprintf("ESP in %s from port %d", sa.Encap, lport)
		}
		return nil, fmt.Errorf("%w: there is no socket for %s from %s", backend.ErrNotUsable, how, sa.Local)
	}
	p := &path{
		socket: int32(s),
		local:  netip.AddrPortFrom(sa.Local, lport),
		remote: netip.AddrPortFrom(sa.Remote, rport),
		encap:  sa.Encap,
	}
	return p, e.dress(p, sa.Protocol, sa.Mode, e.headerOf(sa.Rule))
}

// inKey names an inbound SA: ESP and AH have numbers of their own (RFC 4301 §4.1).
type inKey struct {
	protocol ipsec.Protocol
	spi      ipsec.SPI
}

func keyOf(sa *ipsec.SA) inKey { return inKey{sa.Protocol, sa.SPI} }

// inSA is an inbound SA as the packet path uses it.
type inSA struct {
	*sad.Inbound
	sel  spd.Selectors
	path atomic.Pointer[path]

	// A peer may send the same SA's packets with and without UDP (RFC 7296
	// §2.23), that is to two goroutines. The lock is held for a burst.
	mu      sync.Mutex
	movedAt int64 // when PeerMoved was reported last
	badAt   int64 // when BadSelectors was
}

// reportMove says, at most once a second, that a peer is elsewhere than the SA has it
// (RFC 7296 §2.23). Only authenticated packets lead here, and of them the newest, so
// that none that is late or repeated moves a peer. The caller holds in.mu.
func (in *inSA) reportMove(e *Engine, seq uint64, local, remote netip.AddrPort, now int64) {
	p := in.path.Load()
	if p.remote == remote || p.encap == nil || p.encap.TCP || now-in.movedAt < int64(time.Second) || !in.Newest(seq) {
		return
	}
	in.movedAt = now
	e.cfg.Emit(backend.PeerMoved{ID: in.SA().ID, Path: backend.Path{Local: local, Remote: remote}})
}

// reportBad says, at most once a second, that a packet was outside the SA's
// selectors. The caller holds in.mu.
func (in *inSA) reportBad(e *Engine, h *packet.Header, b []byte, now int64) {
	if now-in.badAt < int64(time.Second) {
		return
	}
	in.badAt = now
	e.cfg.Emit(backend.BadSelectors{ID: in.SA().ID, Flow: h.Flow(b, ipsec.Inbound)})
}
