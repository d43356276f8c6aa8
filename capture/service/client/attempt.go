package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/capture"
	"sshbroker/capture/message"
	"sshbroker/capture/service"
)

var (
	_ capture.Source  = (*Source)(nil)
	_ capture.Attempt = (*attempt)(nil)
	_ capture.Waiter  = (*attempt)(nil)
)

const (
	// againLimit is how long an attempt that was asked about on a connection which broke
	// may take to become a connection on the next.
	againLimit = time.Second
	// waitsLimit and originLimit are how long these questions may take.
	waitsLimit  = 250 * time.Millisecond
	originLimit = 2 * time.Second
	// comesAgain is how long a SYN may stay away that the kernel has dropped: its
	// retransmissions are at most 32 s apart (tcp_syn_retries 6).
	comesAgain = 35 * time.Second
)

type attempt struct {
	source  *Source
	key     service.Key
	flow    capture.Flow
	payload []byte

	// Guarded by source.mu.
	session *session      // on which it came last; it may be over
	id      uint64        // in that session
	moved   chan struct{} // closed when it comes again
	ended   bool
}

// Flow implements capture.Attempt.
func (a *attempt) Flow() capture.Flow { return a.flow }

// Payload is what the system broker says to whoever carries.
func (a *attempt) Payload() []byte { return a.payload }

// Refuse implements capture.Attempt.
func (a *attempt) Refuse(r capture.Refusal) { a.RefuseBecause(r, "") }

// RefuseBecause is Refuse of a carried attempt, and tells the system broker why.
func (a *attempt) RefuseBecause(r capture.Refusal, reason string) {
	a.decide(verdict{service.OpRefuse, r, reason})
}

// Pass implements capture.Attempt. Where the kernel does not hold SYNs the program is
// connected already, and a carried attempt is not ours to let go.
func (a *attempt) Pass() error {
	s := a.source
	if s.carries || !s.Served().Held {
		return capture.ErrNoWayOut
	}
	a.decide(verdict{op: service.OpPass})
	return nil
}

// decide gives the verdict, unless there is one, and keeps it for copies of the SYN.
func (a *attempt) decide(v verdict) {
	s := a.source
	s.mu.Lock()
	if a.ended {
		s.mu.Unlock()
		return
	}
	a.close()
	s.decided[0][a.key] = v
	sess, id := a.session, a.id
	s.mu.Unlock()
	sess.tell(v.of(id)) // where that is over, the SYN comes again and gets it then
}

// settle ends an attempt that ssh-captured has dealt with, keeping v if it has an Op.
func (a *attempt) settle(v verdict) {
	s := a.source
	s.mu.Lock()
	defer s.mu.Unlock()
	a.close()
	if v.op != "" {
		s.decided[0][a.key] = v
	}
}

// close ends it. The caller holds source.mu.
func (a *attempt) close() {
	a.ended = true
	if a.source.pending[a.key] == a {
		delete(a.source.pending, a.key)
	}
}

// bound returns where the attempt can be asked about, nil where it is to come again,
// which closes moved.
func (a *attempt) bound() (sess *session, id uint64, moved <-chan struct{}) {
	a.source.mu.Lock()
	defer a.source.mu.Unlock()
	if !a.session.alive() {
		return nil, 0, a.moved
	}
	return a.session, a.id, a.moved
}

// Admit implements capture.Attempt. Where ssh-captured is restarted meanwhile it goes on
// with the new one. A descriptor is reserved before it asks; should there be none all the
// same when the connection comes, the connection is lost and reset: the error is
// capture.ErrNoDescriptors in that case as well, and Refuse does nothing any more.
//
// A SYN that comes again after capture.ErrAbandoned is a new attempt.
func (a *attempt) Admit(ctx context.Context) (*capture.Conn, error) {
	s := a.source
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	if err := s.room.add(); err != nil {
		return nil, fmt.Errorf("%w: %w", capture.ErrNoDescriptors, err)
	}
	defer s.room.done()

	ans, err := a.admit(ctx)
	switch code := codeOf(err); {
	case err == nil:
	case code == service.CodeNoFiles:
		return nil, fmt.Errorf("%w: %w", capture.ErrNoDescriptors, err)
	case code == service.CodeAbandoned, code == service.CodeNotFound:
		a.settle(verdict{})
		return nil, fmt.Errorf("%w: %w", capture.ErrAbandoned, err)
	case ctx.Err() != nil, errors.Is(err, capture.ErrAbandoned), errors.Is(err, capture.ErrClosed):
		a.settle(verdict{}) // a connection that comes all the same is reset
		return nil, err
	default: // it is still held, and nobody else would end it
		a.Refuse(capture.Unreachable)
		return nil, fmt.Errorf("admit %v: %w", a.key.Dst, err)
	}

	a.settle(verdict{op: service.OpAdmit})
	if len(ans.files) == 0 {
		return nil, fmt.Errorf("%w: %w: it was lost on its way", capture.ErrNoDescriptors, unix.EMFILE)
	}
	message.CloseAll(ans.files[1:])
	c, err := s.connection(ans.files[0])
	if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
		return nil, fmt.Errorf("%w: %w", capture.ErrNoDescriptors, err)
	}
	return c, err
}

// admit asks by id while ssh-captured knows the attempt by one. After a loss that may be
// over: the connection may have been made while there was no ssh-captured. Then it asks by key.
func (a *attempt) admit(ctx context.Context) (answer, error) {
	s := a.source
	for {
		var ans answer
		sess, id, moved := a.bound()
		var err error
		if sess != nil {
			ans, err = s.ask(ctx, sess, service.Message{Op: service.OpAdmit, ID: id})
		} else if sess, err = s.current(ctx, nil); err == nil {
			ans, err = a.admitByKey(ctx, sess, moved)
		}
		if !errors.Is(err, ErrLost) && !errors.Is(err, errCameAgain) {
			return ans, err
		}
	}
}

// errCameAgain means that ssh-captured did not know the key, and does now.
var errCameAgain = errors.New("the SYN has come again")

// admitByKey takes the connection if it comes in time.
func (a *attempt) admitByKey(ctx context.Context, sess *session, moved <-chan struct{}) (answer, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	limit := time.AfterFunc(againLimit, func() {
		if on, _, _ := a.bound(); on != sess { // else it is held, and there will be an answer
			cancel(capture.ErrAbandoned)
		}
	})
	defer limit.Stop()
	ans, err := a.source.ask(ctx, sess, service.Message{Op: service.OpAdmit, Key: &a.key})
	if code := codeOf(err); code != service.CodeAbandoned && code != service.CodeNotFound {
		return ans, err
	}
	select {
	case <-moved:
		return answer{}, errCameAgain
	case <-sess.done:
		return answer{}, ErrLost
	case <-ctx.Done():
		return answer{}, context.Cause(ctx)
	}
}

// Waits implements capture.Waiter: in doubt it waits.
func (a *attempt) Waits() bool {
	ctx, cancel := context.WithTimeout(context.Background(), waitsLimit)
	defer cancel()
	ans, err := a.ask(ctx, service.Message{Op: service.OpWaits})
	switch {
	case err == nil:
		return ans.Yes
	case codeOf(err) == service.CodeNotFound, codeOf(err) == service.CodeAbandoned:
		return false
	}
	return !errors.Is(err, capture.ErrAbandoned)
}

// Hand lets the broker of the flow's owner carry it, and waits until that has decided.
// After service.HandRefused and service.HandGone, after ErrNoCarrier and when ctx has
// ended, the attempt is undecided. capture.ErrAbandoned means that it is gone, or that it
// was dealt with while ssh-captured was restarted.
func (a *attempt) Hand(ctx context.Context, payload []byte) (service.Handed, error) {
	ans, err := a.ask(ctx, service.Message{Op: service.OpHand, Payload: payload})
	switch code := codeOf(err); {
	case code == service.CodeNoCarrier:
		return service.Handed{}, fmt.Errorf("%w: %w", ErrNoCarrier, err)
	case code == service.CodeAbandoned, code == service.CodeNotFound:
		err = fmt.Errorf("%w: %w", capture.ErrAbandoned, err)
	case err == nil && ans.Handed == nil:
		err = errEmpty
	}
	if errors.Is(err, capture.ErrAbandoned) && ctx.Err() == nil { // ctx's cause may be just that
		a.settle(verdict{})
	}
	if err != nil {
		return service.Handed{}, fmt.Errorf("hand over %v: %w", a.key.Dst, err)
	}
	if o := ans.Handed.Outcome; o == service.HandAdmitted || o == service.HandLost {
		a.settle(verdict{})
	}
	return *ans.Handed, nil
}

func (a *attempt) origin() capture.Origin {
	ctx, cancel := context.WithTimeout(context.Background(), originLimit)
	defer cancel()
	ans, err := a.ask(ctx, service.Message{Op: service.OpOrigin})
	switch {
	case codeOf(err) == service.CodeNotFound: // gone, and its process may be
		return capture.Origin{}
	case err == nil && ans.Origin == nil:
		err = errEmpty
	case err == nil && ans.Origin.Error != "":
		err = errors.New(ans.Origin.Error)
	}
	if err != nil {
		return capture.Origin{Err: fmt.Errorf("origin: %w", err)}
	}
	return capture.Origin{Known: ans.Origin.Known, PID: ans.Origin.PID, Exe: ans.Origin.Exe}
}

// ask asks about the attempt, and once more whenever the connection breaks and it has
// come again. One that does not come is abandoned.
func (a *attempt) ask(ctx context.Context, m service.Message) (answer, error) {
	for {
		sess, id, moved := a.bound()
		if sess == nil {
			if err := a.absent(ctx, moved); err != nil {
				return answer{}, err
			}
			continue
		}
		m.ID = id
		ans, err := a.source.ask(ctx, sess, m)
		message.CloseAll(ans.files) // none belongs there
		if !errors.Is(err, ErrLost) {
			return ans, err
		}
	}
}

// absent waits until an attempt that has to come again has done so.
func (a *attempt) absent(ctx context.Context, moved <-chan struct{}) error {
	s := a.source
	for {
		s.mu.Lock()
		connected, here, since := s.connected, s.session.alive(), s.since
		s.mu.Unlock()
		var limit <-chan time.Time
		if here {
			limit = time.After(time.Until(since.Add(comesAgain)))
		}
		select {
		case <-moved:
			return nil
		case <-connected:
		case <-limit:
			return capture.ErrAbandoned
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-s.life.Done():
			return s.closed()
		}
	}
}
