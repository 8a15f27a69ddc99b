package userspace

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// A new policy of 10,000 rules is swapped in, again and again, under traffic that it
// secures as the old one did: nothing is lost, and nothing goes in clear.
func TestASwapOfPolicyLosesAndLeaksNothing(t *testing.T) {
	l := newLab(t)
	for _, n := range []*node{l.a, l.b} {
		n.startWorker(Config{})
	}
	l.protect(pair{mode: ipsec.ModeTransport, encap: true, suite: "aes128gcm16"})
	swaps := make([]*ipsec.NodePolicy, 2)
	for k := range swaps {
		rules := []ipsec.Rule{secureRule(ipsec.ModeTransport, l.a.v4, l.b.v4)}
		rules[0].Weight = 1 << 20
		for i := range 10000 {
			x := secureRule(ipsec.ModeTransport, l.a.v4, netip.AddrFrom4([4]byte{10, byte(50 + k), byte(i >> 8), byte(i)}))
			x.Name, x.Weight = fmt.Sprint("rule-", i), uint64(10000-i)
			if i%3 == 0 {
				x.Action, x.Template = ipsec.ActionBlock, nil
			}
			rules = append(rules, x)
		}
		swaps[k] = l.a.policy(ipsec.ActionPermit, rules...)
	}
	stop := l.a.sniff()
	const sent = 1500
	at := netip.AddrPortFrom(l.b.v4, 5003).String()
	l.b.child("udp-serve", at).must()
	dial := l.a.child("paced-dial", at, fmt.Sprint(sent))
	done := make(chan error, 1)
	var back string
	go func() {
		var err error
		back, err = dial.read()
		done <- err
	}()
	n := 0
	for running := true; running; n++ {
		l.a.worker.do("policy", swaps[n%2])
		select {
		case err := <-done:
			running = false
			if err != nil {
				t.Error(err)
			}
		default:
		}
	}
	seen := stop()
	count, after, _ := strings.Cut(back, " ")
	t.Logf("%d swaps; %s of %d datagrams came back, %s", n, count, sent, after)
	if count != fmt.Sprint(sent) {
		t.Errorf("%s of %d datagrams came back; want all", count, sent)
	}
	for kind, count := range seen {
		if kind != "udp4500" && kind != "arp" && kind != "nd" {
			t.Errorf("%d frames of kind %s on the wire; want protected ones only", count, kind)
		}
	}
	if n < 2 { // under the race detector one takes a second
		t.Errorf("%d swaps while traffic flowed; want more", n)
	}
}

// childPacedDial sends numbered datagrams, one in two milliseconds, to a childUDPServe
// and reports how many came back, and after what time. It has few under way: only what is dropped is lost.
func childPacedDial() error {
	total, err := strconv.Atoi(os.Args[2])
	if err != nil {
		return err
	}
	c, err := net.Dial("udp", os.Args[1])
	if err != nil {
		return err
	}
	room := make(chan struct{}, 100)
	sent := make([]atomic.Int64, total)
	began := time.Now()
	var took []time.Duration
	go func() {
		tick := time.NewTicker(2 * time.Millisecond)
		for i := range total {
			room <- struct{}{}
			<-tick.C
			sent[i].Store(int64(time.Since(began)))
			_, _ = c.Write(binary.BigEndian.AppendUint32(nil, uint32(i))) // an error is a loss
		}
	}()
	back := map[uint32]bool{}
	for b := make([]byte, 4); len(back) < total; {
		if err := c.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			return err
		}
		_, err := io.ReadFull(c, b)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if i := binary.BigEndian.Uint32(b); err == nil && !back[i] {
			back[i] = true
			took = append(took, time.Since(began)-time.Duration(sent[i].Load()))
			<-room
		}
	}
	if slices.Sort(took); len(took) == 0 {
		return errors.New("nothing came back")
	}
	fmt.Printf("ok %d half of them within %s, 99 %% within %s, the last after %s\n", len(back), took[len(took)/2], took[len(took)*99/100], took[len(took)-1])
	return nil
}
