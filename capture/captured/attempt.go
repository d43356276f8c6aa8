package captured

import (
	"context"
	"errors"
	"fmt"

	"sshbroker/capture"
	"sshbroker/capture/cgroup"
	"sshbroker/capture/hold"
	"sshbroker/capture/service"
)

// attempt is a held SYN on its way between the kernel and whoever decides.
type attempt struct {
	*hold.Attempt
	capture *held

	// Guarded by Server.mu.
	at      *client // who has to decide; nil: nobody yet
	id      uint64  // with at
	given   bool    // at was told, and counts it
	busy    bool    // it is being admitted
	home    *client // the system broker that handed it over
	homeID  uint64
	homeSeq uint64 // of its request
	payload []byte // what the system broker says to at
}

func (a *attempt) message() service.Message {
	f := a.Flow()
	k := a.Key()
	m := service.Message{Op: service.OpAttempt, ID: a.id, Capture: a.capture.id, Attempt: &service.Attempt{
		Key: service.Key{Src: k.Src, Dst: k.Dst, Seq: k.Seq}, UID: f.UID, Arrived: f.Arrived}}
	if a.payload != nil {
		m.Capture, m.Attempt.Payload = "", a.payload
	}
	return m
}

// pump gives each SYN to whoever serves its capture.
func (s *Server) pump(ctx context.Context) error {
	for {
		got, err := s.source.Next(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("packet queue: %w", err)
		}
		s.Failpoint(StateReceived)
		h := got.(*hold.Attempt)
		s.mu.Lock()
		a := &attempt{Attempt: h, capture: s.queues[h.Queue()]}
		if a.capture == nil || a.capture.over { // it has ended since
			s.mu.Unlock()
			h.Refuse(capture.Unreachable)
			continue
		}
		a.capture.waiting[a] = true
		s.offer(a)
		s.mu.Unlock()
	}
}

// offer has a decided by whoever serves its capture, or lets it wait for one who will.
// The caller holds mu.
func (s *Server) offer(a *attempt) {
	switch c := a.capture.server; {
	case c != nil:
		s.assign(a, c)
	case a.capture.spec.Open:
		delete(a.capture.waiting, a)
		if a.capture.inPool(a.Flow().Dst.Addr()) {
			a.Refuse(capture.Unreachable)
			return
		}
		_ = a.Pass() // there is a way out
	}
}

// offerAll offers what waits. The caller holds mu.
func (s *Server) offerAll(h *held) {
	if h == nil {
		return
	}
	for a := range h.waiting {
		if a.at == nil && !a.busy {
			s.offer(a)
		}
	}
}

// assign queues a for c. The caller holds mu.
func (s *Server) assign(a *attempt, c *client) {
	c.next++
	a.at, a.id, a.given = c, c.next, false
	c.attempts[a.id] = a
	uid := a.Flow().UID
	if c.lines[uid] == nil {
		c.turns = append(c.turns, uid)
	}
	c.lines[uid] = append(c.lines[uid], a)
	c.poke()
}

// detach takes a from whoever has it. The caller holds mu.
func (s *Server) detach(a *attempt) {
	c := a.at
	if c == nil {
		return
	}
	delete(c.attempts, a.id)
	if a.given {
		uid := a.Flow().UID
		if c.given[uid]--; c.given[uid] == 0 {
			delete(c.given, uid)
		}
		c.poke() // there may be room in its window now
	}
	a.at, a.given = nil, false
}

// decided forgets a, but for questions about its origin. The caller holds mu.
func (s *Server) decided(a *attempt) {
	if a.at != nil {
		a.at.remember(a.id, a)
	}
	if a.home != nil {
		a.home.remember(a.homeID, a)
	}
	s.detach(a)
	if a.home != nil {
		delete(a.home.attempts, a.homeID)
	}
	delete(a.capture.waiting, a)
}

// giveBack takes an attempt from a client that is gone. The caller holds mu.
func (c *client) giveBack(a *attempt) {
	switch {
	case a.home == c:
		a.home = nil
	case !a.busy: // whoever admits it finds out
		c.returned(a, service.Handed{Outcome: service.HandGone})
	}
}

// returned takes an undecided attempt back from whoever had it: from a carrier it goes
// to the system broker with the carrier's word, else it waits. The caller holds mu.
func (s *Server) returned(a *attempt, word service.Handed) {
	s.detach(a)
	home := a.home
	a.home, a.payload = nil, nil
	if home == nil || !s.clients[home] {
		s.offer(a)
		return
	}
	a.at, a.id, a.given = home, a.homeID, true
	home.given[a.Flow().UID]++
	home.send(parcel{Message: service.Message{Op: service.OpAnswer, Seq: a.homeSeq, Handed: &word}})
}

// decide does what a broker says of an attempt. An error ends the connection.
func (c *client) decide(m *service.Message) error {
	switch {
	case m.Op == service.OpAdmit && m.ID == 0 && m.Key != nil:
		c.spawn(func() { c.claim(m.Seq, *m.Key) })
		return nil
	case m.Op == service.OpOrigin || m.Op == service.OpWaits:
		c.tell(m)
		return nil
	}
	c.mu.Lock()
	a := c.attempts[m.ID]
	if a == nil || a.at != c || a.busy {
		c.mu.Unlock()
		if m.Seq != 0 {
			c.answer(m.Seq, service.Message{}, serviceError(service.CodeNotFound, "no such attempt"))
		}
		return nil // decided already
	}
	if m.Op == service.OpAdmit {
		a.busy = true
		c.mu.Unlock()
		c.spawn(func() { c.admit(a, m.Seq) })
		return nil
	}
	defer c.mu.Unlock()
	carried := a.payload != nil
	switch {
	case m.Op == service.OpHand:
		c.hand(a, m)
	case m.Op == service.OpRefuse && carried:
		c.returned(a, service.Handed{Outcome: service.HandRefused, Refusal: m.Refusal, Text: m.Text})
	case m.Op == service.OpRefuse:
		c.decided(a)
		a.Refuse(m.Refusal)
	case carried:
		return errors.New("a carrier cannot let pass")
	default:
		c.decided(a)
		_ = a.Pass() // there is a way out
	}
	return nil
}

// spawn does what takes long. Too much at once waits, and what the client asks next.
// The caller does not hold mu.
func (c *client) spawn(f func()) {
	c.slots <- struct{}{}
	go func() {
		defer func() { <-c.slots }()
		f()
	}()
}

// tell answers a question about an attempt of c's that may be decided already.
func (c *client) tell(m *service.Message) {
	c.mu.Lock()
	a := c.attempts[m.ID]
	for _, old := range c.recent {
		if a == nil && old.a != nil && old.id == m.ID {
			a = old.a
		}
	}
	c.mu.Unlock()
	switch {
	case a == nil:
		c.answer(m.Seq, service.Message{}, serviceError(service.CodeNotFound, "no such attempt"))
	case m.Op == service.OpWaits:
		c.answer(m.Seq, service.Message{Yes: a.Waits()}, nil)
	default:
		c.spawn(func() { c.answer(m.Seq, service.Message{Origin: describe(a.Flow().Origin())}, nil) })
	}
}

// admit lets the handshake finish and hands the connection over.
func (c *client) admit(a *attempt, seq uint64) {
	c.Failpoint(StateAsked)
	conn, err := a.Admit(c.life)
	c.Failpoint(StateAccepted)
	c.mu.Lock()
	defer c.mu.Unlock()
	a.busy = false
	if errors.Is(err, capture.ErrNoDescriptors) {
		if !c.clients[c] {
			c.returned(a, service.Handed{Outcome: service.HandGone})
			return
		}
		c.send(parcel{Message: service.Message{Op: service.OpAnswer, Seq: seq, Error: asError(err)}})
		return
	}
	home, homeSeq := a.home, a.homeSeq
	c.decided(a)
	p := parcel{Message: service.Message{Op: service.OpAnswer, Seq: seq, Error: asError(err)}}
	word := service.HandLost
	if err == nil {
		p.conn = conn.TCPConn
		if c.clients[c] {
			word = service.HandAdmitted
		}
	}
	c.send(p)
	if home != nil && c.clients[home] {
		home.send(parcel{Message: service.Message{Op: service.OpAnswer, Seq: homeSeq, Handed: &service.Handed{Outcome: word}}})
	}
}

// claim is for a broker that was waiting for a connection when our predecessor died.
func (c *client) claim(seq uint64, k service.Key) {
	conn, err := c.source.Claim(c.life, hold.Key{Src: k.Src, Dst: k.Dst, Seq: k.Seq})
	p := parcel{Message: service.Message{Op: service.OpAnswer, Seq: seq, Error: asError(err)}}
	if err == nil {
		p.conn = conn.TCPConn
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.send(p)
}

// hand gives an attempt of the whole host to its owner's own broker. The caller holds mu.
func (c *client) hand(a *attempt, m *service.Message) {
	carrier := c.carriers[a.Flow().UID]
	var err error
	switch {
	case a.capture.id != service.System || m.Seq == 0 || a.payload != nil:
		err = serviceError(service.CodeBadRequest, "only the system broker hands over, and once")
	case carrier == nil:
		err = serviceError(service.CodeNoCarrier, "uid %d has no broker that carries", a.Flow().UID)
	}
	if err != nil {
		c.send(parcel{Message: service.Message{Op: service.OpAnswer, Seq: m.Seq, Error: asError(err)}})
		return
	}
	id := a.id
	c.detach(a)
	a.home, a.homeID, a.homeSeq, a.payload = c, id, m.Seq, m.Payload
	if a.payload == nil {
		a.payload = []byte{}
	}
	c.attempts[id] = a
	c.assign(a, carrier)
}

func describe(o capture.Origin) *service.Origin {
	d := &service.Origin{Known: o.Known, PID: o.PID, Exe: o.Exe}
	if o.Err != nil {
		d.Error = o.Err.Error()
	}
	if o.Known {
		if path, err := cgroup.OfProcess(o.PID); err == nil {
			d.Cgroup, d.Unit = path, cgroup.Unit(path)
		}
	}
	return d
}
