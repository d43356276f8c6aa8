package captured

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"

	"sshbroker/capture"
	"sshbroker/capture/cgroup"
	"sshbroker/capture/listen"
	"sshbroker/capture/nft"
	"sshbroker/capture/queue"
	"sshbroker/capture/service"
)

// held is one capture. What guards its fields is Server.mu.
type held struct {
	id      string
	owner   uint32
	queue   uint16
	leaf    *cgroup.Leaf // nil for System
	spec    capture.Spec
	entered bool
	over    bool // it has ended

	dns            []*os.File // UDP, then TCP; each on one loopback address or both
	dnsUDP, dnsTCP uint16     // their ports
	marks          bool       // the UDP ones tell their datagrams' marks

	server  *client // nil: nobody serves it
	maker   *client
	waiting map[*attempt]bool // undecided, with a client or not
	stop    context.CancelFunc
}

func (h *held) inPool(a netip.Addr) bool {
	return slices.ContainsFunc(h.spec.Pools, func(p netip.Prefix) bool { return p.Contains(a) })
}

// validID keeps an id fit for file names.
var validID = regexp.MustCompile(`^[a-z0-9]{4,32}$`)

// make makes a cgroup whose sockets of the caller's are captured. Nothing is in it yet.
func (s *Server) make(c *client, id string) (*service.Made, error) {
	if !validID.MatchString(id) || id == service.System {
		return nil, serviceError(service.CodeBadRequest, "capture id %q", id)
	}
	if s.tree == nil {
		return nil, &service.Error{Code: service.CodeKernel, Message: s.treeErr.Error(), Hint: "ssh-capture --backend=namespace needs no cgroup"}
	}
	h := &held{id: id, owner: c.uid, maker: c, waiting: map[*attempt]bool{}}
	if err := s.add(h); err != nil {
		return nil, err
	}
	leaf, err := s.tree.Make(s.life, c.uid, id)
	if err == nil {
		s.mu.Lock()
		h.leaf = leaf
		s.mu.Unlock()
		err = s.changed()
	}
	if err != nil {
		s.end(id, service.CodeEnded)
		return nil, fmt.Errorf("capture %s: %w", id, err)
	}
	return &service.Made{Cgroup: leaf.Path, Held: true}, nil
}

// add gives a new capture its queue and its sockets for name queries.
func (s *Server) add(h *held) error {
	s.mu.Lock()
	own := 0
	for _, other := range s.captures {
		if other.owner == h.owner && other.leaf != nil {
			own++
		}
	}
	_, taken := s.captures[h.id]
	switch {
	case taken:
		s.mu.Unlock()
		return serviceError(service.CodeBusy, "there is a capture %s already", h.id)
	case h.id != service.System && (own >= capturesPerUID || len(s.captures) >= maxCaptures):
		s.mu.Unlock()
		return serviceError(service.CodeBusy, "too many captures: uid %d has %d, all users %d", h.owner, own, len(s.captures))
	}
	s.captures[h.id] = h
	s.mu.Unlock()

	number, err := s.bindQueue(h)
	if err == nil {
		err = s.openDNS(h)
	}
	if err != nil {
		if number != 0 {
			_ = s.queue.Unbind(number)
		}
		s.mu.Lock()
		delete(s.captures, h.id)
		delete(s.queues, number)
		s.mu.Unlock()
	}
	return err
}

// bindQueue finds a number that nobody on this host uses.
func (s *Server) bindQueue(h *held) (uint16, error) {
	for n := uint16(firstQueue); n < firstQueue+queueNumbers; n++ {
		s.mu.Lock()
		_, ours := s.queues[n]
		if !ours {
			s.queues[n] = h
		}
		s.mu.Unlock()
		if ours {
			continue
		}
		err := s.queue.Bind(n, queueLength)
		if err == nil {
			s.mu.Lock()
			h.queue = n
			s.mu.Unlock()
			return n, nil
		}
		s.mu.Lock()
		delete(s.queues, n)
		s.mu.Unlock()
		if !errors.Is(err, queue.ErrTaken) {
			return 0, err
		}
	}
	return 0, serviceError(service.CodeBusy, "no queue number is free from %d to %d", firstQueue, firstQueue+queueNumbers-1)
}

// openDNS takes the sockets for name queries from the keeper, or makes them.
func (s *Server) openDNS(h *held) (err error) {
	name := nameDNSPrefix + h.id
	if h.dns = s.Keep.Take(name); len(h.dns) == 0 {
		udp, _, err := openPair(listen.OpenUDP)
		if err != nil {
			return err
		}
		tcp, _, err := openPair(listen.Open)
		h.dns = append(udp, tcp...)
		if err != nil {
			return err
		}
		for _, f := range h.dns {
			if err := s.Keep.Store(name, f); err != nil {
				return err
			}
		}
	}
	if h.dnsUDP, err = listen.Port(h.dns[0]); err != nil {
		return err
	}
	if h.id == service.System { // for which the rules mark queries
		err := listen.ReceiveMarks(h.dns[:len(h.dns)/2]...)
		if h.marks = err == nil; err != nil {
			s.Log.Warn("whose name queries are is found out by their source ports, which is not always possible", "error", err)
		}
	}
	h.dnsTCP, err = listen.Port(h.dns[len(h.dns)/2])
	return err
}

// enter moves a process of the caller's into a capture of the caller's.
func (s *Server) enter(c *client, id string, pidfd *os.File) error {
	s.mu.Lock()
	h := s.captures[id]
	s.mu.Unlock()
	if err := c.may(h, id); err != nil {
		return err
	}
	if h.leaf == nil {
		return serviceError(service.CodeBadRequest, "capture %s has no cgroup", id)
	}
	err := h.leaf.Enter(pidfd, c.uid)
	switch {
	case errors.Is(err, cgroup.ErrNotYours):
		return serviceError(service.CodeForbidden, "%v", err)
	case errors.Is(err, cgroup.ErrGone):
		return serviceError(service.CodeNotFound, "%v", err)
	case err != nil:
		return fmt.Errorf("capture %s: %w", id, err)
	}
	s.mu.Lock()
	first := !h.entered
	h.entered = true
	s.mu.Unlock()
	if first {
		s.watch(h)
	}
	if !first {
		return nil
	}
	return s.save() // the rules are in force since make
}

// may refuses what is not the caller's.
func (c *client) may(h *held, id string) error {
	switch {
	case h == nil && id == service.System:
		return serviceError(service.CodeNoSystem, "no system broker has given rules yet")
	case h == nil:
		return serviceError(service.CodeEnded, "capture %s has ended", id)
	case h.leaf == nil && !c.admin:
		return serviceError(service.CodeForbidden, "only root and the administrators group may set rules for the whole host")
	case h.leaf != nil && c.uid != h.owner && c.uid != 0:
		return serviceError(service.CodeForbidden, "capture %s is not yours", id)
	}
	return nil
}

// serve has attempts of a capture go to c from now on.
func (s *Server) serve(c *client, m *service.Message) (*service.Served, []*os.File, error) {
	if m.Capture == service.System {
		if err := s.addSystem(c); err != nil {
			return nil, nil, err
		}
	}
	s.mu.Lock()
	h := s.captures[m.Capture]
	s.mu.Unlock()
	if err := c.may(h, m.Capture); err != nil {
		return nil, nil, err
	}
	if m.Spec == nil || len(m.Spec.Rules) > maxSpecRules {
		return nil, nil, serviceError(service.CodeBadRequest, "capture %s: no rules, or more than %d", m.Capture, maxSpecRules)
	}
	s.mu.Lock()
	old := h.server
	s.mu.Unlock()
	if old != nil && old != c && !old.hungUp() {
		return nil, nil, serviceError(service.CodeBusy, "capture %s is served by process %d already", m.Capture, old.pid)
	}
	if err := s.setSpec(h, m.Spec); err != nil {
		return nil, nil, err
	}
	var files []*os.File
	for _, f := range h.dns {
		d, err := duplicate(f)
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			return nil, nil, fmt.Errorf("capture %s: name sockets: %w", h.id, err)
		}
		files = append(files, d)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if old != nil && old != c {
		for _, a := range old.attempts {
			if a.capture == h {
				old.giveBack(a)
			}
		}
	}
	h.server = c
	served := &service.Served{Held: true, Enabled: s.enabled, Origins: s.tracker != nil, Marks: h.marks, Owner: h.owner}
	if h.leaf != nil {
		served.Cgroup = h.leaf.Path
	}
	return served, files, nil
}

// addSystem makes the capture of the whole host where it is not there yet. It is in
// force once it is enabled.
func (s *Server) addSystem(c *client) error {
	s.mu.Lock()
	_, known := s.captures[service.System]
	s.mu.Unlock()
	if known || !c.admin {
		return nil // may says no
	}
	return s.add(&held{id: service.System, entered: true, waiting: map[*attempt]bool{}})
}

func (s *Server) respec(c *client, m *service.Message) error {
	s.mu.Lock()
	h := s.captures[m.Capture]
	s.mu.Unlock()
	if err := c.may(h, m.Capture); err != nil {
		return err
	}
	if m.Spec == nil || len(m.Spec.Rules) > maxSpecRules {
		return serviceError(service.CodeBadRequest, "capture %s: no rules, or more than %d", m.Capture, maxSpecRules)
	}
	s.mu.Lock()
	mine := h.server == c
	s.mu.Unlock()
	if !mine {
		return serviceError(service.CodeForbidden, "capture %s is served by another broker", m.Capture)
	}
	return s.setSpec(h, m.Spec)
}

// setSpec brings other rules into force, or leaves the old ones.
func (s *Server) setSpec(h *held, spec *capture.Spec) error {
	s.mu.Lock()
	old := h.spec
	h.spec = *spec
	s.mu.Unlock()
	err := s.changed()
	if err != nil {
		s.mu.Lock()
		h.spec = old
		s.mu.Unlock()
		return fmt.Errorf("capture %s: %w", h.id, err)
	}
	return nil
}

// carry has c carry what is handed to its uid. The newest one does.
func (s *Server) carry(c *client) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.carriers[c.uid]; old != nil && old != c && !old.hungUp() {
		return serviceError(service.CodeBusy, "process %d carries for uid %d already", old.pid, c.uid)
	}
	s.carriers[c.uid] = c
	return nil
}

// connector switches the capture of the whole host on or off. Live flows go on.
func (s *Server) connector(c *client, enable bool) error {
	if !c.admin {
		return serviceError(service.CodeForbidden, "only root and the administrators group may switch system-wide capture")
	}
	s.mu.Lock()
	h := s.captures[service.System]
	if h == nil && enable {
		s.mu.Unlock()
		return &service.Error{Code: service.CodeNoSystem, Message: "no system broker has given rules yet: there is nothing to enable",
			Hint: "start ssh-broker --system, then enable again"}
	}
	before := s.enabled
	s.enabled = enable
	if !enable && h != nil { // nothing may hang that was held for the rules
		for a := range h.waiting {
			if !a.busy {
				s.decided(a)
				_ = a.Pass()
			}
		}
	}
	s.mu.Unlock()
	if before == enable {
		return nil
	}
	err := s.changed()
	if err != nil {
		s.mu.Lock()
		s.enabled = before
		s.mu.Unlock()
		return err
	}
	s.withdraw()
	s.Log.Info("system-wide capture", "enabled", enable, "uid", c.uid)
	return nil
}

// release opens everything: the documented way out.
func (s *Server) release(c *client) error {
	if !c.admin {
		return serviceError(service.CodeForbidden, "only root and the administrators group may release the host")
	}
	s.mu.Lock()
	s.enabled = false
	var ids []string
	for id := range s.captures {
		ids = append(ids, id)
	}
	s.mu.Unlock()
	for _, id := range ids {
		s.end(id, service.CodeReleased)
	}
	s.Log.Warn("everything was released", "uid", c.uid, "pid", c.pid)
	return nil
}

// watch ends a capture with its last process.
func (s *Server) watch(h *held) {
	if h.leaf == nil {
		return
	}
	ctx, cancel := context.WithCancel(s.life)
	s.mu.Lock()
	h.stop = cancel
	s.mu.Unlock()
	s.wg.Go(func() {
		defer cancel()
		if err := h.leaf.WaitEmpty(ctx); err == nil {
			s.end(h.id, service.CodeEnded)
		} else if ctx.Err() == nil {
			s.Log.Warn("capture is not watched any more", "capture", h.id, "error", err)
		}
	})
}

// end takes a capture out of force. What it held is refused, or let through where
// everything is released.
func (s *Server) end(id string, code service.Code) {
	s.mu.Lock()
	h := s.captures[id]
	if h == nil {
		s.mu.Unlock()
		return
	}
	delete(s.captures, id)
	h.over = true // its queue number is nobody else's until it is unbound
	for a := range h.waiting {
		if a.busy {
			continue
		}
		s.decided(a)
		if code == service.CodeReleased {
			_ = a.Pass()
		} else {
			a.Refuse(capture.Unreachable)
		}
	}
	if c := h.server; c != nil {
		c.send(parcel{Message: service.Message{Op: service.OpAnswer, Capture: id, Error: serviceError(code, "capture %s: %s", id, code)}})
	}
	stop := h.stop
	s.mu.Unlock()
	if stop != nil {
		stop()
	}
	if err := s.changed(); err != nil {
		s.Log.Error("rules of a capture that has ended", "capture", id, "error", err)
	}
	if h.queue != 0 {
		_ = s.queue.Unbind(h.queue) // after the rules that name it
	}
	s.mu.Lock()
	delete(s.queues, h.queue)
	s.mu.Unlock()
	for _, f := range h.dns {
		f.Close()
	}
	_ = s.Keep.Remove(nameDNSPrefix + id)
	if h.leaf != nil {
		if err := h.leaf.Remove(); err != nil {
			s.Log.Warn("cgroup of a capture that has ended", "capture", id, "error", err)
		}
	}
}

// hostCapture is what the table has of a capture.
func (h *held) hostCapture() nft.HostCapture {
	c := nft.HostCapture{ID: h.id, Queue: h.queue, DNSUDP: h.dnsUDP, DNSTCP: h.dnsTCP, UID: h.owner, Spec: h.spec}
	if h.leaf != nil {
		c.Cgroup, c.Level = h.leaf.CgroupID, h.leaf.Level
	}
	return c
}
