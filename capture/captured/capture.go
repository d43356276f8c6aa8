package captured

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/capture"
	"sshbroker/capture/cgroup"
	"sshbroker/capture/message"
	"sshbroker/capture/service"
)

// held is one capture.
type held struct {
	id    string
	owner uint32
	leaf  *cgroup.Leaf // nil for System

	queue          uint16
	dnsUDP, dnsTCP uint16     // ports of dns
	dns            []*os.File // UDP, then TCP; each on one loopback address or both
	marks          bool       // the UDP ones tell their datagrams' marks

	entered bool // a process has been in the cgroup; guarded by Server.changing

	// Guarded by Server.mu.
	server  *client // nil: nobody serves it
	maker   *client
	waiting map[*attempt]bool // undecided, with a client or not
}

func newHeld(id string, owner uint32) *held {
	return &held{id: id, owner: owner, waiting: map[*attempt]bool{}}
}

// refusal is what a client is told.
func refusal(code service.Code, format string, args ...any) *service.Error {
	return &service.Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// mine returns a capture that c may serve and change.
func (c *client) mine(id string) (*held, error) {
	h := c.captures[id] // changing is held
	switch {
	case id == service.System && !c.admin:
		return nil, refusal(service.CodeForbidden, "only root and the administrators group may set rules for the whole host")
	case id == service.System && h == nil:
		return nil, refusal(service.CodeNoSystem, "no system broker has given rules yet")
	case h == nil:
		return nil, refusal(service.CodeEnded, "capture %s has ended", id)
	case h.leaf != nil && c.uid != h.owner && c.uid != 0:
		return nil, refusal(service.CodeForbidden, "capture %s is not yours", id)
	}
	return h, nil
}

// validID keeps an id fit for names of files, chains and descriptors.
var validID = regexp.MustCompile(`^[a-z0-9]{4,32}$`)

// make makes a cgroup whose sockets of the caller's are captured. Nothing is in it yet.
func (c *client) make(m *service.Message, _ []*os.File) (*answer, error) {
	const patience = 10 * time.Second // with systemd
	if !validID.MatchString(m.Capture) || m.Capture == service.System {
		return nil, refusal(service.CodeBadRequest, "capture id %q", m.Capture)
	}
	if c.tree == nil {
		return nil, &service.Error{Code: service.CodeKernel, Message: c.treeErr.Error(), Hint: "ssh-capture --backend=namespace needs no cgroup"}
	}
	c.endEmpty() // which count no more
	h := newHeld(m.Capture, c.uid)
	h.maker = c
	var err error
	ctx, cancel := context.WithTimeout(c.life, patience)
	defer cancel()
	c.changing.Unlock() // others need not wait for that
	h.leaf, err = c.tree.Make(ctx, c.uid, h.id)
	c.changing.Lock()
	if err == nil {
		err = c.add(h, capture.Spec{})
	}
	if err != nil {
		return nil, fmt.Errorf("capture %s: %w", h.id, err)
	}
	return &answer{Message: service.Message{Made: &service.Made{Cgroup: h.leaf.Path, Held: true}}}, nil
}

// add brings a new capture into force, or strips it.
func (s *Server) add(h *held, spec capture.Spec) error {
	own := 0
	for _, other := range s.captures {
		if other.owner == h.owner && other.leaf != nil {
			own++
		}
	}
	switch {
	case s.captures[h.id] != nil:
		_ = h.leaf.Remove() // which another uid's of that name cannot be
		return refusal(service.CodeBusy, "there is a capture %s already", h.id)
	case h.leaf != nil && (own >= capturesPerUID || len(s.captures) >= maxCaptures):
		_ = h.leaf.Remove()
		return refusal(service.CodeBusy, "too many captures: uid %d has %d, all users %d", h.owner, own, len(s.captures))
	}
	err := s.equip(h)
	if err == nil {
		err = s.change(false, func(next *config) { next.Captures[h.id] = saveable{h.owner, h.queue, spec} })
	}
	if err != nil {
		s.strip(h)
	}
	return err
}

// enter moves a process of the owner's, whose sockets are taken, into a capture.
func (c *client) enter(m *service.Message, files []*os.File) (*answer, error) {
	h, err := c.mine(m.Capture)
	switch {
	case err != nil:
		return nil, err
	case h.leaf == nil || len(files) != 1:
		return nil, refusal(service.CodeBadRequest, "a capture with a cgroup, and one process with %q", m.Op)
	}
	if err := h.leaf.Enter(files[0], h.owner); err != nil {
		return nil, fmt.Errorf("capture %s: %w", h.id, err)
	}
	h.entered = true
	return &answer{}, nil
}

// endEmpty ends the captures whose last process has ended, and removes the cgroups of
// released ones that have become empty. The caller holds changing.
func (s *Server) endEmpty() {
	var empty []*held
	for _, h := range s.captures {
		if h.entered {
			if populated, err := h.leaf.Populated(); err == nil && !populated {
				empty = append(empty, h)
			}
		}
	}
	s.end(empty...)
	s.released = slices.DeleteFunc(s.released, func(l *cgroup.Leaf) bool { return !errors.Is(l.Remove(), unix.EBUSY) })
}

// end takes captures out of force that nobody is in. The caller holds changing.
func (s *Server) end(list ...*held) {
	if s.life.Err() != nil || len(list) == 0 {
		return
	}
	err := s.change(true, func(next *config) {
		for _, h := range list {
			delete(next.Captures, h.id)
		}
	})
	if err != nil {
		s.Log.Error("rules of captures that have ended", "error", err)
	}
	for _, h := range list {
		s.drop(h, service.CodeEnded)
	}
}

// drop forgets a capture for which there are no rules any more.
func (s *Server) drop(h *held, code service.Code) {
	s.mu.Lock()
	delete(s.captures, h.id)
	delete(s.queues, h.queue)
	for a := range h.waiting {
		switch {
		case a.busy:
		case code == service.CodeReleased:
			s.letGo(a)
		default:
			s.decided(a, service.HandLost)
			a.Refuse(capture.Silent) // nothing would carry out another refusal
		}
	}
	if h.server != nil {
		h.server.say(service.Message{Capture: h.id, Error: refusal(code, "capture %s: %s", h.id, code)})
	}
	s.mu.Unlock()
	s.strip(h)
}

// serve brings rules into force for a capture, and has its attempts go to c from now
// on, unless they do so already.
func (c *client) serve(m *service.Message, _ []*os.File) (*answer, error) {
	h, err := c.mine(m.Capture)
	first := h == nil && c.admin && m.Capture == service.System && m.Op == service.OpServe
	if first {
		h, err = newHeld(service.System, 0), nil
	}
	if err == nil {
		err = c.fits(h, m.Spec)
	}
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	old := h.server
	c.mu.Unlock()
	switch {
	case old == c != (m.Op == service.OpSpec):
		return nil, refusal(service.CodeForbidden, "%q: capture %s is served here already, or is not", m.Op, h.id)
	case old != nil && old != c && !old.hungUp():
		return nil, refusal(service.CodeBusy, "capture %s is served by process %d already", h.id, old.pid)
	case first:
		err = c.add(h, *m.Spec)
	default:
		err = c.change(false, func(next *config) { next.Captures[h.id] = saveable{h.owner, h.queue, *m.Spec} })
	}
	p := &answer{}
	if err != nil || old == c {
		return p, err
	}
	for _, f := range h.dns {
		d, err := duplicate(f)
		if err != nil {
			message.CloseAll(p.files)
			return nil, fmt.Errorf("capture %s: name sockets: %w", h.id, err)
		}
		p.files = append(p.files, d)
	}
	p.Served = &service.Served{Held: true, Enabled: c.config.Enabled, Origins: c.tracker != nil, Marks: h.marks, Owner: h.owner}
	if h.leaf != nil {
		p.Served.Cgroup = h.leaf.Path
	}
	c.takeOver(h)
	return p, nil
}

// takeOver gives c what waits, unless it is gone by now.
func (c *client) takeOver(h *held) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.clients[c] {
		return
	}
	h.server = c
	for a := range h.waiting {
		if !a.busy && a.home == nil { // nobody's, or of a server that has hung up
			c.returned(a, service.Handed{})
		}
	}
}

// fits refuses a Spec that would make the table too large for everybody.
func (s *Server) fits(h *held, spec *capture.Spec) error {
	if spec == nil {
		return refusal(service.CodeBadRequest, "capture %s: no rules", h.id)
	}
	size, most := sizeOf(spec), maxSpec
	if h.id != service.System {
		most = specPerUID
		for id, other := range s.config.Captures {
			if other.Owner == h.owner && id != h.id && id != service.System {
				size += sizeOf(&other.Spec)
			}
		}
	}
	if size > most {
		return refusal(service.CodeBadRequest, "capture %s: rules of %d parts, with those of the owner's other captures; at most %d", h.id, size, most)
	}
	return nil
}

func sizeOf(s *capture.Spec) int {
	n := len(s.Pools) + len(s.Exempt) + len(s.Users)
	for _, r := range s.Rules {
		n += 1 + len(r.Prefixes) + len(r.Ports)
	}
	return n
}

// connector switches the capture of the whole host on or off. Live flows go on.
func (c *client) connector(m *service.Message, _ []*os.File) (*answer, error) {
	switch {
	case m.Enable == nil:
		return nil, refusal(service.CodeBadRequest, "on or off?")
	case !c.admin:
		return nil, refusal(service.CodeForbidden, "only root and the administrators group may switch system-wide capture")
	case *m.Enable && c.captures[service.System] == nil:
		return nil, &service.Error{Code: service.CodeNoSystem, Message: "no system broker has given rules yet: there is nothing to enable",
			Hint: "start ssh-broker --system, then enable again"}
	case *m.Enable == c.config.Enabled:
		return &answer{}, nil
	}
	if err := c.change(false, func(next *config) { next.Enabled = *m.Enable }); err != nil {
		return nil, err
	}
	c.mu.Lock()
	if h := c.captures[service.System]; h != nil && !*m.Enable {
		for a := range h.waiting { // held for rules that are gone
			if !a.busy {
				c.letGo(a)
			}
		}
	}
	c.mu.Unlock()
	c.withdraw()
	c.Log.Info("system-wide capture", "enabled", *m.Enable, "uid", c.uid)
	return &answer{}, nil
}

// release opens everything: the documented way out.
func (c *client) release(*service.Message, []*os.File) (*answer, error) {
	if !c.admin {
		return nil, refusal(service.CodeForbidden, "only root and the administrators group may release the host")
	}
	err := c.change(true, func(next *config) { *next = config{Captures: map[string]saveable{}} })
	if err == errStopping {
		return nil, err
	}
	for _, h := range c.captures {
		c.drop(h, service.CodeReleased)
	}
	c.withdraw()
	c.Log.Warn("everything was released", "uid", c.uid, "pid", c.pid, "error", err)
	return &answer{}, err
}
