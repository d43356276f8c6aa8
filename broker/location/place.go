package location

import (
	"errors"
	"net/netip"
	"slices"

	"sshbroker/filter"
)

// Place is where a host was when somebody looked; it does not change. The zero Place
// knows nothing.
type Place struct {
	addresses addresses
	domains   domains
}

type addresses struct {
	known bool
	err   error // why not
	list  []address
}

// address is one of the host's. Of a point-to-point interface the network is the peer's.
type address struct {
	own     netip.Addr
	network netip.Prefix // masked
}

type domains struct {
	known bool
	err   error    // why not
	list  []string // in lower case, without a dot at the end
}

// On tells whether the host is on a network. All that is given has to hold:
//
//   - prefix: one of the host's addresses is in it. Where exact, prefix is one address,
//     and one of the networks that the host's interfaces are on begins with it.
//   - domain, in lower case: it is the host's.
//
// The zero prefix and the empty domain are not considered, so that where neither is
// given the host is there.
func (p *Place) On(prefix netip.Prefix, exact bool, domain string) filter.Presence {
	presence := filter.Here
	if prefix.IsValid() {
		presence = min(presence, presenceIf(p.addresses.known, slices.ContainsFunc(p.addresses.list, func(a address) bool {
			if exact {
				return a.network.Addr() == prefix.Addr()
			}
			return prefix.Contains(a.own)
		})))
	}
	if domain != "" {
		presence = min(presence, presenceIf(p.domains.known, slices.Contains(p.domains.list, domain)))
	}
	return presence
}

func presenceIf(known, there bool) filter.Presence {
	switch {
	case !known:
		return filter.Unknown
	case there:
		return filter.Here
	}
	return filter.Away
}

// Err is why something is not known; nil where all is.
func (p *Place) Err() error { return errors.Join(p.addresses.err, p.domains.err) }

// same tells whether nothing can be told apart.
func (p *Place) same(q *Place) bool {
	return p.addresses.known == q.addresses.known && slices.Equal(p.addresses.list, q.addresses.list) &&
		p.domains.known == q.domains.known && slices.Equal(p.domains.list, q.domains.list)
}
