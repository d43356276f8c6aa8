package wire

import (
	"io"
	"time"

	"github.com/hashicorp/yamux"
)

// ALPN is the protocol's name in TLS (RFC 7301). Without it agreed nothing of this
// package may be said.
const ALPN = "ssh-broker/1"

const (
	// window is how much of a stream may be under way or wait for its reader, in bytes:
	// 1 MiB is 10 MB/s for one stream at a round trip of 100 ms. It is also what a
	// reader that does not read can cost.
	window = 1 << 20
	// backlog is how many streams may wait for being accepted. Both ends have to agree.
	backlog = 1024
	// never is longer than any connection lives.
	never = 10 * 365 * 24 * time.Hour
)

// Config is how both ends run yamux. Its own keepalive and time limits are off: the
// limits count a busy connection as a dead one, and a direction that was closed as a
// stream to be killed. Session watches the connection in their place, and does not
// begin a stream that its reader has to give up.
func Config() *yamux.Config {
	c := yamux.DefaultConfig()
	c.AcceptBacklog = backlog
	c.EnableKeepAlive = false
	c.ConnectionWriteTimeout = never
	c.StreamOpenTimeout = 0
	c.StreamCloseTimeout = 0
	c.MaxStreamWindowSize = window
	c.LogOutput = io.Discard
	return c
}
