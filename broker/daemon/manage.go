package daemon

import (
	"context"
	"maps"
	"slices"

	"sshbroker/broker/control"
	"sshbroker/profiles"
)

// byID serves an operation on one thing that has a number.
func byID(do func(id uint64) error) control.Handler {
	return func(_ context.Context, call *control.Call) error {
		var args control.IDArgs
		if err := call.Decode(&args); err != nil {
			return err
		}
		return do(args.ID)
	}
}

func (d *Daemon) handleProfiles(_ context.Context, call *control.Call) error {
	d.mu.Lock()
	l := d.loaded
	d.mu.Unlock()
	connected := map[string]int{}
	for _, in := range d.pool.List() {
		if in.Connected {
			connected[in.ProfileID]++
		}
	}
	for _, id := range slices.Sorted(maps.Keys(l.policy.Profiles)) {
		p := l.policy.Profiles[id]
		row := control.ProfileRow{ID: id, Name: p.Name, Servers: []string{}, User: p.User, Proxy: p.Proxy != "" || p.HTTPSProxy != "",
			Exclusive: p.Exclusive, Transports: max(p.Transports, 1), Startup: slices.Contains(l.startup, id), Connected: connected[id]}
		if p.Host != "" && p.Host != "*" {
			row.Servers = append(row.Servers, profiles.Server{Host: p.Host, Port: p.Port}.String())
		}
		for _, s := range p.More {
			row.Servers = append(row.Servers, s.String())
		}
		if p.Gateway != nil {
			row.Gateway = p.Gateway.ID
		}
		if err := call.Send(row); err != nil {
			return err
		}
	}
	return nil
}

func (d *Daemon) handleClients(_ context.Context, call *control.Call) error {
	for _, c := range d.server.Clients() {
		row := control.ClientRow{ID: c.ID, PID: c.PID, UID: c.UID, Program: originOf(c.PID).Exe, Operation: c.Operation, Since: c.Since}
		if err := call.Send(row); err != nil {
			return err
		}
	}
	return nil
}
