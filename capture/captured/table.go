package captured

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/capture"
	"sshbroker/capture/nft"
	"sshbroker/capture/service"
)

// active are the captures that rules are needed for. The caller holds mu.
func (s *Server) active() []*held {
	var list []*held
	for id, h := range s.captures {
		if id == service.System && s.enabled || h.leaf != nil {
			list = append(list, h)
		}
	}
	slices.SortFunc(list, func(a, b *held) int { return strings.Compare(a.id, b.id) })
	return list
}

// ownership is that of the table by the crash policy. Closed: it outlives us, so that
// nothing leaves undecided. Open, which takes an open Spec of the whole host and no
// captures of users: it goes with us.
func (s *Server) ownership() nft.Ownership {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.active()
	if len(list) == 1 && list[0].leaf == nil && list[0].spec.Open && !s.NoOwner {
		return nft.Owned
	}
	return s.closed()
}

func (s *Server) closed() nft.Ownership {
	if s.NoOwner || s.NoPersist || !s.persists {
		return nft.Unowned
	}
	return nft.OwnedPersistent
}

// changed brings the captures as they are now into force, and saves them.
func (s *Server) changed() error {
	if err := s.save(); err != nil {
		return err
	}
	err := s.apply()
	s.Failpoint(StateApplied)
	return err
}

// apply loads the rules in one transaction.
func (s *Server) apply() error {
	s.applying.Lock()
	defer s.applying.Unlock()
	s.mu.Lock()
	list := s.active()
	spec := nft.HostSpec{Form: s.form, TCP: s.port, Meter: nft.Meter{Rate: meterRate, Burst: meterBurst}}
	for _, h := range list {
		c := h.hostCapture()
		if h.leaf == nil {
			spec.System = &c
		} else {
			spec.Captures = append(spec.Captures, c)
		}
	}
	s.mu.Unlock()
	if s.table == nil && len(list) == 0 {
		return nil
	}
	s.tune(len(list) > 0)
	rules, owned := nft.Host(spec), s.ownership()
	if s.table != nil && owned != s.owned && len(list) > 0 {
		if err := s.table.Replace(rules, owned); err != nil {
			return err
		}
		s.owned = owned
		return s.keepTable()
	}
	if s.table == nil {
		t, err := nft.NewTable(owned)
		if err != nil {
			return err
		}
		s.table, s.owned = t, owned
		if err := s.keepTable(); err != nil {
			return err
		}
		s.watchTable()
	}
	return s.table.Apply(rules)
}

// keepTable has the table's owning socket outlive us, unless the policy is open.
func (s *Server) keepTable() error {
	_ = s.Keep.Remove(nameTable)
	if s.owned == nft.Owned {
		return nil
	}
	return s.Keep.Store(nameTable, s.table.File())
}

// withdraw removes what is ours from the kernel when nothing is captured any more. A
// connection that is still diverted would hang without the table: then a harmless one
// stays.
func (s *Server) withdraw() {
	s.applying.Lock()
	defer s.applying.Unlock()
	s.mu.Lock()
	idle := len(s.active()) == 0
	s.mu.Unlock()
	if s.table == nil || !idle {
		return
	}
	if live, err := s.diverted(); err != nil || live {
		return
	}
	if err := s.table.Delete(); err != nil {
		s.Log.Warn("table", "error", err)
		return
	}
	s.unwatch()
	s.table.Close()
	s.table = nil
	_ = s.Keep.Remove(nameTable)
}

// bequeath leaves a harmless table for live diverted connections where ours goes with us.
func (s *Server) bequeath() {
	s.applying.Lock()
	defer s.applying.Unlock()
	if s.table == nil || s.owned != nft.Owned {
		return
	}
	if live, err := s.diverted(); err == nil && !live {
		return
	}
	if err := s.table.Replace(nft.Host(nft.HostSpec{Form: s.form, TCP: s.port}), nft.Unowned); err != nil {
		s.Log.Warn("connections that live will hang", "error", err)
	}
}

// diverted tells whether a diverted connection lives: one whose own port is ours.
func (s *Server) diverted() (bool, error) {
	const established = " 01 "
	own := fmt.Sprintf(":%04X ", s.port)
	for _, file := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		b, err := os.ReadFile(file)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return false, err
		}
		for line := range strings.Lines(string(b)) {
			// "  0: 0100007F:A3C1 0200007F:8FCE 01 ..."
			if _, rest, ok := strings.Cut(line, own); ok && strings.Contains(line[:len(line)-len(rest)+20], established) {
				return true, nil
			}
		}
	}
	return false, nil
}

// tidy looks now and then whether the table can go.
func (s *Server) tidy(ctx context.Context) {
	tick := time.NewTicker(idleCheck)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.withdraw()
		}
	}
}

// watchTable has the table repaired for as long as it is there. The caller holds applying.
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
func (s *Server) repair(c nft.Change) {
	if !c.Ours {
		return
	}
	began := time.Now()
	if err := s.apply(); err != nil {
		s.Log.Error("our rules were changed and cannot be loaded again", "by", c.Process, "error", err)
		return
	}
	s.repairs.Add(1)
	s.gap.Store(int64(time.Since(began)))
	s.Log.Warn("our rules were changed by another program, and loaded again", "by", c.Process, "after", time.Since(began))
}

// ratemaskFile has the host's ICMP limits, a bit for each type (icmp(7)).
const ratemaskFile, unreachable = "/proc/sys/net/ipv4/icmp_ratemask", 1 << 3

// tune takes destination-unreachable out of the host's ICMP limits while refusals by it
// are needed, and puts it back. save has noted how they were. The caller holds applying.
func (s *Server) tune(needed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var mask int
	if _, err := fmt.Sscan(s.ratemask, &mask); err != nil {
		return // untouched
	}
	if needed {
		_ = os.WriteFile(ratemaskFile, fmt.Appendln(nil, mask&^unreachable), 0)
		return
	}
	_ = os.WriteFile(ratemaskFile, []byte(s.ratemask), 0)
	s.ratemask = ""
}

// noteLimits keeps what tune is about to change. The caller holds mu.
func (s *Server) noteLimits() {
	b, err := os.ReadFile(ratemaskFile)
	var mask int
	if _, serr := fmt.Sscan(string(b), &mask); err == nil && serr == nil && s.ratemask == "" && mask&unreachable != 0 {
		s.ratemask = string(b)
	}
}

// state is what outlives a process.
type state struct {
	Enabled  bool           `json:"enabled"` // system-wide capture
	Ratemask string         `json:"icmp_ratemask,omitempty"`
	Captures []savedCapture `json:"captures"`
}

type savedCapture struct {
	ID      string       `json:"id"`
	Owner   uint32       `json:"owner"`
	Queue   uint16       `json:"queue"`
	Entered bool         `json:"entered"`
	Spec    capture.Spec `json:"spec"`
}

func (s state) queues() []uint16 {
	var list []uint16
	for _, c := range s.Captures {
		list = append(list, c.Queue)
	}
	return list
}

func (s *Server) load() (st state, err error) {
	b, err := os.ReadFile(filepath.Join(s.StateDir, stateFile))
	if errors.Is(err, os.ErrNotExist) {
		return st, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &st)
	}
	if err != nil {
		// What it said must not be let through for want of it.
		return st, fmt.Errorf("saved state: %w; ssh-captured --release forgets it", err)
	}
	return st, nil
}

// save writes the captures down before their rules are in force.
func (s *Server) save() error {
	s.saving.Lock()
	defer s.saving.Unlock()
	s.mu.Lock()
	_, system := s.captures[service.System]
	if len(s.active()) > 0 {
		s.noteLimits()
	}
	st := state{Enabled: s.enabled, Ratemask: s.ratemask}
	for _, h := range s.captures {
		st.Captures = append(st.Captures, savedCapture{h.id, h.owner, h.queue, h.entered, h.spec})
	}
	s.mu.Unlock()
	slices.SortFunc(st.Captures, func(a, b savedCapture) int { return strings.Compare(a.ID, b.ID) })
	b, err := json.Marshal(st)
	if err != nil {
		return err
	}
	name := filepath.Join(s.StateDir, stateFile)
	f, err := os.OpenFile(name+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	_, err = f.Write(b)
	if system { // a cgroup does not survive a machine that goes down, the connector does
		err = errors.Join(err, f.Sync())
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(name+".new", name)
	}
	if err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	return nil
}

// restore brings the captures of a dead process back whose cgroups are still there.
func (s *Server) restore(st state) error {
	s.enabled, s.ratemask = st.Enabled, st.Ratemask
	leaves := map[string]*held{}
	if s.tree != nil {
		list, err := s.tree.Leaves()
		if err != nil {
			return err
		}
		for _, l := range list {
			leaves[l.ID] = &held{id: l.ID, owner: l.UID, leaf: l, entered: true, waiting: map[*attempt]bool{}}
		}
	}
	for _, c := range st.Captures {
		h := leaves[c.ID]
		if c.ID == service.System {
			h = &held{id: c.ID, waiting: map[*attempt]bool{}}
		}
		if h == nil || h.owner != c.Owner { // it has ended while nobody looked
			_ = s.queue.Unbind(c.Queue)
			_ = s.Keep.Remove(nameDNSPrefix + c.ID)
			continue
		}
		delete(leaves, c.ID)
		h.queue, h.entered, h.spec = c.Queue, true, c.Spec
		s.captures[h.id], s.queues[h.queue] = h, h
		if err := s.openDNS(h); err != nil {
			return err
		}
	}
	for _, h := range leaves { // of which nothing was saved: everything is asked about
		if err := s.add(h); err != nil {
			return err
		}
	}
	return nil
}
