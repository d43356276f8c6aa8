package listeners

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"sshbroker/capture"
)

// Peer is the program at the other end of a connection.
type Peer struct {
	Here   bool // it runs on this host; else nothing else is known
	UID    uint32
	Origin func() capture.Origin
}

// Config is what a Set is made of. All of it is required but AnyUser.
type Config struct {
	// Serve decides about what a listener hands over, until its source is closed.
	Serve func(*Listener)
	// Peer finds out who is at the other end of an accepted connection.
	Peer func(*net.TCPConn) (Peer, error)
	// UID is whose programs may use what is not for everybody; root's may as well.
	UID uint32
	// AnyUser lets the programs of all users of this host.
	AnyUser bool
	Log     *slog.Logger
}

// Set is the listeners of one broker. Safe for concurrent use.
type Set struct {
	Config
	tasks sync.WaitGroup

	mu     sync.Mutex
	lastID uint64
	list   map[uint64]*Listener
	shut   map[Spec]bool // wanted by the configuration, and closed by a person
	over   bool
}

// ErrClosed is returned for a Set that is closed, ErrUnknown for a listener that is not there.
var (
	ErrClosed  = errors.New("the broker is stopping")
	ErrUnknown = errors.New("there is no such listener")
)

// NewSet returns an empty Set. The caller closes it.
func NewSet(c Config) *Set {
	return &Set{Config: c, list: make(map[uint64]*Listener), shut: make(map[Spec]bool)}
}

// Want has exactly these be open for the configuration, beside those that were opened by
// Open. What is open already stays as it is, with its connections; what is not wanted any
// more takes no new ones. A port that is taken is tried again and again.
func (s *Set) Want(specs []Spec) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return
	}
	wanted := make(map[Spec]bool, len(specs))
	for _, spec := range specs {
		wanted[spec] = true
	}
	for spec := range s.shut {
		if !wanted[spec] {
			delete(s.shut, spec)
		}
	}
	for _, l := range s.list {
		switch {
		case l.byHand:
		case wanted[l.Spec]:
			delete(wanted, l.Spec)
		default:
			s.closeLocked(l)
		}
	}
	for _, spec := range specs {
		if !wanted[spec] || s.shut[spec] {
			continue
		}
		delete(wanted, spec)
		l := s.addLocked(spec)
		err := l.open() // at once, so that who was told that we run finds it open
		s.tasks.Go(func() { l.keepOpen(err) })
	}
}

// Open opens a listener that no configuration asks for. Its errors are those of the
// kernel, as for a port that is taken, and ErrClosed.
func (s *Set) Open(spec Spec) (Info, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return Info{}, ErrClosed
	}
	l := s.addLocked(spec)
	l.byHand = true
	if err := l.open(); err != nil {
		s.closeLocked(l)
		return Info{}, err
	}
	s.tasks.Go(func() { l.accept() })
	return l.Info(), nil
}

func (s *Set) addLocked(spec Spec) *Listener {
	s.lastID++
	life, end := context.WithCancel(context.Background())
	l := &Listener{Spec: spec, set: s, id: s.lastID, attempts: make(chan capture.Attempt), life: life, end: end,
		places: make(chan struct{}, maxUndecided)}
	s.list[l.id] = l
	return l
}

// Close closes a listener by its id; its connections go on. One that the configuration
// wants stays closed until that has changed or the broker is started anew.
func (s *Set) Close(id uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.list[id]
	if l == nil {
		return fmt.Errorf("listener %d: %w", id, ErrUnknown)
	}
	if !l.byHand {
		s.shut[l.Spec] = true
	}
	s.closeLocked(l)
	return nil
}

// At returns the id of the listener at an address.
func (s *Set) At(at netip.AddrPort) (uint64, error) {
	for _, in := range s.List() {
		if in.At == at {
			return in.ID, nil
		}
	}
	return 0, fmt.Errorf("listener at %s: %w", at, ErrUnknown)
}

func (s *Set) closeLocked(l *Listener) {
	delete(s.list, l.id)
	l.close()
}

// Shutdown closes every listener and returns when nothing of them is left but attempts
// that were handed over.
func (s *Set) Shutdown() {
	s.mu.Lock()
	s.over = true
	for _, l := range s.list {
		s.closeLocked(l)
	}
	s.mu.Unlock()
	s.tasks.Wait()
}

// Info is a listener at a glance.
type Info struct {
	ID       uint64
	Spec     Spec
	At       netip.AddrPort // where it listens, or tries to
	ByHand   bool           // opened by Open
	Open     bool
	Err      error // why it is not, or the last failure to accept
	Since    time.Time
	Accepted uint64 // connections
	Refused  uint64 // of them, before any rule: other users and hosts, no request
}

// List returns every listener, oldest first.
func (s *Set) List() []Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]Info, 0, len(s.list))
	for _, l := range s.list {
		list = append(list, l.Info())
	}
	slices.SortFunc(list, func(a, b Info) int { return cmp.Compare(a.ID, b.ID) })
	return list
}
