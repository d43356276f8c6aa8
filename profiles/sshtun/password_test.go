package sshtun_test

import (
	"errors"
	"strings"
	"testing"

	"sshbroker/profiles"
	"sshbroker/profiles/tuntest"
)

// Passwords and questions of real servers, by each way in which we can have the answer.
func TestPasswordsOfRealServers(t *testing.T) {
	for _, server := range []struct {
		name   string
		start  func(testing.TB) *tuntest.Peer
		method profiles.AuthMethod
		asks   string
	}{
		{"OpenSSH password", func(t testing.TB) *tuntest.Peer {
			return tuntest.StartOpenSSHWithPassword(t, "PasswordAuthentication yes")
		}, profiles.Password, "Password for root@127.0.0.1"},
		{"OpenSSH keyboard-interactive", func(t testing.TB) *tuntest.Peer {
			return tuntest.StartOpenSSHWithPassword(t, "UsePAM yes", "KbdInteractiveAuthentication yes")
		}, profiles.KeyboardInteractive, "(root@127.0.0.1:"},
		{"Dropbear password", func(t testing.TB) *tuntest.Peer { return tuntest.StartDropbearWithPassword(t) }, profiles.Password, "Password for root@127.0.0.1"},
	} {
		t.Run(server.name, func(t *testing.T) {
			peer := server.start(t)
			for _, test := range []struct {
				name  string
				edit  func(*profiles.Profile)
				ask   *person
				asked int
				fails bool
			}{
				{"text", func(p *profiles.Profile) { p.PasswordText = tuntest.Password }, nil, 0, false},
				{"file", func(p *profiles.Profile) { p.PasswordFile = file(t, "pw", tuntest.Password+"\n") }, nil, 0, false},
				{"command", func(p *profiles.Profile) { p.PasswordCmd = "echo '" + tuntest.Password + "'" }, nil, 0, false},
				{"person", func(*profiles.Profile) {}, &person{answers: map[string]string{server.asks: tuntest.Password}}, 1, false},
				{"person after a wrong one", func(p *profiles.Profile) {
					p.AuthMethods, p.PasswordText = []profiles.AuthMethod{profiles.KeyboardInteractive}, "wrong"
				}, &person{answers: map[string]string{server.asks: tuntest.Password}}, 1, server.method != profiles.KeyboardInteractive},
				{"wrong", func(p *profiles.Profile) { p.PasswordText = "wrong" }, nil, 0, true},
				{"nobody there", func(*profiles.Profile) {}, nil, 0, true},
			} {
				t.Run(test.name, func(t *testing.T) {
					p := *peer.Profile
					p.Identities, p.AuthMethods = nil, []profiles.AuthMethod{server.method}
					test.edit(&p)
					var ask profiles.Prompter
					if test.ask != nil {
						ask = test.ask
					}
					_, err := connect(t, &p, ask)
					switch {
					case test.fails && (!errors.Is(err, profiles.ErrAuth) || strings.Contains(err.Error(), tuntest.Password)):
						t.Errorf("got %v", err)
					case !test.fails && err != nil:
						t.Error(err)
					case !test.fails && test.ask != nil && len(test.ask.asked) != test.asked:
						t.Errorf("asked %q", test.ask.asked)
					}
				})
			}
		})
	}
}

// A server may want two proofs, one after the other.
func TestTwoProofs(t *testing.T) {
	peer := tuntest.StartOpenSSHWithPassword(t, "PasswordAuthentication yes", "AuthenticationMethods publickey,password")
	p := *peer.Profile
	p.PasswordText = tuntest.Password
	if _, err := connect(t, &p, nil); err != nil {
		t.Error(err)
	}
	p.PasswordText = "wrong"
	if _, err := connect(t, &p, nil); !errors.Is(err, profiles.ErrAuth) || !strings.Contains(err.Error(), "accepted, the server wants more") {
		t.Errorf("got %v", err)
	}
}
