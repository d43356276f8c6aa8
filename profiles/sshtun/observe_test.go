package sshtun_test

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"sshbroker/profiles"
	"sshbroker/profiles/tuntest"
)

// witness keeps what is told.
type witness struct {
	mu   sync.Mutex
	told []profiles.Event
}

func (w *witness) see(e profiles.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.told = append(w.told, e)
}

var kinds = map[profiles.EventKind]string{
	profiles.Connected: "connected", profiles.ConnectFailed: "connect failed", profiles.ConnectionLost: "lost", profiles.Disconnected: "disconnected",
	profiles.AlgorithmsAgreed: "algorithms", profiles.AlgorithmsFailed: "no algorithms", profiles.KeyExchanged: "exchanged", profiles.KeyExchangeFailed: "not exchanged",
	profiles.Authenticated: "authenticated", profiles.AuthRefused: "not authenticated", profiles.HostKeyJudged: "host key", profiles.HostKeyUnknown: "unknown host key",
	profiles.HostKeyChanged: "changed host key", profiles.IdentityFailed: "identity failed", profiles.IdentityUnlocked: "unlocked",
	profiles.UnlockFailed: "not unlocked", profiles.AgentFailed: "agent failed",
}

func (w *witness) kinds() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []string
	for _, e := range w.told {
		list = append(list, kinds[e.Kind])
	}
	return list
}

// Every step on the way to a server is told, in its order, with no secret in it.
func TestObserve(t *testing.T) {
	locked, stranger := keyPair(t, "open sesame"), keyPair(t, "")
	const secret = "correct horse"
	_, good := tuntest.StartServer(t, &tuntest.Server{Password: secret, Authorized: []string{locked.Public}})
	closed := listenRaw(t, nil)
	rubbish := listenRaw(t, func(c net.Conn) { io.WriteString(c, "220 smtp.example ESMTP\r\n") })
	secured := []string{"host key", "algorithms", "exchanged"}
	for _, test := range []struct {
		name string
		edit func(t *testing.T, p *profiles.Profile)
		ask  *person
		want []string
		text string // of the last
	}{
		{"password", func(_ *testing.T, p *profiles.Profile) {
			p.AuthMethods, p.PasswordText = []profiles.AuthMethod{profiles.Password}, secret
		},
			nil, append(slices.Clone(secured), "authenticated"), "password of the profile"},
		{"locked key", func(t *testing.T, p *profiles.Profile) {
			p.Identities = []string{file(t, "id", string(locked.Private))}
		},
			&person{answers: map[string]string{"Passphrase": "open sesame"}}, append(slices.Clone(secured), "unlocked", "authenticated"), "/id (SHA256:"},
		{"wrong passphrase", func(t *testing.T, p *profiles.Profile) {
			p.Identities = []string{file(t, "id", string(locked.Private))}
		},
			&person{answers: map[string]string{"Passphrase": "wrong one"}}, append(slices.Clone(secured), "not unlocked", "not authenticated"), "no right passphrase"},
		{"keys that do not help", func(t *testing.T, p *profiles.Profile) {
			p.Agent = filepath.Join(t.TempDir(), "none")
			p.Identities = []string{"/none", file(t, "other", string(stranger.Private))}
		}, nil, append(slices.Clone(secured), "agent failed", "identity failed", "not authenticated"), "publickey /none: open /none"},
		{"no common cipher", func(_ *testing.T, p *profiles.Profile) { p.Ciphers = []string{"aes128-cbc"} }, nil, []string{"no algorithms"}, ""},
		{"unknown host key", func(_ *testing.T, p *profiles.Profile) { p.KnownHosts = nil; p.HostKeyPolicy = profiles.Strict }, nil, []string{"unknown host key", "host key"}, "is not known"},
		{"no SSH server", func(_ *testing.T, p *profiles.Profile) { p.Port = rubbish }, nil, []string{"not exchanged"}, ""},
		{"nothing there", func(_ *testing.T, p *profiles.Profile) { p.Port = closed }, nil, nil, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := *good
			p.AuthMethods = []profiles.AuthMethod{profiles.PublicKey}
			test.edit(t, &p)
			w := &witness{}
			c := connector(t)
			c.Observe = w.see
			var ask profiles.Prompter
			if test.ask != nil {
				ask = test.ask
			}
			for session := uint64(1); session <= 2; session++ {
				w.told = nil
				if tr, err := c.Connect(t.Context(), &p, nil, ask); err == nil {
					defer tr.Close()
				}
				if got := w.kinds(); !slices.Equal(got, test.want) {
					t.Fatalf("told %q, want %q", got, test.want)
				}
				for _, e := range w.told {
					if e.Profile != &p || e.Session != session {
						t.Errorf("%s: profile %v, session %d", kinds[e.Kind], e.Profile, e.Session)
					}
					if text := fmt.Sprintf("%+v %v", e, e.Err); strings.Contains(strings.ReplaceAll(text, fmt.Sprintf("%+v", e.Profile), ""), secret) {
						t.Errorf("%s tells the password: %s", kinds[e.Kind], text)
					}
					check(t, e)
				}
			}
			if len(w.told) == 0 {
				return
			}
			if last := w.told[len(w.told)-1]; !strings.Contains(fmt.Sprint(last.Method, last.Err), test.text) {
				t.Errorf("last %+v, want %q", last, test.text)
			}
		})
	}
}

// check looks at the fields of one kind.
func check(t *testing.T, e profiles.Event) {
	t.Helper()
	good := true
	switch e.Kind {
	case profiles.HostKeyJudged:
		good = strings.HasPrefix(e.KeyHash, "SHA256:") && e.KeyType != "" && (e.Status == "trusted") == (e.Err == nil)
	case profiles.KeyExchanged:
		good = len(e.Protocol) >= 40 && e.Algorithms != ""
	case profiles.AlgorithmsAgreed:
		good = strings.Contains(e.Algorithms, "; to the server ")
	case profiles.AlgorithmsFailed:
		good = slices.Equal(e.Ours, []string{"aes128-cbc"}) && len(e.Theirs) > 1 && strings.Contains(e.Algorithms, "cipher")
	case profiles.IdentityUnlocked:
		good = strings.HasSuffix(e.File, "/id") && strings.HasPrefix(e.KeyHash, "SHA256:")
	}
	if !good {
		t.Errorf("%s: %+v", kinds[e.Kind], e)
	}
}

// A pool tells of transports as they come and go.
func TestObservePool(t *testing.T) {
	_, p := tuntest.StartServer(t, &tuntest.Server{Dial: toEcho})
	p.IdleTimeout = 0
	pool := profiles.NewPool(connector(t), slog.New(slog.DiscardHandler))
	w := &witness{}
	pool.Observe = w.see
	s, err := pool.Open(t.Context(), p, echoAt, nil)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	bad := *p
	bad.KnownHosts, bad.HostKeyPolicy = []string{os.DevNull}, profiles.Strict
	if _, err := pool.Open(t.Context(), &bad, echoAt, nil); err == nil {
		t.Fatal("connected")
	}
	pool.Close()
	if got := w.kinds(); !slices.Equal(got, []string{"connected", "disconnected", "connect failed"}) {
		t.Fatalf("told %q", got)
	}
	if e := w.told[0]; e.Profile != p || e.Cipher == "" || !strings.Contains(e.KeyHash, "SHA256:") {
		t.Errorf("%+v", e)
	}
	if e := w.told[2]; e.Err == nil {
		t.Errorf("%+v", e)
	}
}
