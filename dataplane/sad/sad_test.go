package sad

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/dataplane/esp"
	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
)

var start = time.Unix(1_700_000_000, 0)

func at(d time.Duration) int64 { return start.Add(d).UnixNano() }

func newSA(id ipsec.SAID, dir ipsec.Direction, spi ipsec.SPI) *ipsec.SA {
	key := make([]byte, 20)
	for i := range key {
		key[i] = byte(i)
	}
	sa := &ipsec.SA{
		ID: id, Direction: dir, Protocol: ipsec.ProtocolESP, SPI: spi, Mode: ipsec.ModeTunnel,
		Local: netip.MustParseAddr("192.0.2.1"), Remote: netip.MustParseAddr("192.0.2.2"),
		Suite: ipsec.Suite{
			Protocol: ipsec.ProtocolESP, ESN: true,
			Encr: ipsec.Transform{Type: ipsec.TransformENCR, ID: ipsec.EncrAESGCM16, KeyBits: 128},
		},
		EncrKey: ipsec.NewSecret(key),
		Selectors: []ipsec.Selector{{
			Local:  ipsec.PrefixSelector(netip.MustParsePrefix("10.1.0.0/16")),
			Remote: ipsec.PrefixSelector(netip.MustParsePrefix("10.2.0.0/16")),
		}},
	}
	if dir == ipsec.Inbound {
		sa.ReplayWindow = 128
	} else {
		sa.Lease = ipsec.Lease{First: 1, Last: 1 << 20}
	}
	return sa
}

func install(t testing.TB, sas ...*ipsec.SA) *SAD {
	t.Helper()
	d := New()
	if err := d.Apply(start, Batch{Install: sas}); err != nil {
		t.Fatal(err)
	}
	return d
}

// inner is an IPv4 packet of n octets.
func inner(n int) []byte {
	b := make([]byte, n)
	b[0], b[8], b[9] = 0x45, 64, 47
	binary.BigEndian.PutUint16(b[2:], uint16(n))
	packet.SetChecksum4(b)
	return b
}

func sealJobs(s *esp.Sealer, n, size int) []esp.SealJob {
	jobs := make([]esp.SealJob, n)
	for i := range jobs {
		jobs[i] = esp.SealJob{Dst: make([]byte, s.SealedLen(size)), Src: inner(size), Next: packet.ProtoIPv4}
	}
	return jobs
}

func openJobs(jobs []esp.SealJob) []esp.OpenJob {
	out := make([]esp.OpenJob, 0, len(jobs))
	for _, j := range jobs {
		if j.Why == packet.WhyOK {
			out = append(out, esp.OpenJob{Packet: bytes.Clone(j.Dst[:j.Len])})
		}
	}
	return out
}

func sealer(t testing.TB, o *Outbound) *esp.Sealer {
	t.Helper()
	s, err := o.NewSealer()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestTraffic(t *testing.T) {
	d := install(t, newSA(1, ipsec.Outbound, 0x1000), newSA(2, ipsec.Inbound, 0x1000))
	out, in := d.Outbound(1), d.Lookup(0x1000)
	if in == nil || in != d.Inbound(2) || in.SA().ID != 2 {
		t.Fatal("lookup by SPI")
	}
	if k := in.SA(); !k.EncrKey.IsZero() || !out.SA().EncrKey.IsZero() {
		t.Fatal("the SAD reports keys")
	}
	s := sealer(t, out)
	jobs := sealJobs(s, 10, 100)
	if n := out.SealBurst(at(time.Second), s, jobs); n != 10 {
		t.Fatalf("sealed %d: %s", n, jobs[0].Why)
	}
	for i, j := range jobs {
		if j.Seq != uint64(i+1) {
			t.Fatalf("packet %d has number %d", i, j.Seq)
		}
	}
	received := openJobs(jobs)
	again := openJobs(jobs)
	if n := in.OpenBurst(at(2*time.Second), received); n != 10 {
		t.Fatalf("opened %d: %s", n, received[0].Why)
	}
	for _, j := range received {
		if !bytes.Equal(j.Payload, inner(100)) || j.Next != packet.ProtoIPv4 {
			t.Fatalf("payload %x", j.Payload)
		}
	}
	if n := in.OpenBurst(at(3*time.Second), again); n != 0 || again[0].Why != packet.WhyReplay {
		t.Fatalf("replayed: %d, %s", n, again[0].Why)
	}
	want := ipsec.SACounters{ID: 2, Bytes: 1000, Packets: 10, Top: 10, Errors: 10}
	want.First, want.Used = time.Unix(0, at(2*time.Second)), time.Unix(0, at(2*time.Second))
	if got := in.Counters(); got != want {
		t.Errorf("inbound %+v, want %+v", got, want)
	}
	want = ipsec.SACounters{ID: 1, Bytes: 1000, Packets: 10, Top: 10}
	want.First, want.Used = time.Unix(0, at(time.Second)), time.Unix(0, at(time.Second))
	if got := out.Counters(); got != want {
		t.Errorf("outbound %+v, want %+v", got, want)
	}
}

// A duplicate inside one burst is caught too.
func TestReplayInsideABurst(t *testing.T) {
	d := install(t, newSA(1, ipsec.Outbound, 0x1000), newSA(2, ipsec.Inbound, 0x1000))
	s := sealer(t, d.Outbound(1))
	jobs := sealJobs(s, 1, 64)
	d.Outbound(1).SealBurst(at(0), s, jobs)
	twice := append(openJobs(jobs), openJobs(jobs)...)
	if n := d.Lookup(0x1000).OpenBurst(at(0), twice); n != 1 || twice[1].Why != packet.WhyReplay {
		t.Fatalf("%d passed, %s", n, twice[1].Why)
	}
}

// A forged packet leaves the window alone; an authentic dummy moves it and is
// no error (RFC 4303 §2.6, §3.4.3).
func TestWindowMovesOnlyWithAuthenticPackets(t *testing.T) {
	d := install(t, newSA(1, ipsec.Outbound, 0x1000), newSA(2, ipsec.Inbound, 0x1000))
	out, in := d.Outbound(1), d.Lookup(0x1000)
	s := sealer(t, out)
	jobs := sealJobs(s, 3, 64)
	jobs[1].Next = packet.ProtoNone
	out.SealBurst(at(0), s, jobs)

	forged := openJobs(jobs[:1])
	forged[0].Packet[7] = 200 // a number far ahead
	if in.OpenBurst(at(0), forged); forged[0].Why != packet.WhyAuth || in.Counters().Top != 0 {
		t.Fatalf("%s, top %d", forged[0].Why, in.Counters().Top)
	}
	dummy := openJobs(jobs[1:2])
	if in.OpenBurst(at(0), dummy); dummy[0].Why != packet.WhyDummy {
		t.Fatal(dummy[0].Why)
	}
	if c := in.Counters(); c.Top != 2 || c.Packets != 0 || c.Errors != 1 {
		t.Fatalf("%+v", c)
	}
}

// RFC 4303 §2.7: padding behind the inner packet is cut off in tunnel mode; what
// is not an IP packet of the family announced is dropped.
func TestTunnelPayload(t *testing.T) {
	six := make([]byte, 60)
	six[0], six[5] = 0x60, 20
	for _, v := range []struct {
		name    string
		payload []byte
		next    uint8
		want    int
		why     packet.Why
	}{
		{"exact", inner(50), packet.ProtoIPv4, 50, packet.WhyOK},
		{"flow padding", append(inner(50), make([]byte, 700)...), packet.ProtoIPv4, 50, packet.WhyOK},
		{"IPv6 with flow padding", append(bytes.Clone(six), 1, 2, 3), packet.ProtoIPv6, 60, packet.WhyOK},
		{"longer than what came", inner(50)[:49], packet.ProtoIPv4, 0, packet.WhyTruncated},
		{"IPv6 announced as IPv4", six, packet.ProtoIPv4, 0, packet.WhyNextHead},
		{"IPv4 announced as IPv6", inner(50), packet.ProtoIPv6, 0, packet.WhyNextHead},
		{"a transport protocol", inner(50), packet.ProtoUDP, 0, packet.WhyNextHead},
		{"nothing", nil, packet.ProtoIPv4, 0, packet.WhyNextHead},
	} {
		d := install(t, newSA(1, ipsec.Outbound, 0x1000), newSA(2, ipsec.Inbound, 0x1000))
		s := sealer(t, d.Outbound(1))
		jobs := []esp.SealJob{{Dst: make([]byte, 1000), Src: append([]byte{}, v.payload...), Next: v.next}}
		d.Outbound(1).SealBurst(at(0), s, jobs)
		in := openJobs(jobs)
		d.Lookup(0x1000).OpenBurst(at(0), in)
		if in[0].Why != v.why || v.why == packet.WhyOK && len(in[0].Payload) != v.want {
			t.Errorf("%s: %s, %d octets, want %s, %d", v.name, in[0].Why, len(in[0].Payload), v.why, v.want)
		}
	}
}

func TestApplyRefuses(t *testing.T) {
	d := install(t, newSA(1, ipsec.Outbound, 0x1000), newSA(2, ipsec.Inbound, 0x1000))
	change := func(f func(*ipsec.SA)) *ipsec.SA {
		sa := newSA(9, ipsec.Inbound, 0x9000)
		f(sa)
		return sa
	}
	for name, b := range map[string]Batch{
		"is installed already":      {Install: []*ipsec.SA{newSA(2, ipsec.Inbound, 0x2000)}},
		"belongs to sa-2":           {Install: []*ipsec.SA{newSA(3, ipsec.Inbound, 0x1000)}},
		"share the inbound esp SPI": {Install: []*ipsec.SA{newSA(3, ipsec.Inbound, 0x3000), newSA(4, ipsec.Inbound, 0x3000)}},
		"is not installed":          {Remove: []ipsec.SAID{77}},
		"no selectors":              {Install: []*ipsec.SA{change(func(sa *ipsec.SA) { sa.Selectors = nil })}},
		"two of one family":         {Install: []*ipsec.SA{change(func(sa *ipsec.SA) { sa.Local = netip.IPv6Loopback() })}},
		"want tunnel or transport":  {Install: []*ipsec.SA{change(func(sa *ipsec.SA) { sa.Mode = 0 })}},
		"want in or out":            {Install: []*ipsec.SA{change(func(sa *ipsec.SA) { sa.Direction = ipsec.Both })}},
		"negative lifetime":         {Install: []*ipsec.SA{change(func(sa *ipsec.SA) { sa.Lifetime.TimeHard = -1 })}},
		"in use soft -1ns":          {Install: []*ipsec.SA{change(func(sa *ipsec.SA) { sa.Lifetime.UseSoft = -1 })}},
		"replay window of 63":       {Install: []*ipsec.SA{change(func(sa *ipsec.SA) { sa.ReplayWindow = 63 })}},
		"octets of key and salt":    {Install: []*ipsec.SA{change(func(sa *ipsec.SA) { sa.EncrKey = ipsec.Secret{} })}},
	} {
		// Something valid goes first: none of the batch may happen.
		b.Install = append([]*ipsec.SA{newSA(50, ipsec.Inbound, 0x5000)}, b.Install...)
		b.Remove = append([]ipsec.SAID{1}, b.Remove...)
		err := d.Apply(start, b)
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("error %v, want one with %q", err, name)
		}
		if d.Outbound(1) == nil || d.Inbound(50) != nil || d.Lookup(0x5000) != nil {
			t.Fatalf("%s: half of a refused batch was applied", name)
		}
	}
}

// An SPI passes from a removed SA to an installed one in one batch; who still
// holds the old SA cannot use it.
func TestReplace(t *testing.T) {
	d := install(t, newSA(1, ipsec.Outbound, 0x1000), newSA(2, ipsec.Inbound, 0x1000))
	oldIn, oldOut := d.Lookup(0x1000), d.Outbound(1)
	err := d.Apply(start, Batch{Remove: []ipsec.SAID{2, 1}, Install: []*ipsec.SA{newSA(3, ipsec.Inbound, 0x1000), newSA(1, ipsec.Outbound, 0x1000)}})
	if err != nil {
		t.Fatal(err)
	}
	if in := d.Lookup(0x1000); in == oldIn || in.SA().ID != 3 || d.Outbound(1) == oldOut {
		t.Fatal("not replaced")
	}
	if in, out := d.Len(); in != 1 || out != 1 {
		t.Fatalf("%d inbound, %d outbound", in, out)
	}
	s := sealer(t, oldOut)
	jobs := sealJobs(s, 1, 64)
	if n := oldOut.SealBurst(at(0), s, jobs); n != 0 || jobs[0].Why != packet.WhyRemoved {
		t.Fatalf("sealed on a removed SA: %s", jobs[0].Why)
	}
	open := []esp.OpenJob{{Packet: make([]byte, 100)}}
	if oldIn.OpenBurst(at(0), open); open[0].Why != packet.WhyRemoved || oldIn.Usable(at(0)) != packet.WhyRemoved {
		t.Fatalf("opened on a removed SA: %s", open[0].Why)
	}
}

// The table agrees with a map through random changes, and SPIs that are absent
// are not found.
func TestTableAgainstMap(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	var x table
	m := map[uint32]*Inbound{}
	spi := func() uint32 {
		if r.IntN(2) == 0 {
			return uint32(r.IntN(3000)) // low bits only
		}
		return uint32(r.IntN(300)) << 22 // high bits only
	}
	for range 50_000 {
		k := spi()
		if r.IntN(3) > 0 {
			m[k] = &Inbound{}
			x.put(k, m[k])
		} else {
			delete(m, k)
			x.remove(k)
		}
		if k = spi(); x.lookup(k) != m[k] {
			t.Fatalf("SPI %#x", k)
		}
	}
	for k, in := range m {
		if x.lookup(k) != in {
			t.Fatalf("SPI %#x", k)
		}
		x.remove(k)
	}
	for i := range x.shards {
		if s := x.shards[i].Load(); s != nil && s.count != 0 {
			t.Fatalf("shard %d still holds %d", i, s.count)
		}
	}
}

// Readers see one state or another while the table changes.
func TestLookupWhileChanging(t *testing.T) {
	d := install(t, newSA(1, ipsec.Inbound, 0x1000))
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					if d.Lookup(0x1000) == nil {
						t.Error("an SA that stays was not found")
						return
					}
					runtime.Gosched()
				}
			}
		})
	}
	for i := range 300 {
		id, spi := ipsec.SAID(100+i), ipsec.SPI(0x1000+1+i)
		if err := d.Apply(start, Batch{Install: []*ipsec.SA{newSA(id, ipsec.Inbound, spi)}}); err != nil {
			t.Error(err)
		}
		if i > 10 {
			if err := d.Apply(start, Batch{Remove: []ipsec.SAID{id - 10}}); err != nil {
				t.Error(err)
			}
		}
	}
	close(done)
	wg.Wait()
}

func TestPermits(t *testing.T) {
	sel := func(s string, proto uint8, lo, hi uint16) ipsec.TrafficSelector {
		ts := ipsec.PrefixSelector(netip.MustParsePrefix(s))
		ts.Protocol, ts.PortFirst, ts.PortLast = proto, lo, hi
		return ts
	}
	a, b := netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("10.2.0.2")
	ported, bare := packet.Header{HasPorts: true}, packet.Header{}
	tcp := func(l, r uint16) ipsec.Flow {
		return ipsec.Flow{Local: a, Remote: b, Protocol: 6, LocalPort: l, RemotePort: r}
	}
	any16 := []ipsec.Selector{{Local: sel("10.1.0.0/16", 0, 0, 65535), Remote: sel("10.2.0.0/16", 0, 0, 65535)}}
	low := []ipsec.Selector{{Local: sel("10.1.0.0/16", 6, 0, 65535), Remote: sel("10.2.0.0/16", 6, 0, 1023)}}
	opaque := []ipsec.Selector{{Local: sel("10.1.0.0/16", 6, 65535, 0), Remote: sel("10.2.0.0/16", 6, 65535, 0)}}
	for _, v := range []struct {
		name string
		sel  []ipsec.Selector
		h    packet.Header
		f    ipsec.Flow
		want bool
	}{
		{"any", any16, ported, tcp(1, 2), true},
		{"any, later fragment", any16, bare, tcp(0, 0), true},
		{"address outside", any16, ported, ipsec.Flow{Local: b, Remote: b}, false},
		{"address outside, later fragment", any16, bare, ipsec.Flow{Local: a, Remote: a}, false},
		{"port inside", low, ported, tcp(5, 1023), true},
		{"port outside", low, ported, tcp(5, 1024), false},
		{"a range of ports that holds 0, later fragment", low, bare, tcp(0, 0), false},
		{"protocol outside", low, ported, ipsec.Flow{Local: a, Remote: b, Protocol: 17, RemotePort: 7}, false},
		{"OPAQUE, later fragment", opaque, bare, tcp(0, 0), true},
		{"OPAQUE, ports present", opaque, ported, tcp(1, 2), false},
		{"second of two", append(low, any16...), ported, tcp(1, 5000), true},
	} {
		c := common{sa: ipsec.SA{Selectors: v.sel}}
		if got := c.Permits(&v.h, v.f); got != v.want {
			t.Errorf("%s: %v, want %v", v.name, got, v.want)
		}
	}
}

func TestMemory(t *testing.T) {
	const n = 2000
	for _, dir := range []ipsec.Direction{ipsec.Inbound, ipsec.Outbound} {
		sas := make([]*ipsec.SA, n)
		for i := range sas {
			sas[i] = newSA(ipsec.SAID(i+1), dir, ipsec.SPI(0x1000+i))
			sas[i].ReplayWindow = 0
		}
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		d := install(t, sas...)
		runtime.GC()
		runtime.ReadMemStats(&after)
		each := (after.HeapAlloc - before.HeapAlloc) / n
		t.Logf("%s: %d octets for each SA, without its window and selectors", dir, each)
		if each > 1600 { // half of it is the standard library's AES-GCM state
			t.Errorf("%s: %d octets for each SA", dir, each)
		}
		runtime.KeepAlive(d)
		runtime.KeepAlive(sas)
	}
}

func BenchmarkLookup(b *testing.B) {
	for _, n := range []int{1, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var x table
			for i := range n {
				x.put(uint32(i*7919), &Inbound{})
			}
			i := 0
			for b.Loop() {
				if i++; i == n {
					i = 0
				}
				if x.lookup(uint32(i*7919)) == nil {
					b.Fatal("not found")
				}
			}
		})
	}
}

// BenchmarkInstall is Apply of one SA after another, among 20,000.
func BenchmarkInstall(b *testing.B) {
	d := New()
	var sas []*ipsec.SA
	for i := range 20_000 {
		sas = append(sas, newSA(ipsec.SAID(i+1), ipsec.Inbound, ipsec.SPI(0x1000+i)))
	}
	if err := d.Apply(start, Batch{Install: sas}); err != nil {
		b.Fatal(err)
	}
	id := ipsec.SAID(1 << 20)
	for b.Loop() {
		id++
		if err := d.Apply(start, Batch{Install: []*ipsec.SA{newSA(id, ipsec.Inbound, ipsec.SPI(id))}}); err != nil {
			b.Fatal(err)
		}
		if err := d.Apply(start, Batch{Remove: []ipsec.SAID{id}}); err != nil {
			b.Fatal(err)
		}
	}
}
