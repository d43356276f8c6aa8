package captured

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"sshbroker/capture"
	"sshbroker/capture/cgroup"
	"sshbroker/capture/connects"
	"sshbroker/capture/hold"
	"sshbroker/capture/keep"
	"sshbroker/capture/nft"
	"sshbroker/capture/origin"
	"sshbroker/capture/queue"
	"sshbroker/capture/service"
)

// Bounds of the whole host, and of one uid.
const (
	maxCaptures = 1024
	maxSearches = 2       // through /proc at one time
	maxSpec     = 200_000 // rules, prefixes, ports, ... of the whole host's capture

	connsPerUID    = 128
	capturesPerUID = 64
	specPerUID     = 10_000 // rules, prefixes, ports, ... of all captures together
	slotsPerUID    = 4096   // requests that are not answered yet
	synsPerUID     = 2048   // held at once
	meterRate      = 5000   // SYNs a second that may go to the queue
)

// What nobody tells of is looked for: captures without processes every emptyEvery, all
// else every tidyEvery.
const (
	emptyEvery = time.Second
	tidyEvery  = 10 * time.Second
)

// The states at which Options.Failpoint is called.
const (
	StateReceived = "received" // a SYN was read from the queue
	StateAsked    = "asked"    // a broker wants it admitted, no verdict is given
	StateAccepted = "accepted" // its connection was accepted, and not handed over yet
	StateApplied  = "applied"  // rules were changed, nobody was told
)

// States lists them all.
var States = []string{StateReceived, StateAsked, StateAccepted, StateApplied}

// Options are what a Server is made of.
type Options struct {
	Socket   string       // path
	StateDir string       // what has to outlive this process
	Admins   int          // members of this group may set system-wide rules; -1: only root
	Keep     *keep.Keep   // required
	Program  string       // with its version, for people
	Log      *slog.Logger // required
	// Suppressed is how many lines Log has left out; nil: none.
	Suppressed func() uint64

	NoPersist bool // do as on a kernel that has no persistent tables
	NoOwner   bool // do as on one that has no owned tables either
	NoBPF     bool // look for processes in /proc alone

	// Failpoint is called at named states; tests kill the process there. nil: nothing.
	Failpoint func(state string)
}

// Server is the state of a running ssh-captured. Use it by New and Run alone.
type Server struct {
	Options
	since    time.Time
	form     nft.QueueForm
	zones    bool         // this kernel keeps connections apart in zones
	persists bool         // this kernel knows tables that outlive their owner
	tree     *cgroup.Tree // nil: this host has no cgroup2
	treeErr  error
	queue    *queue.Queue
	source   *hold.Source
	port     uint16 // of the listeners
	socket   *net.UnixListener
	// activated says that the service manager made the socket.
	activated bool
	tracker   *connects.Tracker // nil: /proc is searched
	search    origin.Search
	searches  chan struct{}
	life      context.Context // of Run: once it has ended nothing is changed any more
	wg        sync.WaitGroup

	// changing is held while what is captured changes; it is taken before mu.
	changing  sync.Mutex
	released  []*cgroup.Leaf // with processes in them still
	table     *nft.Table     // nil: nothing of ours is in the kernel
	owned     nft.Ownership
	live      bool // the table of nft.KeepLive may be there
	unwatch   context.CancelFunc
	unlimited bool // see tune
	repairs   atomic.Uint64
	gap       atomic.Int64 // the last one, in nanoseconds

	mu       sync.Mutex
	config   config // in force; set under changing as well
	saved    []byte // what the state directory has; guarded by changing
	captures map[string]*held
	queues   map[uint16]*held
	clients  map[*client]bool
	users    map[uint32]*user // whoever has been there
}

// user is what the connections of one uid share, so that no other has to wait for it.
type user struct {
	conns     int           // guarded by Server.mu
	carrier   *client       // of what is handed to the uid; guarded by Server.mu
	slots     chan struct{} // one is taken by each request, until its answer is sent
	changing  sync.Mutex    // one waits for Server.changing
	searching sync.Mutex    // one has /proc searched for the owner of a socket
}

// user returns the one of that uid. The caller holds mu.
func (s *Server) user(uid uint32) *user {
	u := s.users[uid]
	if u == nil {
		u = &user{slots: make(chan struct{}, slotsPerUID)}
		s.users[uid] = u
	}
	return u
}

// New makes what the host has not got yet, and takes over what a dead process left.
func New(o Options) (*Server, error) {
	s := &Server{
		Options: o, since: time.Now(), form: nft.ProbeQueue(), persists: nft.Persists(),
		searches: make(chan struct{}, maxSearches), unwatch: func() {},
		captures: map[string]*held{}, queues: map[uint16]*held{}, clients: map[*client]bool{},
		users: map[uint32]*user{},
	}
	if s.Failpoint == nil {
		s.Failpoint = func(string) {}
	}
	if s.form == nft.NoQueue {
		return nil, errors.New("this kernel has no packet queue for rules (nft_queue, or the xt target NFQUEUE): load nft_queue")
	}
	s.search.Processes = origin.Processes
	if s.tree, s.treeErr = cgroup.Find(); s.treeErr != nil {
		s.Log.Warn("no cgroup captures on this host", "error", s.treeErr)
	} else if !o.NoBPF {
		var err error
		if s.tracker, err = connects.Attach(s.tree.Mount); err != nil {
			s.Log.Warn("processes are searched in /proc, which is slow", "error", err)
		}
	}
	if err := s.open(); err != nil {
		return nil, err
	}
	return s, nil
}

// Run serves until ctx ends. What is captured stays captured: its SYNs wait for the
// next ssh-captured. It returns early when the kernel takes no verdicts from us.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.life = ctx
	if err := s.begin(); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { s.socket.Close() })
	defer stop()
	s.wg.Go(func() { cancel(s.pump(ctx)) })
	s.wg.Go(func() { s.accept(ctx) })
	s.wg.Go(func() { s.tidy(ctx) })
	if err := s.Keep.Ready(); err != nil {
		s.Log.Warn("readiness", "error", err)
	}
	<-ctx.Done()
	s.mu.Lock()
	for c := range s.clients { // what they have asked for is answered yet
		_ = c.conn.File().SetReadDeadline(time.Unix(1, 0))
	}
	s.mu.Unlock()
	s.wg.Wait()
	s.leave()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// begin brings what was restored into force, or removes what a dead process left in
// the kernel for nothing.
func (s *Server) begin() (err error) {
	s.changing.Lock()
	defer s.changing.Unlock()
	if s.table != nil {
		s.watchTable()
	}
	next := s.edited(func(*config) {})
	if err := s.apply(next); err != nil {
		return err
	}
	s.install(next)
	if s.table == nil {
		s.owned = s.closed()
		if s.table, err = nft.NewTable(s.owned); err == nil {
			s.withdraw()
		}
	}
	return err
}

// leave closes what this process has. What the keeper holds lives on.
func (s *Server) leave() {
	s.changing.Lock()
	defer s.changing.Unlock()
	if len(s.config.active()) == 0 {
		s.withdraw()
		for _, name := range []string{nameQueue, nameTable, nameListener, nameSocket} {
			_ = s.Keep.Remove(name)
		}
		if !s.activated {
			_ = os.Remove(s.Socket)
		}
	}
	if s.owned == nft.Owned && !s.diverted() {
		_ = nft.DropLive()
	}
	_ = s.source.Close()
	if s.tracker != nil {
		s.tracker.Close()
	}
	for _, h := range s.captures {
		s.closeDNS(h)
	}
	if s.table != nil {
		s.table.Close()
	}
}

// accept takes clients.
func (s *Server) accept(ctx context.Context) {
	const pause = 20 * time.Millisecond
	for {
		uc, err := s.socket.AcceptUnix()
		if err == nil {
			err = s.welcome(uc)
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			s.Log.Warn("cannot accept a client", "error", err)
			time.Sleep(pause)
		}
	}
}

// tidy looks now and then for captures without processes, for programs that have given
// up while nobody decided about them, and whether the table can go.
func (s *Server) tidy(ctx context.Context) {
	empty, other := time.NewTicker(emptyEvery), time.NewTicker(tidyEvery)
	defer empty.Stop()
	defer other.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-empty.C:
			s.changing.Lock()
			s.endEmpty()
			s.changing.Unlock()
		case <-other.C:
			s.forget(time.Now().Add(-tidyEvery))
			s.changing.Lock()
			s.withdraw()
			s.changing.Unlock()
		}
	}
}

// find finds the process behind a socket.
func (s *Server) find(sock origin.Socket) capture.Origin {
	if s.tracker != nil {
		if o := s.tracker.Origin(sock); o.Known {
			return o
		}
	}
	s.mu.Lock()
	owner := s.user(sock.UID)
	s.mu.Unlock()
	owner.searching.Lock()
	defer owner.searching.Unlock()
	s.searches <- struct{}{}
	defer func() { <-s.searches }()
	return s.search.Find(sock)
}

// asError is the one place where errors get their codes.
func asError(err error) *service.Error {
	if err == nil {
		return nil
	}
	if answer, ok := errors.AsType[*service.Error](err); ok {
		return answer
	}
	for is, code := range codes {
		if errors.Is(err, is) {
			return refusal(code, "%v", err)
		}
	}
	return refusal(service.CodeKernel, "%v", err)
}

var codes = map[error]service.Code{
	capture.ErrAbandoned:     service.CodeAbandoned,
	capture.ErrNoDescriptors: service.CodeNoFiles,
	capture.ErrClosed:        service.CodeStopping,
	cgroup.ErrNotYours:       service.CodeForbidden,
	cgroup.ErrGone:           service.CodeNotFound,
}
