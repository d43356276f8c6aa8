package names

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"
)

// Policy says which names are pseudo. It is called with normalized names, by several
// goroutines, and may change its mind between calls.
type Policy interface {
	Pseudo(name string) bool
}

// Dialer opens the sockets to the host's resolvers; *net.Dialer is one.
type Dialer interface {
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}

// Defaults of Config.
const (
	DefaultMaxNames   = 1 << 16
	DefaultQuarantine = 24 * time.Hour
)

// DefaultPool4 is the range for benchmarks (RFC 2544), the least surprising one.
var DefaultPool4 = netip.MustParsePrefix("198.18.0.0/15")

// Config says how one capture's names are handled.
type Config struct {
	Policy Policy // required, unless AllPseudo

	// AllPseudo makes every name pseudo. No query but those for localhost then
	// leaves an answer that was not made here, and none goes to a resolver.
	AllPseudo bool

	Pool4 netip.Prefix // zero: DefaultPool4
	Pool6 netip.Prefix // zero: no pseudo name has an IPv6 address

	HostsFile  string // the host's; "": none
	ResolvFile string // the host's; "": nothing is forwarded

	// Journal is the file that keeps the pseudo addresses for a broker that takes
	// the capture over. "": they are lost with this process.
	Journal string

	// Quarantine is how long a pseudo address must not have been used before it may
	// stand for another name, once the pool has no fresh one. 0: DefaultQuarantine.
	Quarantine time.Duration

	MaxNames int // pseudo addresses, and remembered names; 0: DefaultMaxNames

	Dialer Dialer       // nil: a plain net.Dialer
	Logger *slog.Logger // required

	// Trace is told of every query that could be read, with names as they were
	// normalized; nil: nobody watches. It must not block.
	Trace func(text string)
}

// Stats count since New.
type Stats struct {
	Queries    uint64 // that could be read
	Pseudo     uint64 // answered from the pool
	Local      uint64 // answered from hosts, or without data
	Forwarded  uint64 // answered by a resolver
	Failed     uint64 // no resolver answered, or not as it must
	BadNames   uint64 // refused for their name
	Malformed  uint64
	Dropped    uint64 // too many at once
	Exhausted  uint64 // no pseudo address was free
	Unsaved    uint64 // the journal could not be written
	Remembered int    // names behind addresses, now
	Assigned   int    // pseudo addresses, now
}

// Names is the knowledge of one capture. Safe for concurrent use.
type Names struct {
	cfg    Config
	pool   *pool
	memory *memory
	hosts  watched[hosts]
	up     *upstream
	log    *slog.Logger

	queries, pseudo, local, forwarded, failed   atomic.Uint64
	badNames, malformed, dropped, full, unsaved atomic.Uint64

	repeated repeated // bounds what hostile programs can make us log

	inFlight    chan struct{}
	connections chan struct{}
}

// New makes the Names of one capture. Where the journal holds pseudo addresses of a
// former process they are in force again. The caller calls Close.
func New(cfg Config) (*Names, error) {
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
	if cfg.Dialer == nil {
		cfg.Dialer = new(net.Dialer)
	}
	p, err := newPool(cfg.Pool4, cfg.Pool6, cfg.MaxNames, cfg.Quarantine)
	if err != nil {
		return nil, fmt.Errorf("names: %w", err)
	}
	n := &Names{
		cfg:         cfg,
		pool:        p,
		memory:      newMemory(cfg.MaxNames),
		hosts:       watched[hosts]{path: cfg.HostsFile, parse: parseHosts},
		log:         cfg.Logger,
		inFlight:    make(chan struct{}, maxInFlight),
		connections: make(chan struct{}, maxConnections),
	}
	n.up = newUpstream(cfg.ResolvFile, cfg.Dialer)
	if cfg.Journal != "" {
		if err := n.restore(); err != nil {
			return nil, fmt.Errorf("names: %w", err)
		}
	}
	return n, nil
}

// restore reads the journal and keeps it open for what is assigned from now on.
func (n *Names) restore() error {
	j, err := openJournal(n.cfg.Journal)
	if err != nil {
		return err
	}
	lines, bad, err := j.load(n.pool.restore)
	if err != nil {
		j.close()
		return err
	}
	if bad > 0 {
		n.log.Warn("parts of the pseudo address journal were ignored", "file", n.cfg.Journal, "ignored", bad, "taken", lines-bad)
	}
	if live := n.pool.len(); lines > 2*live+1000 {
		if err := j.replace(n.pool.each); err != nil {
			n.log.Warn("pseudo address journal cannot be shortened", "file", n.cfg.Journal, "error", err)
		}
	}
	n.pool.journal = j
	return nil
}

// Close closes the journal. End Serve first.
func (n *Names) Close() error { return n.pool.close() }

// Lookup returns the names behind addr, most recent first. A pool address has one or
// none. The names of the hosts file come last. The caller owns the slice.
func (n *Names) Lookup(addr netip.Addr) []string {
	addr = addr.Unmap()
	if n.pool.contains(addr) {
		if name, ok := n.pool.name(addr); ok {
			return []string{name}
		}
		return nil
	}
	list := n.memory.lookup(addr)
	for _, name := range n.hosts.get().names[addr] {
		if !slices.Contains(list, name) {
			list = append(list, name)
		}
	}
	return list
}

// Asked reports whether the capture's programs asked for name and were told addr. The
// hosts file alone makes a name known to rules; who never asked gave the address.
func (n *Names) Asked(addr netip.Addr, name string) bool {
	addr = addr.Unmap()
	if n.pool.contains(addr) {
		known, ok := n.pool.name(addr)
		return ok && known == name
	}
	return slices.Contains(n.memory.lookup(addr), name)
}

// IsPool reports whether addr is one of the pool's range, whether or not it stands
// for a name. A flow to one that does not is refused.
func (n *Names) IsPool(addr netip.Addr) bool { return n.pool.contains(addr.Unmap()) }

// Hold keeps a pseudo address from being given to another name while a flow to it
// lives. The caller calls release once; it does nothing for other addresses.
func (n *Names) Hold(addr netip.Addr) (release func()) { return n.pool.hold(addr.Unmap()) }

// Seed makes names known behind addr as if they had been asked, the last one most
// recently. Names that cannot be used, and pool addresses, are passed over.
func (n *Names) Seed(addr netip.Addr, names ...string) {
	addr = addr.Unmap()
	if n.pool.contains(addr) {
		return
	}
	for _, name := range names {
		if name, err := Normalize(name); err == nil {
			n.memory.remember(addr, name)
		}
	}
}

// Stats returns the counts so far.
func (n *Names) Stats() Stats {
	return Stats{
		Queries:    n.queries.Load(),
		Pseudo:     n.pseudo.Load(),
		Local:      n.local.Load(),
		Forwarded:  n.forwarded.Load(),
		Failed:     n.failed.Load(),
		BadNames:   n.badNames.Load(),
		Malformed:  n.malformed.Load(),
		Dropped:    n.dropped.Load(),
		Exhausted:  n.full.Load(),
		Unsaved:    n.unsaved.Load(),
		Remembered: n.memory.len(),
		Assigned:   n.pool.len(),
	}
}

// warn logs at most once a minute for each message; total tells how often it was due.
func (n *Names) warn(message string, total uint64, args ...any) {
	if n.repeated.due(message) {
		n.log.Warn(message, append(args, "total", total)...)
	}
}
