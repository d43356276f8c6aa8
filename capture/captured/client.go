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
	// helloWithin is how long a client may say nothing at all.
	helloWithin = 10 * time.Second
	// flushWithin is how long answers to a connection that ends may take.
	flushWithin = time.Second
)

// client is one connection: a goroutine reads, one writes, and each request has one.
type client struct {
	*Server
	conn  *message.Conn
	user  *user
	uid   uint32
	pid   int32
	admin bool
	said  bool // hello

	wake     chan struct{} // has room for one: there may be something to write
	done     chan struct{} // closed when no more will be
	slot     chan struct{} // has room for the one request that changes something
	requests sync.WaitGroup

	// Guarded by Server.mu.
	next     uint64
	attempts map[uint64]*attempt // given to c, or to be; with those that it handed over
	recent   [recently]known     // decided, for questions that come late
	answers  []*parcel
	lines    map[uint32][]*attempt // to be sent, by uid
	turns    []uint32              // whose turn it is: the uids of lines
	given    map[uint32]int        // undecided and with the client
}

type known struct {
	id uint64
	a  *attempt
}

// parcel is one message to a client, and what goes with it.
type parcel struct {
	service.Message
	files []*os.File      // closed once sent
	conn  *net.TCPConn    // the same
	slots []chan struct{} // given back once sent
	then  func()          // is done with mu held, right after the answer was queued
}

func (p *parcel) drop() {
	message.CloseAll(p.files)
	if p.conn != nil {
		p.conn.Close() // without the other end's duplicate: a reset
	}
	for _, slot := range p.slots {
		<-slot
	}
}

// welcome begins to serve a connection, unless its user has too many.
func (s *Server) welcome(uc *net.UnixConn) error {
	f, err := uc.File()
	if err != nil {
		return err
	}
	conn, err := message.New(f)
	if err != nil {
		return err
	}
	c := &client{
		Server: s, conn: conn,
		wake: make(chan struct{}, 1), done: make(chan struct{}), slot: make(chan struct{}, 1),
		attempts: map[uint64]*attempt{}, lines: map[uint32][]*attempt{}, given: map[uint32]int{},
	}
	err = c.control(func(fd int) error { return c.identify(fd) })
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

// control does something with the connection's descriptor.
func (c *client) control(f func(fd int) error) error {
	raw, err := c.conn.File().SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) { err = f(int(fd)) })
	return errors.Join(cerr, err)
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
	err := c.control(func(fd int) error {
		p[0].Fd = int32(fd)
		_, err := unix.Poll(p, 0)
		return err
	})
	return err != nil || p[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
}

func (c *client) read() {
	defer c.gone()
	greeted := time.AfterFunc(helloWithin, func() { c.conn.Close() })
	defer greeted.Stop()
	for {
		var m service.Message
		files, err := c.conn.Receive(&m)
		if err == nil {
			greeted.Stop()
			err = c.handle(&m, files)
		} else {
			message.CloseAll(files)
		}
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrClosed) {
				c.Log.Warn("client cut off", "uid", c.uid, "pid", c.pid, "error", err)
			}
			return
		}
	}
}

// gone gives back what the client had.
func (c *client) gone() {
	if c.life.Err() != nil {
		c.requests.Wait() // which are answered yet
	}
	c.mu.Lock()
	delete(c.clients, c)
	if c.carriers[c.uid] == c {
		delete(c.carriers, c.uid)
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
	close(c.done)
	c.mu.Unlock()
	time.AfterFunc(flushWithin, func() { c.conn.Close() })
	c.requests.Wait()
	var made []*held // also what was asked for last
	c.mu.Lock()
	for _, h := range c.captures {
		if h.maker == c {
			made = append(made, h)
		}
	}
	c.mu.Unlock()
	c.endUnused(made)
}

// write sends what there is, and ends the connection after the last of it.
func (c *client) write() {
	defer func() {
		c.conn.Close()
		c.mu.Lock()
		defer c.mu.Unlock()
		c.user.conns--
	}()
	for over := false; ; {
		p := c.take()
		switch {
		case p != nil:
			var err error
			if p.conn != nil {
				err = c.conn.SendSocket(p.Message, p.conn)
			} else {
				err = c.conn.Send(p.Message, p.files...)
			}
			p.drop()
			if err != nil {
				c.conn.Close() // read finds out
			}
		case over:
			return
		default:
			select {
			case <-c.wake:
			case <-c.done:
				over = true
			}
		}
	}
}

// take returns what is to be sent next: answers first, and attempts by turns among the
// uids, so that one user's flood does not keep another waiting.
func (c *client) take() *parcel {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.answers) > 0 {
		p := c.answers[0]
		c.answers = c.answers[1:]
		return p
	}
	for range len(c.turns) {
		uid := c.turns[0]
		c.turns = append(c.turns[1:], uid)
		line := c.lines[uid]
		for len(line) > 0 && (line[0].at != c || line[0].given) { // decided, or taken back
			line = line[1:]
		}
		switch c.lines[uid] = line; {
		case len(line) == 0:
			delete(c.lines, uid)
			c.turns = c.turns[:len(c.turns)-1]
		case c.given[uid] < window:
			c.lines[uid] = line[1:]
			c.given[uid]++
			line[0].given = true
			return &parcel{Message: line[0].message()}
		}
	}
	return nil
}

func (c *client) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// send queues an answer, if anybody is there for it. The caller holds mu.
func (c *client) send(p *parcel) bool {
	if !c.clients[c] {
		p.drop()
		return false
	}
	c.answers = append(c.answers, p)
	c.poke()
	return true
}

// request is how a kind of message is done that is answered. What changes something is
// done with Server.changing held, one after another.
type request struct {
	do      func(c *client, m *service.Message, files []*os.File) (*parcel, error)
	changes bool
}

var requests = map[service.Op]request{
	service.OpMake:      {(*client).make, true},
	service.OpEnter:     {(*client).enter, true},
	service.OpServe:     {(*client).serve, true},
	service.OpSpec:      {(*client).serve, true},
	service.OpConnector: {(*client).connector, true},
	service.OpRelease:   {(*client).release, true},
	service.OpStatus:    {(*client).status, true},
	service.OpCarry:     {(*client).carry, false},
	service.OpAdmit:     {(*client).admit, false},
	service.OpHand:      {(*client).hand, false},
	service.OpOrigin:    {(*client).tell, false},
	service.OpWaits:     {(*client).tell, false},
}

// handle does one message, or has it done. An error ends the connection. It waits for
// a slot, and so bounds what a client may have under way that does not read answers.
func (c *client) handle(m *service.Message, files []*os.File) error {
	quiet := m.Op == service.OpRefuse || m.Op == service.OpPass
	if !c.said || quiet || m.Seq == 0 {
		message.CloseAll(files)
		switch {
		case !c.said:
			return c.hello(m)
		case quiet:
			return c.decide(m)
		}
		return fmt.Errorf("message %q without a number", m.Op)
	}
	r, known := requests[m.Op]
	if !known {
		r.do = (*client).unknown
	}
	slots := []chan struct{}{c.user.slots}
	if r.changes {
		slots = append(slots, c.slot)
	}
	for i, slot := range slots {
		select {
		case slot <- struct{}{}:
		case <-c.life.Done():
			(&parcel{files: files, slots: slots[:i]}).drop()
			return os.ErrClosed
		}
	}
	c.requests.Go(func() { c.do(r, m, files, slots) })
	return nil
}

func (c *client) unknown(m *service.Message, _ []*os.File) (*parcel, error) {
	return nil, refusal(service.CodeBadRequest, "ssh-captured does not know %q", m.Op)
}

func (c *client) do(r request, m *service.Message, files []*os.File, slots []chan struct{}) {
	defer message.CloseAll(files)
	if r.changes {
		c.user.changing.Lock()
		defer c.user.changing.Unlock()
		c.changing.Lock()
		defer c.changing.Unlock()
	}
	p, err := r.do(c, m, files)
	later := p == nil && err == nil
	if p == nil {
		p = &parcel{}
	}
	p.slots = slots
	if later {
		p.drop()
		return
	}
	p.Op, p.Seq, p.Error = service.OpAnswer, m.Seq, asError(err)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.send(p) && p.then != nil {
		p.then()
	}
}

func (c *client) hello(m *service.Message) error {
	if m.Op != service.OpHello || m.Hello == nil {
		return errors.New("the first message is no hello")
	}
	c.said = m.Hello.Version == service.Version
	answer := &parcel{Message: service.Message{Op: service.OpHello, Hello: &service.Hello{Version: service.Version, Program: c.Program, PID: os.Getpid()}}}
	if !c.said {
		answer.Error = refusal(service.CodeVersion, "this is %s, and it speaks version %d of the protocol, %s speaks %d: restart what was not upgraded",
			c.Program, service.Version, m.Hello.Program, m.Hello.Version)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.send(answer)
	return nil
}
