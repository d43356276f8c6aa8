package captured

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"sshbroker/capture"
	"sshbroker/capture/cgroup"
	"sshbroker/capture/hold"
	"sshbroker/capture/service"
)

// attempt is a held SYN on its way between the kernel and whoever decides. Its fields
// are guarded by Server.mu.
type attempt struct {
	*hold.Attempt
	capture *held

	at    *client // who has to decide; nil: nobody yet
	id    uint64  // with at
	given bool    // at was told, and counts it
	busy  bool    // it is being admitted

	home *handover // nil, unless at carries
}

// handover is where a carried attempt came from.
type handover struct {
	by      *client // the system broker
	id      uint64  // with that
	seq     uint64  // of its request
	payload []byte
}

func (a *attempt) message() *service.Message {
	f, k := a.Flow(), a.Key()
	m := &service.Message{Op: service.OpAttempt, ID: a.id, Capture: a.capture.id, Attempt: &service.Attempt{
		Key: service.Key{Src: k.Src, Dst: k.Dst, Seq: k.Seq}, UID: f.UID, Arrived: f.Arrived}}
	if a.home != nil {
		m.Capture, m.Attempt.Payload = "", a.home.payload
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
		a := &attempt{Attempt: got.(*hold.Attempt)}
		s.mu.Lock()
		if a.capture = s.queues[a.Queue()]; a.capture != nil {
			a.capture.waiting[a] = true
			s.offer(a)
		} else { // its rules are gone: it comes again and finds the way
			a.Refuse(capture.Silent)
		}
		s.mu.Unlock()
	}
}

// offer has a decided by whoever serves its capture, or lets it wait for one who will.
// The caller holds mu, as for all that follow here.
func (s *Server) offer(a *attempt) {
	h := a.capture
	switch {
	case s.captures[h.id] != h:
		s.decided(a, service.HandLost)
		a.Refuse(capture.Silent)
	case h.leaf == nil && !s.config.Enabled:
		s.letGo(a)
	case h.server != nil:
		h.server.assign(a)
	case s.config.Captures[h.id].Spec.Open:
		s.letGo(a)
	}
}

// letGo lets a go its way, which never leads to a made-up address.
func (s *Server) letGo(a *attempt) {
	s.decided(a, service.HandLost)
	dst := a.Flow().Dst.Addr()
	for _, pool := range s.config.Captures[a.capture.id].Spec.Pools {
		if pool.Contains(dst) {
			a.Refuse(capture.Unreachable)
			return
		}
	}
	s.pass(a)
}

// pass lets a go that is forgotten already. What a user's capture lets through is for
// the rules of the whole host then, which are not a user's to lift.
func (s *Server) pass(a *attempt) {
	uid, host := a.Flow().UID, s.captures[service.System]
	taken := func(r capture.UIDRange) bool { return r.Lo <= uid && uid <= r.Hi }
	if a.capture.leaf == nil || host == nil || !s.config.Enabled || !slices.ContainsFunc(s.config.Captures[host.id].Spec.Users, taken) {
		_ = a.Pass() // there is a way out
		return
	}
	a.capture = host
	host.waiting[a] = true
	s.offer(a)
}

// assign queues a for c.
func (c *client) assign(a *attempt) {
	c.next++
	a.at, a.id, a.given = c, c.next, false
	c.attempts[a.id] = a
	l := c.line(a.Flow().UID)
	if len(l.waiting) == 0 {
		c.turns = append(c.turns, l)
	}
	l.waiting = append(l.waiting, a)
	c.wake.Signal()
}

// line returns the one of that uid.
func (c *client) line(uid uint32) *line {
	l := c.lines[uid]
	if l == nil {
		l = &line{}
		c.lines[uid] = l
	}
	return l
}

// detach takes a from whoever has it.
func (s *Server) detach(a *attempt) {
	c := a.at
	if c == nil {
		return
	}
	delete(c.attempts, a.id)
	if a.given {
		uid := a.Flow().UID
		l := c.line(uid)
		if l.given--; l.given == 0 && len(l.waiting) == 0 {
			delete(c.lines, uid)
		}
		c.wake.Signal() // there may be room in its window now
	}
	a.at, a.given = nil, false
}

// decided forgets a, but for questions about it. Whoever has handed it over is told.
func (s *Server) decided(a *attempt, outcome service.Outcome) {
	if a.at != nil {
		a.at.remember(a.id, a)
	}
	s.detach(a)
	delete(a.capture.waiting, a)
	if home := a.home; home != nil {
		home.by.remember(home.id, a)
		delete(home.by.attempts, home.id)
		home.tell(service.Handed{Outcome: outcome})
	}
}

// tell answers the request to hand over.
func (h *handover) tell(word service.Handed) {
	h.by.say(service.Message{Seq: h.seq, Handed: &word})
}

// returned takes an undecided attempt back from whoever had it: from a carrier it goes
// to the system broker with the carrier's word, else it waits.
func (s *Server) returned(a *attempt, word service.Handed) {
	s.detach(a)
	home := a.home
	a.home = nil
	if home == nil || !s.clients[home.by] {
		s.offer(a)
		return
	}
	a.at, a.id, a.given = home.by, home.id, true
	home.by.line(a.Flow().UID).given++
	home.tell(word)
}

// undecided is the attempt of that number that c has to decide.
func (c *client) undecided(id uint64) *attempt {
	if a := c.attempts[id]; a != nil && a.at == c && a.given && !a.busy {
		return a
	}
	return nil
}

var errUnknown error = refusal(service.CodeNotFound, "no such attempt")

// decide carries out what needs no answer. An error ends the connection.
func (c *client) decide(m *service.Message) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := c.undecided(m.ID)
	switch {
	case a == nil: // decided already
	case a.home != nil && m.Op == service.OpPass:
		return errors.New("a carrier cannot let pass")
	case a.home != nil:
		c.returned(a, service.Handed{Outcome: service.HandRefused, Refusal: m.Refusal, Text: m.Text})
	case m.Op == service.OpPass:
		c.decided(a, "")
		c.pass(a)
	default:
		c.decided(a, "")
		a.Refuse(m.Refusal)
	}
	return nil
}

// admit lets the handshake finish and hands the connection over.
func (c *client) admit(m *service.Message, _ []*os.File) (*answer, error) {
	if m.ID == 0 && m.Key != nil {
		return c.claim(*m.Key)
	}
	c.mu.Lock()
	a := c.undecided(m.ID)
	if a == nil {
		c.mu.Unlock()
		return nil, errUnknown
	}
	a.busy = true
	c.mu.Unlock()

	c.Failpoint(StateAsked)
	conn, err := a.Admit(context.Background()) // a second at most
	c.Failpoint(StateAccepted)

	c.mu.Lock()
	defer c.mu.Unlock()
	a.busy = false
	short, gone := errors.Is(err, capture.ErrNoDescriptors), !c.clients[c]
	switch {
	case short && (gone || c.captures[a.capture.id] != a.capture):
		c.returned(a, service.Handed{Outcome: service.HandGone})
	case short: // c may try again, or refuse
	case err != nil || gone:
		c.decided(a, service.HandLost)
	default:
		c.decided(a, service.HandAdmitted)
	}
	return connected(conn, err)
}

func connected(conn *capture.Conn, err error) (*answer, error) {
	if err != nil {
		return nil, err
	}
	return &answer{conn: conn.TCPConn}, nil
}

// claim is for a broker that was waiting for a connection when our predecessor died.
func (c *client) claim(k service.Key) (*answer, error) {
	sock, err := c.source.Diag.Lookup(k.Src, k.Dst)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", capture.ErrAbandoned, err)
	}
	c.mu.Lock()
	system := c.captures[service.System]
	mine := sock.UID == c.uid || c.uid == 0 || system != nil && system.server == c
	c.mu.Unlock()
	if !mine {
		return nil, errUnknown
	}
	return connected(c.source.Claim(context.Background(), hold.Key{Src: k.Src, Dst: k.Dst, Seq: k.Seq}))
}

// hand gives an attempt of the whole host to its owner's own broker. The answer comes
// once that has decided.
func (c *client) hand(m *service.Message, _ []*os.File) (*answer, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := c.undecided(m.ID)
	if a == nil {
		return nil, errUnknown
	}
	var carrier *client
	if u := c.users[a.Flow().UID]; u != nil {
		carrier = u.carrier
	}
	switch {
	case a.capture.leaf != nil || a.home != nil:
		return nil, refusal(service.CodeBadRequest, "only the system broker hands over, and once")
	case carrier == nil:
		return nil, refusal(service.CodeNoCarrier, "uid %d has no broker that carries", a.Flow().UID)
	}
	home := &handover{c, a.id, m.Seq, m.Payload}
	c.detach(a)
	c.attempts[home.id] = a
	a.home = home
	carrier.assign(a)
	return nil, nil
}

// carry has c carry what is handed to its uid.
func (c *client) carry(*service.Message, []*os.File) (*answer, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.user.carrier; old != nil && old != c && !old.hungUp() {
		return nil, refusal(service.CodeBusy, "process %d carries for uid %d already", old.pid, c.uid)
	}
	if c.clients[c] { // else it is gone by now
		c.user.carrier = c
	}
	return &answer{}, nil
}

// remember keeps a decided attempt for questions that come late.
func (c *client) remember(id uint64, a *attempt) { c.recent[id%recently] = known{id, a} }

// tell answers a question about an attempt of c's, be it decided or not.
func (c *client) tell(m *service.Message, _ []*os.File) (*answer, error) {
	c.mu.Lock()
	a := c.attempts[m.ID]
	if old := c.recent[m.ID%recently]; a == nil && old.id == m.ID {
		a = old.a
	}
	c.mu.Unlock()
	p := &answer{}
	switch {
	case a == nil:
		return nil, errUnknown
	case m.Op == service.OpWaits:
		p.Yes = a.Waits()
		return p, nil
	}
	o := a.Flow().Origin()
	p.Origin = &service.Origin{Known: o.Known, PID: o.PID, Exe: o.Exe}
	if o.Err != nil {
		p.Origin.Error = o.Err.Error()
	}
	if path, err := cgroup.OfProcess(o.PID); o.Known && err == nil {
		p.Origin.Cgroup = path
	}
	return p, nil
}

// forget gives up what has waited since before and whose program does not any more:
// nobody tells.
func (s *Server) forget(before time.Time) {
	var old []*attempt
	s.mu.Lock()
	for _, h := range s.captures {
		for a := range h.waiting {
			if a.Flow().Arrived.Before(before) {
				old = append(old, a)
			}
		}
	}
	s.mu.Unlock()
	for _, a := range old {
		if a.Waits() { // asks the kernel
			continue
		}
		s.mu.Lock()
		if a.capture.waiting[a] && !a.busy {
			s.decided(a, service.HandLost)
			a.Refuse(capture.Silent)
		}
		s.mu.Unlock()
	}
}
