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

// Our own client through the gateway keeps every contract of a tunnel, no exceptions.
func TestConformance(t *testing.T) {
	w := newWorld(t, quiet, collection)
	tuntest.Run(t, connector(t), w.profile())
	if t.Failed() {
		t.Logf("%s", w.output)
	}
}
