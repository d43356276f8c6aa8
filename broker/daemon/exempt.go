package daemon

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"sshbroker/broker"
	"sshbroker/profiles"
	"sshbroker/profiles/proxy"
)

const (
	resolveTime  = 5 * time.Second  // for all servers together
	resolveEvery = 5 * time.Minute  // where all went well
	resolveAgain = 15 * time.Second // where something did not
	// addressLife is how long an address counts that its server's name does not lead to
	// any more: a name with many addresses shows some of them at a time.
	addressLife = time.Hour
)

// server is what a transport connects to.
type server struct {
	host string
	port uint16
}

// servers are those that transports connect to themselves, not through a gateway, and
// the proxies that the configuration names for them.
func servers(p *broker.Policy) []server {
	var list []server
	for _, profile := range p.Profiles {
		for hops := 0; profile.Gateway != nil && hops < profiles.MaxGateways; hops++ {
			profile = profile.Gateway
		}
		if profile.Host != "" && profile.Host != "*" {
			list = append(list, server{profile.Host, profile.Port})
			for _, s := range profile.More {
				list = append(list, server{s.Host, s.Port})
			}
		}
		list = append(list, proxies(profile)...)
	}
	if p.Defaults != nil {
		list = append(list, proxies(p.Defaults)...)
	}
	slices.SortFunc(list, func(a, b server) int { return cmp.Or(cmp.Compare(a.host, b.host), cmp.Compare(a.port, b.port)) })
	return slices.Compact(list)
}

func proxies(p *profiles.Profile) []server {
	rules, err := proxy.Parse(p.Proxy)
	if err != nil {
		return nil // no connection is made then
	}
	var list []server
	for _, r := range rules {
		if r.Kind != proxy.Direct {
			list = append(list, server{r.Host, r.Port})
		}
	}
	return list
}

// addresses are those of servers. Safe for concurrent use.
type addresses struct {
	lookup func(ctx context.Context, host string) ([]netip.Addr, error)

	mu    sync.Mutex
	known map[server]map[netip.Addr]time.Time // when the name last led there
}

func newAddresses() *addresses {
	return &addresses{known: map[server]map[netip.Addr]time.Time{}, lookup: func(ctx context.Context, host string) ([]netip.Addr, error) {
		return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	}}
}

// resolve looks every server up. One whose name cannot be resolved keeps its addresses;
// the errors say which.
func (a *addresses) resolve(ctx context.Context, list []server) (errs []error) {
	ctx, cancel := context.WithTimeout(ctx, resolveTime)
	defer cancel()
	var wg sync.WaitGroup
	var mu sync.Mutex
	found := map[string][]netip.Addr{}
	at := make(chan struct{}, 16)
	hosts := map[string]bool{}
	for _, s := range list {
		hosts[s.host] = true
	}
	for host := range hosts {
		wg.Go(func() {
			at <- struct{}{}
			defer func() { <-at }()
			addrs, err := a.of(ctx, host)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, fmt.Errorf("address of server %s: %w", host, err))
			}
			found[host] = addrs
		})
	}
	wg.Wait()

	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	old := a.known
	a.known = make(map[server]map[netip.Addr]time.Time, len(list))
	for _, s := range list {
		led := map[netip.Addr]time.Time{}
		for addr, when := range old[s] {
			if len(found[s.host]) == 0 || now.Sub(when) < addressLife {
				led[addr] = when
			}
		}
		for _, addr := range found[s.host] {
			led[addr.Unmap().WithZone("")] = now
		}
		a.known[s] = led
	}
	return errs
}

func (a *addresses) of(ctx context.Context, host string) ([]netip.Addr, error) {
	if addr, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{addr}, nil
	}
	return a.lookup(ctx, host)
}

// list returns all of them, in order.
func (a *addresses) list() []netip.AddrPort {
	a.mu.Lock()
	defer a.mu.Unlock()
	var list []netip.AddrPort
	for s, led := range a.known {
		for addr := range led {
			list = append(list, netip.AddrPortFrom(addr, s.port))
		}
	}
	slices.SortFunc(list, netip.AddrPort.Compare)
	return slices.Compact(list)
}
