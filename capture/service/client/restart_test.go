package client

import (
	"context"
	"errors"

	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sshbroker/capture"
	"sshbroker/capture/service"
)

// TestRestart leaves undecided attempts alone and gives the verdicts to the next server.
func TestRestart(t *testing.T) {
	f := newFake(t).start()
	told := make(chan service.Served, 10)
	o := f.options()
	o.Changed = func(s service.Served) { told <- s }
	s := serve(t, o)
	f.arrive(attemptOf(1), attemptOf(2), attemptOf(3))
	before, while, after := next(t, s), next(t, s), next(t, s)
	f.stop()
	poll(t, func() bool { _, _, alive := state(while); return !alive })
	while.Refuse(capture.Refused)
	f.served.Enabled = true
	f.start()
	<-told
	if got := <-told; !got.Enabled || !s.Served().Enabled {
		t.Errorf("served %+v, %+v", got, s.Served())
	}
	f.syn(while.key, func(s syn) bool { return s.given == service.OpRefuse && s.refusal == capture.Refused })
	poll(t, func() bool { _, _, alive := state(after); return alive })
	after.Refuse(capture.Unreachable)
	f.syn(after.key, func(s syn) bool { return s.given == service.OpRefuse })
	c, err := before.Admit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f.talks(before.key, c)
	f.mu.Lock()
	if n := len(f.serves); n != 2 || !f.serves[1].Resume {
		t.Errorf("served %d times", n)
	}
	f.mu.Unlock()
	f.arrive(attemptOf(4))
	if a := next(t, s); a.key != key(4) {
		t.Errorf("delivered twice: %v", a.key)
	}
}

// state is where an attempt is known, and whether that is alive.
func state(a *attempt) (*session, uint64, bool) {
	sess, id, _ := a.bound()
	return sess, id, sess != nil
}

// TestKilledWhileAsked kills the server while it is asked, before it has done anything
// and before it has answered, and asks the next one.
func TestKilledWhileAsked(t *testing.T) {
	questions := map[service.Op]func(*testing.T, *fake, *attempt){
		service.OpAdmit: func(t *testing.T, f *fake, a *attempt) {
			c, err := a.Admit(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			f.talks(a.key, c)
		},
		service.OpHand: func(t *testing.T, _ *fake, a *attempt) {
			if h, err := a.Hand(t.Context(), []byte("x")); err != nil || h.Outcome != service.HandRefused {
				t.Errorf("handed %+v, %v", h, err)
			}
		},
		service.OpOrigin: func(t *testing.T, _ *fake, a *attempt) {
			if o := a.Flow().Origin(); o.PID != 42 || o.Err != nil {
				t.Errorf("origin %+v", o)
			}
		},
		service.OpWaits: func(t *testing.T, f *fake, a *attempt) {
			if !a.Waits() {
				t.Error("it does not wait")
			}
		},
	}
	for op, ask := range questions {
		for _, when := range []string{"before", "after"} {
			t.Run(string(op)+" "+when, func(t *testing.T) {
				f := newFake(t)
				var kills atomic.Int32
				kill := func(m *service.Message) bool { return m.Op != op || kills.Add(1) > 3 }
				if when == "before" {
					f.before = kill
				} else if op == service.OpAdmit {
					f.after = kill
				} else {
					f.answer = func(m *service.Message, usual service.Message) service.Message {
						if !kill(m) {
							usual.Op = ""
							go f.cut()
						}
						return usual
					}
				}
				f.start()
				s := serve(t, f.options())
				f.arrive(attemptOf(1))
				ask(t, f, next(t, s))
				if kills.Load() < 4 {
					t.Errorf("killed %d times", kills.Load())
				}
			})
		}
	}
}

// TestStopping takes an ssh-captured that is about to end for one that is gone.
func TestStopping(t *testing.T) {
	f := newFake(t)
	var asked atomic.Int32
	f.answer = func(m *service.Message, usual service.Message) service.Message {
		if m.Op == service.OpAdmit && asked.Add(1) == 1 {
			time.AfterFunc(20*time.Millisecond, f.cut)
			return service.Message{Op: service.OpAnswer, Seq: m.Seq, Error: &service.Error{Code: service.CodeStopping, Message: "about to end"}}
		}
		return usual
	}
	f.start()
	s := serve(t, f.options())
	f.arrive(attemptOf(1))
	a := next(t, s)
	c, err := a.Admit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f.talks(a.key, c)
}

// TestTwoThousand decides many at once.
func TestTwoThousand(t *testing.T) {
	const many = 2000
	f := newFake(t).start()
	s := serve(t, f.options())
	all := make([]service.Attempt, many)
	for n := range all {
		all[n] = attemptOf(n)
	}
	var wg sync.WaitGroup
	wg.Go(func() { f.arrive(all...) })
	seen := map[service.Key]bool{}
	for range many {
		a := next(t, s)
		if seen[a.key] {
			t.Fatalf("%v twice", a.key)
		}
		seen[a.key] = true
		wg.Go(func() { f.decideSomehow(a) })
	}
	wg.Wait()
	f.allDecided(many)
}

// decideSomehow ends a as its number says.
func (f *fake) decideSomehow(a *attempt) {
	switch a.key.Seq / 7919 % 4 {
	case 0:
		c, err := a.Admit(context.Background())
		if err != nil {
			f.t.Errorf("admit %v: %v", a.key.Src, err)
			return
		}
		f.talks(a.key, c)
	case 1:
		a.Refuse(capture.Refused)
	case 2:
		if err := a.Pass(); err != nil {
			f.t.Errorf("pass: %v", err)
		}
	default:
		a.Waits()
		// In a crowd or a storm it may take longer than it is given.
		if o := a.Flow().Origin(); o.PID != 42 && !errors.Is(o.Err, context.DeadlineExceeded) {
			f.t.Errorf("origin %+v", o)
		}
		a.Refuse(capture.Unreachable)
	}
}

// allDecided waits until the kernel has what decideSomehow meant.
func (f *fake) allDecided(many int) {
	f.t.Helper()
	for n := range many {
		got := f.syn(key(n), func(s syn) bool { return s.given != "" })
		op := []service.Op{service.OpAdmit, service.OpRefuse, service.OpPass, service.OpRefuse}[n%4]
		refusal := []capture.Refusal{0, capture.Refused, 0, capture.Unreachable}[n%4]
		if got.given != op || got.refusal != refusal {
			f.t.Errorf("%d: %s %v, want %s %v", n, got.given, got.refusal, op, refusal)
		}
	}
}

// TestStorm kills the server at every kind of step, again and again, while attempts come
// and are decided: each comes once, and gets what was decided of it.
func TestStorm(t *testing.T) {
	const many = 400
	f := newFake(t)
	var kills atomic.Int32
	dice := func(*service.Message) bool {
		if kills.Load() < 60 && rand.IntN(12) == 0 {
			kills.Add(1)
			return false
		}
		return true
	}
	var on atomic.Bool
	f.before = func(m *service.Message) bool { return !on.Load() || dice(m) }
	f.after = f.before
	f.start()
	s := newSource(f.options(), false)
	s.slowest = 20 * time.Millisecond
	if err := s.start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	on.Store(true)
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := range many {
			f.arrive(attemptOf(n))
			if n%20 == 0 {
				time.Sleep(time.Millisecond) // lets others run; waits for nothing
			}
		}
	})
	seen := map[service.Key]bool{}
	for range many {
		a := next(t, s)
		if seen[a.key] {
			t.Errorf("%v twice", a.key)
		}
		seen[a.key] = true
		wg.Go(func() { f.decideSomehow(a) })
	}
	wg.Wait()
	f.allDecided(many)
	if kills.Load() < 20 {
		t.Errorf("killed %d times only", kills.Load())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.pending) != 0 {
		t.Errorf("%d are pending", len(s.pending))
	}
}

// TestVersionAfterRestart goes on trying: the broker will be replaced as well.
func TestVersionAfterRestart(t *testing.T) {
	f := newFake(t).start()
	s := serve(t, f.options())
	f.stop()
	f.version++
	f.start()
	poll(t, func() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.hellos > 2 })
	f.stop()
	f.version--
	f.start()
	f.arrive(attemptOf(1))
	if a := next(t, s); a.key != key(1) {
		t.Errorf("delivered %v", a.key)
	}
}

// TestBusyForAMoment is our own last connection, of which the server has not noticed the end.
func TestBusyForAMoment(t *testing.T) {
	f := newFake(t)
	var asked atomic.Int32
	f.answer = func(m *service.Message, usual service.Message) service.Message {
		if n := asked.Load(); m.Op == service.OpServe && asked.Add(1) > 1 && n < 4 {
			usual.Served, usual.Error = nil, &service.Error{Code: service.CodeBusy, Message: "served by another"}
		}
		return usual
	}
	f.start()
	s := serve(t, f.options())
	f.cut()
	poll(t, func() bool { return asked.Load() == 5 })
	f.arrive(attemptOf(1))
	if a := next(t, s); a.key != key(1) {
		t.Errorf("delivered %v", a.key)
	}
}
