package captured

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"sshbroker/capture"
	"sshbroker/capture/message"
	"sshbroker/capture/service"
)

const (
	// window is how many undecided SYNs of one uid a broker is given at a time.
	window = 512
	// backlog is how many answers a client may leave unread before it is cut off.
	backlog = 32 << 10
	// atOnce is how much that takes long a client may have under way.
	atOnce = 4096
	// recently is how many decided attempts a client may still ask about.
	recently = 256
)

type known struct {
	id uint64
	a  *attempt
}

// client is one connection. What guards its fields is Server.mu.
type client struct {
	*Server
	conn  *message.Conn
	uid   uint32
	pid   int32
	admin bool
	said  bool // hello
	wake  chan struct{}
	done  chan struct{}

	next      uint64
	attempts  map[uint64]*attempt // undecided
	recent    [recently]known     // decided, for questions that come late
	forgotten int
	slots     chan struct{} // for what takes long
	answers   []parcel
	lines     map[uint32][]*attempt // to be sent, by uid
	turns     []uint32              // whose turn it is: the uids of lines
	given     map[uint32]int        // undecided and with the client
}

// remember keeps a decided attempt for a while. The caller holds mu.
func (c *client) remember(id uint64, a *attempt) {
	c.recent[c.forgotten%recently] = known{id, a}
	c.forgotten++
}

// parcel is one message to a client, and what goes with it.
type parcel struct {
	service.Message
	files []*os.File   // closed once sent
	conn  *net.TCPConn // the same
}

func (p *parcel) drop() {
	message.CloseAll(p.files)
	if p.conn != nil {
		p.conn.Close() // without the other end's duplicate: a reset
	}
}

// newClient asks the kernel who it is.
func (s *Server) newClient(uc *net.UnixConn) (*client, error) {
	defer uc.Close()
	f, err := uc.File()
	if err != nil {
		return nil, err
	}
	conn, err := message.New(f)
	if err != nil {
		return nil, err
	}
	c := &client{Server: s, conn: conn, wake: make(chan struct{}, 1), done: make(chan struct{}),
		attempts: map[uint64]*attempt{}, lines: map[uint32][]*attempt{}, given: map[uint32]int{}, slots: make(chan struct{}, atOnce)}
	raw, err := f.SyscallConn()
	if err == nil {
		err = errors.Join(raw.Control(func(fd uintptr) { err = c.identify(int(fd)) }), err)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("who connects: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for other := range s.clients {
		if other.uid == c.uid {
			n++
		}
	}
	if n >= connsPerUID {
		conn.Close()
		return nil, fmt.Errorf("uid %d has %d connections already", c.uid, n)
	}
	s.clients[c] = true
	return c, nil
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

// read is the life of the connection.
func (c *client) read() {
	defer c.gone()
	greeted := time.AfterFunc(handshakeWithin, func() { c.conn.Close() })
	defer greeted.Stop()
	for {
		var m service.Message
		files, err := c.conn.Receive(&m)
		if err == nil {
			greeted.Stop()
			err = c.handle(&m, files)
		}
		message.CloseAll(files)
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrClosed) {
				c.Log.Warn("client cut off", "uid", c.uid, "pid", c.pid, "error", err)
			}
			return
		}
	}
}

// write sends answers first, and attempts by turns among the uids, so that one user's
// flood does not keep another waiting.
func (c *client) write() {
	for {
		p, ok := c.take()
		if !ok {
			select {
			case <-c.wake:
				continue
			case <-c.done:
				c.mu.Lock()
				for _, p := range c.answers {
					p.drop()
				}
				c.answers = nil
				c.mu.Unlock()
				return
			}
		}
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
	}
}

// take returns what is to be sent next.
func (c *client) take() (parcel, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.answers) > 0 {
		p := c.answers[0]
		c.answers = c.answers[1:]
		return p, true
	}
	for range len(c.turns) {
		uid := c.turns[0]
		c.turns = append(c.turns[1:], uid)
		line := c.lines[uid]
		for len(line) > 0 && line[0].at != c { // decided, or taken back, meanwhile
			line = line[1:]
		}
		if len(line) == 0 {
			delete(c.lines, uid)
			c.turns = c.turns[:len(c.turns)-1]
			continue
		}
		c.lines[uid] = line
		if c.given[uid] >= window {
			continue
		}
		a := line[0]
		c.lines[uid] = line[1:]
		c.given[uid]++
		a.given = true
		return parcel{Message: a.message()}, true
	}
	return parcel{}, false
}

func (c *client) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// send queues an answer. The caller holds mu.
func (c *client) send(p parcel) {
	if !c.clients[c] || len(c.answers) >= backlog {
		p.drop()
		c.conn.Close()
		return
	}
	c.answers = append(c.answers, p)
	c.poke()
}

// answer answers a request; err may be nil.
func (c *client) answer(seq uint64, m service.Message, err error) {
	m.Op, m.Seq = service.OpAnswer, seq
	m.Error = asError(err)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.send(parcel{Message: m})
}

// asError is the one place where errors get their codes.
func asError(err error) *service.Error {
	if err == nil {
		return nil
	}
	if answer, ok := errors.AsType[*service.Error](err); ok {
		return answer
	}
	code := service.CodeKernel
	switch {
	case errors.Is(err, capture.ErrAbandoned):
		code = service.CodeAbandoned
	case errors.Is(err, capture.ErrNoDescriptors):
		code = service.CodeNoFiles
	case errors.Is(err, capture.ErrClosed):
		code = service.CodeStopping
	}
	return serviceError(code, "%v", err)
}

// handle does one message. An error ends the connection.
func (c *client) handle(m *service.Message, files []*os.File) error {
	if !c.said {
		return c.hello(m)
	}
	switch m.Op {
	case service.OpAdmit, service.OpRefuse, service.OpPass, service.OpHand, service.OpOrigin, service.OpWaits:
		return c.decide(m)
	}
	if m.Seq == 0 {
		return fmt.Errorf("message %q without a number", m.Op)
	}
	var answer service.Message
	var sockets []*os.File
	var err error
	switch m.Op {
	case service.OpMake:
		answer.Made, err = c.make(c, m.Capture)
	case service.OpEnter:
		if len(files) != 1 {
			return fmt.Errorf("%d descriptors with %q", len(files), m.Op)
		}
		err = c.enter(c, m.Capture, files[0])
	case service.OpServe:
		answer.Served, sockets, err = c.serve(c, m)
	case service.OpSpec:
		err = c.respec(c, m)
	case service.OpCarry:
		err = c.carry(c)
	case service.OpConnector:
		if m.Enable == nil {
			return fmt.Errorf("%q without a value", m.Op)
		}
		err = c.connector(c, *m.Enable)
	case service.OpStatus:
		answer.Status, err = c.status(c), nil
	case service.OpRelease:
		err = c.release(c)
	default:
		err = serviceError(service.CodeBadRequest, "ssh-captured does not know %q", m.Op)
	}
	answer.Op, answer.Seq, answer.Error = service.OpAnswer, m.Seq, asError(err)
	c.mu.Lock()
	c.send(parcel{Message: answer, files: sockets})
	if err == nil && m.Op == service.OpServe {
		c.offerAll(c.captures[m.Capture]) // behind the answer, which they must not overtake
	}
	c.mu.Unlock()
	return nil
}

func (c *client) hello(m *service.Message) error {
	if m.Op != service.OpHello || m.Hello == nil {
		return errors.New("the first message is no hello")
	}
	answer := service.Message{Op: service.OpHello, Hello: &service.Hello{Version: service.Version, Program: c.Program, PID: os.Getpid()}}
	if m.Hello.Version != service.Version {
		answer.Error = serviceError(service.CodeVersion, "this is %s, and it speaks version %d of the protocol, %s speaks %d: restart what was not upgraded",
			c.Program, service.Version, m.Hello.Program, m.Hello.Version)
	}
	c.said = true
	c.mu.Lock()
	defer c.mu.Unlock()
	c.send(parcel{Message: answer})
	return nil
}

// gone gives back what the client had.
func (c *client) gone() {
	c.mu.Lock()
	delete(c.clients, c)
	if c.carriers[c.uid] == c {
		delete(c.carriers, c.uid)
	}
	var unused []string
	for id, h := range c.captures {
		if h.server == c {
			h.server = nil
		}
		if h.maker == c {
			h.maker = nil
			if !h.entered && id != service.System {
				unused = append(unused, id)
			}
		}
	}
	for _, a := range c.attempts {
		c.giveBack(a)
	}
	c.attempts = nil
	close(c.done)
	c.mu.Unlock()
	c.conn.Close()
	for _, id := range unused {
		c.end(id, service.CodeEnded)
	}
}
