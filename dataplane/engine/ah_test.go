package engine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/testudo-ipsec/testudo/dataplane/backend"
	"github.com/testudo-ipsec/testudo/dataplane/netio"
	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// ahPair joins two hosts with AH and gives the ends of their traffic.
func ahPair(t testing.TB, mode ipsec.Mode, outer6, inner6 bool, suite string) (a, b *host, src, dst netip.AddrPort) {
	t.Helper()
	a, b = twoHosts(t, outer6)
	aNet, bNet := netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.0.0/16")
	if inner6 {
		aNet, bNet = netip.MustParsePrefix("2001:db8:1::/48"), netip.MustParsePrefix("2001:db8:2::/48")
	}
	from, to := aNet.Addr().Next(), bNet.Addr().Next()
	if mode == ipsec.ModeTransport {
		aNet, bNet, from, to = single(a.addr), single(b.addr), a.addr, b.addr
	}
	a.policy(t, mode, aNet, bNet)
	b.policy(t, mode, bNet, aNet)
	join(t, saSpec{mode: mode, suite: suite, ah: true}, a, b, aNet, bNet)
	return a, b, netip.AddrPortFrom(from, 40000), netip.AddrPortFrom(to, 443)
}

func TestAHPacketsAndTrainsArriveWhole(t *testing.T) {
	for _, mode := range []ipsec.Mode{ipsec.ModeTunnel, ipsec.ModeTransport} {
		for _, outer6 := range []bool{false, true} {
			for _, inner6 := range []bool{false, true} {
				if mode == ipsec.ModeTransport && inner6 != outer6 {
					continue
				}
				for _, suite := range []string{"sha256", "authaes128gmac"} {
					t.Run(fmt.Sprintf("%s/outer6=%t/inner6=%t/%s", mode, outer6, inner6, suite), func(t *testing.T) {
						a, b, src, dst := ahPair(t, mode, outer6, inner6, suite)
						a.ah.Tamper = func(d []byte) [][]byte {
							h, why := packet.Parse(d)
							if why != packet.WhyOK || h.Protocol != packet.ProtoAH || h.Length != len(d) || h.Src(d) != a.addr || h.Dst(d) != b.addr {
								t.Errorf("on the wire: %s, %+v, want AH from %s to %s", why, h, a.addr, b.addr)
							}
							if h.Version == 4 && binary.BigEndian.Uint16(d[4:]) == 0 {
								t.Error("identification 0, which the kernel would change")
							}
							return [][]byte{bytes.Clone(d)}
						}
						exchange(t, a, b, src, dst, pattern(40000))
					})
				}
			}
		}
	}
}

// RFC 4302 §3.4.4: what was changed on the way is dropped; what routers may change
// is not covered.
func TestAHTamperingIsDropped(t *testing.T) {
	for _, mode := range []ipsec.Mode{ipsec.ModeTunnel, ipsec.ModeTransport} {
		for _, v6 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/v6=%t", mode, v6), func(t *testing.T) {
				a, b, src, dst := ahPair(t, mode, v6, v6, "sha256")
				address, hops, at := 15, 8, 20
				if v6 {
					address, hops, at = 23, 7, 40
				}
				for _, c := range []struct {
					name string
					at   int
					good bool
				}{{"hop limit", hops, true}, {"source address", address, false}, {"ICV", at + 13, false}, {"payload", at + 100, false}, {"reserved", at + 2, false}} {
					before := b.why(packet.WhyAuth)
					a.ah.Tamper = func(d []byte) [][]byte {
						d = bytes.Clone(d)
						d[c.at] ^= 1
						return [][]byte{d}
					}
					a.tun.ToEngine <- netio.Packet{Data: udp(src, dst, pattern(300))}
					if c.good {
						if p := <-b.tun.FromEngine; !bytes.Equal(p.Data[len(p.Data)-300:], pattern(300)) {
							t.Errorf("%s: another payload arrived", c.name)
						}
						continue
					}
					waitFor(t, func() bool { return b.why(packet.WhyAuth) == before+1 })
				}
				if len(b.tun.FromEngine) != 0 {
					t.Error("a changed packet was delivered")
				}
			})
		}
	}
}

// Tunnel mode carries congestion marks and DSCP over as with ESP (RFC 6040).
func TestAHTunnelECN(t *testing.T) {
	a, b, src, dst := ahPair(t, ipsec.ModeTunnel, false, false, "sha256")
	a.ah.Tamper = func(d []byte) [][]byte {
		d = bytes.Clone(d)
		if packet.TOS(d) != 0xba {
			t.Errorf("outer TOS %#x, want that of the packet inside", packet.TOS(d))
		}
		packet.SetECN(d, packet.CE)
		return [][]byte{d}
	}
	in := udp(src, dst, pattern(100))
	packet.SetTOS(in, 0xba)
	a.tun.ToEngine <- netio.Packet{Data: in}
	got, _ := b.arrived(t)
	if packet.TOS(got.Data) != 0xbb {
		t.Errorf("TOS %#x, want 0xbb: congestion was experienced", packet.TOS(got.Data))
	}
}

// Two SAs of one SPI, one for each protocol, do not meet; and there is no AH in UDP.
func TestAHBesideESP(t *testing.T) {
	a, b, src, dst := ahPair(t, ipsec.ModeTunnel, false, false, "sha256")
	an, bn := netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.0.0/16")
	_, in := simplex(t, saSpec{mode: ipsec.ModeTunnel, suite: "aes128gcm16"}, 7, a, b, an, bn)
	in.SA.SPI = 0x1001
	if err := b.Apply([]backend.Op{in}); err != nil {
		t.Fatal(err)
	}
	a.tun.ToEngine <- netio.Packet{Data: udp(src, dst, pattern(10))}
	b.arrived(t)
	if err := b.Apply([]backend.Op{{Kind: backend.OpRemove, ID: 7}}); err != nil {
		t.Fatal(err)
	}
	a.tun.ToEngine <- netio.Packet{Data: udp(src, dst, pattern(10))}
	b.arrived(t)

	out, _ := simplex(t, saSpec{mode: ipsec.ModeTunnel, suite: "sha256", ah: true, encap: true}, 8, a, b, an, bn)
	var oe *backend.OpError
	if err := a.Apply([]backend.Op{out}); !errors.As(err, &oe) || !errors.Is(err, backend.ErrNotUsable) || oe.SA != 8 {
		t.Errorf("AH in UDP: got %v, want %v", err, backend.ErrNotUsable)
	}
}

// A packet that no longer fits with AH, DF set, is refused to its sender.
func TestAHPathMTU(t *testing.T) {
	a, b, src, dst := ahPair(t, ipsec.ModeTunnel, false, false, "sha256")
	a.PathMTU(b.addr, 1400)
	a.tun.ToEngine <- netio.Packet{Data: udp(src, dst, pattern(1400-48-28+1))} // 20 outer, 12+16 AH, 28 inner
	icmp := <-a.tun.FromEngine
	if mtu := binary.BigEndian.Uint16(icmp.Data[26:]); icmp.Data[9] != packet.ProtoICMP || mtu != 1400-48 {
		t.Errorf("got % x, want ICMP with MTU %d", icmp.Data[:28], 1400-48)
	}
	a.tun.ToEngine <- netio.Packet{Data: udp(src, dst, pattern(1400-48-28))}
	b.arrived(t)
}
