package daemon

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"sshbroker/broker"
	"sshbroker/broker/config"
	"sshbroker/broker/control"
	"sshbroker/capture"
	"sshbroker/profiles"
)

// loaded is one configuration, ready to be brought into force.
type loaded struct {
	policy  *broker.Policy
	present bool // a filter-engine was given anywhere
	pool4   netip.Prefix
	pool6   netip.Prefix
	files   []string
	host    config.Host
	users   []capture.UIDRange // of a system broker: whose flows
	static  []config.Tunnel
	local   []config.Tunnel   // of profiles
	startup []string          // profiles that are connected to without a flow
	digest  [sha256.Size]byte // of the files
	warn    []string
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
	l := &loaded{
		policy:  &broker.Policy{Rules: c.Filter, Profiles: c.Profiles, Defaults: c.Defaults, Logins: c.Logins},
		host:    c.Host,
		startup: c.Startup,
		static:  c.StaticTunnels, local: c.LocalTunnels,
		present: c.FilterPresent, pool4: c.Pool4, pool6: c.Pool6, files: c.Files, digest: c.Digest,
	}
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
func (d *Daemon) replace(l *loaded) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !l.present {
		for id, s := range d.captures {
			if s.needsRules() {
				return fmt.Errorf("there is no filter-engine in any configuration file any more, and capture %s began under one: it would go out in clear", id)
			}
		}
	}
	d.put(l)
	return nil
}

// needsRules says that the capture goes by the common rules and must not be without.
func (s *served) needsRules() bool { return s.capture.Policy == nil && !s.args.AllowDirect }

// put does it; the caller holds mu.
func (d *Daemon) put(l *loaded) {
	l.policy.Generation = 1
	if d.loaded != nil {
		l.policy.Generation = d.loaded.policy.Generation + 1
	}
	d.loaded = l
	if l.policy.Rules == nil {
		// No rules anywhere: only captures that allow it get here, and go direct.
		l.policy.Rules = directOnly()
	}
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
	l, err := d.load()
	if err == nil {
		err = d.replace(l)
	}
	if err != nil {
		d.Log.Warn("configuration not reloaded, the old one stays", "error", err)
		return control.ReloadResult{}, &control.Error{Code: control.CodeConfig,
			Message: fmt.Sprintf("the configuration was not reloaded, the old one stays in force:\n%v", err),
			Hint:    "mend the file, see it pass ssh-broker-ctl check-config, then reload again"}
	}
	d.retire()
	if d.system != nil {
		d.system.resolve()
	}
	warnings := append(slices.Clone(l.warn), d.renewAll()...)
	d.Log.Info("configuration reloaded", "generation", l.policy.Generation)
	return control.ReloadResult{Generation: l.policy.Generation, Changed: l.digest != before, Warnings: warnings}, nil
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
		if s.capture.Policy != nil {
			policies = append(policies, s.capture.Policy)
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
