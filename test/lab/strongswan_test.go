package lab

import (
	"net/netip"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// swanSites is the two ends of a tunnel between the sites.
func swanSites(s *Sites, v6 bool) (a, b SwanConn) {
	gwA, gwB := s.GWA.V4.Addr(), s.GWB.V4.Addr()
	if v6 {
		gwA, gwB = s.GWA.V6.Addr(), s.GWB.V6.Addr()
	}
	a = SwanConn{
		Name: "sites", Local: gwA, Remote: gwB,
		LocalID: "gw-a.example", RemoteID: "gw-b.example", PSK: ipsec.NewSecret([]byte("not \"quoted\" = {ok}")),
		LocalTS: []netip.Prefix{SiteA4, SiteA6}, RemoteTS: []netip.Prefix{SiteB4, SiteB6},
		IKEProposals: []string{"aes256gcm16-prfsha256-x25519"}, ESPProposals: []string{"aes128gcm16"},
		DPD: 30 * time.Second,
	}
	b = a
	b.Local, b.Remote = a.Remote, a.Local
	b.LocalID, b.RemoteID = a.RemoteID, a.LocalID
	b.LocalTS, b.RemoteTS = a.RemoteTS, a.LocalTS
	return a, b
}

func TestStrongSwanToStrongSwan(t *testing.T) {
	for _, tc := range []struct {
		name  string
		v6    bool
		nat   bool
		start bool
	}{
		{name: "IPv4 outer"},
		{name: "IPv6 outer", v6: true},
		{name: "behind a NAT, started when loaded", nat: true, start: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := NewSites(t, SitesOptions{NAT: tc.nat})
			a, b := swanSites(s, tc.v6)
			a.Start = tc.start
			if tc.nat {
				b.Remote = s.WANB.V4.Addr()
			}
			wire := s.WANA.Sniff()
			swanB := s.GWB.Node.StartStrongSwan(b)
			swanA := s.GWA.Node.StartStrongSwan(a)
			if !tc.start {
				if err := swanA.Initiate("sites"); err != nil {
					t.Fatal(err)
				}
			}
			// Before that strongSwan forwards in clear.
			swanA.WaitEstablished("sites", 30*time.Second)
			s.HostA.Node.WaitPing(s.HostB.V4.Addr(), 30*time.Second)
			for _, dst := range []netip.Addr{s.HostB.V4.Addr(), s.HostB.V6.Addr()} {
				s.HostA.Node.Ping(dst, PingOptions{Count: 3})
			}
			s.HostB.Node.Transfer(s.HostA, false, 1<<20)

			sa := swanB.WaitEstablished("sites", 30*time.Second)
			child := sa.Child("INSTALLED")
			if sa.Version != 2 || sa.Initiator || sa.RemoteID != a.LocalID || child.Encryption != "AES_GCM_16" ||
				child.KeyBits != 128 || child.ESN || !child.InUDP || child.PacketsIn < 6 || child.PacketsOut < 6 ||
				child.SPIIn == 0 || len(child.LocalTS) != 2 {
				t.Errorf("gateway B lists %+v", sa)
			}
			wire.RequireProtected(12)
			if wire.Count(IKE) < 4 {
				t.Errorf("%s; want two exchanges of IKE", wire.Summary())
			}
			var onWire bool
			for _, w := range wire.SAs() {
				onWire = onWire || w.SPI == child.SPIIn && w.InUDP && w.Packets >= 6
			}
			if !onWire {
				t.Errorf("SPI %08x is not on the wire: %+v", child.SPIIn, wire.SAs())
			}
			t.Log(wire.Summary())
			if err := swanA.Terminate("sites"); err != nil {
				t.Error(err)
			}
			WaitFor(t, 30*time.Second, "both ends to have no SA", func() error {
				if n := len(swanA.SAs()) + len(swanB.SAs()); n > 0 {
					return errNotYet
				}
				return nil
			})
		})
	}
}

func TestStrongSwanRefusesAWrongPSK(t *testing.T) {
	t.Parallel()
	s := NewSites(t, SitesOptions{})
	a, b := swanSites(s, false)
	b.PSK = ipsec.NewSecret([]byte("another"))
	swanB := s.GWB.Node.StartStrongSwan(b)
	swanA := s.GWA.Node.StartStrongSwan(a)
	if err := swanA.Initiate("sites"); err == nil {
		t.Error("initiate succeeded with different secrets")
	}
	if sas := swanB.SAs(); len(sas) != 0 {
		t.Errorf("gateway B has %+v", sas)
	}
}

// A rekey under load loses nothing between two strongSwans; ours is measured by
// the same probe.
func TestProbeThroughAStrongSwanRekey(t *testing.T) {
	t.Parallel()
	s := NewSites(t, SitesOptions{})
	a, b := swanSites(s, false)
	s.GWB.Node.StartStrongSwan(b)
	swanA := s.GWA.Node.StartStrongSwan(a)
	if err := swanA.Initiate("sites"); err != nil {
		t.Fatal(err)
	}
	s.HostA.Node.WaitPing(s.HostB.V4.Addr(), 30*time.Second)
	wire := s.WANB.Sniff()
	before := swanA.WaitEstablished("sites", 30*time.Second).Child("INSTALLED").SPIOut
	probe := s.HostA.Node.StartProbe(s.HostB, false, 5*time.Millisecond)
	if err := swanA.RekeyChild("sites"); err != nil {
		t.Fatal(err)
	}
	WaitFor(t, 30*time.Second, "a new CHILD SA to carry the probe", func() error {
		for _, w := range wire.SAs() {
			if sa := swanA.SAs()[0].Child("INSTALLED"); sa != nil && sa.SPIOut != before && w.SPI == sa.SPIOut && w.Packets > 20 {
				return nil
			}
		}
		return errNotYet
	})
	t.Log(probe.Stop())
	wire.RequireProtected(40)
}

func TestSwanConnRefusesWhatTheLibraryCannotDo(t *testing.T) {
	good := SwanConn{Name: "x", PSK: ipsec.NewSecret([]byte("s"))}
	if err := good.check(false); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]SwanConn{
		"transport mode":   {Name: "x", PSK: good.PSK, Mode: ipsec.ModeTransport},
		"no PSK":           {Name: "x"},
		"no name":          {PSK: good.PSK},
		"AH":               {Name: "x", PSK: good.PSK, AHProposals: []string{"sha256"}},
		"ESN":              {Name: "x", PSK: good.PSK, ESPProposals: []string{"aes128gcm16-noesn", "aes128gcm16-esn"}},
		"aggressive IKEv2": {Name: "x", PSK: good.PSK, Aggressive: true},
	} {
		if c.check(false) == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
