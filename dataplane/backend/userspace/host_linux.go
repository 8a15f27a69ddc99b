package userspace

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The ip rules, by their distance from Config.Priority. What comes out of the
// TUN has been decrypted and skips the rule that would send it back in.
const (
	ruleFromTun = iota // iif tst0 goto ruleEnd
	ruleMarked         // fwmark lookup table
	ruleEnd            // nop
	rulesSpan
)

const (
	actionNop = 3 // FR_ACT_NOP

	// The blackhole loses against the route into the TUN while that exists.
	metricTun       = 100
	metricBlackhole = 1 << 30
)

var families = []int{unix.AF_INET, unix.AF_INET6}

// setSysctl writes a setting of the TUN device, which goes away with it.
func setSysctl(family, device, name, value string) error {
	path := "/proc/sys/net/" + family + "/conf/" + device + "/" + name
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		return fmt.Errorf("set %s to %s: %w", path, value, err)
	}
	return nil
}

// ipv6Off reports a host without IPv6, where its settings do not exist.
func ipv6Off() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err != nil
}

// usableFamilies leaves out IPv6 on a host without it.
func usableFamilies() []int {
	if ipv6Off() {
		return families[:1]
	}
	return families
}

// setUpLink prepares the TUN device.
func setUpLink(c *Config, mtu int) (netlink.Link, error) {
	link, err := netlink.LinkByName(c.Device)
	if err != nil {
		return nil, fmt.Errorf("find device %s: %w", c.Device, err)
	}
	// Reverse path filtering looks up the way back with the packet's mark when
	// src_valid_mark is set. Packets from the TUN are marked for that in the
	// prerouting chain, so they pass even where all/rp_filter is strict.
	settings := [][3]string{
		{"ipv4", "src_valid_mark", "1"},
		{"ipv4", "rp_filter", "0"},
	}
	if !ipv6Off() {
		settings = append(settings, [][3]string{
			{"ipv6", "disable_ipv6", "0"},
			{"ipv6", "addr_gen_mode", "1"}, // no address, so no neighbour discovery into the TUN
			{"ipv6", "router_solicitations", "0"},
		}...)
	}
	for _, s := range settings {
		if err := setSysctl(s[0], c.Device, s[1], s[2]); err != nil {
			return nil, err
		}
	}
	if err := netlink.LinkSetMTU(link, mtu); err != nil {
		return nil, fmt.Errorf("set the MTU of %s to %d: %w", c.Device, mtu, err)
	}
	if err := netlink.LinkSetTxQLen(link, 1000); err != nil {
		return nil, fmt.Errorf("set the queue length of %s: %w", c.Device, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("bring %s up: %w", c.Device, err)
	}
	return link, nil
}

// addBlackholes makes the default of the backend's routing table a blackhole,
// and leads marked packets there. What exists already is fine.
func addBlackholes(c *Config) error {
	for _, f := range usableFamilies() {
		r := &netlink.Route{Family: f, Table: c.Table, Type: unix.RTN_BLACKHOLE, Priority: metricBlackhole, Dst: anywhere(f)}
		if err := netlink.RouteAdd(r); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add a blackhole to routing table %d: %w", c.Table, err)
		}
		for _, r := range ipRules(c, f) {
			if err := netlink.RuleAdd(r); err != nil && !errors.Is(err, unix.EEXIST) {
				return fmt.Errorf("add ip rule %d: %w", r.Priority, err)
			}
		}
	}
	return nil
}

// routeIntoTun makes the TUN the way of marked packets.
func routeIntoTun(c *Config, link netlink.Link) error {
	for _, f := range usableFamilies() {
		r := &netlink.Route{Family: f, Table: c.Table, LinkIndex: link.Attrs().Index, Priority: metricTun, Dst: anywhere(f)}
		if err := netlink.RouteReplace(r); err != nil {
			return fmt.Errorf("route table %d into %s: %w", c.Table, c.Device, err)
		}
	}
	return nil
}

func anywhere(family int) *net.IPNet {
	if family == unix.AF_INET {
		return &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	}
	return &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
}

// ipRules are the rules of one family. The goto comes last, after its target.
func ipRules(c *Config, family int) []*netlink.Rule {
	marked := netlink.NewRule()
	marked.Family, marked.Priority, marked.Table = family, c.Priority+ruleMarked, c.Table
	mask := c.Mark
	marked.Mark, marked.Mask = c.Mark, &mask
	end := netlink.NewRule()
	end.Family, end.Priority, end.Type = family, c.Priority+ruleEnd, actionNop
	from := netlink.NewRule()
	from.Family, from.Priority, from.IifName, from.Goto = family, c.Priority+ruleFromTun, c.Device, c.Priority+ruleEnd
	return []*netlink.Rule{marked, end, from}
}

// removeRouting takes away rules and routes, however much of them there is.
func removeRouting(c *Config) error {
	var errs []error
	for _, f := range usableFamilies() {
		for _, r := range ipRules(c, f) {
			if err := netlink.RuleDel(r); err != nil && !absent(err) {
				errs = append(errs, fmt.Errorf("remove ip rule %d: %w", r.Priority, err))
			}
		}
		routes, err := netlink.RouteListFiltered(f, &netlink.Route{Table: c.Table}, netlink.RT_FILTER_TABLE)
		if err != nil {
			errs = append(errs, fmt.Errorf("list routing table %d: %w", c.Table, err))
		}
		for i := range routes {
			if err := netlink.RouteDel(&routes[i]); err != nil && !absent(err) {
				errs = append(errs, fmt.Errorf("remove %s from table %d: %w", routes[i], c.Table, err))
			}
		}
	}
	return errors.Join(errs...)
}

func absent(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EAFNOSUPPORT)
}

// removeLink takes away a TUN device that outlived its process.
func removeLink(c *Config) error {
	link, err := netlink.LinkByName(c.Device)
	if err != nil {
		var gone netlink.LinkNotFoundError
		if errors.As(err, &gone) {
			return nil
		}
		return fmt.Errorf("find device %s: %w", c.Device, err)
	}
	if link.Type() != "tuntap" {
		return fmt.Errorf("device %s is of type %s, not a TUN device of ours; choose another name", c.Device, link.Type())
	}
	if err := netlink.LinkDel(link); err != nil && !absent(err) {
		return fmt.Errorf("remove device %s: %w", c.Device, err)
	}
	return nil
}

// forwards reports whether the host forwards packets of a family.
func forwards(family int) bool {
	path := "/proc/sys/net/ipv4/ip_forward"
	if family == unix.AF_INET6 {
		path = "/proc/sys/net/ipv6/conf/all/forwarding"
	}
	b, err := os.ReadFile(path)
	return err == nil && strings.TrimSpace(string(b)) == "1"
}
