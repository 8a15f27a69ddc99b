package convert

import (
	"fmt"

	"github.com/testudo-ipsec/testudo/ipsec"
	ipsecv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/ipsec/v1"
)

// ToSA makes a message. It shares the keys' memory with sa.
func ToSA(sa *ipsec.SA) *ipsecv1.SecurityAssociation {
	m := &ipsecv1.SecurityAssociation{
		Id:        uint64(sa.ID),
		Direction: ipsecv1.Direction(sa.Direction),
		Protocol:  uint32(sa.Protocol),
		Spi:       uint32(sa.SPI),
		Mode:      ipsecv1.Mode(sa.Mode),
		Local:     sa.Local.AsSlice(),
		Remote:    sa.Remote.AsSlice(),
		Suite: &ipsecv1.Suite{
			Protocol: uint32(sa.Suite.Protocol), Encr: toTransform(sa.Suite.Encr), Integ: toTransform(sa.Suite.Integ),
			Prf: toTransform(sa.Suite.PRF), Ke: toTransform(sa.Suite.KE), Esn: sa.Suite.ESN,
			Additional: toTransforms(sa.Suite.Additional()),
		},
		EncrKey:      sa.EncrKey.Reveal(),
		IntegKey:     sa.IntegKey.Reveal(),
		ReplayWindow: sa.ReplayWindow,
		ReplayFloor:  sa.ReplayFloor,
		Lease:        &ipsecv1.Lease{First: sa.Lease.First, Last: sa.Lease.Last},
		Lifetime:     toLifetime(sa.Lifetime),
		Rule:         sa.Rule,
		Peer:         sa.Peer,
		Child:        sa.Child,
		Resource:     sa.Resource,
		PadTo:        uint32(sa.PadTo),
	}
	if sa.Encap != nil {
		m.Encap = &ipsecv1.Encap{LocalPort: uint32(sa.Encap.LocalPort), RemotePort: uint32(sa.Encap.RemotePort), Tcp: sa.Encap.TCP}
	}
	for _, s := range sa.Selectors {
		m.Selectors = append(m.Selectors, ToSelector(s))
	}
	return m
}

// FromSA reads an SA. It takes the key octets out of the message, so that no
// other copy of them is left behind.
func FromSA(m *ipsecv1.SecurityAssociation) (*ipsec.SA, error) {
	sa := &ipsec.SA{
		ID:           ipsec.SAID(m.GetId()),
		Direction:    small[ipsec.Direction](m.GetDirection()),
		SPI:          ipsec.SPI(m.GetSpi()),
		Mode:         small[ipsec.Mode](m.GetMode()),
		EncrKey:      ipsec.NewSecret(m.GetEncrKey()),
		IntegKey:     ipsec.NewSecret(m.GetIntegKey()),
		ReplayWindow: m.GetReplayWindow(),
		ReplayFloor:  m.GetReplayFloor(),
		Lease:        FromLease(m.GetLease()),
		Rule:         m.GetRule(),
		Peer:         m.GetPeer(),
		Child:        m.GetChild(),
		Resource:     m.GetResource(),
		PadTo:        uint16(min(m.GetPadTo(), ipsec.PadToMTU)),
	}
	m.EncrKey, m.IntegKey = nil, nil
	fail := func(err error) (*ipsec.SA, error) {
		sa.EncrKey.Wipe()
		sa.IntegKey.Wipe()
		return nil, fmt.Errorf("%s spi %s: %w", sa.ID, sa.SPI, err)
	}
	if sa.Direction != ipsec.Inbound && sa.Direction != ipsec.Outbound {
		return fail(fmt.Errorf("direction is %s, want in or out", sa.Direction))
	}
	if sa.Mode != ipsec.ModeTunnel && sa.Mode != ipsec.ModeTransport {
		return fail(fmt.Errorf("mode is %s, want tunnel or transport", sa.Mode))
	}
	if sa.SPI < ipsec.FirstSPI {
		return fail(fmt.Errorf("the SPI is reserved (RFC 4303 section 2.1)"))
	}
	var err error
	if sa.Lifetime, err = fromLifetime(m.GetLifetime()); err != nil {
		return fail(err)
	}
	proto, err := protocol(m.GetProtocol())
	if err != nil {
		return fail(err)
	}
	sa.Protocol = ipsec.Protocol(proto)
	if sa.Local, err = addr(m.GetLocal()); err != nil {
		return fail(fmt.Errorf("local %w", err))
	}
	if sa.Remote, err = addr(m.GetRemote()); err != nil {
		return fail(fmt.Errorf("remote %w", err))
	}
	if e := m.GetEncap(); e != nil {
		l, err1 := port(e.GetLocalPort())
		r, err2 := port(e.GetRemotePort())
		if err1 != nil || err2 != nil {
			return fail(fmt.Errorf("encapsulation ports %d and %d are out of range", e.GetLocalPort(), e.GetRemotePort()))
		}
		sa.Encap = &ipsec.Encap{LocalPort: l, RemotePort: r, TCP: e.GetTcp()}
	}
	if sa.Suite, err = fromSuite(m.GetSuite()); err != nil {
		return fail(err)
	}
	for _, sm := range m.GetSelectors() {
		s, err := FromSelector(sm)
		if err != nil {
			return fail(err)
		}
		sa.Selectors = append(sa.Selectors, s)
	}
	return sa, nil
}

func fromSuite(m *ipsecv1.Suite) (s ipsec.Suite, err error) {
	proto, err := protocol(m.GetProtocol())
	if err != nil {
		return s, err
	}
	s.Protocol, s.ESN = ipsec.Protocol(proto), m.GetEsn()
	for _, f := range []struct {
		to   *ipsec.Transform
		from *ipsecv1.Transform
	}{{&s.Encr, m.GetEncr()}, {&s.Integ, m.GetInteg()}, {&s.PRF, m.GetPrf()}, {&s.KE, m.GetKe()}} {
		if *f.to, err = fromTransform(f.from); err != nil {
			return s, err
		}
	}
	for _, m := range m.GetAdditional() {
		t, err := fromTransform(m)
		if err != nil {
			return s, err
		}
		if !t.Type.AdditionalKE() {
			return s, fmt.Errorf("additional key exchange is a transform of type %s, want ADDKE1 to ADDKE7", t.Type)
		}
		s.ADDKE[t.Type-ipsec.TransformADDKE] = t
	}
	return s, nil
}

// FromLease reads a lease; an absent one is empty.
func FromLease(m *ipsecv1.Lease) ipsec.Lease {
	return ipsec.Lease{First: m.GetFirst(), Last: m.GetLast()}
}

// ToCounters makes a message.
func ToCounters(c ipsec.SACounters) *ipsecv1.SaCounters {
	return &ipsecv1.SaCounters{Id: uint64(c.ID), Bytes: c.Bytes, Packets: c.Packets, Top: c.Top, Errors: c.Errors, First: Time(c.First), Used: Time(c.Used)}
}

// FromCounters reads counters.
func FromCounters(m *ipsecv1.SaCounters) ipsec.SACounters {
	return ipsec.SACounters{ID: ipsec.SAID(m.GetId()), Bytes: m.GetBytes(), Packets: m.GetPackets(), Top: m.GetTop(), Errors: m.GetErrors(), First: FromTime(m.GetFirst()), Used: FromTime(m.GetUsed())}
}
