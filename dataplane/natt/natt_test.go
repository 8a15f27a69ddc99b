package natt

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/testudo-ipsec/testudo/dataplane/packet"
)

// RFC 3948 §2: what a datagram on port 4500 is.
func TestDemux(t *testing.T) {
	for _, v := range []struct {
		name   string
		d      []byte
		kind   Kind
		inside []byte
	}{
		{"empty", nil, Malformed, nil},
		{"keepalive", []byte{0xff}, Keepalive, nil},
		{"one octet that is none", []byte{0xfe}, Malformed, nil},
		{"two octets of 0xff", []byte{0xff, 0xff}, Malformed, nil},
		{"three zeros", make([]byte, 3), Malformed, nil},
		{"marker alone", make([]byte, 4), Malformed, nil},
		{"IKE", []byte{0, 0, 0, 0, 1, 2}, IKE, []byte{1, 2}},
		{"IKE that begins with zeros", make([]byte, 12), IKE, make([]byte, 8)},
		{"SPI and sequence number alone", []byte{0, 0, 1, 0, 0, 0, 0, 1}, Malformed, nil},
		{"ESP", []byte{0, 0, 1, 0, 0, 0, 0, 1, 9}, ESP, []byte{0, 0, 1, 0, 0, 0, 0, 1, 9}},
		{"nine octets of 0xff", bytes.Repeat([]byte{0xff}, 9), ESP, bytes.Repeat([]byte{0xff}, 9)},
	} {
		if kind, inside := Demux(v.d); kind != v.kind || !bytes.Equal(inside, v.inside) {
			t.Errorf("%s: %s %x, want %s %x", v.name, kind, inside, v.kind, v.inside)
		}
	}
}

func FuzzDemux(f *testing.F) {
	f.Add([]byte{0xff})
	f.Add([]byte{0, 0, 0, 0, 1})
	f.Add([]byte{1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, d []byte) {
		kind, inside := Demux(d)
		if kind < ESP || kind > Malformed {
			t.Fatalf("kind %d", kind)
		}
		if (kind == ESP || kind == IKE) != (len(inside) > 0) {
			t.Fatalf("%s with %d octets inside", kind, len(inside))
		}
		if kind, back := Demux(AppendIKE(nil, d)); len(d) > 0 && (kind != IKE || !bytes.Equal(back, d)) {
			t.Fatalf("an IKE message came back as %s %x", kind, back)
		}
	})
}

func TestKeepalive(t *testing.T) {
	if kind, _ := Demux(AppendKeepalive(nil)); kind != Keepalive {
		t.Fatalf("a keepalive came back as %s", kind)
	}
}

func TestPutUDP(t *testing.T) {
	b := append(make([]byte, UDPLen), "payload"...)
	if why := PutUDP(b, 4500, 61234); why != packet.WhyOK {
		t.Fatal(why)
	}
	if want := []byte{0x11, 0x94, 0xef, 0x32, 0, 15, 0, 0}; !bytes.Equal(b[:8], want) {
		t.Fatalf("%x, want %x", b[:8], want)
	}
	if why := PutUDP(make([]byte, 7), 1, 2); why != packet.WhyNoRoom {
		t.Fatal(why)
	}
	if why := PutUDP(make([]byte, 65536), 1, 2); why != packet.WhyTooBig {
		t.Fatal(why)
	}
}

func TestPutUDP6(t *testing.T) {
	from, to := netip.MustParseAddrPort("[2001:db8::1]:4500"), netip.MustParseAddrPort("[2001:db8::2]:4500")
	o, err := packet.NewOuter(packet.OuterConfig{Local: from.Addr(), Remote: to.Addr(), Protocol: packet.ProtoUDP})
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 40+UDPLen+5)
	copy(b[48:], "hello")
	if why := PutUDP6(b[40:], from, to); why != packet.WhyOK {
		t.Fatal(why)
	}
	o.Put(b, 0, true, 0)
	h, why := packet.Parse(b)
	if why != packet.WhyOK {
		t.Fatal(why)
	}
	if why := packet.VerifyChecksum(b, &h); why != packet.WhyOK || binary.BigEndian.Uint16(b[46:]) == 0 {
		t.Fatalf("%s, checksum %x", why, b[46:48])
	}
}
