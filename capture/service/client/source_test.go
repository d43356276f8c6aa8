package client

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"reflect"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/capture"
	"sshbroker/capture/message"
	"sshbroker/capture/service"
)

func (f *fake) options() Options { return Options{Dialer: f.dialer(), Capture: "c1"} }

func serve(t testing.TB, o Options) *Source {
	t.Helper()
	s, err := Serve(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if len(s.room.fds) != 0 || s.room.want > 0 {
			t.Errorf("%d spares are left, %d wanted", len(s.room.fds), s.room.want)
		}
	})
	return s
}

// endedBy is the code for which a Source has ended.
func endedBy(err error) service.Code {
	var refused *service.Error
	errors.As(err, &refused)
	if refused == nil {
		return ""
	}
	return refused.Code
}

func next(t testing.TB, s *Source) *attempt {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	a, err := s.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return a.(*attempt)
}

// talks sees to it that both ends belong together and work.
func (f *fake) talks(k service.Key, c *capture.Conn) {
	f.t.Helper()
	f.kernel.mu.Lock()
	program := f.syns[k].program
	f.kernel.mu.Unlock()
	if _, err := io.WriteString(program, "hello"); err != nil {
		f.t.Error(err)
	}
	b := make([]byte, 5)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "hello" {
		f.t.Errorf("read %q, %v", b, err)
	}
	if err := c.Close(); err != nil {
		f.t.Error(err)
	}
	_ = program.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := program.Read(b); err != io.EOF {
		f.t.Errorf("the program reads %v", err)
	}
}

func TestServe(t *testing.T) {
	f := newFake(t)
	u, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	uf, _ := u.File()
	lf, _ := l.File()
	f.sockets = []*os.File{uf, lf}
	f.start()
	o := f.options()
	o.Spec.Local = true
	named, changed := 0, 0
	o.Names = func(_ service.Served, udp []net.PacketConn, tcp []net.Listener) {
		named++
		if len(udp) != 1 || len(tcp) != 1 || udp[0].LocalAddr().String() != u.LocalAddr().String() || tcp[0].Addr().String() != l.Addr().String() {
			t.Errorf("sockets %v and %v", udp, tcp)
		}
		udp[0].Close()
		tcp[0].Close()
	}
	o.Changed = func(got service.Served) {
		changed++
		if got.Owner != 1000 {
			t.Errorf("served %+v", got)
		}
	}
	s := serve(t, o)
	if named != 1 || changed != 1 || !s.Served().Held {
		t.Errorf("named %d times, told %d times, served %+v", named, changed, s.Served())
	}
	f.mu.Lock()
	if m := f.serves[0]; m.Op != service.OpServe || m.Capture != "c1" || m.Spec == nil || !m.Spec.Local || m.Resume {
		t.Errorf("serve %+v", m)
	}
	f.mu.Unlock()

	at := attemptOf(1)
	f.arrive(at)
	a := next(t, s)
	if flow := a.Flow(); flow.Src != at.Src || flow.Dst != at.Dst || flow.UID != 1000 || flow.Local || !flow.Arrived.Equal(at.Arrived) {
		t.Errorf("flow %+v", flow)
	}
	if o := a.Flow().Origin(); o != (capture.Origin{Known: true, PID: 42, Exe: "/bin/prog"}) {
		t.Errorf("origin %+v", o)
	}
	if !a.Waits() {
		t.Error("it does not wait")
	}
	c, err := a.Admit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f.talks(at.Key, c)
	a.Refuse(capture.Refused) // is too late, and changes nothing

	for n, end := range []struct {
		do      func(capture.Attempt)
		op      service.Op
		refusal capture.Refusal
	}{
		{func(a capture.Attempt) { a.Refuse(capture.Unreachable) }, service.OpRefuse, capture.Unreachable},
		{func(a capture.Attempt) { a.Refuse(capture.Refused) }, service.OpRefuse, capture.Refused},
		{func(a capture.Attempt) { a.Refuse(capture.Silent) }, service.OpRefuse, capture.Silent},
		{func(a capture.Attempt) {
			if err := a.Pass(); err != nil {
				t.Error(err)
			}
		}, service.OpPass, 0},
	} {
		at := attemptOf(10 + n)
		f.arrive(at)
		end.do(next(t, s))
		if got := f.syn(at.Key, func(s syn) bool { return s.given != "" }); got.given != end.op || got.refusal != end.refusal {
			t.Errorf("verdict %s %v, want %s %v", got.given, got.refusal, end.op, end.refusal)
		}
	}
	if got := f.syn(at.Key, func(syn) bool { return true }); got.answers != 1 {
		t.Errorf("%d verdicts", got.answers)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.pending) != 0 {
		t.Errorf("%d attempts are pending", len(s.pending))
	}
}

// TestNamesAgain gives the same sockets away once, and other ones when they come.
func TestNamesAgain(t *testing.T) {
	f := newFake(t)
	socket := func() *os.File {
		u, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		file, err := u.File()
		if err != nil {
			t.Fatal(err)
		}
		return file
	}
	f.sockets = []*os.File{socket()}
	f.start()
	o := f.options()
	named, changed := make(chan net.PacketConn, 10), make(chan bool, 10)
	o.Names = func(_ service.Served, udp []net.PacketConn, _ []net.Listener) { named <- udp[0] }
	o.Changed = func(service.Served) { changed <- true }
	serve(t, o)
	<-changed
	f.cut()
	<-changed
	f.mu.Lock()
	old := f.sockets
	f.sockets = []*os.File{socket()}
	f.mu.Unlock()
	message.CloseAll(old)
	f.cut()
	<-changed
	close(named)
	var ports []string
	for c := range named {
		ports = append(ports, c.LocalAddr().String())
		c.Close()
	}
	if len(ports) != 2 || ports[0] == ports[1] {
		t.Errorf("was given %v", ports)
	}
}

func TestServeWithoutTheServed(t *testing.T) {
	f := newFake(t)
	f.answer = func(m *service.Message, usual service.Message) service.Message {
		usual.Served = nil
		return usual
	}
	f.start()
	if _, err := Serve(t.Context(), f.options()); !errors.Is(err, errEmpty) {
		t.Error(err)
	}
}

// TestNamesAreSockets refuses to serve with something else.
func TestNamesAreSockets(t *testing.T) {
	f := newFake(t)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	f.sockets = []*os.File{null}
	f.start()
	o := f.options()
	o.Names = func(service.Served, []net.PacketConn, []net.Listener) { t.Error("was given no socket") }
	if _, err := Serve(t.Context(), o); err == nil {
		t.Error("no error")
	}
}

func TestCarry(t *testing.T) {
	f := newFake(t).start()
	s, err := Carry(t.Context(), Options{Dialer: f.dialer()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	at := attemptOf(1)
	at.Payload = []byte(`{"v":1}`)
	f.arrive(at)
	a := next(t, s)
	if string(a.Payload()) != `{"v":1}` {
		t.Errorf("payload %q", a.Payload())
	}
	if err := a.Pass(); !errors.Is(err, capture.ErrNoWayOut) {
		t.Errorf("pass: %v", err)
	}
	a.RefuseBecause(capture.Refused, "host key")
	if got := f.syn(at.Key, func(s syn) bool { return s.given != "" }); got.refusal != capture.Refused || got.text != "host key" {
		t.Errorf("refused %v, %q", got.refusal, got.text)
	}
	if err := s.SetSpec(t.Context(), capture.Spec{}); err == nil {
		t.Error("it took a spec")
	}
	f.cut() // carries again afterwards
	poll(t, func() bool { f.mu.Lock(); defer f.mu.Unlock(); return len(f.serves) == 2 })
	if m := f.serves[1]; m.Op != service.OpCarry || m.Spec != nil || m.Capture != "" {
		t.Errorf("carry again: %+v", m)
	}
}

func TestPassNeedsAQueue(t *testing.T) {
	f := newFake(t)
	f.served.Held = false
	f.start()
	f.arrive(attemptOf(1)) // comes right behind the answer
	s := serve(t, f.options())
	a := next(t, s)
	if err := a.Pass(); !errors.Is(err, capture.ErrNoWayOut) {
		t.Errorf("pass: %v", err)
	}
	c, err := a.Admit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f.talks(a.key, c)
}

// TestErrors maps what admit, hand, origin and waits are answered.
func TestErrors(t *testing.T) {
	for _, c := range []struct {
		code      service.Code
		admit     error
		undecided bool
		waits     bool
		hand      error
	}{
		{service.CodeAbandoned, capture.ErrAbandoned, false, false, capture.ErrAbandoned},
		{service.CodeNotFound, capture.ErrAbandoned, false, false, capture.ErrAbandoned},
		{service.CodeNoFiles, capture.ErrNoDescriptors, true, true, nil},
		{service.CodeKernel, nil, false, true, nil},
		{service.CodeNoCarrier, nil, false, true, ErrNoCarrier},
	} {
		t.Run(string(c.code), func(t *testing.T) {
			f := newFake(t)
			refusing := &service.Error{Code: c.code, Message: "no"}
			f.answer = func(m *service.Message, usual service.Message) service.Message {
				switch m.Op {
				case service.OpAdmit, service.OpHand, service.OpOrigin, service.OpWaits:
					return service.Message{Op: service.OpAnswer, Seq: m.Seq, Error: refusing}
				}
				return usual
			}
			f.start()
			s := serve(t, f.options())
			f.arrive(attemptOf(1), attemptOf(2))
			a, b := next(t, s), next(t, s)
			if a.Waits() != c.waits {
				t.Errorf("waits: %t", !c.waits)
			}
			o := a.Flow().Origin()
			if gone := c.code == service.CodeNotFound; o.Known || (o.Err == nil) != gone {
				t.Errorf("origin %+v", o)
			}
			_, err := a.Admit(t.Context())
			if codeOf(err) != c.code || c.admit != nil && !errors.Is(err, c.admit) {
				t.Errorf("admit: %v", err)
			}
			s.mu.Lock()
			undecided := s.pending[a.key] == a
			s.mu.Unlock()
			if undecided != c.undecided {
				t.Errorf("undecided: %t", undecided)
			}
			if errors.Is(c.admit, capture.ErrAbandoned) { // the SYN that comes again is another attempt
				f.arrive(attemptOf(1))
				if again := next(t, s); again == a || again.key != a.key {
					t.Errorf("delivered %v", again.key)
				}
			}
			if c.admit == nil { // nobody else would end it
				f.syn(a.key, func(s syn) bool { return s.given == service.OpRefuse })
			}
			_, err = b.Hand(t.Context(), nil)
			if codeOf(err) != c.code || c.hand != nil && !errors.Is(err, c.hand) {
				t.Errorf("hand: %v", err)
			}
		})
	}
}

func TestHand(t *testing.T) {
	for _, outcome := range []service.Outcome{service.HandAdmitted, service.HandRefused, service.HandGone, service.HandLost} {
		t.Run(string(outcome), func(t *testing.T) {
			f := newFake(t)
			f.answer = func(m *service.Message, usual service.Message) service.Message {
				if m.Op == service.OpHand {
					usual.Handed.Outcome = outcome
				}
				return usual
			}
			f.start()
			s := serve(t, f.options())
			f.arrive(attemptOf(1))
			a := next(t, s)
			got, err := a.Hand(t.Context(), []byte("payload"))
			if err != nil || got.Outcome != outcome || got.Text != "payload" || got.Refusal != capture.Refused {
				t.Fatalf("handed %+v, %v", got, err)
			}
			a.Refuse(capture.Unreachable)
			if outcome == service.HandRefused || outcome == service.HandGone {
				f.syn(a.key, func(s syn) bool { return s.given == service.OpRefuse })
				return
			}
			if err := s.SetSpec(t.Context(), capture.Spec{}); err != nil { // behind the refusal
				t.Fatal(err)
			}
			if got := f.syn(a.key, func(syn) bool { return true }); got.given != "" {
				t.Errorf("was given %s although it was dealt with", got.given)
			}
		})
	}
}

// TestHandIsNotWanted ends for want of the program, and leaves the attempt to be refused.
func TestHandIsNotWanted(t *testing.T) {
	f := newFake(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	f.answer = func(m *service.Message, usual service.Message) service.Message {
		if m.Op == service.OpHand {
			cancel(capture.ErrAbandoned)
			usual.Op = ""
		}
		return usual
	}
	f.start()
	s := serve(t, f.options())
	f.arrive(attemptOf(1))
	a := next(t, s)
	if _, err := a.Hand(ctx, nil); !errors.Is(err, capture.ErrAbandoned) {
		t.Errorf("hand: %v", err)
	}
	a.Refuse(capture.Silent)
	f.syn(a.key, func(s syn) bool { return s.given == service.OpRefuse && s.refusal == capture.Silent })
}

func TestOriginAnswers(t *testing.T) {
	for _, c := range []struct {
		answer *service.Origin
		known  bool
		err    bool
	}{
		{nil, false, true},
		{&service.Origin{}, false, false},
		{&service.Origin{Error: "EMFILE"}, false, true},
		{&service.Origin{Known: true, PID: 5, Exe: "/x"}, true, false},
	} {
		f := newFake(t)
		f.answer = func(m *service.Message, usual service.Message) service.Message {
			if m.Op == service.OpOrigin {
				usual.Origin = c.answer
			}
			return usual
		}
		f.start()
		s := serve(t, f.options())
		f.arrive(attemptOf(1))
		a := next(t, s)
		for range 2 {
			if o := a.Flow().Origin(); o.Known != c.known || (o.Err != nil) != c.err {
				t.Errorf("%+v: origin %+v", c.answer, o)
			}
		}
		if got := f.syn(a.key, func(syn) bool { return true }); got.asked != 1 {
			t.Errorf("asked %d times", got.asked)
		}
	}
}

// TestCopies sends SYNs again, as the kernel does with those that it dropped.
func TestCopies(t *testing.T) {
	f := newFake(t).start()
	s := serve(t, f.options())
	f.arrive(attemptOf(1), attemptOf(2), attemptOf(3), attemptOf(4))
	f.arrive(attemptOf(1)) // undecided: not delivered twice
	refused, passed, admitted, open := next(t, s), next(t, s), next(t, s), next(t, s)
	poll(t, func() bool { _, id, _ := state(refused); return id == 5 }) // the copy has been seen
	refused.Refuse(capture.Refused)
	if err := passed.Pass(); err != nil {
		t.Error(err)
	}
	c, err := admitted.Admit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f.syn(refused.key, func(s syn) bool { return s.answers == 1 })
	f.syn(passed.key, func(s syn) bool { return s.answers == 1 })

	f.arrive(attemptOf(1), attemptOf(2), attemptOf(3), attemptOf(4), attemptOf(5))
	if a := next(t, s); a.key != key(5) {
		t.Errorf("delivered %v", a.key)
	}
	for _, a := range []*attempt{refused, passed, admitted} {
		f.syn(a.key, func(s syn) bool { return s.answers == 2 })
	}
	if got := f.syn(open.key, func(syn) bool { return true }); got.answers != 0 {
		t.Errorf("%d verdicts for an undecided one", got.answers)
	}
	f.talks(admitted.key, c)
	open.Refuse(capture.Unreachable)
	f.syn(open.key, func(s syn) bool { return s.given == service.OpRefuse })
}

// TestCanceledAdmit resets the connection that comes too late.
func TestCanceledAdmit(t *testing.T) {
	f := newFake(t)
	canceled := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	f.answer = func(m *service.Message, usual service.Message) service.Message {
		if m.Op == service.OpAdmit {
			cancel()
			<-canceled
		}
		return usual
	}
	f.start()
	s := serve(t, f.options())
	f.arrive(attemptOf(1))
	a := next(t, s)
	if _, err := a.Admit(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("admit: %v", err)
	}
	close(canceled)
	got := f.syn(a.key, func(s syn) bool { return s.program != nil })
	_ = got.program.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := got.program.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the program reads %v", err)
	}
}

func TestSetSpec(t *testing.T) {
	f := newFake(t)
	var mu sync.Mutex
	var specs []capture.Spec
	refuse := false
	f.answer = func(m *service.Message, usual service.Message) service.Message {
		mu.Lock()
		defer mu.Unlock()
		if m.Spec != nil {
			specs = append(specs, *m.Spec)
			if refuse && m.Op == service.OpSpec {
				usual.Error = &service.Error{Code: service.CodeBadRequest, Message: "not so"}
			}
		}
		return usual
	}
	f.start()
	s := serve(t, f.options())
	if err := s.SetSpec(t.Context(), capture.Spec{Local: true}); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	refuse = true
	mu.Unlock()
	if err := s.SetSpec(t.Context(), capture.Spec{Open: true}); codeOf(err) != service.CodeBadRequest {
		t.Errorf("refused: %v", err)
	}
	f.stop() // the next one comes with the new connection
	set := make(chan error, 1)
	go func() { set <- s.SetSpec(t.Context(), capture.Spec{RefuseUDP: true}) }()
	poll(t, func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.spec.RefuseUDP })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := s.SetSpec(ctx, capture.Spec{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while another is set: %v", err)
	}
	f.start()
	if err := <-set; err != nil {
		t.Error(err)
	}
	mu.Lock()
	defer mu.Unlock()
	want := []capture.Spec{{}, {Local: true}, {Open: true}, {RefuseUDP: true}}
	if !reflect.DeepEqual(specs, want) {
		t.Errorf("specs %+v, want %+v", specs, want)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := len(f.serves); n != 2 || !f.serves[1].Resume {
		t.Errorf("served %d times", n)
	}
}

// TestRefusedSpecIsForgotten serves with the one before.
func TestRefusedSpecIsForgotten(t *testing.T) {
	f := newFake(t)
	f.answer = func(m *service.Message, usual service.Message) service.Message {
		if m.Op == service.OpSpec {
			usual.Error = &service.Error{Code: service.CodeKernel, Message: "cannot"}
		}
		return usual
	}
	f.start()
	o := f.options()
	o.Spec.Local = true
	s := serve(t, o)
	if err := s.SetSpec(t.Context(), capture.Spec{Open: true}); codeOf(err) != service.CodeKernel {
		t.Error(err)
	}
	f.cut()
	poll(t, func() bool { f.mu.Lock(); defer f.mu.Unlock(); return len(f.serves) == 2 })
	if m := f.serves[1]; !m.Spec.Local || m.Spec.Open {
		t.Errorf("served with %+v", m.Spec)
	}
}

// TestSpecTooLong fails alone: one packet does not take it.
func TestSpecTooLong(t *testing.T) {
	f := newFake(t).start()
	s := serve(t, f.options())
	var long capture.Spec
	for range 30_000 {
		long.Rules = append(long.Rules, capture.SpecRule{Ports: []capture.PortRange{{Lo: 10_000, Hi: 20_000}}})
	}
	if err := s.SetSpec(t.Context(), long); !errors.Is(err, message.ErrTooBig) && !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("too long: %v", err)
	}
	s.mu.Lock()
	n := len(s.spec.Rules)
	s.mu.Unlock()
	if n != 0 {
		t.Errorf("a spec that cannot be sent was kept")
	}
	f.arrive(attemptOf(1))
	next(t, s).Refuse(capture.Refused) // the connection is fine
	f.syn(key(1), func(s syn) bool { return s.given == service.OpRefuse })
}

func TestFinalErrors(t *testing.T) {
	for _, code := range []service.Code{service.CodeReleased, service.CodeEnded, service.CodeForbidden, service.CodeBusy, service.CodeNotFound} {
		t.Run(string(code), func(t *testing.T) {
			t.Parallel()
			f := newFake(t)
			over := make(chan struct{})
			f.answer = func(m *service.Message, usual service.Message) service.Message {
				select {
				case <-over:
					if m.Op == service.OpServe {
						usual.Error, usual.Served = &service.Error{Code: code, Message: "over"}, nil
					}
				default:
				}
				return usual
			}
			f.start()
			s := serve(t, f.options())
			f.arrive(attemptOf(1))
			a := next(t, s)
			close(over)
			f.cut()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			_, err := s.Next(ctx)
			if !errors.Is(err, capture.ErrClosed) || endedBy(err) != code {
				t.Errorf("next: %v", err)
			}
			// Of a capture that has ended nobody is left to be admitted.
			if _, err := a.Admit(ctx); errors.Is(err, capture.ErrClosed) == (code == service.CodeEnded) || errors.Is(err, capture.ErrAbandoned) != (code == service.CodeEnded) {
				t.Errorf("admit: %v", err)
			}
			if err := s.SetSpec(ctx, capture.Spec{}); !errors.Is(err, capture.ErrClosed) {
				t.Errorf("set spec: %v", err)
			}
			a.Refuse(capture.Refused)
			if !a.Waits() {
				t.Error("in doubt it waits")
			}
		})
	}
}

// TestEndedWhileAdmitting: a program that was let in, and has ended at once, is served.
func TestEndedWhileAdmitting(t *testing.T) {
	for _, code := range []service.Code{service.CodeEnded, service.CodeReleased} {
		t.Run(string(code), func(t *testing.T) {
			f := newFake(t)
			asked, answer := make(chan struct{}), make(chan struct{})
			f.answer = func(m *service.Message, usual service.Message) service.Message {
				if m.Op == service.OpAdmit {
					close(asked)
					<-answer
				}
				return usual
			}
			f.start()
			s := serve(t, f.options())
			f.arrive(attemptOf(1))
			a := next(t, s)
			admitted := make(chan error, 1)
			go func() {
				c, err := a.Admit(t.Context())
				if err == nil {
					c.Close()
				}
				admitted <- err
			}()
			<-asked
			f.mu.Lock()
			for c := range f.conns {
				if err := c.Send(service.Message{Op: service.OpAnswer, Error: &service.Error{Code: code, Message: "over"}}); err != nil {
					t.Error(err)
				}
			}
			f.mu.Unlock()
			if _, err := s.Next(t.Context()); !errors.Is(err, capture.ErrClosed) || endedBy(err) != code {
				t.Errorf("next: %v", err)
			}
			closed := make(chan struct{})
			go func() { defer close(closed); s.Close() }()
			close(answer)
			if err := <-admitted; err != nil {
				t.Errorf("admit: %v", err)
			}
			<-closed
		})
	}
}

// TestReleasedMeanwhile is told so by an answer, and by a message of its own.
func TestReleasedMeanwhile(t *testing.T) {
	for _, op := range []service.Op{service.OpAdmit, service.OpSpec, service.OpRelease} {
		t.Run(string(op), func(t *testing.T) {
			f := newFake(t)
			f.answer = func(m *service.Message, usual service.Message) service.Message {
				if m.Op == op {
					usual = service.Message{Op: service.OpAnswer, Seq: m.Seq, Error: &service.Error{Code: service.CodeReleased, Message: "released"}}
				}
				return usual
			}
			f.start()
			s := serve(t, f.options())
			f.arrive(attemptOf(1))
			a := next(t, s)
			var err error
			switch op {
			case service.OpAdmit:
				_, err = a.Admit(t.Context())
			case service.OpSpec:
				err = s.SetSpec(t.Context(), capture.Spec{})
			default:
				f.mu.Lock()
				for c := range f.conns {
					if err := c.Send(service.Message{Op: service.OpAnswer, Error: &service.Error{Code: service.CodeReleased, Message: "released"}}); err != nil {
						t.Error(err)
					}
				}
				f.mu.Unlock()
				_, err = s.Next(t.Context())
			}
			if !errors.Is(err, capture.ErrClosed) || endedBy(err) != service.CodeReleased {
				t.Errorf("%s: %v", op, err)
			}
			if _, err := s.Next(t.Context()); !errors.Is(err, capture.ErrClosed) || endedBy(err) != service.CodeReleased {
				t.Errorf("next: %v", err)
			}
		})
	}
}

func TestClose(t *testing.T) {
	f := newFake(t)
	begun, goOn := make(chan struct{}), make(chan struct{})
	f.answer = func(m *service.Message, usual service.Message) service.Message {
		if m.Op == service.OpAdmit {
			close(begun)
			<-goOn
		}
		return usual
	}
	f.start()
	s := serve(t, f.options())
	f.arrive(attemptOf(1), attemptOf(2), attemptOf(3))
	admitted, refused, left := next(t, s), next(t, s), next(t, s)
	conn := make(chan *capture.Conn, 1)
	go func() {
		c, err := admitted.Admit(t.Context())
		if err != nil {
			t.Error(err)
		}
		conn <- c
	}()
	<-begun
	refused.Refuse(capture.Refused) // is said only after the answer: the fake does one thing at a time
	closed := make(chan struct{})
	go func() { s.Close(); close(closed) }()
	poll(t, func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.closing })
	if _, err := left.Admit(t.Context()); !errors.Is(err, capture.ErrClosed) {
		t.Errorf("admit while closing: %v", err)
	}
	close(goOn)
	<-closed
	f.talks(admitted.key, <-conn)
	f.syn(refused.key, func(s syn) bool { return s.given == service.OpRefuse })
	if got := f.syn(left.key, func(syn) bool { return true }); got.given != "" {
		t.Errorf("an undecided one was given %s", got.given)
	}
	if _, err := s.Next(t.Context()); err != capture.ErrClosed {
		t.Errorf("next: %v", err)
	}
	left.Refuse(capture.Refused)
	if o := left.Flow().Origin(); !errors.Is(o.Err, capture.ErrClosed) {
		t.Errorf("origin: %+v", o)
	}
}

// TestCloseWithoutServer does not wait for what cannot come.
func TestCloseWithoutServer(t *testing.T) {
	f := newFake(t).start()
	s := serve(t, f.options())
	f.arrive(attemptOf(1))
	a := next(t, s)
	f.stop()
	poll(t, func() bool { s.mu.Lock(); defer s.mu.Unlock(); return !s.session.alive() })
	admitted := make(chan error)
	go func() { _, err := a.Admit(t.Context()); admitted <- err }()
	poll(t, func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.admits == 1 })
	began := time.Now()
	s.Close()
	if took := time.Since(began); took > closeLimit/2 {
		t.Errorf("close took %v", took)
	}
	if err := <-admitted; !errors.Is(err, capture.ErrClosed) {
		t.Errorf("admit: %v", err)
	}
}

// TestNextContext ends with its context.
func TestNextContext(t *testing.T) {
	f := newFake(t).start()
	s := serve(t, f.options())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Next(ctx); err != context.Canceled {
		t.Error(err)
	}
}

// TestGarbage is sent by a server in its right mind never; a new connection follows.
func TestGarbage(t *testing.T) {
	f := newFake(t).start()
	s := serve(t, f.options())
	f.arrive(attemptOf(1))
	a := next(t, s)
	for n, garbage := range []string{"{", "\x00\xff", `{"op":5}`, `{"op":"attempt","attempt":{"src":"x"}}`, "[]"} {
		f.mu.Lock()
		for c := range f.conns {
			if _, err := c.File().Write([]byte(garbage)); err != nil {
				t.Error(err)
			}
		}
		f.mu.Unlock()
		poll(t, func() bool { f.mu.Lock(); defer f.mu.Unlock(); return len(f.serves) == n+2 })
	}
	for _, m := range []service.Message{ // understood, and meaningless
		{Op: "what"}, {Op: service.OpAttempt}, {Op: service.OpAttempt, ID: 5},
		{Op: service.OpAttempt, ID: 5, Attempt: &service.Attempt{}}, {Op: service.OpAnswer, Seq: 77}, {Op: service.OpAnswer},
	} {
		b, _ := json.Marshal(m)
		f.mu.Lock()
		for c := range f.conns {
			if _, err := c.File().Write(b); err != nil {
				t.Error(err)
			}
		}
		f.mu.Unlock()
	}
	c, err := a.Admit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f.talks(a.key, c)
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := len(f.serves); n != 6 {
		t.Errorf("served %d times", n)
	}
}
