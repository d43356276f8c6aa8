package daemon

import (
	"context"

	"sshbroker/profiles"
)

// keepOpen has a connection to each profile with connect-on-startup, and lets go of those
// that a reload has taken that from. A profile that is as it was keeps its connection.
// The caller holds mu.
func (d *Daemon) keepOpen(l *loaded) {
	wanted := map[profiles.Key]*profiles.Profile{}
	for _, id := range l.startup {
		p := l.policy.Profiles[id]
		wanted[p.Key()] = p
	}
	for key, end := range d.kept {
		if wanted[key] == nil {
			end()
			delete(d.kept, key)
		}
	}
	for key, p := range wanted {
		if d.kept[key] != nil {
			continue
		}
		ctx, end := context.WithCancel(d.ctx)
		d.kept[key] = end
		d.capWG.Go(func() { d.pool.Keep(ctx, p) })
	}
}
