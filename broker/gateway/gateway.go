package gateway

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"sshbroker/broker/audit"
	"sshbroker/broker/gateway/dial"
	"sshbroker/broker/gateway/generation"
	"sshbroker/broker/gateway/gwconfig"
	"sshbroker/broker/gateway/limit"
	"sshbroker/broker/gateway/metrics"
	"sshbroker/broker/gateway/policy"
	"sshbroker/broker/gateway/say"
	"sshbroker/broker/relay"
)

// Why connections and flows are ended.
var (
	errShutdown = errors.New("the gateway is shutting down")
	errExpired  = errors.New("the client's certificate has ended")
	errIdle     = errors.New("nothing was sent for too long")
)

// auditKeep is how many full audit files are kept beside the current one.
const auditKeep = 4

// Options say what a Gateway is made of. All but Resolver and Dialer are required.
type Options struct {
	Load    func() (*gwconfig.Config, error) // called by New and by each Reload
	Log     *slog.Logger
	Version string

	Resolver policy.Resolver // nil: that of the host
	Dialer   dial.Dialer     // nil: one of the net package
}

// Gateway serves one configuration after the other. Make one with New.
type Gateway struct {
	log      *slog.Logger
	say      *say.Sayer
	load     func() (*gwconfig.Config, error)
	resolver policy.Resolver
	dialer   dial.Dialer
	instance string // tells the records of this process from those of others

	audit      *audit.Log
	auditFile  string
	limiter    *limit.Limiter
	metrics    *metrics.Metrics
	metricsAt  gwconfig.Metrics
	metricsEnd func() error
	relay      relay.Relay

	current     atomic.Pointer[generation.Generation]
	connections atomic.Uint64 // numbers given
	flows       atomic.Uint64

	reloading sync.Mutex // one Reload at a time

	mu        sync.Mutex
	listeners map[netip.AddrPort]*listener
	clients   map[*client]struct{}
	stopped   bool  // nobody is let in any more
	up, down  int64 // bytes of flows that have ended
	serving   sync.WaitGroup
	stop      chan time.Duration // capacity 1: how long Run may drain
	abort     chan struct{}      // capacity 1: no longer
}

// New reads the configuration and opens everything that it names. Nobody is let in
// before Run. The caller calls Run, or Close where it does not.
func New(o Options) (*Gateway, error) {
	cfg, err := o.Load()
	if err != nil {
		return nil, err
	}
	gen, err := generation.New(1, cfg)
	if err != nil {
		return nil, err
	}
	g := &Gateway{
		log: o.Log, load: o.Load, resolver: o.Resolver, dialer: o.Dialer, instance: rand.Text()[:16],
		limiter: limit.New(limitsOf(cfg)), auditFile: cfg.Audit.File, metricsAt: cfg.Metrics,
		listeners: map[netip.AddrPort]*listener{}, clients: map[*client]struct{}{}, stop: make(chan time.Duration, 1), abort: make(chan struct{}, 1),
	}
	if g.resolver == nil {
		g.resolver = net.DefaultResolver
	}
	if g.dialer == nil {
		g.dialer = new(net.Dialer)
	}
	g.metrics = metrics.New(o.Version, metrics.Live{
		Connections: func() int { c, _ := g.limiter.Open(); return c },
		Flows:       func() int { _, f := g.limiter.Open(); return f },
		Bytes:       g.bytes,
		Generation:  func() uint64 { return g.current.Load().Number },
		Expiry:      func() map[string]time.Time { return g.current.Load().Expiry() },
		Audit:       func() (uint64, uint64) { s := g.audit.Stats(); return s.Lost, s.Failures },
	})
	g.say = say.New(o.Log, g.metrics.Suppressed)
	g.current.Store(gen)
	g.audit, err = audit.Open(audit.Options{Path: cfg.Audit.File, Keep: auditKeep, Required: cfg.Audit.Required, Logger: o.Log})
	if err != nil {
		return nil, err
	}
	if err := g.audit.Stats().Failing; err != nil {
		o.Log.Error("the audit record cannot be written", "error", err)
	}
	if err := g.open(gen); err != nil {
		g.Close()
		return nil, err
	}
	if cfg.Metrics.Network != "" {
		server, err := g.metrics.Serve(cfg.Metrics.Network, cfg.Metrics.Address, o.Log)
		if err != nil {
			g.Close()
			return nil, err
		}
		g.metricsEnd = server.Close
	}
	return g, nil
}

// open opens the listeners of gen that are not open yet. Where one cannot be, those
// that were opened here are closed again.
func (g *Gateway) open(gen *generation.Generation) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.stopped {
		return errShutdown
	}
	var opened []netip.AddrPort
	for _, addr := range gen.Addresses() {
		if g.listeners[addr] != nil {
			continue
		}
		l, err := listen(addr)
		if err != nil {
			for _, addr := range opened {
				g.listeners[addr].Close()
				delete(g.listeners, addr)
			}
			return fmt.Errorf("listen at %s: %w", addr, err)
		}
		g.listeners[addr] = l
		opened = append(opened, addr)
	}
	return nil
}

// Addrs are the addresses where clients are let in.
func (g *Gateway) Addrs() []net.Addr {
	g.mu.Lock()
	defer g.mu.Unlock()
	var all []net.Addr
	for _, l := range g.listeners {
		all = append(all, l.Addr())
	}
	return all
}

// Run serves until Stop, or until ctx ends, which ends all flows at once.
func (g *Gateway) Run(ctx context.Context) error {
	gen := g.current.Load()
	g.tellGeneration(gen)
	g.audit.RecordGateway(audit.GatewayRecord{Time: time.Now(), Event: audit.GatewayStart, Instance: g.instance, Generation: gen.Number, Reason: reasonStarted})
	g.startAccepting()
	sweeping := make(chan struct{})
	swept := make(chan struct{})
	go func() {
		defer close(swept)
		g.sweep(sweeping)
	}()
	select {
	case drain := <-g.stop:
		g.drain(ctx, drain)
	case <-ctx.Done():
		g.drain(ctx, 0)
	}
	close(sweeping)
	<-swept
	g.serving.Wait()
	g.say.Flush()
	g.audit.RecordGateway(audit.GatewayRecord{Time: time.Now(), Event: audit.GatewayStop, Instance: g.instance, Generation: g.current.Load().Number, Reason: audit.Shutdown.String()})
	return g.Close()
}

// startAccepting begins with the listeners that have not begun yet.
func (g *Gateway) startAccepting() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, l := range g.listeners {
		if !l.accepting {
			l.accepting = true
			g.serving.Go(func() { g.accept(l) })
		}
	}
}

// Stop has Run end: nobody is let in any more, flows have drain to end by themselves.
func (g *Gateway) Stop(drain time.Duration) {
	select {
	case g.stop <- drain:
	default: // it was told before
	}
}

// Abort has a Stop drain no longer.
func (g *Gateway) Abort() {
	select {
	case g.abort <- struct{}{}:
	default:
	}
}

// Draining is how long flows may go on after a Stop, by the configuration.
func (g *Gateway) Draining() time.Duration { return g.current.Load().Config.Limits.Drain }

// drain waits for the clients to go, and then ends those that stay.
func (g *Gateway) drain(ctx context.Context, most time.Duration) {
	g.mu.Lock()
	g.stopped = true
	for _, l := range g.listeners {
		l.Close()
	}
	clients := g.list()
	g.mu.Unlock()
	for _, c := range clients {
		c.retire(errShutdown)
	}
	limit := time.NewTimer(most)
	defer limit.Stop()
	gone := make(chan struct{})
	go func() {
		g.serving.Wait()
		close(gone)
	}()
	select {
	case <-gone:
		return
	case <-limit.C:
	case <-g.abort:
	case <-ctx.Done():
	}
	g.mu.Lock()
	clients = g.list()
	g.mu.Unlock()
	for _, c := range clients {
		c.end(errShutdown)
	}
	<-gone
}

// list is who is connected; called with the lock.
func (g *Gateway) list() []*client {
	all := make([]*client, 0, len(g.clients))
	for c := range g.clients {
		all = append(all, c)
	}
	return all
}

// Close lets go of everything that New has opened.
func (g *Gateway) Close() error {
	g.mu.Lock()
	for _, l := range g.listeners {
		l.Close()
	}
	g.mu.Unlock()
	var errs []error
	if g.metricsEnd != nil {
		errs = append(errs, g.metricsEnd())
	}
	errs = append(errs, g.relay.Close(), g.audit.Close())
	return errors.Join(errs...)
}

// bytes is what all flows have moved so far.
func (g *Gateway) bytes() (up, down int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	up, down = g.up, g.down
	for c := range g.clients {
		c.mu.Lock()
		for f := range c.flows {
			// As relay has it, up is from the program, which is the backend here.
			up += f.count.Down.Load()
			down += f.count.Up.Load()
		}
		c.mu.Unlock()
	}
	return up, down
}
