package captured

import (
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/capture/nft"
	"sshbroker/capture/service"
)

// status says what c may know: who is no administrator sees own captures alone.
func (s *Server) status(c *client) *service.Status {
	counters := s.source.Counters()
	s.applying.Lock()
	var rules nft.Counters
	if s.table != nil {
		var err error
		if rules, err = s.table.Counters(); err != nil {
			s.Log.Warn("counters", "error", err)
		}
	}
	owned, loaded := s.owned, s.table != nil
	s.applying.Unlock()

	st := &service.Status{
		PID: os.Getpid(), Program: s.Program, Since: s.since, Held: true, Keeper: s.Keep.Kind(), Origins: "proc",
		Ownership: "none", Policy: "closed", Waiting: counters.Pending, Overruns: counters.Overruns,
		Strangers: counters.Strangers, Bounded: counters.Bounded, LostMark: rules.LostMark, Diverted: rules.Diverted,
		Metered: rules.Metered, Repairs: s.repairs.Load(),
	}
	if gap := time.Duration(s.gap.Load()); gap > 0 {
		st.LastGap = gap.String()
	}
	if s.tracker != nil {
		st.Origins = "bpf"
	}
	if s.tree != nil {
		st.Hierarchy = s.tree.Mount
	}
	switch {
	case loaded && owned == nft.OwnedPersistent:
		st.Ownership = "owner, persist"
	case loaded && owned == nft.Owned:
		st.Ownership, st.Policy = "owner", "open"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st.Enabled = s.enabled
	for id, h := range s.captures {
		if id == service.System {
			st.Serving = h.server != nil
		}
		if !c.admin && (h.leaf == nil || h.owner != c.uid) {
			continue
		}
		row := service.Capture{ID: id, Owner: h.owner, Served: h.server != nil, Waiting: len(h.waiting), Hits: hits(rules, id)}
		if h.leaf != nil {
			row.Cgroup = h.leaf.Path
		}
		st.Captures = append(st.Captures, row)
	}
	slices.SortFunc(st.Captures, func(a, b service.Capture) int { return strings.Compare(a.ID, b.ID) })
	for uid := range s.carriers {
		if c.admin || uid == c.uid {
			st.Carriers = append(st.Carriers, uid)
		}
	}
	slices.Sort(st.Carriers)
	return st
}

// hits are those of one capture's rules.
func hits(rules nft.Counters, id string) (list []service.Hit) {
	for _, h := range rules.Hits {
		if h.Capture == id {
			list = append(list, service.Hit{Rule: h.Rule, Outcome: h.Outcome.String(), Count: h.Count})
		}
	}
	return list
}

// hungUp tells whether the other end of a connection is closed, be it that nobody has
// read so far yet.
func (c *client) hungUp() bool {
	raw, err := c.conn.File().SyscallConn()
	if err != nil {
		return true
	}
	p := []unix.PollFd{{}}
	if err := raw.Control(func(fd uintptr) {
		p[0].Fd = int32(fd)
		_, _ = unix.Poll(p, 0)
	}); err != nil {
		return true
	}
	return p[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
}

// duplicate gives a descriptor of its own to a message.
func duplicate(f *os.File) (d *os.File, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	cerr := raw.Control(func(fd uintptr) {
		var n int
		if n, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); err == nil {
			d = os.NewFile(uintptr(n), f.Name())
		}
	})
	if cerr != nil {
		return nil, cerr
	}
	return d, err
}
