package client

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"sshbroker/capture"
	"sshbroker/capture/message"
	"sshbroker/capture/service"
)

func TestMain(m *testing.M) {
	if os.Getenv(envStarved) != "" {
		starved()
		return
	}
	goleak.VerifyTestMain(m)
}

// syn is what the kernel would hold: it survives every server.
type syn struct {
	at      service.Attempt
	given   service.Op // the verdict
	refusal capture.Refusal
	text    string
	answers int          // verdicts that came
	program *net.TCPConn // once admitted
	taken   *os.File     // accepted, and in no broker's hands yet
	asked   int          // requests about it
}

// kernel is everything behind a fake ssh-captured.
type kernel struct {
	mu   sync.Mutex
	syns map[service.Key]*syn
	news func() // told after every verdict; may be nil
}

func key(n int) service.Key {
	return service.Key{
		Src: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(n >> 8), byte(n)}), 40000),
		Dst: netip.MustParseAddrPort("192.0.2.7:443"), Seq: uint32(n) * 7919,
	}
}

// fake is ssh-captured. Its hooks are set before it is used.
type fake struct {
	t    testing.TB
	path string
	*kernel

	version int
	served  service.Served
	sockets []*os.File // with the answer to serve
	// before and after see every message; false kills the server.
	before, after func(*service.Message) bool
	// answer replaces the answer; nil: as it is. An empty Op: none.
	answer func(m *service.Message, usual service.Message) service.Message

	listener *net.UnixListener
	wg       sync.WaitGroup

	mu      sync.Mutex
	conns   map[*served]bool
	hellos  int
	serves  []service.Message
	entered []string
}

// served is one connection.
type served struct {
	*message.Conn
	next    uint64
	ids     map[uint64]service.Key
	serving bool
}

func newFake(t testing.TB) *fake {
	f := &fake{
		t: t, path: filepath.Join(t.TempDir(), "socket"), kernel: &kernel{syns: map[service.Key]*syn{}},
		version: service.Version, served: service.Served{Held: true, Owner: 1000}, conns: map[*served]bool{},
	}
	t.Cleanup(func() {
		f.stop()
		message.CloseAll(f.sockets)
		f.kernel.mu.Lock()
		defer f.kernel.mu.Unlock()
		for _, s := range f.syns {
			if s.program != nil {
				s.program.Close()
			}
			if s.taken != nil {
				s.taken.Close()
			}
		}
	})
	return f
}

// start listens; after stop it does so anew.
func (f *fake) start() *fake {
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: f.path, Net: "unixpacket"})
	if err != nil {
		f.t.Fatal(err)
	}
	f.mu.Lock()
	f.listener = l
	f.mu.Unlock()
	f.wg.Go(func() {
		for {
			u, err := l.AcceptUnix()
			if err != nil {
				return
			}
			file, err := u.File()
			u.Close()
			if err != nil {
				return
			}
			c, err := message.New(file)
			if err != nil {
				return
			}
			s := &served{Conn: c, ids: map[uint64]service.Key{}}
			f.mu.Lock()
			if f.listener != l {
				f.mu.Unlock()
				c.Close()
				continue
			}
			f.conns[s] = true
			f.mu.Unlock()
			f.wg.Go(func() { f.serve(s) })
		}
	})
	return f
}

// cut ends every connection; stop the listener, too, and waits.
func (f *fake) cut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.conns {
		c.Close()
	}
}

func (f *fake) stop() {
	f.mu.Lock()
	l := f.listener
	f.listener = nil
	f.mu.Unlock()
	if l != nil {
		l.Close()
	}
	f.cut()
	f.wg.Wait()
}

func (f *fake) serve(c *served) {
	defer func() {
		f.mu.Lock()
		delete(f.conns, c)
		f.mu.Unlock()
		c.Close()
	}()
	for {
		var m service.Message
		files, err := c.Receive(&m)
		if err != nil {
			message.CloseAll(files)
			if !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrClosed) && !errors.As(err, new(*os.SyscallError)) {
				f.t.Errorf("the fake received: %v", err)
			}
			return
		}
		ok := f.before == nil || f.before(&m)
		if ok {
			f.handle(c, &m, files)
			ok = f.after == nil || f.after(&m)
		}
		message.CloseAll(files)
		if !ok {
			return
		}
	}
}

func (f *fake) handle(c *served, m *service.Message, files []*os.File) {
	a := service.Message{Op: service.OpAnswer, Seq: m.Seq}
	fail := func(code service.Code, text string) { a.Error = &service.Error{Code: code, Message: text} }
	var out []*os.File
	var done func()
	switch m.Op {
	case service.OpHello:
		f.mu.Lock()
		f.hellos++
		f.mu.Unlock()
		a = service.Message{Op: service.OpHello, Hello: &service.Hello{Version: f.version, Program: "fake 1", PID: os.Getpid()}}
	case service.OpMake:
		a.Made = &service.Made{Cgroup: "/c/" + m.Capture, Held: true}
	case service.OpEnter:
		f.mu.Lock()
		f.entered = append(f.entered, m.Capture)
		f.mu.Unlock()
		if len(files) != 1 {
			fail(service.CodeBadRequest, fmt.Sprintf("%d descriptors", len(files)))
		}
	case service.OpStatus:
		a.Status = &service.Status{PID: 7, Program: "fake 1", Enabled: true}
	case service.OpServe, service.OpCarry:
		f.kernel.mu.Lock() // what arrives from now on is offered after what is held
		defer f.kernel.mu.Unlock()
		f.mu.Lock()
		f.serves = append(f.serves, *m)
		if m.Op == service.OpServe {
			served := f.served
			a.Served, out = &served, f.sockets
		}
		f.mu.Unlock()
		done = func() {
			f.mu.Lock()
			c.serving = true
			f.mu.Unlock()
			for _, s := range f.syns {
				if s.given == "" {
					f.offer(c, s)
				}
			}
		}
	case service.OpAdmit, service.OpRefuse, service.OpPass, service.OpHand, service.OpOrigin, service.OpWaits:
		f.kernel.mu.Lock()
		defer f.kernel.mu.Unlock()
		k := c.ids[m.ID]
		if m.ID == 0 && m.Key != nil {
			k = *m.Key
		}
		s := f.syns[k]
		if s == nil {
			fail(service.CodeNotFound, "no such attempt")
			break
		}
		s.asked++
		switch m.Op {
		case service.OpRefuse, service.OpPass:
			s.given, s.refusal, s.text = m.Op, m.Refusal, m.Text
			s.answers++
			f.tellNews()
			return
		case service.OpAdmit:
			s.answers++
			if s.given == "" {
				s.given = service.OpAdmit
				s.program, s.taken = connect(f.t)
				f.tellNews()
			}
			if s.taken == nil {
				fail(service.CodeAbandoned, "gave up")
				break
			}
			out = []*os.File{s.taken}
			taken := s.taken
			done = func() { taken.Close(); s.taken = nil }
		case service.OpHand:
			a.Handed = &service.Handed{Outcome: service.HandRefused, Refusal: capture.Refused, Text: string(m.Payload)}
		case service.OpOrigin:
			a.Origin = &service.Origin{Known: true, PID: 42, Exe: "/bin/prog"}
		case service.OpWaits:
			a.Yes = s.given == ""
		}
	}
	if f.answer != nil {
		a = f.answer(m, a)
	}
	if a.Op == "" {
		return
	}
	if a.Error != nil {
		out, done = nil, nil
	}
	if f.after != nil && m.Op == service.OpAdmit {
		if !f.after(m) { // killed between the connection and its answer
			c.Close()
			return
		}
	}
	if c.Send(a, out...) == nil && done != nil {
		done()
	}
}

func (k *kernel) tellNews() {
	if k.news != nil {
		k.news()
	}
}

// offer sends an attempt. The caller holds kernel.mu.
func (f *fake) offer(c *served, s *syn) {
	c.next++
	id := c.next
	c.ids[id] = s.at.Key
	at := s.at
	_ = c.Send(service.Message{Op: service.OpAttempt, Capture: "c1", ID: id, Attempt: &at})
}

// arrive makes a program connect.
func (f *fake) arrive(ats ...service.Attempt) {
	f.kernel.mu.Lock()
	defer f.kernel.mu.Unlock()
	for _, at := range ats {
		s := f.syns[at.Key]
		if s == nil {
			s = &syn{at: at}
			f.syns[at.Key] = s
		}
		f.mu.Lock()
		conns := make([]*served, 0, 1)
		for c := range f.conns {
			if c.serving {
				conns = append(conns, c)
			}
		}
		f.mu.Unlock()
		for _, c := range conns {
			f.offer(c, s)
		}
	}
}

func attemptOf(n int) service.Attempt {
	return service.Attempt{Key: key(n), UID: 1000, Arrived: time.Now()}
}

// syn waits until cond holds of the SYN behind k, and returns a copy of it.
func (f *fake) syn(k service.Key, cond func(syn) bool) syn {
	f.t.Helper()
	var got syn
	poll(f.t, func() bool {
		f.kernel.mu.Lock()
		defer f.kernel.mu.Unlock()
		got = *f.syns[k]
		return cond(got)
	})
	return got
}

func poll(t testing.TB, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not become so")
		}
	}
}

// connect makes a connection as an accepted one is: reset when nobody takes it.
func connect(t testing.TB) (program *net.TCPConn, accepted *os.File) {
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Error(err)
		return nil, nil
	}
	defer l.Close()
	program, err = net.DialTCP("tcp4", nil, l.Addr().(*net.TCPAddr))
	if err != nil {
		t.Error(err)
		return nil, nil
	}
	c, err := l.AcceptTCP()
	if err != nil {
		t.Error(err)
		return nil, nil
	}
	_ = c.SetLinger(0)
	accepted, err = c.File()
	if err != nil {
		t.Error(err)
	}
	c.Close()
	return program, accepted
}
