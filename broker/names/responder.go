package names

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
)

// responder is what Names and Users share: everything but who asks.
type responder struct {
	cfg   Config // with the defaults filled in
	pool  *pool
	hosts watched[hosts]
	up    *upstream
	log   *slog.Logger

	// senderOf and peerOf tell who sent a datagram, and who is at the other end of a
	// connection; neither is nil or returns nil. They may ask the kernel, which takes
	// some time.
	senderOf func(sender) *asker
	peerOf   func(net.Conn) *asker

	queries, pseudo, local, forwarded, failed   atomic.Uint64
	badNames, malformed, dropped, full, unsaved atomic.Uint64
	unowned                                     atomic.Uint64

	repeated repeated // bounds what hostile programs can make us log

	inFlight    chan struct{}
	connections chan struct{}
}

// newResponder checks cfg and fills in what is left to us. The caller sets senderOf and peerOf.
func newResponder(cfg Config) (*responder, error) {
	if cfg.Policy == nil && !cfg.AllPseudo {
		return nil, errors.New("names: no policy given")
	}
	if cfg.Logger == nil {
		return nil, errors.New("names: no logger given")
	}
	if cfg.Pool4 == (netip.Prefix{}) {
		cfg.Pool4 = DefaultPool4
	}
	if cfg.Quarantine == 0 {
		cfg.Quarantine = DefaultQuarantine
	}
	if cfg.MaxNames <= 0 {
		cfg.MaxNames = DefaultMaxNames
	}
	if cfg.MaxUsers <= 0 {
		cfg.MaxUsers = DefaultMaxUsers
	}
	if cfg.UserNames <= 0 {
		cfg.UserNames = min(DefaultUserNames, cfg.MaxNames)
	}
	if cfg.Dialer == nil {
		cfg.Dialer = new(net.Dialer)
	}
	p, err := newPool(cfg.Pool4, cfg.Pool6, cfg.MaxNames, cfg.Quarantine)
	if err != nil {
		return nil, fmt.Errorf("names: %w", err)
	}
	r := &responder{
		cfg:         cfg,
		pool:        p,
		hosts:       watched[hosts]{path: cfg.HostsFile, parse: parseHosts},
		up:          newUpstream(cfg.ResolvFile, cfg.Dialer),
		log:         cfg.Logger,
		inFlight:    make(chan struct{}, maxInFlight),
		connections: make(chan struct{}, maxConnections),
	}
	if cfg.Journal != "" {
		if err := r.restore(); err != nil {
			return nil, fmt.Errorf("names: %w", err)
		}
	}
	return r, nil
}

// restore reads the journal and keeps it open for what is assigned from now on.
func (r *responder) restore() error {
	j, err := openJournal(r.cfg.Journal)
	if err != nil {
		return err
	}
	lines, bad, err := j.load(r.pool.restore)
	if err != nil {
		j.close()
		return err
	}
	if bad > 0 {
		r.log.Warn("parts of the pseudo address journal were ignored", "file", r.cfg.Journal, "ignored", bad, "taken", lines-bad)
	}
	if live := r.pool.len(); lines > 2*live+1000 {
		if err := j.replace(r.pool.each); err != nil {
			r.log.Warn("pseudo address journal cannot be shortened", "file", r.cfg.Journal, "error", err)
		}
	}
	r.pool.journal = j
	return nil
}

// lookup returns what a knows, then what the host knows; a may be nil.
func (r *responder) lookup(a *asker, addr netip.Addr) []string {
	addr = addr.Unmap()
	if r.pool.contains(addr) {
		if name, ok := r.pool.name(addr); ok {
			return []string{name}
		}
		return nil
	}
	list := a.names(addr)
	for _, name := range r.hosts.get().names[addr] {
		if !slices.Contains(list, name) {
			list = append(list, name)
		}
	}
	return list
}

func (r *responder) asked(a *asker, addr netip.Addr, name string) bool {
	addr = addr.Unmap()
	if r.pool.contains(addr) { // means nothing but its name
		known, ok := r.pool.name(addr)
		return ok && known == name
	}
	return slices.Contains(a.names(addr), name)
}

func (r *responder) stats() Stats {
	return Stats{
		Queries:   r.queries.Load(),
		Pseudo:    r.pseudo.Load(),
		Local:     r.local.Load(),
		Forwarded: r.forwarded.Load(),
		Failed:    r.failed.Load(),
		BadNames:  r.badNames.Load(),
		Malformed: r.malformed.Load(),
		Dropped:   r.dropped.Load(),
		Exhausted: r.full.Load(),
		Unsaved:   r.unsaved.Load(),
		Unowned:   r.unowned.Load(),
		Assigned:  r.pool.len(),
	}
}

// warn logs at most once a minute for each message; total tells how often it was due.
func (r *responder) warn(message string, total uint64, args ...any) {
	if r.repeated.due(message) {
		r.log.Warn(message, append(args, "total", total)...)
	}
}
