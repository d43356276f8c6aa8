package gateway

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"sshbroker/broker/gateway/generation"
)

// Reload reads the configuration and all files anew. It is in force for everything or,
// where it returns an error, for nothing: then the old one stays.
func (g *Gateway) Reload() error {
	g.reloading.Lock()
	defer g.reloading.Unlock()
	cfg, err := g.load()
	if err == nil {
		var gen *generation.Generation
		if gen, err = generation.New(g.current.Load().Number+1, cfg); err == nil {
			err = g.enforce(gen)
		}
	}
	g.metrics.Reload(err == nil)
	return err
}

// refresh reads the files of the configuration in force anew: certificates and
// revocation lists.
func (g *Gateway) refresh() error {
	g.reloading.Lock()
	defer g.reloading.Unlock()
	old := g.current.Load()
	gen, err := generation.New(old.Number+1, old.Config)
	if err == nil {
		err = g.enforce(gen)
	}
	g.metrics.Reload(err == nil)
	return err
}

// enforce puts a generation in force, and ends what it does not allow.
func (g *Gateway) enforce(gen *generation.Generation) error {
	if err := g.open(gen); err != nil {
		return err
	}
	g.current.Store(gen)
	g.limiter.Set(limitsOf(gen.Config))
	g.startAccepting()
	wanted := gen.Addresses()
	g.mu.Lock()
	for addr, l := range g.listeners {
		if !slices.Contains(wanted, addr) {
			l.Close()
			delete(g.listeners, addr)
		}
	}
	clients := g.list()
	g.mu.Unlock()
	for _, c := range clients {
		if c.judge(gen) != nil {
			continue
		}
		c.mu.Lock()
		flows := slices.Collect(maps.Keys(c.flows))
		c.mu.Unlock()
		for _, f := range flows {
			f.judge(gen)
		}
	}
	g.tellGeneration(gen)
	return nil
}

// tellGeneration logs what is in force, and what a person should know of it.
func (g *Gateway) tellGeneration(gen *generation.Generation) {
	g.log.Info("configuration in force", "generation", gen.Number, "services", len(gen.Config.Services))
	for _, w := range gen.Trust.Warnings(time.Now()) {
		g.log.Warn(w)
	}
	if gen.Config.Audit.File != g.auditFile || gen.Config.Metrics != g.metricsAt {
		g.log.Warn("another audit file, and another place for metrics, count when the gateway is started again")
	}
}

// sweepEvery is how often clients are looked at, filesEvery the files.
const (
	sweepEvery = time.Second
	filesEvery = 2 * time.Second
)

// sweep does, until stop is closed, what has to be looked for: flows on which nothing
// moves, certificates whose end a change of the clock has brought, files that were
// replaced, log lines that were left out.
func (g *Gateway) sweep(stop <-chan struct{}) {
	ticker := time.NewTicker(sweepEvery)
	defer ticker.Stop()
	seen := g.current.Load().Files()
	looked := time.Now()
	for {
		select {
		case <-stop:
			return
		case <-ticker.C:
		}
		now := time.Now()
		g.say.Report(now)
		g.sweepClients(now)
		if now.Sub(looked) < filesEvery {
			continue
		}
		looked = now
		gen := g.current.Load()
		there := gen.Look()
		if maps.Equal(there, gen.Files()) || maps.Equal(there, seen) {
			continue
		}
		seen = there // a broken file is complained of once
		if err := g.refresh(); err != nil {
			g.log.Error("files have changed and cannot be used, the old ones stay in force", "error", err)
		}
	}
}

func (g *Gateway) sweepClients(now time.Time) {
	idle := g.current.Load().Config.Limits.Idle
	g.mu.Lock()
	clients := g.list()
	g.mu.Unlock()
	for _, c := range clients {
		if now.Round(0).After(c.who.NotAfter) { // by the clock on the wall
			c.end(errExpired)
			continue
		}
		if idle <= 0 {
			continue
		}
		c.mu.Lock()
		var quiet []*flow
		for f := range c.flows {
			if moved := f.count.Up.Load() + f.count.Down.Load(); moved != f.moved {
				f.moved, f.movedAt = moved, now
			} else if now.Sub(f.movedAt) >= idle {
				quiet = append(quiet, f)
			}
		}
		c.mu.Unlock()
		for _, f := range quiet {
			f.end(fmt.Errorf("%w: %v", errIdle, idle))
		}
	}
}
