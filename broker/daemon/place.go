package daemon

import (
	"context"
	"maps"
	"net/netip"
	"slices"

	"sshbroker/broker/config"
	"sshbroker/broker/control"
	"sshbroker/broker/location"
	"sshbroker/broker/names"
	"sshbroker/filter"
)

// place is where the host is; *location.Place is one.
type place interface {
	On(prefix netip.Prefix, exact bool, domain string) filter.Presence
	Err() error // why something is not known
}

var hostFiles = location.Files{Hosts: hostsFile, Resolv: resolvFile}

// watchPlace has told called with the place, and again when it has changed, until ctx
// ends.
func (d *Daemon) watchPlace(ctx context.Context, told func(place)) {
	first := true
	location.Watch(ctx, hostFiles, d.Log, func(p *location.Place) {
		told(p)
		if !first { // with other addresses, connections from the old ones may be dead
			d.pool.Recheck(aliveWithin)
		}
		first = false
	})
}

// at returns l with what of it is in force at p: l itself where that alters nothing.
// The generation stays the same.
func (l *loaded) at(p place) *loaded {
	on := config.Presences(l.networks, p.On)
	if maps.Equal(on, l.on) {
		return l
	}
	moved, policy := *l, *l.policy
	policy.Rules = l.rules.At(func(network string) filter.Presence { return on[network] })
	moved.policy, moved.on = &policy, on
	return &moved
}

// pools are the addresses for names of a capture that begins now.
func (l *loaded) pools() (pool4, pool6 netip.Prefix) {
	return config.Pools(l.networks, l.pool4, l.pool6, func(id string) bool { return l.on[id] == filter.Here })
}

// takenPools are pools for a capture that another broker served, which may have begun
// elsewhere: those whose addresses its journal says that its programs hold.
func (l *loaded) takenPools(journal string) (pool4, pool6 netip.Prefix) {
	pool4, pool6 = l.pools()
	held, ok := names.JournalAddress(journal)
	if !ok || pool4.Contains(held) {
		return pool4, pool6
	}
	for i := range len(l.networks) + 1 {
		other4, other6 := config.Pools(l.networks[i:min(i+1, len(l.networks))], l.pool4, l.pool6, func(string) bool { return true })
		if other4.Contains(held) {
			return other4, other6
		}
	}
	return pool4, pool6
}

// moved brings into force what holds at p, for every capture. Flows that live keep the
// rules that they began with, and captures the addresses that their programs hold. It
// never meets a reload half-way.
func (d *Daemon) moved(p place) {
	d.reloading.Lock()
	defer d.reloading.Unlock()
	d.mu.Lock()
	d.place = p
	l := d.loaded.at(p)
	altered := l != d.loaded
	if altered {
		d.loaded = l
		d.broker.SetPolicy(l.policy)
	}
	for _, s := range d.captures {
		altered = s.at(p) || altered
	}
	d.mu.Unlock()
	if !altered {
		return
	}
	d.logPlace()
	d.renewAll()
}

// logPlace says where the host is, if anything depends on it.
func (d *Daemon) logPlace() {
	d.mu.Lock()
	l, p := d.loaded, d.place
	d.mu.Unlock()
	if unknown := l.networksBy(filter.Unknown); len(unknown) > 0 {
		d.Log.Warn("it is not known whether the host is on some networks: their rules that may send in clear are not in force",
			"networks", unknown, "error", p.Err())
	}
	if len(l.networks) > 0 {
		d.Log.Info("where the host is", "networks", l.networksBy(filter.Here))
	}
}

// at brings a capture's own rules into force as they are at p, and tells whether that
// alters them. The caller holds Daemon.mu.
func (s *served) at(p place) (altered bool) {
	if s.way.own == nil {
		return false
	}
	before := s.way.own
	s.way.own = before.at(p)
	s.policy.Store(s.way.own.policy)
	return s.way.own != before
}

// networksBy lists the networks of one presence in the order of the file.
func (l *loaded) networksBy(presence filter.Presence) (ids []string) {
	for _, n := range l.networks {
		if l.on[n.ID] == presence && !slices.Contains(ids, n.ID) {
			ids = append(ids, n.ID)
		}
	}
	return ids
}

// networkStatus tells of each network whether the host is on it.
func (l *loaded) networkStatus() (rows []control.NetworkStatus) {
	words := map[filter.Presence]string{filter.Here: control.NetworkHere, filter.Away: control.NetworkAway, filter.Unknown: control.NetworkUnknown}
	for _, n := range l.networks {
		rows = append(rows, control.NetworkStatus{ID: n.ID, On: words[l.on[n.ID]]})
	}
	return rows
}
