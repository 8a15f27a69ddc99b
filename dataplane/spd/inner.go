package spd

import (
	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// Selectors is the list of selectors of one SA, compiled. The zero value
// matches nothing.
type Selectors struct{ boxes []box }

// CompileSelectors compiles the selectors of an SA.
func CompileSelectors(list []ipsec.Selector) Selectors {
	s := Selectors{boxes: make([]box, len(list))}
	for i := range list {
		s.boxes[i] = boxOf(list[i])
	}
	return s
}

// Check says whether a packet may travel in the SA: on the way in it is the
// inner check of RFC 4301 §5.2, on the way out it picks the SA. The answer is
// WhyOK, WhyInner, or WhyFragment for a later fragment that only selectors
// with narrower ports might have matched.
func (s *Selectors) Check(k *Key) packet.Why {
	why := packet.WhyInner
	flags := k.flags()
	for i := range s.boxes {
		b := &s.boxes[i]
		if b.v4 != (flags&flagV4 != 0) || !b.matchesAddr(k) {
			continue
		}
		switch {
		case flags&flagPorts != 0:
			if b.ports != portsOpaque && b.matchesPorts(k) {
				return packet.WhyOK
			}
		case b.ports != portsNarrow:
			return packet.WhyOK
		case flags&flagFrag != 0:
			why = packet.WhyFragment
		}
	}
	return why
}
