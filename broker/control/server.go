package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	defaultMaxClients   = 512
	defaultWriteTimeout = 5 * time.Second
	helloTimeout        = 10 * time.Second
	maxNotes            = 64 // of one call, sent by the client and not received yet
)

// Handler does one call. Its context ends when the client goes away
// (context.Cause is ErrClientGone) and when the server stops; it must return then.
// What it returns is the client's answer.
type Handler func(ctx context.Context, call *Call) error

// Server answers clients. Its fields and handlers are set before Serve.
type Server struct {
	Log          *slog.Logger
	MaxClients   int           // more are turned away; 0: 512
	WriteTimeout time.Duration // for one message to a client that does not read; 0: 5 s

	// Admins is a group whose members are served as well as our own user and root are;
	// 0: none. It is for the broker of a whole host.
	Admins int

	// OnClients, if set, is told the number of connected clients after each change,
	// one call at a time. It must not block.
	OnClients func(n int)

	handlers map[string]Handler

	mu       sync.Mutex // held while OnClients runs
	clients  int
	lastID   uint64
	sessions map[uint64]*session // past their hello
	wg       sync.WaitGroup
}

// NewServer returns a server without operations.
func NewServer(log *slog.Logger) *Server {
	return &Server{Log: log, handlers: make(map[string]Handler), sessions: make(map[uint64]*session)}
}

// Handle serves op with h.
func (s *Server) Handle(op string, h Handler) {
	if _, twice := s.handlers[op]; twice {
		panic("control: two handlers for " + op)
	}
	s.handlers[op] = h
}

// Serve answers clients until ctx ends, then closes ln first, so that a next broker
// can start, ends the calls, and returns nil when the last handler has returned.
// Running out of descriptors does not end it.
func (s *Server) Serve(ctx context.Context, ln *Listener) error {
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	err := s.accept(ctx, ln.AcceptUnix)
	ln.Close()
	s.wg.Wait()
	return err
}

func (s *Server) accept(ctx context.Context, accept func() (*net.UnixConn, error)) error {
	const shortest, longest = 5 * time.Millisecond, time.Second
	pause := shortest
	for {
		uc, err := accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				uc.Close()
			}
			return nil
		case err == nil:
			pause = shortest
			s.wg.Add(1)
			go s.serveConn(ctx, uc)
			continue
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("control socket: %w", err)
		}
		s.Log.Warn("cannot accept a client", "err", err, "pause", pause)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, longest)
	}
}

// countClient adds n clients and returns false when there are too many.
func (s *Server) countClient(n int) bool {
	limit := s.MaxClients
	if limit == 0 {
		limit = defaultMaxClients
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.clients+n > limit {
		return false
	}
	s.clients += n
	if s.OnClients != nil {
		s.OnClients(s.clients)
	}
	return true
}

func (s *Server) serveConn(ctx context.Context, uc *net.UnixConn) {
	defer s.wg.Done()
	timeout := s.WriteTimeout
	if timeout == 0 {
		timeout = defaultWriteTimeout
	}
	c := &session{server: s, conn: newConn(uc, timeout)}
	defer c.Close()
	if !s.countClient(1) {
		_ = c.write(done(&Error{Code: CodeBusy, Message: "the broker has too many clients",
			Hint: "see which programs are captured with ssh-broker-ctl status"}))
		return
	}
	defer s.countClient(-1)
	c.serve(ctx)
}

// session is one connected client, on the broker's side.
type session struct {
	*conn
	server   *Server
	pid, uid int
	since    time.Time
	calls    chan *Call // from the reader, one at a time

	mu      sync.Mutex
	current *Call // the one that runs, nil between calls
}

// serve runs a client's calls, one after the other.
func (c *session) serve(ctx context.Context) {
	if err := c.hello(ctx); err != nil {
		c.server.Log.Info("client turned away", "pid", c.pid, "uid", c.uid, "err", err)
		_ = c.write(done(err))
		return
	}
	defer c.server.enlist(c)()
	ctx, cancel := context.WithCancelCause(ctx)
	c.calls = make(chan *Call)
	readerDone := make(chan struct{})
	go func() {
		defer close(readerDone)
		c.readAll(ctx, cancel)
	}()
	defer func() {
		cancel(nil)
		c.Close() // releases the reader
		<-readerDone
	}()
	for {
		select {
		case <-ctx.Done():
			c.sayWhy(ctx)
			return
		case call := <-c.calls:
			if !c.run(ctx, call) {
				return
			}
		}
	}
}

// hello checks who is there and that we understand each other.
func (c *session) hello(ctx context.Context) error {
	cred, err := c.peer()
	if err != nil {
		return &Error{Code: CodeForbidden, Message: "credentials of the client: " + err.Error()}
	}
	c.pid, c.uid = int(cred.Pid), int(cred.Uid)
	if c.uid != os.Geteuid() && c.uid != 0 && !c.isAdmin(cred) {
		return &Error{Code: CodeForbidden, Message: fmt.Sprintf("this broker belongs to %s", accountName(uint32(os.Geteuid())))}
	}
	if err := c.SetReadDeadline(time.Now().Add(helloTimeout)); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })
	m, files, err := c.read()
	if !stop() {
		closeAll(files)
		return stopping()
	}
	if err != nil {
		return badRequest(err)
	}
	closeAll(files)
	if m.Kind != kindHello {
		return badRequest(fmt.Errorf("a %q before the hello", m.Kind))
	}
	if m.Protocol != protocol {
		return &Error{
			Code:    CodeVersion,
			Message: fmt.Sprintf("broker %s speaks protocol %d, client %s speaks %d", Version(), protocol, m.Version, m.Protocol),
			Hint:    "one of the two is older: ssh-broker-ctl stop, of the broker's version, then start it again",
		}
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	return c.write(message{Kind: kindHello, Protocol: protocol, Version: Version()})
}

// isAdmin reports whether the client was a member of Server.Admins when it connected.
func (c *session) isAdmin(cred *unix.Ucred) bool {
	if c.server.Admins <= 0 {
		return false
	}
	admins := uint32(c.server.Admins)
	if cred.Gid == admins {
		return true
	}
	groups, err := c.peerGroups()
	if err != nil {
		c.server.Log.Warn("groups of a client", "pid", cred.Pid, "err", err)
		return false
	}
	return slices.Contains(groups, admins)
}

// readAll takes messages until the client goes away or breaks the protocol, and
// ends the client's calls then.
func (c *session) readAll(ctx context.Context, cancel context.CancelCauseFunc) {
	for {
		m, files, err := c.read()
		if err == nil {
			err = c.take(ctx, m, files)
		}
		if err == nil {
			continue
		}
		var wrong errProtocol
		if errors.As(err, &wrong) {
			c.server.Log.Warn("client broke the protocol", "pid", c.pid, "err", err)
			cancel(wrong)
		} else {
			cancel(ErrClientGone)
		}
		return
	}
}

// take puts one message where it belongs. It owns files, and does not block.
func (c *session) take(ctx context.Context, m message, files []*os.File) error {
	c.mu.Lock()
	call := c.current
	if call == nil && m.Kind == kindCall {
		call = &Call{Op: m.Op, args: m.Body, files: files, session: c, notes: make(chan note, maxNotes)}
		c.current = call
		c.mu.Unlock()
		select {
		case c.calls <- call:
		case <-ctx.Done():
			closeAll(files)
		}
		return nil
	}
	defer c.mu.Unlock()
	switch {
	case m.Kind == kindNote && call != nil:
		select {
		case call.notes <- note{m.Body, files}:
			return nil
		default:
			closeAll(files)
			return protocolErrorf("more than %d unread messages", maxNotes)
		}
	case m.Kind == kindAnswer && call != nil:
		closeAll(files)
		call.answer(m)
		return nil
	case m.Kind == kindNote, m.Kind == kindAnswer: // sent as the call ended
		closeAll(files)
		return nil
	case m.Kind == kindCall:
		closeAll(files)
		return protocolErrorf("call %q while %q is not done", m.Op, call.Op)
	default:
		closeAll(files)
		return protocolErrorf("unexpected %q", m.Kind)
	}
}

// run does one call and answers it. It returns false when the client is lost.
func (c *session) run(ctx context.Context, call *Call) bool {
	call.ctx = ctx
	err := c.dispatch(ctx, call)
	c.mu.Lock()
	c.current = nil // before the answer: the client may call again at once
	c.mu.Unlock()
	call.discard()
	if cause := context.Cause(ctx); cause != nil {
		if errors.Is(cause, ErrClientGone) {
			return false
		}
		if wrong := (errProtocol{}); errors.As(cause, &wrong) {
			err = badRequest(wrong) // what the client did counts more than what the handler made of it
		} else if errors.Is(err, context.Canceled) {
			err = stopping()
		}
	}
	if werr := c.write(done(err)); werr != nil {
		c.server.Log.Info("client lost", "op", call.Op, "pid", c.pid, "err", werr)
		return false
	}
	return context.Cause(ctx) == nil
}

func (c *session) dispatch(ctx context.Context, call *Call) error {
	h := c.server.handlers[call.Op]
	if h == nil {
		return &Error{
			Code:    CodeUnknownOp,
			Message: fmt.Sprintf("broker %s does not know the operation %q", Version(), call.Op),
			Hint:    "the broker may be older than this program: ssh-broker-ctl stop, then ssh-broker-ctl start",
		}
	}
	return h(ctx, call)
}

// send is write during a call. A client that has missed a message is disconnected:
// half an answer is none.
func (c *session) send(m message) error {
	err := c.write(m)
	if err == nil || unsent(err) {
		return err
	}
	c.Close()
	return fmt.Errorf("%w: %w", ErrClientGone, err)
}

// sayWhy tells a client that is between calls why it is disconnected, unless it
// just left.
func (c *session) sayWhy(ctx context.Context) {
	if wrong := (errProtocol{}); errors.As(context.Cause(ctx), &wrong) {
		_ = c.write(done(badRequest(wrong)))
	}
}

func badRequest(err error) error {
	return &Error{Code: CodeBadRequest, Message: err.Error()}
}

func stopping() error {
	return &Error{Code: CodeStopping, Message: "the broker is stopping"}
}

// Call is one operation asked for by a client. Its methods are safe for concurrent
// use until the handler returns.
type Call struct {
	Op string

	args    json.RawMessage
	session *session
	ctx     context.Context // the handler's; for Recv, Ask and Send
	notes   chan note

	mu     sync.Mutex
	files  []*os.File // not taken yet
	asked  map[uint64]chan message
	lastID uint64
}

type note struct {
	body  json.RawMessage
	files []*os.File
}

// PeerPID is the client's process id as this process sees it; 0 where it is in
// another pid namespace.
func (c *Call) PeerPID() int { return c.session.pid }

// PeerUID is the client's user.
func (c *Call) PeerUID() int { return c.session.uid }

// Decode fills v with the arguments. A member that v does not have is an error: a
// newer client may mean something that must not be left out silently.
func (c *Call) Decode(v any) error {
	if len(c.args) == 0 {
		return nil
	}
	if err := decodeStrict(c.args, v); err != nil {
		return &Error{Code: CodeBadRequest, Message: fmt.Sprintf("arguments of %q: %v", c.Op, err)}
	}
	return nil
}

// Files hands over the descriptors that came with the call; the caller closes them.
// Those that nobody asks for are closed when the handler returns. Their file status
// flags are shared with the client: use SyscallConn, not Fd.
func (c *Call) Files() []*os.File {
	c.mu.Lock()
	defer c.mu.Unlock()
	files := c.files
	c.files = nil
	return files
}

// Send sends one row. Its error is ErrTooLarge, or ErrClientGone where the client
// is lost or does not read.
func (c *Call) Send(row any) error {
	b, err := json.Marshal(row)
	if err != nil {
		return fmt.Errorf("row of %q: %w", c.Op, err)
	}
	if err := c.session.send(message{Kind: kindRow, Body: b}); err != nil {
		return fmt.Errorf("row of %q: %w", c.Op, err)
	}
	return nil
}

// Ask puts a question to the person at the client and waits for the answer. It
// returns ErrNoPrompt when the client has nobody to ask, and what the client says
// when the person declined.
func (c *Call) Ask(ctx context.Context, p Prompt) (string, error) {
	answer := make(chan message, 1)
	c.mu.Lock()
	if c.asked == nil {
		c.asked = make(map[uint64]chan message)
	}
	c.lastID++
	id := c.lastID
	c.asked[id] = answer
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.asked, id)
		c.mu.Unlock()
	}()
	if err := c.session.send(message{Kind: kindAsk, ID: id, Prompt: &p}); err != nil {
		return "", fmt.Errorf("ask the client: %w", err)
	}
	select {
	case m := <-answer:
		switch {
		case m.Code == codeNoPrompt:
			return "", ErrNoPrompt
		case m.Error != "":
			return "", fmt.Errorf("ask the client: %s", m.Error)
		}
		return m.Text, nil
	case <-ctx.Done():
		return "", context.Cause(ctx)
	case <-c.ctx.Done():
		return "", context.Cause(c.ctx)
	}
}

// codeNoPrompt is the answer of a client that cannot ask.
const codeNoPrompt Code = "no-prompt"

// answer hands m to the Ask that waits for it, if it still does.
func (c *Call) answer(m message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ch := c.asked[m.ID]; ch != nil {
		delete(c.asked, m.ID)
		ch <- m
	}
}

// Recv waits for what the client sends during the call (Client.Send). The caller
// closes the files. It ends with the cause of ctx, or of the handler's context.
func (c *Call) Recv(ctx context.Context) (json.RawMessage, []*os.File, error) {
	select {
	case n := <-c.notes:
		return n.body, n.files, nil
	default:
	}
	select {
	case n := <-c.notes:
		return n.body, n.files, nil
	case <-ctx.Done():
		return nil, nil, context.Cause(ctx)
	case <-c.ctx.Done():
		return nil, nil, context.Cause(c.ctx)
	}
}

// discard closes what the handler has left. The reader does not know the call any more.
func (c *Call) discard() {
	closeAll(c.Files())
	for {
		select {
		case n := <-c.notes:
			closeAll(n.files)
		default:
			return
		}
	}
}
