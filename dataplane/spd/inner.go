package spd

import (
	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// Selectors is the list of selectors of one SA, compiled. The zero value
// matches nothing.
type Selectors struct{ list []selector }

// selector is a box in half its room, which matters where there are thousands of SAs.
type selector struct {
	local, remote         span
	localPort, remotePort ports
	protocol              uint8 // 0: any
	v4                    bool
	kind                  portKind
}

type ports struct{ first, last uint16 }

func (p ports) contains(v uint16) bool { return p.first <= v && v <= p.last }

// CompileSelectors compiles the selectors of an SA.
func CompileSelectors(list []ipsec.Selector) Selectors {
	s := Selectors{list: make([]selector, len(list))}
	for i := range list {
		l, r, b := &list[i].Local, &list[i].Remote, boxOf(list[i])
		s.list[i] = selector{
			local: b.d[dimLocal], remote: b.d[dimRemote],
			localPort: ports{l.PortFirst, l.PortLast}, remotePort: ports{r.PortFirst, r.PortLast},
			protocol: l.Protocol, v4: b.v4, kind: b.ports,
		}
	}
	return s
}

// List is what was compiled.
func (s *Selectors) List() []ipsec.Selector {
	list := make([]ipsec.Selector, len(s.list))
	for i := range s.list {
		x := &s.list[i]
		side := func(a span, p ports) ipsec.TrafficSelector {
			return ipsec.TrafficSelector{
				Protocol: x.protocol, First: a.first.addr(x.v4), Last: a.last.addr(x.v4), PortFirst: p.first, PortLast: p.last,
			}
		}
		list[i] = ipsec.Selector{Local: side(x.local, x.localPort), Remote: side(x.remote, x.remotePort)}
	}
	return list
}

// Check says whether a packet may travel in the SA: on the way in it is the
// inner check of RFC 4301 §5.2, on the way out it picks the SA. The answer is
// WhyOK, WhyInner, or WhyFragment for a later fragment that only selectors
// with narrower ports might have matched.
func (s *Selectors) Check(k *Key) packet.Why {
	why := packet.WhyInner
	flags := k.flags()
	for i := range s.list {
		x := &s.list[i]
		if x.v4 != (flags&flagV4 != 0) || x.protocol != 0 && x.protocol != k.protocol() || !x.remote.contains(k.remote) || !x.local.contains(k.local) {
			continue
		}
		switch {
		case flags&flagPorts != 0:
			if x.kind != portsOpaque && x.remotePort.contains(k.remotePort()) && x.localPort.contains(k.localPort()) {
				return packet.WhyOK
			}
		case x.kind != portsNarrow:
			return packet.WhyOK
		case flags&flagFrag != 0:
			why = packet.WhyFragment
		}
	}
	return why
}
