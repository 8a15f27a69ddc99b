package sad

import (
	"bytes"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/dataplane/ah"
	"github.com/testudo-ipsec/testudo/dataplane/esp"
	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/ipsec"
)

func newAH(id ipsec.SAID, dir ipsec.Direction, spi ipsec.SPI, mode ipsec.Mode) *ipsec.SA {
	sa := newSA(id, dir, spi)
	sa.Protocol, sa.Mode = ipsec.ProtocolAH, mode
	sa.Suite = ipsec.Suite{Protocol: ipsec.ProtocolAH, ESN: true, Integ: ipsec.Transform{Type: ipsec.TransformINTEG, ID: ipsec.IntegHMACSHA256128}}
	sa.EncrKey, sa.IntegKey = ipsec.Secret{}, ipsec.NewSecret(bytes.Repeat([]byte{7}, 32))
	return sa
}

// whole is an IPv4 packet with addresses.
func whole(n int) []byte {
	b := inner(n)
	copy(b[12:], []byte{10, 1, 0, 1, 10, 2, 0, 1})
	packet.SetChecksum4(b)
	return b
}

func ahJobs(s *ah.Sealer, n, size int) []ah.SealJob {
	jobs := make([]ah.SealJob, n)
	for i := range jobs {
		jobs[i] = ah.SealJob{Dst: make([]byte, size+s.HeaderLen(4)), Src: whole(size)}
	}
	return jobs
}

func ahOpenJobs(jobs []ah.SealJob) []ah.OpenJob {
	var out []ah.OpenJob
	for _, j := range jobs {
		if j.Why == packet.WhyOK {
			out = append(out, ah.OpenJob{Packet: bytes.Clone(j.Dst[:j.Len]), At: 20})
		}
	}
	return out
}

// AH has numbers, window, counters and lifetime as ESP has.
func TestAHTraffic(t *testing.T) {
	d := install(t, newAH(1, ipsec.Outbound, 0x1000, ipsec.ModeTransport), newAH(2, ipsec.Inbound, 0x1000, ipsec.ModeTransport))
	out, in := d.Outbound(1), d.Inbound(2)
	s, err := out.NewAHSealer()
	if err != nil {
		t.Fatal(err)
	}
	jobs := ahJobs(s, 100, 120) // more than are reserved at once
	jobs[50].Why = packet.WhyTTL
	if n := out.SealAHBurst(at(time.Second), s, jobs); n != 99 {
		t.Fatalf("sealed %d: %s", n, jobs[0].Why)
	}
	for i, j := range jobs {
		want := uint64(i + 1)
		if i > 50 {
			want--
		}
		if i != 50 && j.Seq != want {
			t.Fatalf("packet %d has number %d", i, j.Seq)
		}
	}
	if c := out.Counters(); c.Packets != 99 || c.Bytes != 99*100 || c.Top != 99 {
		t.Errorf("sent: %+v", c)
	}
	received, again := ahOpenJobs(jobs), ahOpenJobs(jobs)
	again[0].Packet[60] ^= 1 // a replay is noticed before the forgery
	if n := in.OpenAHBurst(at(2*time.Second), received); n != 99 {
		t.Fatalf("opened %d: %s", n, received[0].Why)
	}
	for _, j := range received {
		if !bytes.Equal(j.Payload, whole(120)[20:]) || j.Next != 47 {
			t.Fatalf("payload %x, next %d", j.Payload, j.Next)
		}
	}
	if n := in.OpenAHBurst(at(3*time.Second), again); n != 0 || again[0].Why != packet.WhyReplay {
		t.Errorf("opened %d replayed packets: %s", n, again[0].Why)
	}
	if c := in.Counters(); c.Packets != 99 || c.Bytes != 99*100 || c.Top != 99 || c.Errors != 99 || !c.Used.Equal(start.Add(2*time.Second)) {
		t.Errorf("received: %+v", c)
	}
}

// A forged packet does not move the window (RFC 4302 §3.4.3).
func TestAHForgeryLeavesTheWindow(t *testing.T) {
	d := install(t, newAH(1, ipsec.Outbound, 0x1000, ipsec.ModeTransport), newAH(2, ipsec.Inbound, 0x1000, ipsec.ModeTransport))
	out, in := d.Outbound(1), d.Inbound(2)
	s, err := out.NewAHSealer()
	if err != nil {
		t.Fatal(err)
	}
	jobs := ahJobs(s, 2, 100)
	out.SealAHBurst(at(0), s, jobs)
	open := ahOpenJobs(jobs)
	forged := []ah.OpenJob{{Packet: bytes.Clone(open[1].Packet), At: 20}, {Packet: open[0].Packet, At: 500}, {Packet: open[0].Packet, At: -1}}
	forged[0].Packet[25] ^= 1
	if in.OpenAHBurst(at(1), forged); in.Counters().Top != 0 || in.Counters().Errors != 3 {
		t.Errorf("after forgeries: %+v", in.Counters())
	}
	if n := in.OpenAHBurst(at(1), open); n != 2 {
		t.Errorf("opened %d: %s, %s", n, open[0].Why, open[1].Why)
	}
}

// Each serves its own protocol only.
func TestWrongProtocol(t *testing.T) {
	d := install(t, newAH(1, ipsec.Inbound, 0x1000, ipsec.ModeTunnel), newSA(2, ipsec.Inbound, 0x1000),
		newAH(3, ipsec.Outbound, 0x1000, ipsec.ModeTunnel), newSA(4, ipsec.Outbound, 0x1000))
	wrong := []esp.OpenJob{{Packet: make([]byte, 100)}}
	if d.Inbound(1).OpenBurst(at(0), wrong); wrong[0].Why != packet.WhyProtocol {
		t.Errorf("ESP on an AH SA: %s", wrong[0].Why)
	}
	wrongAH := []ah.OpenJob{{Packet: make([]byte, 100), At: 20}}
	if d.Inbound(2).OpenAHBurst(at(0), wrongAH); wrongAH[0].Why != packet.WhyProtocol {
		t.Errorf("AH on an ESP SA: %s", wrongAH[0].Why)
	}
	if _, err := d.Outbound(3).NewSealer(); err == nil {
		t.Error("an ESP sealer of an AH SA")
	}
	if _, err := d.Outbound(4).NewAHSealer(); err == nil {
		t.Error("an AH sealer of an ESP SA")
	}
}

// Tunnel mode: lifetimes count the inner packet, what follows it is cut off, and a
// hard limit is not overrun by a burst.
func TestAHTunnelLifetime(t *testing.T) {
	o, i := newAH(1, ipsec.Outbound, 0x1000, ipsec.ModeTunnel), newAH(2, ipsec.Inbound, 0x1000, ipsec.ModeTunnel)
	o.Lifetime.Packets.Hard, i.Lifetime.Bytes.Hard = 70, 65*80
	d := install(t, o, i)
	out, in := d.Outbound(1), d.Inbound(2)
	s, err := out.NewAHSealer()
	if err != nil {
		t.Fatal(err)
	}
	jobs := make([]ah.SealJob, 100)
	for k := range jobs {
		jobs[k] = ah.SealJob{Dst: make([]byte, 20+s.HeaderLen(4)+84), At: 20, Src: append(inner(80), 9, 9, 9, 9), Next: packet.ProtoIPv4}
		copy(jobs[k].Dst, whole(20))
	}
	if n := out.SealAHBurst(at(0), s, jobs); n != 70 || jobs[70].Why != packet.WhyHardPackets || out.Usable(at(0)) != packet.WhyHardPackets {
		t.Fatalf("sealed %d, then %s", n, jobs[70].Why)
	}
	open := ahOpenJobs(jobs)
	if n := in.OpenAHBurst(at(0), open); n != 65 || open[65].Why != packet.WhyHardBytes || !bytes.Equal(open[0].Payload, inner(80)) {
		t.Fatalf("opened %d, then %s; payload of %d octets", n, open[65].Why, len(open[0].Payload))
	}
}

func TestAHNoAllocations(t *testing.T) {
	d := install(t, newAH(1, ipsec.Outbound, 0x1000, ipsec.ModeTransport), newAH(2, ipsec.Inbound, 0x1000, ipsec.ModeTransport))
	out, in := d.Outbound(1), d.Inbound(2)
	s, err := out.NewAHSealer()
	if err != nil {
		t.Fatal(err)
	}
	jobs, open := ahJobs(s, 40, 1400), make([]ah.OpenJob, 40)
	cycle := func() {
		if out.SealAHBurst(at(0), s, jobs) != len(jobs) {
			t.Fatal(jobs[0].Why)
		}
		for i := range open {
			open[i] = ah.OpenJob{Packet: jobs[i].Dst[:jobs[i].Len], At: 20}
		}
		if in.OpenAHBurst(at(0), open) != len(open) {
			t.Fatal(open[0].Why)
		}
	}
	cycle()
	if n := testing.AllocsPerRun(50, cycle); n != 0 {
		t.Errorf("%v allocations per burst", n)
	}
}
