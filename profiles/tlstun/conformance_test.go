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
		Look: 10 * time.Millisecond, Linger: time.Second,
	}
}

func TestConformance(t *testing.T) {
	t.Run("Gateway", func(t *testing.T) {
		tuntest.Run(t, connector(t), tuntest.StartGateway(t, tuntest.NewAuthority(t, "tests"), &tuntest.Gateway{}))
	})
	t.Run("GatewaySeveral", func(t *testing.T) {
		tuntest.RunSeveral(t, connector(t), tuntest.StartGateway(t, tuntest.NewAuthority(t, "tests"), &tuntest.Gateway{}), 3)
	})
	t.Run("HalfClosing", func(t *testing.T) {
		p := tuntest.StartProxy(t, tuntest.NewAuthority(t, "tests"), &tuntest.Proxy{HalfClose: true})
		tuntest.Run(t, connector(t), p, tuntest.ConnectionEach)
	})
	t.Run("Tinyproxy", func(t *testing.T) {
		p := tuntest.StartTLSProxy(t, tuntest.NewAuthority(t, "tests"), "", "")
		tuntest.Run(t, connector(t), p, tuntest.ConnectionEach, tuntest.NoHalfClose, tuntest.NoReasons)
	})
	t.Run("Proxy", func(t *testing.T) {
		p := tuntest.StartProxy(t, tuntest.NewAuthority(t, "tests"), &tuntest.Proxy{})
		tuntest.Run(t, connector(t), p, tuntest.ConnectionEach, tuntest.NoHalfClose)
	})
}
