// Package convert translates between the domain's types and the contracts in
// proto. Protobuf types stop here: nothing behind the services sees them.
//
// To* functions make messages and cannot fail. From* functions check what they
// read: a message comes from another process.
//
// A message with keys (SecurityAssociation, and what holds one) is never
// formatted or logged: the Go implementation of protobuf prints fields marked
// debug_redact like any other.
package convert

import (
	"fmt"
	"net/netip"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/testudo-ipsec/testudo/ipsec"
	ipsecv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/ipsec/v1"
)

func addr(b []byte) (netip.Addr, error) {
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		return netip.Addr{}, fmt.Errorf("address has %d octets, want 4 or 16", len(b))
	}
	return a, nil
}

// ToAddrs makes octets of addresses.
func ToAddrs(as []netip.Addr) [][]byte {
	out := make([][]byte, len(as))
	for i, a := range as {
		out[i] = a.AsSlice()
	}
	return out
}

// FromAddrs reads addresses.
func FromAddrs(bs [][]byte) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, b := range bs {
		a, err := addr(b)
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, nil
}

func port(p uint32) (uint16, error) {
	if p > 65535 {
		return 0, fmt.Errorf("port is %d, want 0 to 65535", p)
	}
	return uint16(p), nil
}

func protocol(p uint32) (uint8, error) {
	if p > 255 {
		return 0, fmt.Errorf("protocol is %d, want 0 to 255", p)
	}
	return uint8(p), nil
}

// small reads an enumeration: what does not fit becomes 0, which is no value of
// any of them.
func small[T ~uint8, E ~int32](e E) T {
	if e < 0 || e > 255 {
		return 0
	}
	return T(e)
}

// duration leaves a zero duration out of a message.
func duration(d time.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(d)
}

// fromDuration reads a duration; an absent one is zero. None of ours is negative.
func fromDuration(m *durationpb.Duration) (time.Duration, error) {
	if m == nil {
		return 0, nil
	}
	if err := m.CheckValid(); err != nil {
		return 0, err
	}
	d := m.AsDuration()
	if d < 0 {
		return 0, fmt.Errorf("duration is %s, want 0 or more", d)
	}
	return d, nil
}

// Time leaves a zero time out of a message.
func Time(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// FromTime reads a time; an absent one is zero.
func FromTime(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}

func toTrafficSelector(t ipsec.TrafficSelector) *ipsecv1.TrafficSelector {
	return &ipsecv1.TrafficSelector{
		Protocol: uint32(t.Protocol), First: t.First.AsSlice(), Last: t.Last.AsSlice(),
		PortFirst: uint32(t.PortFirst), PortLast: uint32(t.PortLast),
	}
}

func fromTrafficSelector(m *ipsecv1.TrafficSelector) (t ipsec.TrafficSelector, err error) {
	if t.Protocol, err = protocol(m.GetProtocol()); err != nil {
		return t, err
	}
	if t.First, err = addr(m.GetFirst()); err != nil {
		return t, err
	}
	if t.Last, err = addr(m.GetLast()); err != nil {
		return t, err
	}
	if t.PortFirst, err = port(m.GetPortFirst()); err != nil {
		return t, err
	}
	if t.PortLast, err = port(m.GetPortLast()); err != nil {
		return t, err
	}
	return t, t.Valid()
}

// ToSelector makes a message.
func ToSelector(s ipsec.Selector) *ipsecv1.Selector {
	return &ipsecv1.Selector{Local: toTrafficSelector(s.Local), Remote: toTrafficSelector(s.Remote)}
}

// FromSelector reads a selector.
func FromSelector(m *ipsecv1.Selector) (s ipsec.Selector, err error) {
	if s.Local, err = fromTrafficSelector(m.GetLocal()); err != nil {
		return s, fmt.Errorf("local selector: %w", err)
	}
	if s.Remote, err = fromTrafficSelector(m.GetRemote()); err != nil {
		return s, fmt.Errorf("remote selector: %w", err)
	}
	return s, nil
}

// ToFlow makes a message.
func ToFlow(f ipsec.Flow) *ipsecv1.Flow {
	return &ipsecv1.Flow{
		Local: f.Local.AsSlice(), Remote: f.Remote.AsSlice(), Protocol: uint32(f.Protocol),
		LocalPort: uint32(f.LocalPort), RemotePort: uint32(f.RemotePort),
	}
}

// FromFlow reads a flow.
func FromFlow(m *ipsecv1.Flow) (f ipsec.Flow, err error) {
	if f.Local, err = addr(m.GetLocal()); err != nil {
		return f, fmt.Errorf("flow: local %w", err)
	}
	if f.Remote, err = addr(m.GetRemote()); err != nil {
		return f, fmt.Errorf("flow: remote %w", err)
	}
	if f.Protocol, err = protocol(m.GetProtocol()); err != nil {
		return f, fmt.Errorf("flow: %w", err)
	}
	if f.LocalPort, err = port(m.GetLocalPort()); err != nil {
		return f, fmt.Errorf("flow: local %w", err)
	}
	if f.RemotePort, err = port(m.GetRemotePort()); err != nil {
		return f, fmt.Errorf("flow: remote %w", err)
	}
	return f, nil
}

func toTransform(t ipsec.Transform) *ipsecv1.Transform {
	if t.Type == 0 {
		return nil
	}
	return &ipsecv1.Transform{Type: uint32(t.Type), Id: uint32(t.ID), KeyBits: uint32(t.KeyBits)}
}

func fromTransform(m *ipsecv1.Transform) (ipsec.Transform, error) {
	if m == nil {
		return ipsec.Transform{}, nil
	}
	if m.Type == 0 || m.Type > 255 || m.Id > 65535 || m.KeyBits > 65535 {
		return ipsec.Transform{}, fmt.Errorf("transform %d-%d/%d is out of range", m.Type, m.Id, m.KeyBits)
	}
	return ipsec.Transform{Type: ipsec.TransformType(m.Type), ID: uint16(m.Id), KeyBits: uint16(m.KeyBits)}, nil
}

func toTransforms(ts []ipsec.Transform) []*ipsecv1.Transform {
	var out []*ipsecv1.Transform
	for _, t := range ts {
		out = append(out, toTransform(t))
	}
	return out
}

func toProposals(ps []ipsec.Proposal) []*ipsecv1.Proposal {
	var out []*ipsecv1.Proposal
	for _, p := range ps {
		out = append(out, &ipsecv1.Proposal{Protocol: uint32(p.Protocol), Transforms: toTransforms(p.Transforms)})
	}
	return out
}

func fromProposals(ms []*ipsecv1.Proposal) ([]ipsec.Proposal, error) {
	var out []ipsec.Proposal
	for i, m := range ms {
		proto, err := protocol(m.GetProtocol())
		if err != nil {
			return nil, fmt.Errorf("proposal %d: %w", i, err)
		}
		p := ipsec.Proposal{Protocol: ipsec.Protocol(proto)}
		for _, tm := range m.GetTransforms() {
			t, err := fromTransform(tm)
			if err != nil {
				return nil, fmt.Errorf("proposal %d: %w", i, err)
			}
			p.Transforms = append(p.Transforms, t)
		}
		if err := p.Validate(); err != nil {
			return nil, fmt.Errorf("proposal %d: %w", i, err)
		}
		out = append(out, p)
	}
	return out, nil
}

func toLimit(l ipsec.Limit) *ipsecv1.Limit { return &ipsecv1.Limit{Soft: l.Soft, Hard: l.Hard} }

func fromLimit(m *ipsecv1.Limit) ipsec.Limit {
	return ipsec.Limit{Soft: m.GetSoft(), Hard: m.GetHard()}
}

func toLifetime(l ipsec.Lifetime) *ipsecv1.Lifetime {
	return &ipsecv1.Lifetime{
		Bytes: toLimit(l.Bytes), Packets: toLimit(l.Packets), TimeSoft: duration(l.TimeSoft), TimeHard: duration(l.TimeHard),
		UseSoft: duration(l.UseSoft), UseHard: duration(l.UseHard),
	}
}

func fromLifetime(m *ipsecv1.Lifetime) (l ipsec.Lifetime, err error) {
	l.Bytes, l.Packets = fromLimit(m.GetBytes()), fromLimit(m.GetPackets())
	if l.TimeSoft, err = fromDuration(m.GetTimeSoft()); err != nil {
		return l, fmt.Errorf("soft lifetime: %w", err)
	}
	if l.TimeHard, err = fromDuration(m.GetTimeHard()); err != nil {
		return l, fmt.Errorf("hard lifetime: %w", err)
	}
	if l.UseSoft, err = fromDuration(m.GetUseSoft()); err != nil {
		return l, fmt.Errorf("soft lifetime in use: %w", err)
	}
	if l.UseHard, err = fromDuration(m.GetUseHard()); err != nil {
		return l, fmt.Errorf("hard lifetime in use: %w", err)
	}
	return l, nil
}
