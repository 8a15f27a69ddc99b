package engine

import (
	"bytes"
	"encoding/binary"

	"github.com/testudo-ipsec/testudo/dataplane/netio"
	"github.com/testudo-ipsec/testudo/dataplane/packet"
	"github.com/testudo-ipsec/testudo/dataplane/spd"
)

// coalescer joins consecutive packets of one flow into a train for the TUN, by
// the rules that kernels use on receive: same headers but for what counts up,
// payloads of one size, the last of which may be shorter. Payload is not
// copied: the parts lie where they were opened, until flush.
type coalescer struct {
	tun    netio.TunWriter
	counts *counts
	udp    bool

	key     spd.Key
	first   arrival
	parts   [][]byte
	headLen int // IP and upper-layer headers
	each    int // payload of the first packet
	total   int // payload so far
	count   int
	nextSeq uint32
	push    bool
	open    bool // more may be joined
}

func (c *coalescer) init(t netio.TunWriter, n *counts, udp bool) {
	c.tun, c.counts, c.udp = t, n, udp
	c.parts = make([][]byte, 0, 2*burst)
}

// add delivers a packet, perhaps together with others, at the latest on flush.
func (c *coalescer) add(p *arrival, k *spd.Key) {
	headLen, ok := c.joinable(p)
	if ok && c.open && c.key == *k && headLen == c.headLen && c.continues(p) {
		c.join(p)
		return
	}
	c.flush()
	c.first, c.key, c.headLen, c.open = *p, *k, headLen, ok
	c.parts = append(c.parts, p.head)
	if len(p.tail) > 0 {
		c.parts = append(c.parts, p.tail)
	}
	c.count = 1
	if !ok {
		return
	}
	c.total = p.h.Length - headLen
	c.each = c.total
	c.push = false
	if p.h.Protocol == packet.ProtoTCP {
		up := p.head[p.h.Upper:]
		c.nextSeq = binary.BigEndian.Uint32(up[4:]) + uint32(c.total)
		c.push = up[13]&tcpPSH != 0
		c.open = !c.push
	}
}

// joinable says whether a packet may be part of a train, and how long its
// headers are.
func (c *coalescer) joinable(p *arrival) (headLen int, ok bool) {
	h := &p.h
	if h.Fragment() || h.Version == 4 && h.Upper != 20 || h.Version == 6 && h.Upper != 40 {
		return 0, false
	}
	up := p.head[h.Upper:]
	switch h.Protocol {
	case packet.ProtoTCP:
		const ack = 0x10
		if len(up) < 20 || up[13]&^(tcpPSH|ack) != 0 || up[13]&ack == 0 {
			return 0, false
		}
		headLen = int(h.Upper) + int(up[12]>>4)*4
		if int(up[12]>>4) < 5 {
			return 0, false
		}
	case packet.ProtoUDP:
		if !c.udp || len(up) < 8 || int(binary.BigEndian.Uint16(up[4:])) != h.Length-int(h.Upper) || up[6]|up[7] == 0 {
			return 0, false
		}
		headLen = int(h.Upper) + 8
	default:
		return 0, false
	}
	if headLen >= h.Length || headLen > len(p.head) {
		return 0, false
	}
	if !p.trusted && packet.VerifyChecksum(p.head, h) != packet.WhyOK {
		return 0, false
	}
	return headLen, true
}

// continues says whether p is the next packet of the train.
func (c *coalescer) continues(p *arrival) bool {
	n := p.h.Length - c.headLen
	if n > c.each || c.count == burst || c.headLen+c.total+n > netio.MaxPacket || p.partial != c.first.partial {
		return false
	}
	a, b := c.first.head, p.head
	if p.h.Version == 4 {
		// TOS, flags and TTL; the identification counts up or, with DF, is not looked at.
		if a[1] != b[1] || a[6] != b[6] || a[8] != b[8] || b[6]&0x40 == 0 {
			return false
		}
	} else if !bytes.Equal(a[:4], b[:4]) || a[7] != b[7] { // traffic class, flow label, hop limit
		return false
	}
	if p.h.Protocol == packet.ProtoUDP {
		return true
	}
	a, b = a[c.first.h.Upper:], b[p.h.Upper:]
	up := c.headLen - int(p.h.Upper)
	return binary.BigEndian.Uint32(b[4:]) == c.nextSeq &&
		bytes.Equal(a[8:13], b[8:13]) && // acknowledgement, header length
		bytes.Equal(a[14:16], b[14:16]) && // window
		bytes.Equal(a[20:up], b[20:up]) // options
}

func (c *coalescer) join(p *arrival) {
	n := p.h.Length - c.headLen
	c.parts = append(c.parts, p.head[c.headLen:])
	if len(p.tail) > 0 {
		c.parts = append(c.parts, p.tail)
	}
	c.count++
	c.total += n
	c.nextSeq += uint32(n)
	if p.h.Protocol == packet.ProtoTCP {
		c.push = p.head[p.h.Upper+13]&tcpPSH != 0
	}
	c.open = n == c.each && !c.push
}

// flush writes what was gathered.
func (c *coalescer) flush() {
	if c.count == 0 {
		return
	}
	var o netio.Offload
	if c.count > 1 {
		o = c.finish()
	} else if c.first.partial {
		o = c.checksumOffload()
	}
	if err := c.tun.Write(o, c.parts); err != nil {
		c.counts.add(packet.WhyWrite, uint64(c.count))
	}
	c.forget()
}

// forget drops what is held.
func (c *coalescer) forget() {
	clear(c.parts)
	c.parts = c.parts[:0]
	c.count, c.open = 0, false
}

// finish turns the headers of the first packet into those of the train.
func (c *coalescer) finish() netio.Offload {
	b, h := c.first.head, &c.first.h
	size := c.headLen + c.total
	packet.SetLength(b, size)
	up := b[h.Upper:]
	sum := packet.PseudoSum(h.Src(b), h.Dst(b), h.Protocol, size-int(h.Upper))
	o := c.checksumOffload()
	o.HeaderLen, o.Segment = uint16(c.headLen), uint16(c.each)
	switch {
	case h.Protocol == packet.ProtoUDP:
		o.GSO = netio.GSOUDP
		binary.BigEndian.PutUint16(up[4:], uint16(len(up[:8])+c.total))
	case h.Version == 4:
		o.GSO = netio.GSOTCP4
	default:
		o.GSO = netio.GSOTCP6
	}
	if h.Protocol == packet.ProtoTCP && c.push {
		up[13] |= tcpPSH
	}
	binary.BigEndian.PutUint16(up[o.ChecksumOffset:], sum)
	return o
}

func (c *coalescer) checksumOffload() netio.Offload {
	at := uint16(16)
	if c.first.h.Protocol == packet.ProtoUDP {
		at = 6
	}
	return netio.Offload{NeedsChecksum: true, ChecksumStart: c.first.h.Upper, ChecksumOffset: at}
}
