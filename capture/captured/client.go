package captured

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"sshbroker/capture/message"
	"sshbroker/capture/service"
)

const (
	// window is how many undecided SYNs of one uid a broker is given at a time.
	window = 512
	// recently is how many decided attempts a client may still ask about.
	recently = 256
	// flushWithin is how long what was asked for on a connection that ends may take:
	// longer than it takes to admit.
	flushWithin = 2 * time.Second
)

// client is one connection: a goroutine reads, one sends attempts, and each request has
// one that answers it.
type client struct {
	*Server
	conn  *message.Conn
	user  *user
	uid   uint32
	pid   int32
	admin bool

	slot     chan struct{} // has room for the one request that changes something
	requests sync.WaitGroup
	begins   sync.Mutex // held while an attempt, or the answer that comes before all of them, is sent
	wake     *sync.Cond // of Server.mu: there may be an attempt to send, or never more

	// Guarded by Server.mu.
	next     uint64
	attempts map[uint64]*attempt // given to c, or to be; with those that it handed over
	recent   [recently]known     // decided, for questions that come late
	lines    map[uint32]*line    // by uid
	turns    []*line             // whose turn it is: those in which somebody waits
}

type known struct {
	id uint64
	a  *attempt
}

// line is what one uid has with a client.
type line struct {
	waiting []*attempt // to be sent
	given   int        // sent, and undecided
}

// answer is what a request is answered with, and what goes with it.
type answer struct {
	service.Message
	files []*os.File   // closed once sent
	conn  *net.TCPConn // the same
}

// connOf makes message connections of those of package net, which it closes.
func connOf(uc *net.UnixConn) (*message.Conn, error) {
	defer uc.Close()
	f, err := uc.File()
	if err != nil {
		return nil, err
	}
	return message.New(f)
}

// welcome begins to serve a connection, unless its user has too many.
func (s *Server) welcome(uc *net.UnixConn) error {
	conn, err := connOf(uc)
	if err != nil {
		return err
	}
	c := &client{
		Server: s, conn: conn, slot: make(chan struct{}, 1), wake: sync.NewCond(&s.mu),
		attempts: map[uint64]*attempt{}, lines: map[uint32]*line{},
	}
	err = control(conn.File(), c.identify)
	s.mu.Lock()
	defer s.mu.Unlock()
	c.user = s.user(c.uid)
	if err != nil || c.user.conns >= connsPerUID || s.life.Err() != nil {
		conn.Close()
		return err
	}
	c.user.conns++
	s.clients[c] = true
	s.wg.Go(c.read)
	s.wg.Go(c.write)
	return nil
}

// identify takes the credentials of the moment of connect(), which cannot be forged.
func (c *client) identify(fd int) error {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return os.NewSyscallError("SO_PEERCRED", err)
	}
	c.uid, c.pid, c.admin = cred.Uid, cred.Pid, cred.Uid == 0
	if c.Admins >= 0 && !c.admin {
		groups, err := peerGroups(fd)
		if err != nil {
			return err
		}
		c.admin = int(cred.Gid) == c.Admins || slices.Contains(groups, uint32(c.Admins))
	}
	if c.admin { // status may be long
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, message.MaxBytes)
	}
	return nil
}

// peerGroups reads SO_PEERGROUPS, an array of gid_t (socket(7)).
func peerGroups(fd int) ([]uint32, error) {
	groups := make([]uint32, 1<<16) // NGROUPS_MAX
	size := uint32(4 * len(groups))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
		uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return nil, os.NewSyscallError("SO_PEERGROUPS", errno)
	}
	return groups[:size/4], nil
}

// hungUp tells whether the other end is closed, be it that nobody has read so far yet.
func (c *client) hungUp() bool {
	p := []unix.PollFd{{}}
	err := control(c.conn.File(), func(fd int) error {
		p[0].Fd = int32(fd)
		_, err := unix.Poll(p, 0)
		return err
	})
	return err != nil || p[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
}

func (c *client) read() {
	defer c.gone()
	err := c.hello()
	for err == nil {
		err = c.handle()
	}
	if !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrClosed) {
		c.Log.Warn("client cut off", "uid", c.uid, "pid", c.pid, "error", err)
	}
}

func (c *client) hello() error {
	var m service.Message
	files, err := c.conn.Receive(&m)
	message.CloseAll(files)
	switch {
	case err != nil:
		return err
	case m.Op != service.OpHello || m.Hello == nil:
		return errors.New("the first message is no hello")
	}
	answer := service.Message{Op: service.OpHello, Hello: &service.Hello{Version: service.Version, Program: c.Program, PID: os.Getpid()}}
	if m.Hello.Version != service.Version {
		err = refusal(service.CodeVersion, "this is %s, and it speaks version %d of the protocol, %s speaks %d: restart what was not upgraded",
			c.Program, service.Version, m.Hello.Program, m.Hello.Version)
		answer.Error = asError(err)
	}
	return errors.Join(c.conn.Send(answer), err)
}

// gone gives back what the client had.
func (c *client) gone() {
	late := time.AfterFunc(flushWithin, func() { c.conn.Close() })
	defer late.Stop()
	if c.life.Err() != nil {
		c.requests.Wait() // which are answered yet
	}
	c.mu.Lock()
	delete(c.clients, c)
	if c.user.carrier == c {
		c.user.carrier = nil
	}
	for _, h := range c.captures {
		if h.server == c {
			h.server = nil
		}
	}
	for _, a := range c.attempts {
		if a.at == c && !a.busy { // whoever admits it finds out
			c.returned(a, service.Handed{Outcome: service.HandGone})
		}
	}
	c.wake.Signal()
	c.mu.Unlock()
	c.requests.Wait()
	c.conn.Close()

	c.changing.Lock()
	defer c.changing.Unlock()
	var unused []*held
	for _, h := range c.captures {
		if h.maker == c && !h.entered {
			unused = append(unused, h)
		}
	}
	c.end(unused...)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.user.conns--
}

// write sends attempts. To wait for a client that does not read is nobody else's loss.
func (c *client) write() {
	for {
		c.mu.Lock()
		a := c.take()
		for a == nil && c.clients[c] {
			c.wake.Wait()
			a = c.take()
		}
		c.mu.Unlock()
		if a == nil {
			return
		}
		c.begins.Lock()
		err := c.conn.Send(a)
		c.begins.Unlock()
		if err != nil {
			c.conn.Close() // read finds out
			return
		}
	}
}

// take returns the attempt that is to be sent next: by turns among the uids, so that one
// user's flood does not keep another waiting. The caller holds mu.
func (c *client) take() *service.Message {
	for range len(c.turns) {
		l := c.turns[0]
		c.turns = c.turns[1:]
		for len(l.waiting) > 0 && (l.waiting[0].at != c || l.waiting[0].given) { // decided, or taken back
			l.waiting = l.waiting[1:]
		}
		if len(l.waiting) == 0 {
			continue
		}
		c.turns = append(c.turns, l)
		if l.given < window {
			a := l.waiting[0]
			l.waiting = l.waiting[1:]
			l.given++
			a.given = true
			return a.message()
		}
	}
	return nil
}

// send sends what was asked for, if anybody is there for it, and waits for a client that
// does not read.
func (c *client) send(p *answer) {
	c.mu.Lock()
	here := c.clients[c]
	c.mu.Unlock()
	var err error
	switch {
	case !here:
	case p.conn != nil:
		err = c.conn.SendSocket(p.Message, p.conn)
	default:
		err = c.conn.Send(p.Message, p.files...)
	}
	if err != nil {
		c.conn.Close() // read finds out
	}
	message.CloseAll(p.files)
	if p.conn != nil {
		p.conn.Close() // without the other end's duplicate: a reset
	}
}

// say has something sent that nobody waits for here.
func (c *client) say(m service.Message) {
	m.Op = service.OpAnswer
	c.wg.Go(func() { c.send(&answer{Message: m}) })
}

// request is how a kind of message is done that is answered. Where do returns neither an
// answer nor an error, somebody answers later.
type request struct {
	do      func(c *client, m *service.Message, files []*os.File) (*answer, error)
	changes bool // it is done with Server.changing held, one after another
	begins  bool // attempts come after its answer
}

var requests = map[service.Op]request{
	service.OpMake:      {do: (*client).make, changes: true},
	service.OpEnter:     {do: (*client).enter, changes: true},
	service.OpServe:     {do: (*client).serve, changes: true, begins: true},
	service.OpSpec:      {do: (*client).serve, changes: true},
	service.OpConnector: {do: (*client).connector, changes: true},
	service.OpRelease:   {do: (*client).release, changes: true},
	service.OpStatus:    {do: (*client).status, changes: true},
	service.OpCarry:     {do: (*client).carry, begins: true},
	service.OpAdmit:     {do: (*client).admit},
	service.OpHand:      {do: (*client).hand},
	service.OpOrigin:    {do: (*client).tell},
	service.OpWaits:     {do: (*client).tell},
}

// handle does one message, or has it done. An error ends the connection. It waits for
// a slot, and so bounds what a client may have under way that does not read answers.
func (c *client) handle() error {
	m := new(service.Message)
	files, err := c.conn.Receive(m)
	r, known := requests[m.Op]
	switch {
	case err != nil:
	case m.Op == service.OpRefuse, m.Op == service.OpPass:
		err = c.decide(m)
	case m.Seq == 0:
		err = fmt.Errorf("message %q without a number", m.Op)
	case !c.waitFor(c.user.slots), r.changes && !c.waitFor(c.slot):
		err = os.ErrClosed
	default:
		if !known {
			r.do = (*client).unknown
		}
		c.requests.Go(func() { c.do(r, m, files) })
		return nil
	}
	message.CloseAll(files)
	return err
}

// waitFor takes a slot, but for the server's end.
func (s *Server) waitFor(slot chan struct{}) bool {
	select {
	case slot <- struct{}{}:
		return true
	case <-s.life.Done():
		return false
	}
}

func (c *client) unknown(m *service.Message, _ []*os.File) (*answer, error) {
	return nil, refusal(service.CodeBadRequest, "ssh-captured does not know %q", m.Op)
}

// do carries out a request and answers it.
func (c *client) do(r request, m *service.Message, files []*os.File) {
	defer func() { <-c.user.slots }()
	if r.changes {
		defer func() { <-c.slot }()
	}
	if r.begins {
		c.begins.Lock()
		defer c.begins.Unlock()
	}
	p, err := c.carryOut(r, m, files)
	message.CloseAll(files)
	switch {
	case err != nil:
		p = &answer{Message: service.Message{Error: asError(err)}}
	case p == nil:
		return
	}
	p.Op, p.Seq = service.OpAnswer, m.Seq
	c.send(p)
}

func (c *client) carryOut(r request, m *service.Message, files []*os.File) (*answer, error) {
	if r.changes {
		c.user.changing.Lock()
		defer c.user.changing.Unlock()
		c.changing.Lock()
		defer c.changing.Unlock()
	}
	return r.do(c, m, files)
}
