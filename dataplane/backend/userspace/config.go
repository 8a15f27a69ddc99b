package userspace

import (
	"fmt"
	"log/slog"
	"strings"
	"time"
)

// Config says what a backend takes on the host. The zero value of each field is
// its default; two backends on one host need different ones throughout.
type Config struct {
	Name     string // of the nftables table; default "worker"
	Device   string // TUN device; default "tst0"
	Queues   int    // of the TUN, each with sockets of its own; default 1
	Table    int    // routing table; default 7400
	Priority int    // of the first of three ip rules; default 7400

	// Mark is the bit that leads packets into the TUN, OwnMark the one that
	// exempts what the worker itself sends; default bits 28 and 29.
	Mark    uint32
	OwnMark uint32

	// MTU of the underlay; 0: the least of the interfaces that have one of the
	// node's addresses.
	MTU int

	// FailClosed keeps the nftables table and the blackhole after Close too,
	// whatever the policy says.
	FailClosed bool

	// Ports of IKE and of IKE and ESP in UDP; default 500 and 4500.
	IKEPort  uint16
	NATTPort uint16

	// FallbackFor is how long a rule that may fall back to clear does so after
	// a failed negotiation; default one minute.
	FallbackFor time.Duration

	Log *slog.Logger // default slog.Default()
}

func (c *Config) fill() error {
	if c.Name == "" {
		c.Name = "worker"
	}
	if c.Device == "" {
		c.Device = "tst0"
	}
	if c.Queues == 0 {
		c.Queues = 1
	}
	if c.Table == 0 {
		c.Table = 7400
	}
	if c.Priority == 0 {
		c.Priority = 7400
	}
	if c.Mark == 0 {
		c.Mark = 1 << 28
	}
	if c.OwnMark == 0 {
		c.OwnMark = 1 << 29
	}
	if c.IKEPort == 0 {
		c.IKEPort = 500
	}
	if c.NATTPort == 0 {
		c.NATTPort = 4500
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	switch {
	case strings.Trim(strings.ToLower(c.Name), "abcdefghijklmnopqrstuvwxyz0123456789_") != "":
		return fmt.Errorf("name %q: want letters, digits and underscores only", c.Name)
	case len(c.Device) > 15:
		return fmt.Errorf("device name %q: want at most 15 octets", c.Device)
	case c.Mark&c.OwnMark != 0:
		return fmt.Errorf("marks %#x and %#x share a bit; want different ones", c.Mark, c.OwnMark)
	case c.Table < 1 || c.Table >= 253 && c.Table <= 255:
		return fmt.Errorf("routing table %d: want a number of its own, not 253 to 255", c.Table)
	case c.Priority < 1 || c.Priority > 32765-rulesSpan:
		return fmt.Errorf("ip rule priority %d: want 1 to %d, before the main table", c.Priority, 32765-rulesSpan)
	case c.Queues < 1 || c.Queues > 255: // a TUN device has 256, of which one is detached
		return fmt.Errorf("%d TUN queues: want 1 to 255", c.Queues)
	case c.MTU != 0 && c.MTU < 576:
		return fmt.Errorf("underlay MTU %d: want 576 or more", c.MTU)
	}
	return nil
}

func (c *Config) nftTable() string { return "testudo_" + c.Name }
