package sshtun

import (
	"log/slog"
	"testing"

	"golang.org/x/crypto/ssh"

	"sshbroker/profiles"
)

func TestNewServersShowTheKeyThatOpenSSHAsksAbout(t *testing.T) {
	a, err := choose(&profiles.Profile{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	at := map[string]int{}
	for i, name := range a.hostKeys {
		at[name] = i
	}
	order := []string{ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256}
	for i := 1; i < len(order); i++ {
		if at[order[i-1]] >= at[order[i]] {
			t.Errorf("%s is not offered before %s: %q", order[i-1], order[i], a.hostKeys)
		}
	}
	if len(a.hostKeys) != len(ssh.SupportedAlgorithms().HostKeys) {
		t.Errorf("%d of %d algorithms are offered", len(a.hostKeys), len(ssh.SupportedAlgorithms().HostKeys))
	}
}
