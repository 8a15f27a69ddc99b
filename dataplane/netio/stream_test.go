package netio

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"
)

func openStreams(t *testing.T, port uint16, listen bool) *Streams {
	t.Helper()
	s := NewStreams(StreamConfig{Port: port})
	t.Cleanup(func() { _ = s.Close() })
	if err := s.Listen(listen); err != nil {
		t.Fatal(err)
	}
	return s
}

// freePort is a TCP port that nobody uses at the moment.
func freePort(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}

func here(port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)
}

// receive returns the next message.
func receive(t *testing.T, s *Streams) Message {
	t.Helper()
	ms := []Message{{Data: make([]byte, 0, MaxPacket)}}
	got := make(chan error, 1)
	go func() { _, err := s.Recv(ms); got <- err }()
	select {
	case err := <-got:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("nothing came in 30 s")
	}
	return ms[0]
}

// RFC 9329 §3, §4: frames both ways, the prefix once; §6.1: the originator opens
// the connection again when it is gone.
func TestStreamsCarryDatagramsBothWays(t *testing.T) {
	port, mine := freePort(t), freePort(t)
	server, client := openStreams(t, port, true), openStreams(t, port, false)
	long := bytes.Repeat([]byte{7}, MaxPacket-frameHeader)
	for round := range 2 {
		for _, data := range [][]byte{{0, 0, 0, 0, 1}, long} {
			out := []Message{{Data: data, Local: here(mine), Remote: here(port)}}
			if n, err := client.Sender().Send(out); n != 1 || err != nil {
				t.Fatal(n, err)
			}
			m := receive(t, server)
			if !bytes.Equal(m.Data, data) || m.Local != here(port) || m.Remote != here(mine) {
				t.Fatalf("got %d octets from %s at %s, want %d from %s at %s", len(m.Data), m.Remote, m.Local, len(data), here(mine), here(port))
			}
			if n, err := server.Sender().Send([]Message{{Data: m.Data, Local: m.Local, Remote: m.Remote}}); n != 1 || err != nil {
				t.Fatal(n, err)
			}
			if m := receive(t, client); !bytes.Equal(m.Data, data) || m.Local != here(mine) || m.Remote != here(port) {
				t.Fatalf("back came %d octets from %s at %s", len(m.Data), m.Remote, m.Local)
			}
		}
		// A train is a frame for each segment.
		train := []Message{{Data: []byte("aabbc"), Segment: 2, Local: here(mine), Remote: here(port)}}
		if _, err := client.Sender().Send(train); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"aa", "bb", "c"} {
			if m := receive(t, server); string(m.Data) != want {
				t.Errorf("got %q, want %q", m.Data, want)
			}
		}
		if round == 0 {
			for _, s := range []*Streams{client, server} {
				s.mu.Lock()
				for _, st := range s.conns {
					st.close()
				}
				s.mu.Unlock()
				awaitOpen(t, s, 0)
			}
		}
	}
	if _, err := client.Sender().Send([]Message{{Data: []byte("x"), Local: here(mine), Remote: here(1)}}); err == nil {
		t.Error("sending to a port that only the other end can connect from: no error")
	}
}

func awaitOpen(t *testing.T, s *Streams, n int) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); s.Counts().Open != n; {
		if time.Now().After(end) {
			t.Fatalf("%d connections are open, want %d", s.Counts().Open, n)
		}
		<-time.After(time.Millisecond)
	}
}

// A peer that does not keep to the form loses its connection, and only that.
func TestStreamsRefuseWhatIsNotOfTheForm(t *testing.T) {
	port := freePort(t)
	server := openStreams(t, port, true)
	for _, tc := range []struct{ name, sends string }{
		{"no prefix", "GET / HTTP/1.1\r\n\r\n"},
		{"half a prefix", "IKE"},
		{"length 0", StreamPrefix + "\x00\x00"},
		{"length 1", StreamPrefix + "\x00\x01"},
		{"a frame that is cut off", StreamPrefix + "\x00\x10abc"},
	} {
		c, err := net.Dial("tcp4", here(port).String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, tc.sends); err != nil {
			t.Fatal(err)
		}
		if tc.name == "half a prefix" || tc.name == "a frame that is cut off" {
			_ = c.(*net.TCPConn).CloseWrite()
		}
		_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
		if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("%s: got an answer", tc.name)
		} else if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: the connection is still open", tc.name)
		}
		_ = c.Close()
	}
	awaitOpen(t, server, 0)
	select {
	case f := <-server.recv:
		t.Errorf("a frame came through: %q", *f.data)
	default:
	}
}

// One network cannot take all connections.
func TestStreamsAreBoundedByPrefix(t *testing.T) {
	port := freePort(t)
	server := openStreams(t, port, true)
	var open []net.Conn
	for range maxStreamsPrefix + 10 {
		c, err := net.Dial("tcp4", here(port).String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		open = append(open, c)
	}
	for end := time.Now().Add(30 * time.Second); server.Counts().Refused < 10 && time.Now().Before(end); {
		<-time.After(time.Millisecond)
	}
	if n := server.Counts(); n.Open != maxStreamsPrefix || n.Refused != 10 {
		t.Errorf("%+v, want %d open and 10 refused", n, maxStreamsPrefix)
	}
	for _, c := range open {
		_ = c.Close()
	}
	awaitOpen(t, server, 0)
	server.mu.Lock()
	defer server.mu.Unlock()
	if len(server.accepted) != 0 {
		t.Errorf("%v are still counted", server.accepted)
	}
}

// A peer that does not read holds nobody up.
func TestStreamsDropForAPeerThatDoesNotRead(t *testing.T) {
	port := freePort(t)
	server := openStreams(t, port, true)
	c, err := net.Dial("tcp4", here(port).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, StreamPrefix+"\x00\x03x"); err != nil {
		t.Fatal(err)
	}
	m := receive(t, server)
	out := []Message{{Data: make([]byte, 60000), Local: m.Local, Remote: m.Remote}}
	for range 1000 {
		_, _ = server.Sender().Send(out)
	}
	// A sender that waited would have done so until the connection was given up.
	if n := server.Counts(); n.Dropped == 0 || n.Open != 1 {
		t.Errorf("%+v after 60 MB that nobody reads; want some dropped, and the connection still open", n)
	}
}

func TestStreamsStopListening(t *testing.T) {
	port := freePort(t)
	server := openStreams(t, port, true)
	if err := server.Listen(false); err != nil {
		t.Fatal(err)
	}
	if c, err := net.Dial("tcp4", here(port).String()); err == nil {
		_ = c.Close()
		t.Error("it still listens")
	}
	if err := server.Listen(true); err != nil {
		t.Fatal(err)
	}
}

func FuzzStream(f *testing.F) {
	f.Add([]byte("\x00\x05abc\x00\x02\x00\x03x"))
	f.Add([]byte("\xff\xff"))
	f.Add([]byte("\x00\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := NewStreams(StreamConfig{})
		s.recv = make(chan frame, len(b)+1)
		st := s.add(streamPath{})
		st.read(bufio.NewReader(bytes.NewReader(b)))
		total := 0
		for len(s.recv) > 0 {
			total += frameHeader + len(*(<-s.recv).data)
		}
		// What came through is what the lengths say.
		want := 0
		for rest := b; len(rest) >= frameHeader; {
			n := int(binary.BigEndian.Uint16(rest))
			if n < frameHeader || n > len(rest) {
				break
			}
			want, rest = want+n, rest[n:]
		}
		if total != want {
			t.Errorf("%d octets came through, want %d", total, want)
		}
	})
}
