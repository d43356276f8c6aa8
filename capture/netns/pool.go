package netns

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// PoolIsFree refuses ranges of made-up addresses that this host has a route to: a
// program could not tell the one from the other. A default route is none.
func PoolIsFree(pools ...netip.Prefix) error {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil // without routes to be seen there is nothing to overlap
	}
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		addr, ok := netip.AddrFromSlice(r.Dst.IP)
		ones, _ := r.Dst.Mask.Size()
		if !ok || ones == 0 {
			continue
		}
		route := netip.PrefixFrom(addr.Unmap(), ones)
		for _, pool := range pools {
			if pool.IsValid() && route.Overlaps(pool) {
				return fmt.Errorf("the pool of made-up addresses %v overlaps the route to %v on this host", pool, route)
			}
		}
	}
	return nil
}
