package client

import (
	"context"
	"errors"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"sshbroker/capture"
	"sshbroker/capture/command"
	"sshbroker/capture/message"
	"sshbroker/capture/service"
)

// pipe is a connection without a kernel, so that time can stand still. The test is the
// server: it reads said, and speaks with say.
type pipe struct {
	said chan service.Message
	told chan service.Message
	gone chan struct{}
	once sync.Once
}

func newPipe() *pipe {
	return &pipe{said: make(chan service.Message, 1000), told: make(chan service.Message), gone: make(chan struct{})}
}

func (p *pipe) Send(v any, _ ...*os.File) error {
	select {
	case <-p.gone:
		return os.ErrClosed
	case p.said <- v.(service.Message):
		return nil
	}
}

func (p *pipe) Receive(v any) ([]*os.File, error) {
	select {
	case <-p.gone:
		return nil, os.ErrClosed
	case *v.(*service.Message) = <-p.told:
		return nil, nil
	}
}

func (p *pipe) Close() error {
	p.once.Do(func() { close(p.gone) })
	return nil
}

func (p *pipe) say(m service.Message) {
	select {
	case p.told <- m:
	case <-p.gone:
	}
}

func (p *pipe) offer(id uint64, n int) {
	at := attemptOf(n)
	p.say(service.Message{Op: service.OpAttempt, ID: id, Attempt: &at})
}

// serving takes the next message, which is serve, and answers it.
func (p *pipe) serving() {
	m := <-p.said
	p.say(service.Message{Op: service.OpAnswer, Seq: m.Seq, Served: &service.Served{Held: true}})
}

// network is where pipes come from.
type network struct {
	pipes chan *pipe

	mu    sync.Mutex
	down  bool
	tries []time.Time
}

// turn takes it down, or up again, and begins to count tries.
func (n *network) turn(down bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down, n.tries = down, []time.Time{time.Now()}
}

func (n *network) connect(context.Context) (wire, error) {
	n.mu.Lock()
	n.tries = append(n.tries, time.Now())
	down := n.down
	n.mu.Unlock()
	if down {
		return nil, ErrNotRunning
	}
	p := newPipe()
	n.pipes <- p
	return p, nil
}

func piped(t *testing.T) (*Source, *network, *pipe) {
	t.Helper()
	n := &network{pipes: make(chan *pipe, 1)}
	s := newSource(Options{Capture: "c1"}, false)
	s.connect = n.connect
	p := make(chan *pipe)
	go func() {
		first := <-n.pipes
		first.serving()
		p <- first
	}()
	if err := s.start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s, n, <-p
}

// again is the connection after a loss, once it serves.
func (n *network) again() *pipe {
	p := <-n.pipes
	p.serving()
	return p
}

func TestBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, n, p := piped(t)
		defer s.Close()
		time.Sleep(2 * time.Second)
		n.turn(true)
		p.Close()
		time.Sleep(20 * time.Second)
		synctest.Wait()
		n.mu.Lock()
		tries := n.tries
		n.mu.Unlock()
		if len(tries) < 20 {
			t.Fatalf("%d tries in 20 s", len(tries))
		}
		want := firstDelay
		for i := range len(tries) - 1 {
			if got := tries[i+1].Sub(tries[i]); got < want/2 || got > want {
				t.Errorf("delay %d was %v, want %v to %v", i, got, want/2, want)
			}
			want = min(2*want, lastDelay)
		}
		n.turn(false)
		p = n.again()
		synctest.Wait()
		// A connection that does not last is not a new beginning.
		began := time.Now()
		p.Close()
		p = n.again()
		if took := time.Since(began); took < lastDelay/2 {
			t.Errorf("connected after %v", took)
		}
		time.Sleep(2 * lastDelay)
		began = time.Now()
		p.Close()
		n.again()
		if took := time.Since(began); took > firstDelay {
			t.Errorf("connected after %v", took)
		}
	})
}

// TestTryLimit gives up a server that takes the connection and says nothing.
func TestTryLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, n, p := piped(t)
		defer s.Close()
		p.Close()
		silent := <-n.pipes
		began := time.Now()
		<-silent.gone
		if took := time.Since(began); took != tryLimit {
			t.Errorf("given up after %v", took)
		}
		n.again()
	})
}

func TestVerdictsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, p := piped(t)
		defer s.Close()
		p.offer(1, 1)
		next(t, s).Refuse(capture.Refused)
		<-p.said
		for id, after := range []time.Duration{time.Second, remember - 2*time.Second} {
			time.Sleep(after)
			p.offer(uint64(id)+2, 1)
			if m := <-p.said; m.Op != service.OpRefuse || m.ID != uint64(id)+2 || m.Refusal != capture.Refused {
				t.Errorf("a copy got %+v", m)
			}
		}
		for n := range 2 { // another SYN turns the page
			time.Sleep(remember)
			p.offer(uint64(10+n), 10+n)
			next(t, s).Refuse(capture.Refused)
			<-p.said
		}
		p.offer(20, 1)
		if a := next(t, s); a.key != key(1) {
			t.Errorf("delivered %v", a.key)
		}
		if s.mu.Lock(); len(s.decided[0])+len(s.decided[1]) != 2 {
			t.Errorf("%v are remembered", s.decided)
		}
		s.mu.Unlock()
	})
}

// TestQuestionsEnd asks a server that does not answer.
func TestQuestionsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, p := piped(t)
		defer s.Close()
		p.offer(1, 1)
		a := next(t, s)
		began := time.Now()
		if !a.Waits() {
			t.Error("in doubt it waits")
		}
		if took := time.Since(began); took != waitsLimit {
			t.Errorf("waits took %v", took)
		}
		began = time.Now()
		if o := a.Flow().Origin(); o.Known || !errors.Is(o.Err, context.DeadlineExceeded) {
			t.Errorf("origin %+v", o)
		}
		if took := time.Since(began); took != originLimit {
			t.Errorf("origin took %v", took)
		}
		for _, ask := range []func(context.Context) error{
			func(ctx context.Context) error { _, err := a.Hand(ctx, nil); return err },
			func(ctx context.Context) error { return s.SetSpec(ctx, capture.Spec{}) },
			func(ctx context.Context) error { _, err := a.Admit(ctx); return err },
		} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			began = time.Now()
			if err := ask(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != time.Minute {
				t.Errorf("%v after %v", err, time.Since(began))
			}
			cancel()
		}
	})
}

// TestAdmitAfterLoss asks by key, and how long for.
func TestAdmitAfterLoss(t *testing.T) {
	for _, c := range []struct {
		name    string
		server  func(*pipe, service.Message)
		err     error
		took    time.Duration
		another bool // the SYN that comes again is a new attempt
	}{
		{"silence", func(*pipe, service.Message) {}, capture.ErrAbandoned, againLimit, true},
		{"unknown", func(p *pipe, m service.Message) {
			p.say(service.Message{Op: service.OpAnswer, Seq: m.Seq, Error: &service.Error{Code: service.CodeNotFound}})
		}, capture.ErrAbandoned, againLimit, true},
		{"unknown, and comes again", func(p *pipe, m service.Message) {
			p.say(service.Message{Op: service.OpAnswer, Seq: m.Seq, Error: &service.Error{Code: service.CodeNotFound}})
			time.Sleep(again)
			p.offer(7, 1)
			m = <-p.said
			if m.Op != service.OpAdmit || m.ID != 7 || m.Key != nil {
				panic("not asked by id")
			}
			time.Sleep(5 * time.Second)                              // is held: there is no hurry
			p.say(service.Message{Op: service.OpAnswer, Seq: m.Seq}) // the connection is lost on its way
		}, capture.ErrNoDescriptors, again + 5*time.Second, false},
		{"comes again, and late", func(p *pipe, m service.Message) {
			time.Sleep(again)
			p.offer(7, 1)
			time.Sleep(5 * time.Second)
			p.say(service.Message{Op: service.OpAnswer, Seq: m.Seq})
		}, capture.ErrNoDescriptors, again + 5*time.Second, false},
		{"lost once more", func(p *pipe, m service.Message) {
			p.say(service.Message{Op: service.OpAnswer, Seq: m.Seq, Error: &service.Error{Code: service.CodeAbandoned}})
			p.Close()
		}, capture.ErrAbandoned, 0, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, n, p := piped(t)
				defer s.Close()
				p.offer(1, 1)
				a := next(t, s)
				result := make(chan error)
				go func() { _, err := a.Admit(t.Context()); result <- err }()
				if m := <-p.said; m.Op != service.OpAdmit || m.ID != 1 || m.Key != nil {
					t.Errorf("asked %+v", m)
				}
				n.turn(true)
				p.Close()
				time.Sleep(time.Minute) // however long there is no server
				n.turn(false)
				p = n.again()
				m := <-p.said
				if m.Op != service.OpAdmit || m.ID != 0 || m.Key == nil || *m.Key != a.key {
					t.Errorf("asked again %+v", m)
				}
				began := time.Now()
				go c.server(p, m)
				if c.took == 0 { // one more loss: the whole once more
					p = n.again()
					<-p.said
					began, c.took = time.Now(), againLimit
				}
				if err := <-result; !errors.Is(err, c.err) || time.Since(began) != c.took {
					t.Errorf("%v after %v", err, time.Since(began))
				}
				p.offer(9, 1)
				if c.another {
					if b := next(t, s); b == a || b.key != a.key {
						t.Errorf("delivered %v", b)
					}
				} else if m := <-p.said; m.Op != service.OpAdmit || m.ID != 9 {
					t.Errorf("a copy got %+v", m)
				}
			})
		})
	}
}

const again = 300 * time.Millisecond // within againLimit

// TestNeverComesAgain is a SYN that is not held any more after a restart.
func TestNeverComesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, n, p := piped(t)
		defer s.Close()
		p.offer(1, 1)
		a := next(t, s)
		result := make(chan error)
		go func() { _, err := a.Hand(t.Context(), nil); result <- err }()
		<-p.said
		n.turn(true)
		p.Close()
		time.Sleep(10 * comesAgain)
		if !a.Waits() {
			t.Error("without a server it waits")
		}
		n.turn(false)
		n.again()
		synctest.Wait()
		began := time.Now()
		if !a.Waits() {
			t.Error("it may come again")
		}
		if err := <-result; !errors.Is(err, capture.ErrAbandoned) || time.Since(began) != comesAgain {
			t.Errorf("hand: %v after %v", err, time.Since(began))
		}
		if a.Waits() {
			t.Error("it waits for ever")
		}
	})
}

// TestBound refuses what is too many.
func TestBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, p := piped(t)
		defer s.Close()
		for n := range maxPending {
			p.offer(uint64(n)+1, n)
		}
		p.offer(9001, 9001)
		if m := <-p.said; m.Op != service.OpRefuse || m.ID != 9001 || m.Refusal != capture.Unreachable || s.Bounded() != 1 {
			t.Errorf("%+v, bounded %d", m, s.Bounded())
		}
		next(t, s).Refuse(capture.Refused)
		<-p.said
		p.offer(9002, 9001) // was not decided
		synctest.Wait()
		if len(s.ready) != maxPending || s.Bounded() != 1 {
			t.Errorf("%d are ready", len(s.ready))
		}
	})
}

// TestRefuseDoesNotBlock has a server that does not read.
func TestRefuseDoesNotBlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, n, p := piped(t)
		defer s.Close()
		p.said = nil // the next write blocks, as on a full socket
		s.mu.Lock()
		sess := s.session
		s.mu.Unlock()
		p.offer(1, 1)
		next(t, s).Refuse(capture.Refused)
		synctest.Wait()
		for range maxOut {
			sess.tell(service.Message{Op: service.OpPass, ID: 5})
		}
		if !sess.alive() {
			t.Error("it is given up")
		}
		sess.tell(service.Message{Op: service.OpPass, ID: 5}) // one too many
		p = n.again()
		p.offer(2, 1)
		if m := <-p.said; m.Op != service.OpRefuse || m.ID != 2 {
			t.Errorf("said %+v", m)
		}
		p.said = nil
		p.offer(3, 1)
		synctest.Wait()
		began := time.Now()
		s.Close()
		if took := time.Since(began); took != flushLimit {
			t.Errorf("close took %v", took)
		}
	})
}

// TestCloseLimit has a program that does not come.
func TestCloseLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, p := piped(t)
		p.offer(1, 1)
		a := next(t, s)
		result := make(chan error)
		go func() { _, err := a.Admit(t.Context()); result <- err }()
		<-p.said
		began := time.Now()
		go s.Close()
		if err := <-result; !errors.Is(err, capture.ErrClosed) || time.Since(began) != closeLimit {
			t.Errorf("admit: %v after %v", err, time.Since(began))
		}
		s.Close() // a second one
	})
}

// FuzzDispatch lets a server say anything, in the midst of everything.
func FuzzDispatch(f *testing.F) {
	for _, seed := range []string{
		`{"op":"attempt","id":1,"attempt":{"src":"10.1.0.1:40000","dst":"192.0.2.7:443","isn":7919,"uid":5}}`,
		`{"op":"attempt","id":2,"attempt":{"src":"10.1.0.1:40000","dst":"192.0.2.7:443","isn":7919}}`,
		`{"op":"answer","seq":1,"served":{"held":true}}`, `{"op":"answer","seq":2,"yes":true}`, `{"op":"answer","seq":2}`,
		`{"op":"answer","seq":3,"error":{"code":"released","message":"x"}}`, `{"error":{"code":"busy"}}`,
		`{"op":"answer","seq":3,"origin":{"known":true}}`, `{"op":"hello","hello":null}`, `{}`, `null`, `[1]`, `{"op":"attempt","id":-1}`,
		`{"op":"answer","seq":3,"handed":{"outcome":"refused"}}`, `{"op":"attempt","id":1,"attempt":{"src":"","dst":""}}`,
	} {
		f.Add([]byte(seed), []byte(seed))
	}
	f.Fuzz(func(t *testing.T, one, two []byte) {
		synctest.Test(t, func(t *testing.T) {
			s, _, p := piped(t)
			defer s.Close()
			p.offer(1, 1)
			a := next(t, s)
			done := make(chan struct{})
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			go func() {
				defer close(done)
				a.Waits()
				a.Flow().Origin()
				_, _ = a.Hand(ctx, nil)
				_, _ = a.Admit(ctx)
			}()
			for _, b := range [][]byte{one, two, one} {
				p.bytes(b)
				time.Sleep(time.Second)
			}
			<-done
			for len(s.ready) > 0 {
				(<-s.ready).Refuse(capture.Refused)
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if len(s.pending) != 0 && s.life.Err() == nil {
				t.Errorf("%d are pending", len(s.pending))
			}
		})
	})
}

// bytes lets b arrive as a packet.
func (p *pipe) bytes(b []byte) {
	ours, theirs, err := command.Pair("pair")
	if err != nil {
		panic(err)
	}
	defer theirs.Close()
	c, err := message.New(ours)
	if err != nil {
		panic(err)
	}
	defer c.Close()
	if len(b) == 0 || len(b) > 100_000 {
		return
	}
	if _, err := theirs.Write(b); err != nil {
		panic(err)
	}
	var m service.Message
	if _, err := c.Receive(&m); err != nil {
		p.Close() // as session.read does
		return
	}
	p.say(m)
}
