package sshtun_test

import (
	"log/slog"
	"testing"

	"go.uber.org/goleak"

	"sshbroker/profiles/sshtun"
	"sshbroker/profiles/tuntest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func connector(t testing.TB) *sshtun.Connector {
	return &sshtun.Connector{Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))}
}

func TestConformance(t *testing.T) {
	t.Run("InProcess", func(t *testing.T) {
		_, p := tuntest.StartServer(t, nil)
		tuntest.Run(t, connector(t), p)
	})
	t.Run("OpenSSH", func(t *testing.T) {
		tuntest.Run(t, connector(t), tuntest.StartOpenSSH(t).Profile)
	})
	t.Run("OpenSSHSeveral", func(t *testing.T) {
		tuntest.RunSeveral(t, connector(t), tuntest.StartOpenSSH(t).Profile, 3)
	})
	t.Run("Dropbear", func(t *testing.T) {
		tuntest.Run(t, connector(t), tuntest.StartDropbear(t).Profile, tuntest.KeepsDeadChannels)
	})
}
