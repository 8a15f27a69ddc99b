package compile

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"net/netip"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// Settings is what a node policy says besides its rules and peers.
type Settings struct {
	Addresses  []netip.Addr
	Default    ipsec.Action
	FailClosed bool
	KeepMSS    bool
}

// SettingsOf picks the settings out of a node policy.
func SettingsOf(p ipsec.NodePolicy) Settings {
	return Settings{Addresses: p.Addresses, Default: p.Default, FailClosed: p.FailClosed, KeepMSS: p.KeepMSS}
}

// RuleVersion, PeerVersion and SettingsVersion name a content: equal content
// has equal versions, in every process and at every revision, so that a reader
// that resumes is sent what differs and nothing else.

// RuleVersion is the version of a rule.
func RuleVersion(r *ipsec.Rule) string {
	d := make(digest, 0, 512)
	d.text(r.Name)
	d.text(r.Policy)
	d.number(r.Weight)
	d.number(uint64(r.Direction))
	d.side(r.Selector.Local)
	d.side(r.Selector.Remote)
	d.number(uint64(r.Action))
	d.text(r.Peer)
	if t := r.Template; t != nil {
		d.number(uint64(t.Mode))
		d.proposals(t.Proposals)
		d.number(uint64(t.PFS))
		d.limit(t.Lifetime.Bytes)
		d.limit(t.Lifetime.Packets)
		d.number(uint64(t.Lifetime.TimeSoft))
		d.number(uint64(t.Lifetime.TimeHard))
		d.number(uint64(t.Lifetime.UseSoft))
		d.number(uint64(t.Lifetime.UseHard))
		d.number(uint64(t.ReplayWindow))
		d.flag(t.ForceEncap)
		d.flag(t.AcceptClear)
		d.flag(t.FallbackClear)
		d.number(uint64(t.PadTo))
		d.number(uint64(t.Resources))
		d.number(uint64(t.Outer.DF))
		d.flag(t.Outer.FixedDSCP)
		d.number(uint64(t.Outer.DSCP))
		d.flag(t.Outer.CopyLabel)
	}
	return d.sum()
}

// PeerVersion is the version of a peer.
func PeerVersion(p *ipsec.Peer) string {
	d := make(digest, 0, 512)
	d.text(p.Name)
	d.addrs(p.Local)
	d.addrs(p.Remote)
	d.identity(p.LocalID)
	d.identity(p.RemoteID)
	d.number(uint64(len(p.Auth)))
	for _, a := range p.Auth {
		d.text(a.PSK)
		d.flag(a.Null)
		d.number(uint64(a.Side))
		d.flag(a.Certificate != nil)
		if c := a.Certificate; c != nil {
			d.texts(c.Trust)
			d.text(c.Credential)
			d.text(c.PeerIdentity)
			d.number(uint64(c.Revocation))
			d.texts(c.RevocationURLs)
			d.flag(c.AllowLegacy)
		}
	}
	d.flag(p.PPK != nil)
	if k := p.PPK; k != nil {
		d.text(k.ID)
		d.text(k.Secret)
		d.flag(k.Required)
	}
	d.proposals(p.Proposals)
	d.number(uint64(p.Lifetime))
	d.number(uint64(p.Reauth))
	d.number(uint64(p.DPD))
	d.flag(p.ForceEncap)
	d.flag(p.Mobike)
	d.number(uint64(p.TCP))
	return d.sum()
}

// SettingsVersion is the version of a node's settings.
func SettingsVersion(s Settings) string {
	d := make(digest, 0, 64)
	d.addrs(s.Addresses)
	d.number(uint64(s.Default))
	d.flag(s.FailClosed)
	d.flag(s.KeepMSS)
	return d.sum()
}

// digest is an unambiguous encoding on its way to a hash: everything of
// variable length is preceded by its length.
type digest []byte

func (d *digest) number(n uint64) { *d = binary.AppendUvarint(*d, n) }

func (d *digest) text(s string) {
	d.number(uint64(len(s)))
	*d = append(*d, s...)
}

func (d *digest) texts(all []string) {
	d.number(uint64(len(all)))
	for _, s := range all {
		d.text(s)
	}
}

func (d *digest) flag(b bool) {
	if b {
		d.number(1)
	} else {
		d.number(0)
	}
}

func (d *digest) addr(a netip.Addr) {
	d.number(uint64(a.BitLen()))
	b := a.As16()
	*d = append(*d, b[:]...)
}

func (d *digest) addrs(all []netip.Addr) {
	d.number(uint64(len(all)))
	for _, a := range all {
		d.addr(a)
	}
}

func (d *digest) side(t ipsec.TrafficSelector) {
	d.number(uint64(t.Protocol))
	d.addr(t.First)
	d.addr(t.Last)
	d.number(uint64(t.PortFirst))
	d.number(uint64(t.PortLast))
}

func (d *digest) identity(i ipsec.Identity) {
	d.number(uint64(i.Kind))
	d.text(i.Data)
}

func (d *digest) limit(l ipsec.Limit) {
	d.number(l.Soft)
	d.number(l.Hard)
}

func (d *digest) proposals(all []ipsec.Proposal) {
	d.number(uint64(len(all)))
	for _, p := range all {
		d.number(uint64(p.Protocol))
		d.number(uint64(len(p.Transforms)))
		for _, t := range p.Transforms {
			d.number(uint64(t.Type))
			d.number(uint64(t.ID))
			d.number(uint64(t.KeyBits))
		}
	}
}

// sum is 96 bits of SHA-256: a version is compared with the versions of one
// name only, where an accidental match is out of the question.
func (d *digest) sum() string {
	h := sha256.Sum256(*d)
	return hex.EncodeToString(h[:12])
}
