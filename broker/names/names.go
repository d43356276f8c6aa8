package names

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
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
	DefaultMaxUsers   = 1 << 10
	DefaultUserNames  = 1 << 12
)

// DefaultPool4 is the range for benchmarks (RFC 2544), the least surprising one.
var DefaultPool4 = netip.MustParsePrefix("198.18.0.0/15")

// Config says how the names of one capture, or of a host's users, are handled.
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

	// For Users alone: uids that are remembered, and bounds for each of them.
	MaxUsers  int // 0: DefaultMaxUsers
	UserNames int // pseudo addresses, and remembered names; 0: DefaultUserNames

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
	Unowned    uint64 // queries of Users that were not answered, as nobody could tell whose they were
	Users      int    // remembered, now
}

// Names is the knowledge of one capture. Safe for concurrent use.
type Names struct {
	*responder
	*asker // its programs, whoever they are
}

// New makes the Names of one capture. Where the journal holds pseudo addresses of a
// former process they are in force again. The caller calls Close.
func New(cfg Config) (*Names, error) {
	r, err := newResponder(cfg)
	if err != nil {
		return nil, err
	}
	n := &Names{r, &asker{memory: newMemory(r.cfg.MaxNames)}}
	r.senderOf = func(sender) *asker { return n.asker }
	r.peerOf = func(net.Conn) *asker { return n.asker }
	return n, nil
}

// Close closes the journal. End Serve first.
func (n *Names) Close() error { return n.pool.close() }

// Serve answers queries on sockets made inside the capture until ctx ends. Replies
// leave from the address that a socket is bound to, so bind to 127.0.0.1 and ::1, not
// to the wildcard. It owns the sockets and closes them, and returns when no goroutine
// of it is left. Being told to stop is no error.
func (n *Names) Serve(ctx context.Context, udp []net.PacketConn, tcp []net.Listener) error {
	return n.serve(ctx, udp, tcp, false)
}

// Lookup returns the names behind addr, most recent first. A pool address has one or
// none. The names of the hosts file come last. The caller owns the slice.
func (n *Names) Lookup(addr netip.Addr) []string { return n.lookup(n.asker, addr) }

// Asked reports whether the capture's programs asked for name and were told addr. The
// hosts file alone makes a name known to rules; who never asked gave the address.
func (n *Names) Asked(addr netip.Addr, name string) bool { return n.asked(n.asker, addr, name) }

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
			n.remember(addr, name)
		}
	}
}

// Stats returns the counts so far.
func (n *Names) Stats() Stats {
	s := n.stats()
	s.Remembered = n.memory.len()
	return s
}

// handle answers one message of the capture's programs.
func (n *Names) handle(ctx context.Context, msg []byte, tcp bool) []byte {
	return n.responder.handle(ctx, n.asker, msg, tcp)
}
