package sad

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"runtime"
	"strings"
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
	out, in := d.Outbound(1), d.Inbound(2)
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
	if n := d.Inbound(2).OpenBurst(at(0), twice); n != 1 || twice[1].Why != packet.WhyReplay {
		t.Fatalf("%d passed, %s", n, twice[1].Why)
	}
}

// A forged packet leaves the window alone; an authentic dummy moves it and is
// no error (RFC 4303 §2.6, §3.4.3).
func TestWindowMovesOnlyWithAuthenticPackets(t *testing.T) {
	d := install(t, newSA(1, ipsec.Outbound, 0x1000), newSA(2, ipsec.Inbound, 0x1000))
	out, in := d.Outbound(1), d.Inbound(2)
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
		d.Inbound(2).OpenBurst(at(0), in)
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
		"is installed already":     {Install: []*ipsec.SA{newSA(2, ipsec.Inbound, 0x2000)}},
		"is not installed":         {Remove: []ipsec.SAID{77}},
		"no selectors":             {Install: []*ipsec.SA{change(func(sa *ipsec.SA) { sa.Selectors = nil })}},
		"two of one family":        {Install: []*ipsec.SA{change(func(sa *ipsec.SA) { sa.Local = netip.IPv6Loopback() })}},
		"want tunnel or transport": {Install: []*ipsec.SA{change(func(sa *ipsec.SA) { sa.Mode = 0 })}},
		"want in or out":           {Install: []*ipsec.SA{change(func(sa *ipsec.SA) { sa.Direction = ipsec.Both })}},
		"negative lifetime":        {Install: []*ipsec.SA{change(func(sa *ipsec.SA) { sa.Lifetime.TimeHard = -1 })}},
		"in use soft -1ns":         {Install: []*ipsec.SA{change(func(sa *ipsec.SA) { sa.Lifetime.UseSoft = -1 })}},
		"replay window of 63":      {Install: []*ipsec.SA{change(func(sa *ipsec.SA) { sa.ReplayWindow = 63 })}},
		"octets of key and salt":   {Install: []*ipsec.SA{change(func(sa *ipsec.SA) { sa.EncrKey = ipsec.Secret{} })}},
	} {
		// Something valid goes first: none of the batch may happen.
		b.Install = append([]*ipsec.SA{newSA(50, ipsec.Inbound, 0x5000)}, b.Install...)
		b.Remove = append([]ipsec.SAID{1}, b.Remove...)
		err := d.Apply(start, b)
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("error %v, want one with %q", err, name)
		}
		if d.Outbound(1) == nil || d.Inbound(50) != nil {
			t.Fatalf("%s: half of a refused batch was applied", name)
		}
	}
}

// An SPI passes from a removed SA to an installed one in one batch; who still
// holds the old SA cannot use it.
func TestReplace(t *testing.T) {
	d := install(t, newSA(1, ipsec.Outbound, 0x1000), newSA(2, ipsec.Inbound, 0x1000))
	oldIn, oldOut := d.Inbound(2), d.Outbound(1)
	err := d.Apply(start, Batch{Remove: []ipsec.SAID{2, 1}, Install: []*ipsec.SA{newSA(3, ipsec.Inbound, 0x1000), newSA(1, ipsec.Outbound, 0x1000)}})
	if err != nil {
		t.Fatal(err)
	}
	if in := d.Inbound(3); in == oldIn || d.Inbound(2) != nil || d.Outbound(1) == oldOut {
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
		t.Logf("%s: %d octets for each SA, without its window", dir, each)
		if each > 1300 { // more than half of it is the standard library's AES-GCM state
			t.Errorf("%s: %d octets for each SA", dir, each)
		}
		runtime.KeepAlive(d)
		runtime.KeepAlive(sas)
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
