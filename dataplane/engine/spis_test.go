package engine

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/dataplane/backend"
	"github.com/testudo-ipsec/testudo/dataplane/sad"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// inboundOf makes inbound SAs, each with its SPI.
func inboundOf(t testing.TB, spis ...ipsec.SPI) []*inSA {
	t.Helper()
	d := sad.New()
	var b sad.Batch
	net := ipsec.PrefixSelector(netip.MustParsePrefix("10.0.0.0/8"))
	for i, spi := range spis {
		b.Install = append(b.Install, &ipsec.SA{
			ID: ipsec.SAID(i + 1), Direction: ipsec.Inbound, Protocol: ipsec.ProtocolESP, SPI: spi, Mode: ipsec.ModeTunnel,
			Local: netip.MustParseAddr("192.0.2.1"), Remote: netip.MustParseAddr("192.0.2.2"),
			Suite:     ipsec.Suite{Protocol: ipsec.ProtocolESP, Encr: ipsec.Transform{Type: ipsec.TransformENCR, ID: ipsec.EncrAESGCM16, KeyBits: 128}},
			EncrKey:   ipsec.NewSecret(make([]byte, 20)),
			Selectors: []ipsec.Selector{{Local: net, Remote: net}},
		})
	}
	if err := d.Apply(time.Now(), b); err != nil {
		t.Fatal(err)
	}
	out := make([]*inSA, len(spis))
	for i := range out {
		out[i] = &inSA{Inbound: d.Inbound(ipsec.SAID(i + 1))}
	}
	return out
}

// The table agrees with a map through random changes, and SPIs that are absent
// are not found.
func TestTheTableOfSPIsAgreesWithAMap(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	var spis []ipsec.SPI
	for i := range ipsec.SPI(1500) {
		spis = append(spis, 256+i) // low bits only
	}
	for i := range ipsec.SPI(300) {
		spis = append(spis, (1+i)<<22) // high bits only
	}
	all := inboundOf(t, spis...)
	var x inTable
	m := map[ipsec.SPI]*inSA{}
	for range 50_000 {
		in := all[r.IntN(len(all))]
		if r.IntN(3) > 0 {
			m[in.SA().SPI] = in
			x.put(in)
		} else {
			delete(m, in.SA().SPI)
			x.remove(in.SA().SPI)
		}
		if k := spis[r.IntN(len(spis))]; x.lookup(k) != m[k] {
			t.Fatalf("SPI %s", k)
		}
	}
	for k, in := range m {
		if x.lookup(k) != in {
			t.Fatalf("SPI %s", k)
		}
		x.remove(k)
	}
	for i := range x.shards {
		if s := x.shards[i].Load(); s != nil {
			t.Fatalf("shard %d still holds %d", i, s.count)
		}
	}
}

// Readers see one state or another while the table changes.
func TestLookupWhileTheTableOfSPIsChanges(t *testing.T) {
	var spis []ipsec.SPI
	for i := range ipsec.SPI(300) {
		spis = append(spis, 0x1000+i)
	}
	all := inboundOf(t, spis...)
	var x inTable
	x.put(all[0])
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					if x.lookup(0x1000) != all[0] {
						t.Error("an SA that stays was not found")
						return
					}
					runtime.Gosched()
				}
			}
		})
	}
	for i, in := range all[1:] {
		x.put(in)
		if i > 10 {
			x.remove(all[i-10].SA().SPI)
		}
	}
	close(done)
	wg.Wait()
}

// RFC 4301 §4.1: protocol and SPI together name an SA.
func TestESPAndAHMayShareAnSPI(t *testing.T) {
	x, y := twoHosts(t, false)
	an, bn := netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.0.0/16")
	_, esp := simplex(t, saSpec{mode: ipsec.ModeTunnel, suite: "aes128gcm16"}, 1, x, y, an, bn)
	_, ah := simplex(t, saSpec{mode: ipsec.ModeTunnel, suite: "sha256", ah: true}, 2, x, y, an, bn)
	ah.SA.SPI = esp.SA.SPI
	if err := y.Apply([]backend.Op{esp, ah}); err != nil {
		t.Fatal(err)
	}
	find := func(p ipsec.Protocol) ipsec.SAID {
		if in := y.table(p).lookup(esp.SA.SPI); in != nil {
			return in.SA().ID
		}
		return 0
	}
	if e, a := find(ipsec.ProtocolESP), find(ipsec.ProtocolAH); e != 1 || a != 2 {
		t.Fatalf("the SPI finds sa-%d for ESP and sa-%d for AH", e, a)
	}
	if err := y.Apply([]backend.Op{{Kind: backend.OpRemove, ID: 2}}); err != nil {
		t.Fatal(err)
	}
	if e, a := find(ipsec.ProtocolESP), find(ipsec.ProtocolAH); e != 1 || a != 0 {
		t.Fatalf("without the SA of AH the SPI finds sa-%d for ESP and sa-%d for AH", e, a)
	}
}

func BenchmarkLookupSPI(b *testing.B) {
	for _, n := range []int{1, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var spis []ipsec.SPI
			for i := range n {
				spis = append(spis, ipsec.SPI(256+i*7919))
			}
			var x inTable
			for _, in := range inboundOf(b, spis...) {
				x.put(in)
			}
			i := 0
			for b.Loop() {
				if i++; i == n {
					i = 0
				}
				if x.lookup(spis[i]) == nil {
					b.Fatal("not found")
				}
			}
		})
	}
}
