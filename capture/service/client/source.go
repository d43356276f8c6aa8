package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/capture"
	"sshbroker/capture/message"
	"sshbroker/capture/service"
)

const (
	// maxPending bounds the attempts that are undecided. What comes beyond it is refused.
	maxPending = 8192
	// remember is how long a verdict is kept for copies of its SYN: twice this at most.
	remember = 40 * time.Second
	// firstDelay is how long a Source waits before it connects again; doubled up to lastDelay.
	firstDelay = 10 * time.Millisecond
	lastDelay  = time.Second
	// tryLimit is how long one try to connect and to serve may take.
	tryLimit = 10 * time.Second
	// busyLimit is how long our own last connection may still be in the way of the next.
	busyLimit = time.Second
	// closeLimit is how long Close waits for programs that are being admitted.
	closeLimit = time.Second
)

// Options say what to serve, and where.
type Options struct {
	Dialer  Dialer
	Capture string       // id; not used by Carry
	Spec    capture.Spec // not used by Carry
	Log     *slog.Logger // nil: nothing is logged

	// Names is given the sockets of the capture's name queries, when serving begins and
	// whenever ssh-captured had to make new ones; the receiver closes them, and keeps those
	// that it has until then. It may be nil.
	Names func(served service.Served, udp []net.PacketConn, tcp []net.Listener)
	// Changed is told after every time that serving began. It may be nil.
	//
	// Neither may call Close, nor SetSpec; attempts come once they have returned.
	Changed func(service.Served)
}

// Source implements capture.Source over a connection to ssh-captured, which it makes
// anew whenever it breaks. Attempts implement capture.Attempt and capture.Waiter, and
//
//	Hand(ctx context.Context, payload []byte) (service.Handed, error)
//	Payload() []byte                                // of a carried one
//	RefuseBecause(r capture.Refusal, reason string) // of a carried one
type Source struct {
	opts    Options
	carries bool
	connect func(context.Context) (wire, error)
	slowest time.Duration // lastDelay, but for tests
	names   []uint64      // inodes of the sockets that Names was given; run's
	marks   bool          // and whether those tell of marks
	room    spares

	ready chan *attempt
	life  context.Context // ends with Close, and with failure
	end   context.CancelFunc
	ended chan struct{} // closed when no attempt comes any more; failure says why
	wg    sync.WaitGroup
	specs chan struct{} // holds a token: one SetSpec at a time

	mu        sync.Mutex
	failure   error
	spec      capture.Spec
	revision  int // of spec
	served    service.Served
	session   *session      // in force; it may be over already
	accepted  int           // revision that session has accepted
	since     time.Time     // when session came into force
	connected chan struct{} // closed by the next session in force
	pending   map[service.Key]*attempt
	decided   [2]map[service.Key]verdict // this period's and the last one's
	turned    time.Time
	closing   bool          // nobody is admitted any more
	admits    int           // attempts in Admit
	idle      chan struct{} // closed when closing and admits is 0

	bounded atomic.Uint64
}

// verdict is what was said of an attempt, for copies of its SYN.
type verdict struct {
	op      service.Op
	refusal capture.Refusal
	text    string
}

func (v verdict) of(id uint64) service.Message {
	return service.Message{Op: v.op, ID: id, Refusal: v.refusal, Text: v.text}
}

// Serve makes the attempts of a capture come here. It returns when they do, or why they
// do not: see [Dial], and service.Code. ctx limits only that. The caller closes the Source.
func Serve(ctx context.Context, o Options) (*Source, error) {
	s := newSource(o, false)
	if err := s.start(ctx); err != nil {
		return nil, fmt.Errorf("serve capture %s: %w", o.Capture, err)
	}
	return s, nil
}

// Carry makes what the system broker hands to the caller's uid come here. It is like Serve.
func Carry(ctx context.Context, o Options) (*Source, error) {
	s := newSource(o, true)
	if err := s.start(ctx); err != nil {
		return nil, fmt.Errorf("carry for the system broker: %w", err)
	}
	return s, nil
}

func newSource(o Options, carries bool) *Source {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Source{
		opts: o, carries: carries, spec: o.Spec,
		slowest:   lastDelay,
		ready:     make(chan *attempt, maxPending),
		specs:     make(chan struct{}, 1),
		connected: make(chan struct{}),
		pending:   map[service.Key]*attempt{},
		decided:   [2]map[service.Key]verdict{{}, {}},
		turned:    time.Now(),
		idle:      make(chan struct{}),
		ended:     make(chan struct{}),
	}
	s.life, s.end = context.WithCancel(context.Background())
	s.connect = func(ctx context.Context) (wire, error) { return o.Dialer.dial(ctx, &s.room) }
	return s
}

func (s *Source) start(ctx context.Context) error {
	sess, err := s.open(ctx, false)
	if err != nil {
		s.end()
		return err
	}
	reserved := s.room.add() == nil // for the moment in which a connection has two
	s.wg.Go(func() {
		s.run(sess)
		if reserved {
			s.room.done()
		}
	})
	return nil
}

// Next implements capture.Source. Where the Source has ended by itself, the reason is
// joined with capture.ErrClosed: the capture was released, has ended, or is not ours.
func (s *Source) Next(ctx context.Context) (capture.Attempt, error) {
	select {
	case a := <-s.ready:
		return a, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-s.ended:
		return nil, s.closed()
	case <-s.life.Done():
		return nil, s.closed()
	}
}

// Served is what ssh-captured said when serving began the last time. Its zero value is
// that of a Source which carries.
func (s *Source) Served() service.Served {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.served
}

// Bounded is how many attempts were refused because too many were undecided.
func (s *Source) Bounded() uint64 { return s.bounded.Load() }

// Close lets the programs in that are being admitted, which takes a second at most, says
// what is still to be said, and ends the connection. Attempts that are undecided are given
// up: ssh-captured keeps them for whoever serves next.
func (s *Source) Close() error {
	s.mu.Lock()
	if !s.closing {
		s.closing = true
		if s.admits == 0 {
			close(s.idle)
		}
	}
	alive := s.session.alive()
	s.mu.Unlock()
	if alive {
		limit := time.NewTimer(closeLimit)
		defer limit.Stop()
		select {
		case <-s.idle:
		case <-limit.C:
		case <-s.life.Done():
		}
	}
	s.end()
	s.wg.Wait()
	return nil
}

// SetSpec gives the capture another Spec, once ssh-captured is there. Where that refuses
// it, with a *service.Error, or it is too long for a packet, the one before stays. After ctx has ended it is not known
// which of the two is in force; later connections use the new one.
func (s *Source) SetSpec(ctx context.Context, spec capture.Spec) error {
	if s.carries {
		return errors.New("set spec: this source carries, and has none")
	}
	select {
	case s.specs <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-s.specs }()

	s.mu.Lock()
	old := s.spec
	s.spec = spec
	s.revision++
	s.mu.Unlock()
	var last *session
	for {
		sess, err := s.current(ctx, last)
		if err != nil {
			return fmt.Errorf("set spec of capture %s: %w", s.opts.Capture, err)
		}
		s.mu.Lock()
		done := s.session == sess && s.accepted == s.revision
		s.mu.Unlock()
		if done { // it was served with the new one
			return nil
		}
		_, err = s.ask(ctx, sess, service.Message{Op: service.OpSpec, Capture: s.opts.Capture, Spec: &spec})
		if errors.Is(err, ErrLost) {
			last = sess
			continue
		}
		if err == nil {
			return nil
		}
		if ctx.Err() == nil {
			s.mu.Lock()
			s.spec = old
			s.revision++
			s.mu.Unlock()
		}
		return fmt.Errorf("set spec of capture %s: %w", s.opts.Capture, err)
	}
}

// run connects again as often as it has to.
func (s *Source) run(sess *session) {
	delay := firstDelay
	for {
		began := time.Now()
		select {
		case <-sess.done:
		case <-s.life.Done():
		}
		sess.shut()
		if s.life.Err() != nil {
			return
		}
		s.opts.Log.Warn("connection to ssh-captured lost; programs that connect wait", "capture", s.opts.Capture)
		if time.Since(began) > s.slowest {
			delay = firstDelay
		}
		if sess = s.reopen(&delay); sess == nil {
			return
		}
		s.opts.Log.Info("connected to ssh-captured again", "capture", s.opts.Capture)
	}
}

// reopen tries until it is served again. It returns nil once the Source has ended.
func (s *Source) reopen(delay *time.Duration) *session {
	lost, said := time.Now(), ""
	for {
		select {
		case <-time.After(*delay/2 + rand.N(*delay/2)): // brokers are not to come all at once
		case <-s.life.Done():
			return nil
		}
		*delay = min(2**delay, s.slowest)
		ctx, cancel := context.WithTimeout(s.life, tryLimit)
		sess, err := s.open(ctx, true)
		cancel()
		switch {
		case err == nil:
			return sess
		case s.life.Err() != nil:
			return nil
		case final(err) && (codeOf(err) != service.CodeBusy || time.Since(lost) > busyLimit):
			s.fail(err)
			return nil
		}
		if text := err.Error(); text != said {
			said = text
			s.opts.Log.Warn("ssh-captured", "capture", s.opts.Capture, "error", err)
		}
	}
}

// final says whether err ends a Source: no other connection would do better.
func final(err error) bool {
	switch codeOf(err) {
	case service.CodeReleased, service.CodeEnded, service.CodeForbidden, service.CodeBusy, service.CodeNotFound:
		return true
	}
	return false
}

// open connects, asks to be served and puts the session in force.
func (s *Source) open(ctx context.Context, resume bool) (*session, error) {
	w, err := s.connect(ctx)
	if err != nil {
		return nil, err
	}
	sess := newSession(w, s.dispatch, s.heard)
	m := service.Message{Op: service.OpCarry}
	s.mu.Lock()
	spec, revision := s.spec, s.revision
	s.mu.Unlock()
	if !s.carries {
		m = service.Message{Op: service.OpServe, Capture: s.opts.Capture, Spec: &spec, Resume: resume}
	}
	a, err := sess.call(ctx, m)
	if err == nil && !s.carries {
		err = s.begin(a)
	} else {
		message.CloseAll(a.files)
	}
	if err != nil {
		sess.shut()
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.session, s.accepted, s.since = sess, revision, time.Now()
	close(s.connected)
	s.connected = make(chan struct{})
	return sess, nil
}

// heard notes what is served before an attempt that comes right after can ask for it.
func (s *Source) heard(m *service.Message) {
	if m.Served != nil && m.Error == nil {
		s.mu.Lock()
		s.served = *m.Served
		s.mu.Unlock()
	}
}

// begin hands on what came with the answer to serve.
func (s *Source) begin(a answer) error {
	defer message.CloseAll(a.files)
	if a.Served == nil {
		return errEmpty
	}
	are, marks := inodes(a.files), a.Served.Marks
	if len(are) > 0 && (marks != s.marks || !slices.Equal(are, s.names)) && s.opts.Names != nil {
		udp, tcp, err := nameSockets(a.files)
		if err != nil {
			return err
		}
		s.opts.Names(*a.Served, udp, tcp)
		s.names, s.marks = are, marks
	}
	if s.opts.Changed != nil {
		s.opts.Changed(*a.Served)
	}
	return nil
}

// inodes tells sockets from those of the connection before: what is served already is
// not given away once more.
func inodes(files []*os.File) (are []uint64) {
	for _, f := range files {
		if info, err := f.Stat(); err == nil {
			are = append(are, info.Sys().(*syscall.Stat_t).Ino)
		}
	}
	return are
}

// nameSockets makes connections and listeners of files, which stay the caller's.
func nameSockets(files []*os.File) (udp []net.PacketConn, tcp []net.Listener, err error) {
	defer func() {
		if err != nil {
			for _, c := range udp {
				c.Close()
			}
			for _, l := range tcp {
				l.Close()
			}
		}
	}()
	for _, f := range files {
		c, perr := net.FilePacketConn(f)
		if perr == nil {
			udp = append(udp, c)
			continue
		}
		l, err := net.FileListener(f)
		if err != nil {
			return udp, tcp, fmt.Errorf("socket for name queries: %w", errors.Join(perr, err))
		}
		tcp = append(tcp, l)
	}
	return udp, tcp, nil
}

// current waits for a session in force other than last.
func (s *Source) current(ctx context.Context, last *session) (*session, error) {
	for {
		s.mu.Lock()
		sess, connected := s.session, s.connected
		s.mu.Unlock()
		if sess != last && sess.alive() {
			return sess, nil
		}
		select {
		case <-connected:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-s.life.Done():
			return nil, s.closed()
		}
	}
}

// ask is sess.call, but that an ssh-captured which is about to end counts as gone, once
// it is, and that a capture which is no more ends the Source.
func (s *Source) ask(ctx context.Context, sess *session, m service.Message) (answer, error) {
	a, err := sess.call(ctx, m)
	switch codeOf(err) {
	case service.CodeReleased, service.CodeEnded:
		s.finish(err)
		return a, s.closed()
	case service.CodeStopping:
		select {
		case <-sess.done:
			return a, fmt.Errorf("%w: %w", ErrLost, err)
		case <-ctx.Done():
			return a, context.Cause(ctx)
		case <-s.life.Done():
			return a, s.closed()
		}
	}
	if errors.Is(err, ErrLost) && s.life.Err() != nil {
		return a, s.closed()
	}
	return a, err
}

// fail ends the Source.
func (s *Source) fail(err error) {
	s.finish(err)
	s.end()
}

// finish has no attempt come any more. A program that is being admitted gets in until
// Close: it may be the last of its capture, and have said all that it had to say.
func (s *Source) finish(err error) {
	s.mu.Lock()
	first := s.failure == nil && s.life.Err() == nil
	if first {
		s.failure = err
		close(s.ended)
	}
	s.mu.Unlock()
	switch {
	case first && codeOf(err) == service.CodeEnded: // as it should: its last process has
		s.opts.Log.Info("capture ends", "capture", s.opts.Capture)
	case first:
		s.opts.Log.Error("capture ends", "capture", s.opts.Capture, "error", err)
	}
}

// closed is the error of a Source that has ended.
func (s *Source) closed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failure != nil {
		return errors.Join(capture.ErrClosed, s.failure)
	}
	return capture.ErrClosed
}

// dispatch takes what is no answer. It is the reader's, and must not block.
func (s *Source) dispatch(sess *session, m *service.Message, files []*os.File) {
	message.CloseAll(files) // none belongs there
	switch {
	case m.Op == service.OpAttempt && m.ID != 0 && m.Attempt != nil && m.Attempt.Src.IsValid() && m.Attempt.Dst.IsValid():
		s.arrived(sess, m.ID, m.Attempt)
	case m.Error != nil && m.ID == 0 && final(m.Error): // about the connection as a whole
		s.finish(m.Error)
	default:
		s.opts.Log.Warn("ssh-captured says what nobody understands", "op", m.Op)
	}
}

func (s *Source) arrived(sess *session, id uint64, at *service.Attempt) {
	now := time.Now()
	s.mu.Lock()
	for _, m := range s.decided {
		if v, ok := m[at.Key]; ok { // a copy gets what the first one got
			s.mu.Unlock()
			sess.tell(v.of(id))
			return
		}
	}
	if a := s.pending[at.Key]; a != nil { // it has come again
		a.session, a.id = sess, id
		close(a.moved)
		a.moved = make(chan struct{})
		s.mu.Unlock()
		return
	}
	if len(s.pending) >= maxPending {
		s.mu.Unlock()
		s.bounded.Add(1)
		sess.tell(verdict{op: service.OpRefuse, refusal: capture.Unreachable}.of(id))
		return
	}
	a := &attempt{source: s, key: at.Key, payload: at.Payload, session: sess, id: id, moved: make(chan struct{})}
	a.flow = capture.Flow{Src: at.Src, Dst: at.Dst, UID: at.UID, Arrived: at.Arrived, Origin: sync.OnceValue(a.origin)}
	if at.Arrived.IsZero() {
		a.flow.Arrived = now
	}
	s.pending[at.Key] = a
	s.turn(now)
	s.mu.Unlock()
	s.ready <- a // never blocks: it has room for every pending attempt
}

// turn forgets old decisions. The caller holds mu.
func (s *Source) turn(now time.Time) {
	if now.Sub(s.turned) >= remember {
		s.decided[0], s.decided[1] = map[service.Key]verdict{}, s.decided[0]
		s.turned = now
	}
}

// enter registers a in Admit, unless nobody is admitted any more; leave takes it back.
func (s *Source) enter() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !s.closing && s.life.Err() == nil:
	case codeOf(s.failure) == service.CodeEnded: // nobody is left to be admitted
		return fmt.Errorf("%w: %w", capture.ErrAbandoned, s.failure)
	default:
		return capture.ErrClosed
	}
	s.admits++
	return nil
}

func (s *Source) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.admits--
	if s.closing && s.admits == 0 {
		close(s.idle)
	}
}

// connection makes one of the descriptor that came, and closes that.
func (s *Source) connection(f *os.File) (*capture.Conn, error) {
	c, err := net.FileConn(f)
	if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
		// It has two for a moment. What is freed for that is made good when Admit ends.
		s.room.mu.Lock()
		s.room.free()
		c, err = net.FileConn(f)
		s.room.mu.Unlock()
	}
	f.Close()
	if err != nil {
		return nil, err
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("ssh-captured passed a %T", c)
	}
	return &capture.Conn{TCPConn: tcp}, nil
}
