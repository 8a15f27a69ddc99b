package archive

import (
	"net/netip"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// The values of package ipsec. archivetest makes sure that no field is forgotten.

const maxList = 4096 // elements of any list below; a policy's bounds are lower

// Identity is an IKE identity.
func Identity(c *Coder, v *ipsec.Identity) {
	Num(c, &v.Kind)
	c.String(&v.Data)
}

// Transform is one algorithm.
func Transform(c *Coder, v *ipsec.Transform) {
	Num(c, &v.Type)
	Num(c, &v.ID)
	Num(c, &v.KeyBits)
}

// Proposal is one alternative of an SA payload.
func Proposal(c *Coder, v *ipsec.Proposal) {
	Num(c, &v.Protocol)
	Slice(c, &v.Transforms, maxList, Transform)
}

// Suite is what was agreed on.
func Suite(c *Coder, v *ipsec.Suite) {
	Num(c, &v.Protocol)
	for _, t := range []*ipsec.Transform{&v.Encr, &v.Integ, &v.PRF, &v.KE} {
		Transform(c, t)
	}
	for i := range v.ADDKE {
		Transform(c, &v.ADDKE[i])
	}
	c.Bool(&v.ESN)
}

// TrafficSelector is one side of a selector.
func TrafficSelector(c *Coder, v *ipsec.TrafficSelector) {
	Num(c, &v.Protocol)
	c.Addr(&v.First)
	c.Addr(&v.Last)
	Num(c, &v.PortFirst)
	Num(c, &v.PortLast)
}

// Selector is both sides.
func Selector(c *Coder, v *ipsec.Selector) {
	TrafficSelector(c, &v.Local)
	TrafficSelector(c, &v.Remote)
}

// Flow is a packet's selector.
func Flow(c *Coder, v *ipsec.Flow) {
	c.Addr(&v.Local)
	c.Addr(&v.Remote)
	Num(c, &v.Protocol)
	Num(c, &v.LocalPort)
	Num(c, &v.RemotePort)
}

func limit(c *Coder, v *ipsec.Limit) {
	Num(c, &v.Soft)
	Num(c, &v.Hard)
}

// Lifetime bounds an SA.
func Lifetime(c *Coder, v *ipsec.Lifetime) {
	limit(c, &v.Bytes)
	limit(c, &v.Packets)
	Int(c, &v.TimeSoft)
	Int(c, &v.TimeHard)
	Int(c, &v.UseSoft)
	Int(c, &v.UseHard)
}

// SA is one simplex SA, keys included.
func SA(c *Coder, v *ipsec.SA) {
	Num(c, &v.ID)
	Num(c, &v.Direction)
	Num(c, &v.Protocol)
	Num(c, &v.SPI)
	Num(c, &v.Mode)
	c.Addr(&v.Local)
	c.Addr(&v.Remote)
	Ptr(c, &v.Encap, func(c *Coder, u *ipsec.Encap) {
		Num(c, &u.LocalPort)
		Num(c, &u.RemotePort)
		c.Bool(&u.TCP)
	})
	Suite(c, &v.Suite)
	c.Secret(&v.EncrKey)
	c.Secret(&v.IntegKey)
	Slice(c, &v.Selectors, maxList, Selector)
	Num(c, &v.ReplayWindow)
	Num(c, &v.ReplayFloor)
	Num(c, &v.Lease.First)
	Num(c, &v.Lease.Last)
	Lifetime(c, &v.Lifetime)
	c.String(&v.Rule)
	c.String(&v.Peer)
	Num(c, &v.Child)
	Num(c, &v.Resource)
	Num(c, &v.PadTo)
}

func template(c *Coder, v *ipsec.Template) {
	Num(c, &v.Mode)
	Slice(c, &v.Proposals, maxList, Proposal)
	Num(c, &v.PFS)
	Lifetime(c, &v.Lifetime)
	Num(c, &v.ReplayWindow)
	c.Bool(&v.ForceEncap)
	c.Bool(&v.AcceptClear)
	c.Bool(&v.FallbackClear)
	Num(c, &v.PadTo)
	Num(c, &v.Resources)
	Num(c, &v.Outer.DF)
	c.Bool(&v.Outer.FixedDSCP)
	Num(c, &v.Outer.DSCP)
	c.Bool(&v.Outer.CopyLabel)
}

// Rule is one entry of an SPD.
func Rule(c *Coder, v *ipsec.Rule) {
	c.String(&v.Name)
	c.String(&v.Policy)
	Num(c, &v.Weight)
	Num(c, &v.Direction)
	Selector(c, &v.Selector)
	Num(c, &v.Action)
	Ptr(c, &v.Template, template)
	c.String(&v.Peer)
}

func certificateAuth(c *Coder, v *ipsec.CertificateAuth) {
	Slice(c, &v.Trust, maxList, (*Coder).String)
	c.String(&v.Credential)
	c.String(&v.PeerIdentity)
	c.Bool(&v.AllowLegacy)
	Num(c, &v.Revocation)
	Slice(c, &v.RevocationURLs, maxList, (*Coder).String)
}

func authMethod(c *Coder, v *ipsec.AuthMethod) {
	c.String(&v.PSK)
	Ptr(c, &v.Certificate, certificateAuth)
	c.Bool(&v.Null)
	Num(c, &v.Side)
}

// Peer is a peer's profile.
func Peer(c *Coder, v *ipsec.Peer) {
	c.String(&v.Name)
	for _, as := range []*[]netip.Addr{&v.Local, &v.Remote} {
		Slice(c, as, maxList, (*Coder).Addr)
	}
	Identity(c, &v.LocalID)
	Identity(c, &v.RemoteID)
	Slice(c, &v.Auth, maxList, authMethod)
	Slice(c, &v.Proposals, maxList, Proposal)
	Ptr(c, &v.PPK, func(c *Coder, k *ipsec.PPK) {
		c.String(&k.ID)
		c.String(&k.Secret)
		c.Bool(&k.Required)
	})
	Int(c, &v.Lifetime)
	Int(c, &v.Reauth)
	Int(c, &v.DPD)
	c.Bool(&v.ForceEncap)
	c.Bool(&v.Mobike)
	Num(c, &v.TCP)
}
