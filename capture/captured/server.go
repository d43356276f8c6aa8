package captured

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/capture"
	"sshbroker/capture/cgroup"
	"sshbroker/capture/connects"
	"sshbroker/capture/hold"
	"sshbroker/capture/keep"
	"sshbroker/capture/listen"
	"sshbroker/capture/nft"
	"sshbroker/capture/origin"
	"sshbroker/capture/queue"
	"sshbroker/capture/service"
)

// Bounds. Each is of the whole host, or of one uid where that is said.
const (
	queueLength     = 8192     // SYNs held at once by one queue
	queueBuffer     = 16 << 20 // bytes; holds what comes while nobody reads for a second
	perUID          = 2048     // SYNs of one uid that are held at once
	maxCaptures     = 1024
	capturesPerUID  = 64
	connsPerUID     = 128
	meterRate       = 5000 // SYNs of one uid a second that may go to the queue
	meterBurst      = 5000
	firstQueue      = 21000 // queue numbers are looked for from here on
	queueNumbers    = 4096
	idleCheck       = 10 * time.Second
	maxSearches     = 2 // through /proc at one time
	socketMode      = 0o666
	directoryMode   = 0o755
	stateFile       = "state.json"
	nameQueue       = "queue"
	nameTable       = "table"
	nameListener    = "listener"
	nameSocket      = "socket"
	nameDNSPrefix   = "dns-"
	maxSpecRules    = 100_000
	handshakeWithin = 10 * time.Second
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

	NoPersist bool // do as on a kernel that has no persistent tables
	NoOwner   bool // do as on one that has no owned tables either
	NoBPF     bool // look for processes in /proc alone

	// Failpoint is called at named states; tests kill the process there. nil: nothing.
	Failpoint func(state string)
}

// Server is the state of a running ssh-captured. Its methods are safe for concurrent use.
type Server struct {
	Options
	since    time.Time
	form     nft.QueueForm
	persists bool         // this kernel knows tables that outlive their owner
	tree     *cgroup.Tree // nil: this host has no cgroup2
	treeErr  error
	queue    *queue.Queue
	source   *hold.Source
	port     uint16 // of the listeners
	ipv6     bool
	socket   *net.UnixListener
	tracker  *connects.Tracker // nil: /proc is searched
	search   origin.Search
	searches chan struct{}
	life     context.Context

	applying sync.Mutex // one change of the table at a time; before mu
	saving   sync.Mutex
	table    *nft.Table // nil: nothing of ours is in the kernel
	unwatch  context.CancelFunc
	owned    nft.Ownership
	repairs  atomic.Uint64
	gap      atomic.Int64 // the last one, in nanoseconds

	mu       sync.Mutex
	enabled  bool
	captures map[string]*held // System among them once it has a Spec
	queues   map[uint16]*held
	clients  map[*client]bool
	carriers map[uint32]*client
	ratemask string // of the host, before us; "": untouched
	wg       sync.WaitGroup
}

// New makes what the host has not got yet, and takes over what a dead process left.
func New(o Options) (*Server, error) {
	s := &Server{
		Options: o, since: time.Now(), form: nft.ProbeQueue(), persists: nft.Persists(),
		searches: make(chan struct{}, maxSearches), unwatch: func() {},
		captures: map[string]*held{}, queues: map[uint16]*held{},
		clients: map[*client]bool{}, carriers: map[uint32]*client{},
	}
	if s.Failpoint == nil {
		s.Failpoint = func(string) {}
	}
	if s.form == nft.NoQueue {
		return nil, fmt.Errorf("this kernel has no packet queue for rules (nft_queue, or the xt target NFQUEUE): load nft_queue")
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

// open makes or takes over sockets, table and captures, in an order in which nothing
// that is held is let go.
func (s *Server) open() error {
	saved, err := s.load()
	if err != nil {
		return err
	}
	numbers, fresh, err := s.openQueue(saved)
	if err != nil {
		return err
	}
	listeners, err := s.openListeners()
	if err != nil {
		return err
	}
	diag, err := origin.OpenDiag()
	if err != nil {
		return err
	}
	s.source = hold.New(hold.Config{Queue: s.queue, Listeners: listeners, Diag: diag, WayOut: true, PerUID: perUID,
		Find: s.find, Log: s.Log}, numbers...)
	if fresh {
		for _, n := range saved.queues() {
			if err := s.queue.Bind(n, queueLength); err != nil {
				return err
			}
		}
	}
	if err := s.restore(saved); err != nil {
		return err
	}
	if files := s.Keep.Take(nameTable); len(files) > 0 {
		s.owned = s.closed()
		if s.table, err = nft.AdoptTable(files[0], s.owned); err != nil {
			return err
		}
	}
	s.socket, err = s.openSocket()
	return err
}

// openQueue returns the queues that a dead process has read from, and whether the
// socket is new, so that none is bound to it.
func (s *Server) openQueue(saved state) (read []uint16, fresh bool, err error) {
	if files := s.Keep.Take(nameQueue); len(files) > 0 {
		s.queue, err = queue.Adopt(files[0])
		return saved.queues(), false, err
	}
	if s.queue, err = queue.OpenSocket(queueBuffer); err != nil {
		return nil, false, err
	}
	return nil, true, s.Keep.Store(nameQueue, s.queue.File())
}

func (s *Server) openListeners() ([]*net.TCPListener, error) {
	files := s.Keep.Take(nameListener)
	if len(files) == 0 {
		var err error
		if files, _, err = openPair(listen.Open); err != nil {
			return nil, err
		}
		for _, f := range files {
			if err := s.Keep.Store(nameListener, f); err != nil {
				return nil, err
			}
		}
	}
	var err error
	if s.port, err = listen.Port(files[0]); err != nil {
		return nil, err
	}
	s.ipv6 = len(files) > 1
	var list []*net.TCPListener
	for _, f := range files {
		l, err := net.FileListener(f)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("listener: %w", err)
		}
		tcp, ok := l.(*net.TCPListener)
		if !ok {
			return nil, errors.New("listener: what was kept is none")
		}
		list = append(list, tcp)
	}
	return list, nil
}

func (s *Server) openSocket() (*net.UnixListener, error) {
	if files := s.Keep.Take(nameSocket); len(files) > 0 {
		l, err := net.FileListener(files[0])
		files[0].Close()
		if unixListener, ok := l.(*net.UnixListener); err == nil && ok {
			return unixListener, nil
		}
	}
	if err := os.MkdirAll(filepath.Dir(s.Socket), directoryMode); err != nil {
		return nil, err
	}
	if err := os.Remove(s.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: s.Socket, Net: "unixpacket"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // the next process may have it by then
	f, err := l.File()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return l, errors.Join(os.Chmod(s.Socket, socketMode), s.Keep.Store(nameSocket, f))
}

// find finds the process behind a socket.
func (s *Server) find(sock origin.Socket) capture.Origin {
	if s.tracker != nil {
		if o := s.tracker.Origin(sock); o.Known {
			return o
		}
	}
	s.searches <- struct{}{}
	defer func() { <-s.searches }()
	return s.search.Find(sock)
}

// Run serves until ctx ends. What is captured stays captured: its SYNs wait for the
// next ssh-captured. It returns early when the kernel takes no verdicts from us.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.life = ctx
	for _, c := range s.captures { // nobody else is there yet
		s.watch(c)
	}
	if s.table != nil {
		s.watchTable()
	}
	if err := s.apply(); err != nil {
		return err
	}
	stopped := context.AfterFunc(ctx, func() { s.socket.Close() })
	defer stopped()
	s.wg.Go(func() { cancel(s.pump(ctx)) })
	s.wg.Go(func() { s.accept(ctx) })
	s.wg.Go(func() { s.tidy(ctx) })
	if err := s.Keep.Ready(); err != nil {
		s.Log.Warn("readiness", "error", err)
	}
	<-ctx.Done()
	s.mu.Lock()
	for c := range s.clients {
		c.conn.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
	s.leave()
	return s.failure(context.Cause(ctx))
}

// failure tells being asked to stop from an end that nobody wanted.
func (s *Server) failure(cause error) error {
	if errors.Is(cause, context.Canceled) {
		return nil
	}
	return cause
}

// leave closes what this process has. What the keeper holds lives on.
func (s *Server) leave() {
	if s.tracker != nil {
		s.tracker.Close()
	}
	s.mu.Lock()
	idle := len(s.active()) == 0
	s.mu.Unlock()
	if idle {
		s.withdraw()
		for _, name := range []string{nameQueue, nameTable, nameListener, nameSocket} {
			_ = s.Keep.Remove(name)
		}
		_ = os.Remove(s.Socket)
	}
	s.bequeath()
	_ = s.source.Close()
}

// accept takes clients.
func (s *Server) accept(ctx context.Context) {
	const pause = 20 * time.Millisecond
	for {
		uc, err := s.socket.AcceptUnix()
		if ctx.Err() != nil {
			if err == nil {
				uc.Close()
			}
			return
		}
		if err != nil {
			s.Log.Warn("cannot accept a client", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
			continue
		}
		c, err := s.newClient(uc)
		if err != nil {
			s.Log.Warn("client turned away", "error", err)
			continue
		}
		s.wg.Go(c.read)
		s.wg.Go(c.write)
	}
}

// openPair opens a pair of sockets, or one where the host has no IPv6.
func openPair(open func(addr netip.AddrPort) (*os.File, error)) ([]*os.File, uint16, error) {
	files, port, err := listen.Pair(open, true)
	if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT) {
		return listen.Pair(open, false)
	}
	return files, port, err
}

// serviceError is what a client is told.
func serviceError(code service.Code, format string, args ...any) *service.Error {
	return &service.Error{Code: code, Message: fmt.Sprintf(format, args...)}
}
