package userspace

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/testudo-ipsec/testudo/dataplane/backend"
)

// addressWatch keeps the list of the host's addresses up to date.
type addressWatch struct {
	done chan struct{}
	wait sync.WaitGroup

	mu   sync.Mutex
	list []netip.Addr
}

// settled is how long the host's interfaces must be quiet before their addresses
// are read: a change comes as several messages.
const settled = 50 * time.Millisecond

// watchAddresses reads the host's addresses, now and whenever they change, and
// calls changed after a change.
func watchAddresses(device string, changed func()) (*addressWatch, error) {
	a := &addressWatch{done: make(chan struct{})}
	events, err := subscribe()
	if err != nil {
		return nil, err
	}
	if a.list, err = hostAddresses(device); err != nil {
		events.end()
		return nil, err
	}
	a.wait.Go(func() {
		quiet := time.NewTimer(time.Hour)
		defer quiet.Stop()
		for {
			select {
			case <-a.done:
				events.end()
				return
			case _, ok := <-events.addrs:
				quiet.Reset(settled)
				if !ok { // the kernel had more to say than the socket holds
					events = a.again(events)
				}
			case _, ok := <-events.links:
				quiet.Reset(settled)
				if !ok {
					events = a.again(events)
				}
			case <-quiet.C:
				if a.read(device) {
					changed()
				}
			}
		}
	})
	return a, nil
}

// addressEvents is one subscription. Its channels are closed when it ends.
type addressEvents struct {
	addrs chan netlink.AddrUpdate
	links chan netlink.LinkUpdate
	done  chan struct{}
}

// end ends a subscription, and reads what is still under way, so that nobody waits.
func (e addressEvents) end() {
	close(e.done)
	if e.addrs == nil {
		return
	}
	go func() {
		for range e.addrs {
		}
	}()
	for range e.links {
	}
}

func subscribe() (addressEvents, error) {
	e := addressEvents{addrs: make(chan netlink.AddrUpdate, 64), links: make(chan netlink.LinkUpdate, 64), done: make(chan struct{})}
	if err := netlink.AddrSubscribe(e.addrs, e.done); err != nil {
		return e, fmt.Errorf("watch addresses: %w", err)
	}
	if err := netlink.LinkSubscribe(e.links, e.done); err != nil {
		close(e.done)
		return e, fmt.Errorf("watch interfaces: %w", err)
	}
	return e, nil
}

// again subscribes anew, however long it takes.
func (a *addressWatch) again(old addressEvents) addressEvents {
	old.end()
	for {
		select {
		case <-a.done:
			return addressEvents{done: make(chan struct{})}
		case <-time.After(time.Second):
		}
		if e, err := subscribe(); err == nil {
			return e
		}
	}
}

// read reports whether the addresses are others than before.
func (a *addressWatch) read(device string) bool {
	list, err := hostAddresses(device)
	if err != nil {
		return false // another message will come
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if slices.Equal(list, a.list) {
		return false
	}
	a.list = list
	return true
}

func (a *addressWatch) close() {
	close(a.done)
	a.wait.Wait()
}

// Addresses are those that the host can send from at present, without those of
// the loopback and of the TUN device.
func (b *Backend) Addresses() []netip.Addr {
	b.addresses.mu.Lock()
	defer b.addresses.mu.Unlock()
	return slices.Clone(b.addresses.list)
}

func (b *Backend) addressesChanged() {
	b.cfg.Log.Info("the host's addresses have changed", "addresses", b.Addresses())
	b.emit(backend.AddressesChanged{})
}

// hostAddresses lists the usable addresses of interfaces that are up: first of
// those with a default route, from where the world is reached.
func hostAddresses(device string) ([]netip.Addr, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	outward := map[int]bool{}
	for _, f := range usableFamilies() {
		routes, err := netlink.RouteListFiltered(f, &netlink.Route{Dst: nil}, netlink.RT_FILTER_DST)
		if err != nil {
			return nil, fmt.Errorf("list default routes: %w", err)
		}
		for _, r := range routes {
			outward[r.LinkIndex] = true
		}
	}
	slices.SortStableFunc(links, func(a, b netlink.Link) int {
		switch x, y := outward[a.Attrs().Index], outward[b.Attrs().Index]; {
		case x == y:
			return 0
		case x:
			return -1
		}
		return 1
	})
	var out []netip.Addr
	for _, l := range links {
		at := l.Attrs()
		down := at.Flags&net.FlagUp == 0 || at.OperState == netlink.OperDown || at.OperState == netlink.OperLowerLayerDown
		if down || at.Name == device || at.Flags&net.FlagLoopback != 0 {
			continue
		}
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return nil, fmt.Errorf("list addresses of %s: %w", at.Name, err)
		}
		for _, x := range addrs {
			if a, ok := netip.AddrFromSlice(x.IP); ok && !a.Unmap().IsLinkLocalUnicast() && !slices.Contains(out, a.Unmap()) {
				out = append(out, a.Unmap())
			}
		}
	}
	return out, nil
}
