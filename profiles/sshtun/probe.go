package sshtun

import (
	"fmt"
	"time"

	"sshbroker/profiles"
)

var _ profiles.Prober = (*Transport)(nil)

// Probe asks the server for a sign of life and gives the transport up where none has
// come within limit. It does not wait. Whatever comes is a sign, as for keepalives. It
// asks nobody inside of the connection that an ssh has, which sees to that itself.
func (t *Transport) Probe(limit time.Duration) {
	if t.unasked || !t.probing.CompareAndSwap(false, true) {
		return // the one under way is as good
	}
	before := t.wire.received.Load()
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		// Any answer will do, also the failure that RFC 4254 section 4 asks for.
		t.conn.SendRequest("keepalive@openssh.com", true, nil)
	}()
	go func() {
		defer t.probing.Store(false)
		late := time.NewTimer(limit)
		defer late.Stop()
		select {
		case <-answered:
		case <-t.done:
		case <-late.C:
			if t.wire.received.Load() == before {
				t.lose(fmt.Errorf("no sign of life within %s, after a change of the network or a sleep", limit))
			}
			<-answered // a server that does not answer is not asked again and again
		}
	}()
}
