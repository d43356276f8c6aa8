package captured

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"sshbroker/capture"
	"sshbroker/capture/nft"
	"sshbroker/capture/service"
)

// closed is the ownership of a table that outlives us, so that nothing leaves undecided.
func (s *Server) closed() nft.Ownership {
	if s.NoOwner || s.NoPersist || !s.persists {
		return nft.Unowned
	}
	return nft.OwnedPersistent
}

// apply loads the rules of a config in one transaction. The caller holds changing.
func (s *Server) apply(c config) error {
	active := c.active()
	s.tune(c.Unlimited)
	if s.table == nil && len(active) == 0 {
		return nil
	}
	owned := s.closed()
	if len(active) == 1 && active[0] == service.System && c.Captures[service.System].Spec.Open && !s.NoOwner {
		owned = nft.Owned // the crash policy "open": the table goes with us
		if err := nft.KeepLive(); err != nil {
			return err
		}
		s.live = true
	}
	switch {
	case s.table == nil:
		t, err := nft.NewTable(owned)
		if err != nil {
			return err
		}
		s.table, s.owned = t, owned
		if err := s.keepTable(); err != nil {
			return err
		}
		s.watchTable()
	case s.owned != owned && len(active) > 0:
		if err := s.table.Replace(s.ruleset(c, asking), owned); err != nil {
			return err
		}
		s.owned = owned
		if err := s.keepTable(); err != nil {
			return err
		}
	}
	return s.table.Apply(s.ruleset(c, func(spec capture.Spec) capture.Spec { return spec }))
}

// ruleset has the captures that are in force with what view makes of their Specs. That of
// none has what live diverted connections need.
func (s *Server) ruleset(c config, view func(capture.Spec) capture.Spec) nft.Ruleset {
	all := nft.HostSpec{Form: s.form, NoZones: !s.zones, TCP: s.port, Meter: nft.Meter{Rate: meterRate, Burst: meterRate}}
	for _, id := range c.active() {
		h := s.captures[id]
		one := nft.HostCapture{ID: id, Queue: h.queue, DNSUDP: h.dnsUDP, DNSTCP: h.dnsTCP, UID: h.owner, Spec: view(c.Captures[id].Spec)}
		if h.leaf == nil {
			all.System = &one
			continue
		}
		one.Cgroup, one.Level = h.leaf.CgroupID, h.leaf.Level
		all.Captures = append(all.Captures, one)
	}
	return nft.Host(all)
}

// asking is spec with rules that ask about everything and have no sets: for a moment
// after a transaction nothing is found in a set that came with it, see nft.Table.
func asking(spec capture.Spec) capture.Spec {
	all := capture.Spec{Local: spec.Local, RefuseUDP: spec.RefuseUDP}
	for i, r := range spec.Users { // one range, if need be with some between that are nobody's
		if i > 0 {
			r = capture.UIDRange{Lo: min(all.Users[0].Lo, r.Lo), Hi: max(all.Users[0].Hi, r.Hi)}
		}
		all.Users = []capture.UIDRange{r}
	}
	return all
}

// keepTable has the table's owning socket outlive us, unless the policy is open.
func (s *Server) keepTable() error {
	_ = s.Keep.Remove(nameTable)
	if s.owned == nft.Owned {
		return nil
	}
	return s.Keep.Store(nameTable, s.table.File())
}

// withdraw removes the tables when nothing is captured any more. A connection that is
// still diverted would hang without them. The caller holds changing.
func (s *Server) withdraw() {
	if s.table == nil && !s.live || len(s.config.active()) > 0 || s.diverted() {
		return
	}
	s.live = nft.DropLive() != nil
	if s.table == nil {
		return
	}
	if err := s.table.Delete(); err != nil {
		s.Log.Warn("rules that nobody needs any more", "error", err)
		return
	}
	s.unwatch()
	s.table.Close()
	s.table = nil
	_ = s.Keep.Remove(nameTable)
}

// diverted tells whether a diverted connection lives: one whose own port is ours, or
// that has come to loopback from elsewhere, as those to the port of a predecessor have.
// In doubt there is one.
func (s *Server) diverted() bool {
	const timeWait, listens = "06", "0A" // tcp_states.h
	own := fmt.Sprintf(":%04X", s.port)
	loopback := map[string]string{"/proc/net/tcp": "0100007F:", "/proc/net/tcp6": "00000000000000000000000001000000:"}
	for file, home := range loopback {
		b, err := os.ReadFile(file)
		if err != nil && !os.IsNotExist(err) {
			return true
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line) // number, own address, peer's address, state, ...
			if len(f) < 4 || f[3] == timeWait || f[3] == listens {
				continue
			}
			if strings.HasSuffix(f[1], own) || strings.HasPrefix(f[1], home) && !strings.HasPrefix(f[2], home) {
				return true
			}
		}
	}
	return false
}

// watchTable has the table repaired for as long as it is there. The caller holds changing.
func (s *Server) watchTable() {
	ctx, cancel := context.WithCancel(s.life)
	ended, err := s.table.Watch(ctx, s.repair)
	if err != nil {
		cancel()
		s.Log.Warn("nobody watches the rules", "error", err)
		return
	}
	s.unwatch = cancel
	s.wg.Go(func() {
		if err := <-ended; ctx.Err() == nil {
			s.Log.Warn("nobody watches the rules any more", "error", err)
		}
	})
}

// repair loads the rules again where another program changed or removed them, which it
// can where the kernel knows no owners.
func (s *Server) repair(by string) {
	began := time.Now()
	s.changing.Lock()
	defer s.changing.Unlock()
	if s.table == nil || s.life.Err() != nil {
		return
	}
	if err := s.apply(s.config); err != nil {
		s.Log.Error("our rules were changed and cannot be loaded again", "by", by, "error", err)
		return
	}
	s.repairs.Add(1)
	s.gap.Store(int64(time.Since(began)))
	s.Log.Warn("our rules were changed by another program, and loaded again", "by", by, "after", time.Since(began))
}

// ratemask are the ICMP answers that the kernel limits (icmp(7)). While something is
// captured refusals by destination-unreachable are not to be among them.
const (
	ratemask    = "/proc/sys/net/ipv4/icmp_ratemask"
	unreachable = 1 << 3
)

func readRatemask() (mask int) {
	b, err := os.ReadFile(ratemask)
	if err == nil {
		_, _ = fmt.Sscan(string(b), &mask)
	}
	return mask
}

func icmpLimited() bool { return readRatemask()&unreachable != 0 }

// tune takes destination-unreachable out of the limits, or puts it back if we took it
// out. The caller holds changing.
func (s *Server) tune(unlimited bool) {
	mask := readRatemask()
	switch {
	case unlimited:
		mask &^= unreachable
	case s.unlimited:
		mask |= unreachable
	default:
		return
	}
	s.unlimited = unlimited
	_ = os.WriteFile(ratemask, fmt.Appendln(nil, mask), 0)
}
