package sshtun

import (
	"time"

	"sshbroker/profiles"
	"sshbroker/profiles/socket"
)

var _ profiles.Prober = (*Transport)(nil)

// Probe asks the server for a sign of life and gives the transport up where none has
// come within limit. It does not wait. Whatever comes is a sign, as for keepalives. It
// asks nobody inside of the connection that an ssh has, which sees to that itself.
func (t *Transport) Probe(limit time.Duration) {
	if t.unasked || !t.probing.CompareAndSwap(false, true) {
		return // the one under way is as good
	}
	go func() {
		defer t.probing.Store(false)
		socket.Probe(t, limit)
	}()
}
