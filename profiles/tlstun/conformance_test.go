package tlstun_test

import (
	"log/slog"
	"testing"
	"time"

	"go.uber.org/goleak"

	"sshbroker/profiles/tlstun"
	"sshbroker/profiles/tuntest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func connector(t testing.TB) *tlstun.Connector {
	return &tlstun.Connector{
		Log:  slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
		Look: 10 * time.Millisecond,
	}
}

func TestConformance(t *testing.T) {
	tuntest.Run(t, connector(t), tuntest.StartGateway(t, tuntest.NewAuthority(t, "tests"), &tuntest.Gateway{}))
}
