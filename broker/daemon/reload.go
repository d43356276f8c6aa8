package daemon

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"sshbroker/broker"
	"sshbroker/broker/config"
	"sshbroker/broker/control"
	"sshbroker/broker/eventlog"
	"sshbroker/capture"
	"sshbroker/filter"
	"sshbroker/profiles"
)

// loaded is one configuration, ready to be brought into force.
type loaded struct {
	policy  *broker.Policy // with what of rules is in force
	rules   *filter.Set    // wherever the host is
	present bool           // a filter-engine was given anywhere

	networks     []config.Network
	on           map[string]filter.Presence // for which policy is made, by the networks' ids
	pool4, pool6 netip.Prefix               // where no network has others

	static  []config.Tunnel
	local   []config.Tunnel // of profiles
	startup []string        // profiles that are connected to without a flow

	files  []string
	host   config.Host
	users  []capture.UIDRange // of a system broker: whose flows
	digest [sha256.Size]byte  // of the files
	warn   []string

	logging eventlog.Routing
	metrics config.Metrics
}

func (d *Daemon) load() (*loaded, error) {
	l, err := d.loadFrom(d.Config)
	if err != nil || !d.System {
		return l, err
	}
	return l, d.forSystem(l, uint32(os.Getuid()))
}

func (d *Daemon) loadFrom(o config.Options) (*loaded, error) {
	if o.Env.UserName == nil {
		o.Env.UserName, o.Env.GroupName = userName, groupName
	}
	c, err := config.Load(o)
	if err != nil {
		return nil, err
	}
	rules := c.Filter
	if rules == nil {
		rules = directOnly() // only captures that allow it go by it
	}
	l := &loaded{
		policy: &broker.Policy{Rules: rules, Profiles: c.Profiles, Defaults: c.Defaults, Logins: c.Logins, NoRules: !c.FilterPresent},
		rules:  rules, present: c.FilterPresent, networks: c.Networks,
		pool4: c.Pool4, pool6: c.Pool6, files: c.Files, digest: c.Digest, host: c.Host, logging: c.Logging, metrics: c.Metrics,
		static: c.StaticTunnels, local: c.LocalTunnels, startup: c.Startup,
	}
	d.mu.Lock()
	l = l.at(d.place)
	d.mu.Unlock()
	for _, w := range c.Warnings.OfKind(config.General) {
		l.warn = append(l.warn, w.String())
	}
	return l, nil
}

// install brings the first configuration into force.
func (d *Daemon) install(l *loaded) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.put(l)
}

// replace brings another one into force, unless it has no rules while there are
// captures that began under some: they would go out in clear unasked.
func (d *Daemon) replace(l *loaded) (generation int, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !l.present {
		for id, s := range d.captures {
			if s.needsRules() {
				return 0, fmt.Errorf("there is no filter-engine in any configuration file any more, and capture %s began under one: it would go out in clear", id)
			}
		}
	}
	d.put(l)
	return d.loaded.policy.Generation, nil
}

// needsRules says that the capture goes by the common rules and must not be without.
func (s *served) needsRules() bool { return s.way.own == nil && !s.args.AllowDirect }

// put does it; the caller holds mu.
func (d *Daemon) put(l *loaded) {
	l = l.at(d.place) // which may have changed while it was read
	l.policy.Generation, l.policy.Since = 1, time.Now()
	if d.loaded != nil {
		l.policy.Generation = d.loaded.policy.Generation + 1
	}
	d.loaded = l
	d.Events.Apply(l.logging)
	d.broker.SetPolicy(l.policy)
	d.keepOpen(l)
	d.ports.bring(l)
}

// Reload reads the configuration again: the new one comes into force whole, or the
// old one stays and the error says what is wrong with the new.
func (d *Daemon) Reload() (control.ReloadResult, error) {
	d.reloading.Lock()
	defer d.reloading.Unlock()
	d.mu.Lock()
	before := d.loaded.digest
	d.mu.Unlock()
	generation := 0
	l, err := d.load()
	if err == nil {
		generation, err = d.replace(l)
	}
	if d.reloaded(err) != nil {
		d.Log.Warn("configuration not reloaded, the old one stays", "error", err)
		d.Events.Reopen() // after a rotation, whatever is wrong with the file
		d.tellNotReloaded(err)
		return control.ReloadResult{}, &control.Error{Code: control.CodeConfig,
			Message: fmt.Sprintf("the configuration was not reloaded, the old one stays in force:\n%v", err),
			Hint:    "mend the file, see it pass ssh-broker-ctl check-config, then reload again"}
	}
	d.expose()
	d.retire()
	if d.system != nil {
		d.system.resolve()
	}
	warnings := append(slices.Clone(l.warn), d.renewAll()...)
	d.logPlace()
	d.Log.Info("configuration reloaded", "generation", generation)
	d.tellReloaded(l, l.digest != before)
	return control.ReloadResult{Generation: generation, Changed: l.digest != before, Warnings: warnings}, nil
}

// retire lets go of transports whose way out no configuration has any more. Those to
// a host that a program asked for go as well, after their last stream: they are
// opened again when they are needed.
func (d *Daemon) retire() {
	keep := map[profiles.Key]bool{}
	note := func(p *profiles.Profile) {
		for ; p != nil; p = p.Gateway {
			keep[p.Key()] = true
		}
	}
	d.mu.Lock()
	policies := []*broker.Policy{d.loaded.policy}
	for _, s := range d.captures {
		if s.way.own != nil {
			policies = append(policies, s.way.own.policy)
		}
	}
	d.mu.Unlock()
	for _, policy := range policies {
		note(policy.Defaults)
		for _, p := range policy.Profiles {
			note(p)
		}
	}
	d.pool.Retire(func(k profiles.Key) bool { return keep[k] })
}
