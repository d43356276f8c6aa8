package captured

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"sshbroker/capture"
	"sshbroker/capture/service"
)

// config is what is captured: what the table is made of, and what outlives a process.
// One that is in force is not changed, but replaced.
type config struct {
	Enabled   bool                `json:"enabled"`                  // system-wide capture
	Unlimited bool                `json:"icmp_unlimited,omitempty"` // see tune
	Zones     bool                `json:"zones,omitempty"`          // the kernel has them
	Captures  map[string]saveable `json:"captures"`                 // by id; System once it has a Spec
}

// saveable is one capture of a config.
type saveable struct {
	Owner uint32       `json:"owner"`
	Queue uint16       `json:"queue"`
	Spec  capture.Spec `json:"spec"`
}

// active are the ids of the captures that are in force.
func (c config) active() []string {
	ids := slices.Sorted(maps.Keys(c.Captures))
	return slices.DeleteFunc(ids, func(id string) bool { return id == service.System && !c.Enabled })
}

var errStopping error = refusal(service.CodeStopping, "ssh-captured is about to end")

// change brings what edit makes of the config into force, and writes it down before
// that, so that a crash lets nothing go. Where it fails everything is as it was before,
// unless it has to be: then it goes as far as it can. The caller holds changing.
func (s *Server) change(must bool, edit func(*config)) error {
	if s.life.Err() != nil {
		return errStopping
	}
	next := s.edited(edit)
	err := s.save(next)
	if err == nil || must {
		err = errors.Join(err, s.apply(next))
	}
	if err != nil && !must {
		_ = s.apply(s.config) // in vain where the kernel refused, as that changed nothing
		_ = s.save(s.config)
		return err
	}
	s.install(next)
	s.Failpoint(StateApplied)
	return err
}

func (s *Server) edited(edit func(*config)) config {
	next := s.config
	next.Captures = maps.Clone(s.config.Captures)
	edit(&next)
	next.Zones = s.zones
	next.Unlimited = len(next.active()) > 0 && (s.unlimited || icmpLimited())
	return next
}

func (s *Server) install(next config) {
	s.mu.Lock()
	s.config = next
	s.mu.Unlock()
}

const configFile = "state.json" // in StateDir

// load reads what a dead process has saved; known says that there is something.
func (s *Server) load() (c config, known bool, err error) {
	s.saved, err = os.ReadFile(filepath.Join(s.StateDir, configFile))
	if err == nil {
		err = json.Unmarshal(s.saved, &c)
	}
	if c.Captures == nil {
		c.Captures = map[string]saveable{}
	}
	if errors.Is(err, os.ErrNotExist) {
		return c, false, nil
	}
	if err != nil {
		// What it said must not be let through for want of it.
		return c, false, fmt.Errorf("saved state: %w; ssh-captured --release forgets it", err)
	}
	return c, true, nil
}

// save writes a config down. One that is there already, as when a broker has come back,
// needs no disk.
func (s *Server) save(c config) error {
	b, err := json.Marshal(c)
	if err != nil || bytes.Equal(b, s.saved) {
		return err
	}
	s.saved = nil
	name := filepath.Join(s.StateDir, configFile)
	f, err := os.OpenFile(name+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err == nil {
		_, err = f.Write(b)
		if _, system := c.Captures[service.System]; system { // no cgroup survives a machine that goes down
			err = errors.Join(err, f.Sync())
		}
		err = errors.Join(err, f.Close())
	}
	if err == nil {
		err = os.Rename(name+".new", name)
	}
	if err == nil {
		s.saved = b
		return nil
	}
	_ = os.Remove(name + ".new")
	if len(c.Captures) == 0 && os.Remove(name) == nil { // a full disk is not to keep what was released
		return s.save(c)
	}
	return fmt.Errorf("save state: %w", err)
}
