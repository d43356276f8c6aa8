package gateway

import (
	"log/slog"
	"testing"
	"time"

	"sshbroker/profiles/tlstun"
	"sshbroker/profiles/tuntest"
)

// quiet is room for what the suite opens in a second.
const quiet = "connects_per_second: 100000, flows_per_identity: 16000, flows: 20000"

func connector(t testing.TB) *tlstun.Connector {
	return &tlstun.Connector{Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Look: 10 * time.Millisecond}
}

// Our own client through the gateway keeps every contract of a tunnel, no exceptions; so
// it does by HTTP CONNECT, but for what a connection for each flow means.
func TestConformance(t *testing.T) {
	t.Run("session", func(t *testing.T) {
		w := newWorld(t, quiet, collection)
		tuntest.Run(t, connector(t), w.profile())
	})
	t.Run("connect", func(t *testing.T) {
		w := newWorld(t, quiet+", handshakes: 4096, connections: 20000", collection)
		p := w.profile()
		p.TLS.Proxy = true
		tuntest.Run(t, connector(t), p, tuntest.ConnectionEach)
	})
}
