package control

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"
)

// ClientInfo is a connected client.
type ClientInfo struct {
	ID        uint64 // of the server; never used twice
	PID       int    // 0 where it is in another pid namespace
	UID       int
	Operation string // of the call under way; "" for none
	Since     time.Time
}

// ErrNoClient says that there is no such client.
var ErrNoClient = errors.New("no such client")

// enlist has a client be listed until the function that it returns is called.
func (s *Server) enlist(c *session) (leave func()) {
	c.since = time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastID++
	id := s.lastID
	s.sessions[id] = c
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.sessions, id)
	}
}

// Clients lists who is connected, oldest first.
func (s *Server) Clients() []ClientInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []ClientInfo
	for id, c := range s.sessions {
		in := ClientInfo{ID: id, PID: c.pid, UID: c.uid, Since: c.since}
		c.mu.Lock()
		if c.current != nil {
			in.Operation = c.current.Op
		}
		c.mu.Unlock()
		list = append(list, in)
	}
	slices.SortFunc(list, func(a, b ClientInfo) int { return cmp.Compare(a.ID, b.ID) })
	return list
}

// Disconnect ends a client's calls and its connection.
func (s *Server) Disconnect(id uint64) error {
	s.mu.Lock()
	c := s.sessions[id]
	s.mu.Unlock()
	if c == nil {
		return fmt.Errorf("client %d: %w", id, ErrNoClient)
	}
	err := c.Close()
	if errors.Is(err, net.ErrClosed) { // it is leaving already
		return fmt.Errorf("client %d: %w", id, ErrNoClient)
	}
	return err
}
