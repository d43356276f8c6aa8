package client

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/capture"
	"sshbroker/capture/message"
	"sshbroker/capture/service"
)

const (
	// maxOut bounds what is said to a server that does not read. Beyond it the
	// connection is given up.
	maxOut = 4 * maxPending
	// flushLimit is how long a connection that we end stays for what is still to be said.
	flushLimit = time.Second
)

// session is one connection after the hellos. One goroutine reads and hands over, one
// writes; no method but call and shut blocks.
type session struct {
	wire  wire
	other func(*session, *service.Message, []*os.File) // gets what is no answer, and the files; must not block
	heard func(*service.Message)                       // sees answers in their order among the rest; may be nil

	wake chan struct{} // has room for one: out or closing has changed
	done chan struct{} // closed when nothing more will come
	wg   sync.WaitGroup

	mu      sync.Mutex
	seq     uint64
	calls   map[uint64]chan answer
	out     []outgoing
	closing bool // ends once out is written
	over    bool
}

type outgoing struct {
	service.Message
	files []*os.File // the caller's
}

// answer is what came of a request. Whoever gets it owns files.
type answer struct {
	*service.Message
	files []*os.File
	err   error // the request could not be sent
}

func newSession(w wire, other func(*session, *service.Message, []*os.File), heard func(*service.Message)) *session {
	s := &session{
		wire: w, other: other, heard: heard, calls: map[uint64]chan answer{},
		wake: make(chan struct{}, 1), done: make(chan struct{}),
	}
	s.wg.Go(s.read)
	s.wg.Go(s.write)
	return s
}

// alive says whether anything may still come. A nil session is not.
func (s *session) alive() bool {
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.over
}

// shut ends the connection once everything is said, and waits for that.
func (s *session) shut() {
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	s.nudge()
	limit := time.AfterFunc(flushLimit, func() { s.wire.Close() })
	defer limit.Stop()
	s.wg.Wait()
}

// call asks and waits for the answer. The error is ErrLost where the connection ended
// first, ctx's cause, a *service.Error, or that of sending.
func (s *session) call(ctx context.Context, m service.Message, files ...*os.File) (answer, error) {
	came := make(chan answer, 1)
	s.mu.Lock()
	s.seq++
	m.Seq = s.seq
	s.calls[m.Seq] = came
	s.push(m, files)
	s.mu.Unlock()

	select {
	case a := <-came:
		return a.checked()
	case <-ctx.Done():
	case <-s.done:
	}
	s.mu.Lock()
	_, waiting := s.calls[m.Seq]
	delete(s.calls, m.Seq)
	s.mu.Unlock()
	switch {
	case !waiting: // it came in the same instant
		return (<-came).checked()
	case ctx.Err() != nil:
		return answer{}, context.Cause(ctx)
	}
	return answer{}, ErrLost
}

func (a answer) checked() (answer, error) {
	if a.err != nil {
		return answer{}, a.err
	}
	if a.Error != nil {
		message.CloseAll(a.files)
		return answer{}, a.Error
	}
	return a, nil
}

// tell says what needs no answer; that of an admit is thrown away.
func (s *session) tell(m service.Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.Op == service.OpAdmit {
		s.seq++
		m.Seq = s.seq
	}
	s.push(m, nil)
}

// push queues m. The caller holds mu.
func (s *session) push(m service.Message, files []*os.File) {
	if s.over || s.closing {
		return
	}
	if len(s.out) >= maxOut {
		s.wire.Close()
		return
	}
	s.out = append(s.out, outgoing{m, files})
	s.nudge()
}

func (s *session) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *session) write() {
	for {
		s.mu.Lock()
		out, closing := s.out, s.closing
		s.out = nil
		s.mu.Unlock()
		for _, o := range out {
			if !s.send(o) {
				return
			}
		}
		if closing {
			s.wire.Close()
			return
		}
		select {
		case <-s.wake:
		case <-s.done:
			return
		}
	}
}

// send reports whether one can go on. A request that cannot be sent fails alone. Where
// something else cannot, a new connection puts it right: what was decided is said again.
func (s *session) send(o outgoing) bool {
	err := s.wire.Send(o.Message, o.files...)
	switch {
	case err == nil:
		return true
	case errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNRESET):
		return false // not closed here: what the other side said last can still be read
	case errors.Is(err, os.ErrClosed) && len(o.files) == 0:
		return false // closed by us; else it may be the caller's file
	}
	if !s.deliver(o.Seq, answer{err: fmt.Errorf("%s: %w", o.Op, err)}) {
		s.wire.Close()
		return false
	}
	return true
}

// deliver gives a to the call that waits for it.
func (s *session) deliver(seq uint64, a answer) bool {
	s.mu.Lock()
	came := s.calls[seq]
	delete(s.calls, seq)
	s.mu.Unlock()
	if came == nil {
		return false
	}
	came <- a // has room for it
	return true
}

func (s *session) read() {
	resets := 0
	for {
		m := new(service.Message)
		files, err := s.wire.Receive(m)
		if errors.Is(err, unix.ECONNRESET) && resets == 0 {
			resets++ // it died with requests unread; what it had said before comes after this
			continue
		}
		if err != nil { // its end, or garbage
			message.CloseAll(files)
			s.wire.Close()
			s.mu.Lock()
			s.over, s.out = true, nil
			s.mu.Unlock()
			close(s.done)
			return
		}
		if m.Op != service.OpAnswer || m.Seq == 0 {
			s.other(s, m, files)
			continue
		}
		if s.heard != nil {
			s.heard(m)
		}
		if !s.deliver(m.Seq, answer{Message: m, files: files}) {
			message.CloseAll(files) // nobody waits any more: a connection is reset by that
		}
	}
}

// codeOf is the code of a refused request, "" of any other error: that of a Source which
// has ended may hold a code, too, but not about what was asked.
func codeOf(err error) service.Code {
	var refused *service.Error
	if !errors.Is(err, capture.ErrClosed) && errors.As(err, &refused) {
		return refused.Code
	}
	return ""
}
