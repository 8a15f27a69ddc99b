package userspace

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/testudo-ipsec/testudo/dataplane/backend"
	"github.com/testudo-ipsec/testudo/ipsec"
)

// The tests run this binary again inside network namespaces, in one of the roles
// below. So a worker is a process of its own, which can be killed.
const roleVariable = "TESTUDO_TEST_ROLE"

func TestMain(m *testing.M) {
	roles := map[string]func() error{"worker": childWorker, "worker-with-small-buffers": childSmall, "serve": childServe, "mss": childMSS, "dial": childDial, "udp-serve": childUDPServe, "udp-dial": childUDPDial, "paced-dial": childPacedDial, "order-serve": childOrderServe, "order-dial": childOrderDial, "sniff": childSniff}
	name := os.Getenv(roleVariable)
	if name == "" {
		os.Exit(m.Run())
	}
	if err := roles[name](); err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
}

// saSpec is an SA in a form that travels to a child: keys come from the SPI.
type saSpec struct {
	ID            ipsec.SAID
	Direction     ipsec.Direction
	SPI           ipsec.SPI
	Mode          ipsec.Mode
	Local, Remote netip.Addr
	Encap         bool
	Suite         string
	NoESN         bool
	Selector      ipsec.Selector
	Resource      uint32
	Rule          string // "" for secure
}

func (s saSpec) sa() (*ipsec.SA, error) {
	suite := ipsec.Suite{Protocol: ipsec.ProtocolESP, ESN: !s.NoESN}
	if s.Suite == "sha256" || s.Suite == "aesxcbc" { // integrity only
		suite.Protocol = ipsec.ProtocolAH
	}
	p, err := ipsec.ParseProposal(suite.Protocol, s.Suite)
	if err != nil {
		return nil, err
	}
	var a ipsec.Algorithm
	if e := p.OfType(ipsec.TransformENCR); len(e) > 0 {
		suite.Encr = e[0]
		known, _ := ipsec.LookupAlgorithm(suite.Encr)
		a = *known
	}
	sa := &ipsec.SA{
		ID: s.ID, Direction: s.Direction, Protocol: suite.Protocol, SPI: s.SPI, Mode: s.Mode,
		Local: s.Local, Remote: s.Remote, Suite: suite,
		EncrKey:      ipsec.NewSecret(keyOctets(s.SPI, a.KeyLen+a.SaltLen)),
		Selectors:    []ipsec.Selector{s.Selector},
		ReplayWindow: 4096, Rule: cmp.Or(s.Rule, "secure"), Peer: "peer", Child: uint64(s.ID), Resource: s.Resource,
	}
	if i := p.OfType(ipsec.TransformINTEG); len(i) > 0 {
		suite.Integ = i[0]
		g, _ := ipsec.LookupAlgorithm(i[0])
		sa.Suite, sa.IntegKey = suite, ipsec.NewSecret(keyOctets(s.SPI, g.KeyLen+g.SaltLen))
	}
	if s.Direction == ipsec.Outbound {
		sa.Lease = ipsec.Lease{First: 1, Last: 1 << 32}
	}
	if s.Encap {
		sa.Encap = &ipsec.Encap{LocalPort: 4500, RemotePort: 4500}
	}
	return sa, nil
}

// childSmall is childWorker with what an unprivileged socket may send by default.
func childSmall() error {
	sendRoom, answerRoom = 212992, 212992
	return childWorker()
}

// keyOctets is a key that both ends find by themselves.
func keyOctets(spi ipsec.SPI, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(uint32(spi)*31 + uint32(i)*17)
	}
	return b
}

// childWorker runs a backend and obeys lines on standard input, each answered
// by one line: "ok ..." or "error ...".
func childWorker() error {
	var cfg Config
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 1<<24)
	var b *Backend
	var acquire uint64
	for in.Scan() {
		verb, arg, _ := strings.Cut(in.Text(), " ")
		answer, err := any("-"), error(nil)
		switch verb {
		case "start":
			if err = json.Unmarshal([]byte(arg), &cfg); err == nil {
				b, err = Start(context.Background(), cfg)
			}
		case "policy":
			var p ipsec.NodePolicy
			if err = json.Unmarshal([]byte(arg), &p); err == nil {
				err = b.SetPolicy(context.Background(), &p)
			}
		case "install":
			var specs []saSpec
			if err = json.Unmarshal([]byte(arg), &specs); err == nil {
				err = install(b, specs)
			}
		case "remove":
			var ids []ipsec.SAID
			var ops []backend.Op
			err = json.Unmarshal([]byte(arg), &ids)
			for _, id := range ids {
				ops = append(ops, backend.Op{Kind: backend.OpRemove, ID: id})
			}
			err = errors.Join(err, b.Apply(ops))
		case "counters":
			answer = b.Counters()
		case "event":
			e := <-b.Events()
			answer = fmt.Sprintf("%T", e)
			if a, ok := e.(backend.Acquire); ok {
				acquire = a.ID
			}
		case "acquire-failed": // the one of the last event
			b.AcquireFailed(acquire, "the peer does not answer")
		case "close":
			err = b.Close()
		case "cleanup":
			if err = json.Unmarshal([]byte(arg), &cfg); err == nil {
				err = Cleanup(cfg)
			}
		}
		if err != nil {
			fmt.Println("error", err)
			continue
		}
		text, err := json.Marshal(answer)
		if err != nil {
			return err
		}
		fmt.Println("ok", string(text))
	}
	return in.Err()
}

func install(b *Backend, specs []saSpec) error {
	var ops []backend.Op
	for _, s := range specs {
		sa, err := s.sa()
		if err != nil {
			return err
		}
		ops = append(ops, backend.Op{Kind: backend.OpInstall, SA: sa})
	}
	return b.Apply(ops)
}

// exchangeSize is how much TCP data goes each way.
const exchangeSize = 10 << 20

// marker occurs all through the data, so that it would be seen in clear.
const marker = "TESTUDO-IN-CLEAR" // 16 octets, as many as ping -p takes

func exchangeData(seed byte) []byte {
	b := bytes.Repeat([]byte(marker+string('a'+rune(seed))), exchangeSize/(len(marker)+1)+1)
	return b[:exchangeSize]
}

// childServe answers one TCP connection with its half of the exchange.
func childServe() error {
	l, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		return err
	}
	fmt.Println("ok listening")
	c, err := l.Accept()
	if err != nil {
		return err
	}
	return swap(c.(*net.TCPConn), 1)
}

// childMSS connects to a childServe and reports the largest segment it may send.
func childMSS() error {
	c, err := net.Dial("tcp", os.Args[1])
	if err != nil {
		return err
	}
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err
	}
	var mss int
	var optErr error
	err = raw.Control(func(fd uintptr) { mss, optErr = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG) })
	if err = errors.Join(err, optErr); err == nil {
		fmt.Println("ok", mss)
	}
	return err
}

func childDial() error {
	d := net.Dialer{}
	if os.Args[2] != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(os.Args[2])}
	}
	c, err := d.Dial("tcp", os.Args[1])
	if err != nil {
		return err
	}
	return swap(c.(*net.TCPConn), 0)
}

// datagram is what UDP carries: as often the marker as the caller says, by default
// enough for several fragments.
func datagram(times int) []byte { return bytes.Repeat([]byte(marker), times) }

// childUDPServe sends datagrams back.
func childUDPServe() error {
	c, err := net.ListenPacket("udp", os.Args[1])
	if err != nil {
		return err
	}
	fmt.Println("ok listening")
	b := make([]byte, 65536)
	for {
		n, from, err := c.ReadFrom(b)
		if err == nil {
			_, err = c.WriteTo(b[:n], from)
		}
		if err != nil && !errors.Is(err, unix.EMSGSIZE) {
			return err
		}
	}
}

// childUDPDial sends a datagram until it comes back: one of IPv6 is cut by its
// source, who has to learn what fits.
func childUDPDial() error {
	c, err := net.Dial("udp", os.Args[1])
	if err != nil {
		return err
	}
	sent := datagram(200)
	if len(os.Args) > 2 {
		sent = datagram(1)
	}
	got := make([]byte, 65536)
	for range 30 {
		if _, err = c.Write(sent); err != nil {
			return err
		}
		if err := c.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			return err
		}
		var n int
		if n, err = c.Read(got); err != nil {
			continue
		}
		if !bytes.Equal(got[:n], sent) {
			return fmt.Errorf("%d octets came back that are not the %d sent", n, len(sent))
		}
		fmt.Println("ok exchanged")
		return nil
	}
	return err
}

// swap sends and receives at the same time, and compares.
func swap(c *net.TCPConn, me byte) error {
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(exchangeData(me))
		if err == nil {
			err = c.CloseWrite()
		}
		sent <- err
	}()
	h := sha256.New()
	n, err := io.Copy(h, c)
	if err != nil {
		return err
	}
	if err := <-sent; err != nil {
		return err
	}
	want := sha256.Sum256(exchangeData(1 - me))
	if n != exchangeSize || !bytes.Equal(h.Sum(nil), want[:]) {
		return fmt.Errorf("received %d octets that are not the peer's %d", n, exchangeSize)
	}
	fmt.Println("ok exchanged")
	return nil
}

// childSniff counts what passes on a device until SIGTERM.
func childSniff() error {
	link, err := net.InterfaceByName(os.Args[1])
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	all := uint16(unix.ETH_P_ALL>>8 | unix.ETH_P_ALL<<8&0xff00)
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index}); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20); err != nil {
		return err
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50000}); err != nil {
		return err
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	fmt.Println("ok sniffing")
	seen := map[string]int{}
	b := make([]byte, 1<<17)
	for {
		n, _, err := unix.Recvfrom(fd, b, 0)
		if err == nil {
			seen[frameKind(b[:n])]++
			continue
		}
		select {
		case <-stop:
			text, _ := json.Marshal(seen)
			fmt.Println("ok", string(text))
			return nil
		default:
		}
	}
}

func frameKind(b []byte) string {
	inClear := bytes.Contains(b, []byte(marker))
	proto, up := -1, 0
	switch eth := int(b[12])<<8 | int(b[13]); {
	case eth == 0x0806:
		return "arp"
	case eth == 0x0800 && len(b) >= 34:
		proto, up = int(b[23]), 14+int(b[14]&15)*4
		if b[20]&0x1f|b[21] != 0 {
			return "fragment"
		}
	case eth == 0x86dd && len(b) >= 54:
		proto, up = int(b[20]), 54
		if proto == unix.IPPROTO_FRAGMENT {
			return "fragment"
		}
	}
	switch {
	case proto == unix.IPPROTO_AH: // authenticates and does not hide
		return "ah"
	case inClear:
		return "cleartext"
	case proto == 50:
		return "esp"
	case proto == 17 && len(b) >= up+4 && b[up+2] == 4500>>8 && b[up+3] == 4500&255:
		return "udp4500"
	case proto == 58 && len(b) > up && b[up] >= 130 && b[up] <= 143, proto == 0:
		return "nd"
	}
	return fmt.Sprintf("other-%d", proto)
}
