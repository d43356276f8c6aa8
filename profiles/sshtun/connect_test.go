package sshtun_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/sys/unix"

	"sshbroker/profiles"
	"sshbroker/profiles/sshtun"
	"sshbroker/profiles/tuntest"
)

// person answers questions by what they contain.
type person struct {
	mu      sync.Mutex
	answers map[string]string
	asked   []string
	delay   time.Duration
}

func (p *person) Ask(ctx context.Context, q profiles.Prompt) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = append(p.asked, q.Text)
	select {
	case <-time.After(p.delay):
	case <-ctx.Done():
		return "", ctx.Err()
	}
	for part, answer := range p.answers {
		if strings.Contains(q.Text, part) {
			if !q.Secret && !q.YesNo {
				return "", errors.New("a secret was asked for in the open")
			}
			return answer, nil
		}
	}
	return "", errors.New("nobody answers")
}

func connect(t *testing.T, p *profiles.Profile, ask profiles.Prompter) (profiles.Transport, error) {
	t.Helper()
	tr, err := connector(t).Connect(t.Context(), p, nil, ask)
	if err == nil {
		t.Cleanup(func() { tr.Close() })
	}
	return tr, err
}

func file(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// serverKeys is what a server of the table accepts.
type serverKeys struct {
	Authorized []string
	Password   string
	Challenge  func(answer string) bool
}

// Ways to prove who we are, each alone.
func TestAuthentication(t *testing.T) {
	plain, locked, stranger := keyPair(t, ""), keyPair(t, "open sesame"), keyPair(t, "")
	authority := keyPair(t, "")
	for _, test := range []struct {
		name    string
		server  serverKeys
		profile func(t *testing.T, p *profiles.Profile)
		ask     *person
		want    []string // parts of the failure; none: authenticated
		not     string   // what the failure must not have
		asked   int
	}{
		{name: "key file", server: serverKeys{Authorized: []string{plain.Public}},
			profile: func(t *testing.T, p *profiles.Profile) { p.Identities = []string{file(t, "id", string(plain.Private))} }},
		{name: "second of three", server: serverKeys{Authorized: []string{plain.Public}},
			profile: func(t *testing.T, p *profiles.Profile) {
				p.Identities = []string{"/none", file(t, "other", string(stranger.Private)), file(t, "id", string(plain.Private))}
			}},
		{name: "strange key", server: serverKeys{Authorized: []string{plain.Public}},
			profile: func(t *testing.T, p *profiles.Profile) {
				p.Identities = []string{"/none", file(t, "other", string(stranger.Private))}
			},
			want: []string{"tester@127.0.0.1", "publickey /none: open /none: no such file", "other (SHA256:", "refused", "the server accepts publickey"}},
		{name: "file open to others", server: serverKeys{Authorized: []string{plain.Public}},
			profile: func(t *testing.T, p *profiles.Profile) {
				p.Identities = []string{file(t, "id", string(plain.Private))}
				os.Chmod(p.Identities[0], 0o644)
			},
			want: []string{"chmod 600"}},
		{name: "rubbish for a key", server: serverKeys{Authorized: []string{plain.Public}},
			profile: func(t *testing.T, p *profiles.Profile) { p.Identities = []string{file(t, "id", "rubbish")} },
			want:    []string{"not a private key"}},
		{name: "locked key", server: serverKeys{Authorized: []string{locked.Public}}, ask: &person{answers: map[string]string{"Passphrase": "open sesame"}}, asked: 1,
			profile: func(t *testing.T, p *profiles.Profile) {
				p.Identities = []string{file(t, "id", string(locked.Private))}
			}},
		{name: "locked key that the server does not want", server: serverKeys{Authorized: []string{plain.Public}}, ask: &person{}, asked: 0,
			profile: func(t *testing.T, p *profiles.Profile) {
				p.Identities = []string{file(t, "id", string(locked.Private)), file(t, "good", string(plain.Private))}
			}},
		{name: "locked key and nobody there", server: serverKeys{Authorized: []string{locked.Public}},
			profile: func(t *testing.T, p *profiles.Profile) {
				p.Identities = []string{file(t, "id", string(locked.Private))}
			},
			want: []string{"needs its passphrase and nobody is there to ask"}},
		{name: "locked key and a wrong passphrase, then a good key", server: serverKeys{Authorized: []string{locked.Public, plain.Public}},
			ask: &person{answers: map[string]string{"Passphrase": "wrong"}}, asked: 3,
			profile: func(t *testing.T, p *profiles.Profile) {
				p.Identities = []string{file(t, "id", string(locked.Private)), file(t, "good", string(plain.Private))}
			}},
		{name: "default keys, most of them missing", server: serverKeys{Authorized: []string{plain.Public}},
			profile: func(t *testing.T, p *profiles.Profile) {
				p.Identities, p.DefaultKeys = nil, []string{"/none", file(t, "id", string(plain.Private))}
			}},
		{name: "certificate", server: serverKeys{Authorized: []string{authority.Public}},
			profile: func(t *testing.T, p *profiles.Profile) {
				p.Identities = []string{file(t, "id", string(plain.Private))}
				writeCert(t, p.Identities[0], plain, authority, time.Hour)
			}},
		{name: "expired certificate", server: serverKeys{Authorized: []string{authority.Public}},
			profile: func(t *testing.T, p *profiles.Profile) {
				p.Identities = []string{file(t, "id", string(plain.Private))}
				writeCert(t, p.Identities[0], plain, authority, -time.Hour)
			},
			want: []string{"certificate expired"}},
		{name: "agent", server: serverKeys{Authorized: []string{plain.Public}},
			profile: func(t *testing.T, p *profiles.Profile) {
				p.Identities, p.Agent = nil, startAgent(t, stranger, plain)
			}},
		{name: "agent restricted by a public key", server: serverKeys{Authorized: []string{stranger.Public}},
			profile: func(t *testing.T, p *profiles.Profile) {
				p.Agent = startAgent(t, stranger, plain)
				p.Identities = []string{file(t, "id.pub", plain.Public)}
			},
			want: []string{"id.pub (in the agent)", "refused"}},
		{name: "public key that the agent lacks", server: serverKeys{Authorized: []string{plain.Public}},
			profile: func(t *testing.T, p *profiles.Profile) {
				p.Agent = startAgent(t, stranger)
				p.Identities = []string{file(t, "id.pub", plain.Public)}
			},
			want: []string{"only its public half is here"}},
		{name: "agent that is gone", server: serverKeys{Authorized: []string{plain.Public}},
			profile: func(t *testing.T, p *profiles.Profile) {
				p.Agent = "/none/agent"
				p.Identities = []string{file(t, "id", string(plain.Private))}
			}},
		{name: "password", server: serverKeys{Password: "hunter2"},
			profile: func(t *testing.T, p *profiles.Profile) { p.PasswordText = "hunter2" }},
		{name: "password of a file", server: serverKeys{Password: "hunter2"},
			profile: func(t *testing.T, p *profiles.Profile) { p.PasswordFile = file(t, "pw", "hunter2\n") }},
		{name: "password of a file open to others", server: serverKeys{Password: "hunter2"},
			profile: func(t *testing.T, p *profiles.Profile) {
				p.PasswordFile = file(t, "pw", "hunter2\n")
				os.Chmod(p.PasswordFile, 0o640)
			}, want: []string{"chmod 600"}, not: "hunter2"},
		{name: "password of a command", server: serverKeys{Password: "hunter2"},
			profile: func(t *testing.T, p *profiles.Profile) { p.PasswordCmd = "echo hunter2" }},
		{name: "password command that fails", server: serverKeys{Password: "hunter2"},
			profile: func(t *testing.T, p *profiles.Profile) { p.PasswordCmd = "echo hunter2; exit 3" },
			want:    []string{"password command: exit status 3"}, not: "hunter2"},
		{name: "wrong password", server: serverKeys{Password: "hunter2"},
			profile: func(t *testing.T, p *profiles.Profile) { p.PasswordText = "letmein" },
			want:    []string{"password of the profile: refused"}, not: "letmein"},
		{name: "password asked for", server: serverKeys{Password: "hunter2"},
			ask:     &person{answers: map[string]string{"Password for tester@127.0.0.1": "hunter2"}},
			profile: func(t *testing.T, p *profiles.Profile) {}, asked: 1},
		{name: "password and nobody there", server: serverKeys{Password: "hunter2"},
			profile: func(t *testing.T, p *profiles.Profile) {},
			want:    []string{"none in the profile and nobody to ask"}},
		{name: "interactive", server: serverKeys{Challenge: func(a string) bool { return a == "42" }},
			ask:     &person{answers: map[string]string{"(tester@127.0.0.1:": "42"}},
			profile: func(t *testing.T, p *profiles.Profile) {}, asked: 1},
		{name: "interactive answered by the password", server: serverKeys{Challenge: func(a string) bool { return a == "hunter2" }},
			profile: func(t *testing.T, p *profiles.Profile) { p.PasswordText = "hunter2" }},
		{name: "interactive wrong thrice", server: serverKeys{Challenge: func(a string) bool { return false }},
			ask:     &person{answers: map[string]string{"Password": "x"}},
			profile: func(t *testing.T, p *profiles.Profile) {}, asked: 3,
			want: []string{"keyboard-interactive: refused"}},
		{name: "method not allowed by the profile", server: serverKeys{Password: "hunter2"},
			profile: func(t *testing.T, p *profiles.Profile) {
				p.PasswordText, p.AuthMethods = "hunter2", []profiles.AuthMethod{profiles.PublicKey}
			}, want: []string{"the server accepts password"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, p := tuntest.StartServer(t, &tuntest.Server{Authorized: test.server.Authorized,
				Password: test.server.Password, Challenge: test.server.Challenge})
			p.Identities = nil
			test.profile(t, p)
			var ask profiles.Prompter
			if test.ask != nil {
				ask = test.ask
			}
			_, err := connect(t, p, ask)
			if test.ask != nil && len(test.ask.asked) != test.asked {
				t.Errorf("asked %q", test.ask.asked)
			}
			if len(test.want) == 0 {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, profiles.ErrAuth) {
				t.Fatalf("got %v, want ErrAuth", err)
			}
			for _, part := range test.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q lacks %q", err, part)
				}
			}
			if test.not != "" && strings.Contains(err.Error(), test.not) {
				t.Errorf("%q tells %q", err, test.not)
			}
		})
	}
}

func keyPair(t *testing.T, phrase string) tuntest.KeyPair {
	t.Helper()
	k, err := tuntest.NewKeyPair(phrase)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func writeCert(t *testing.T, identity string, key, authority tuntest.KeyPair, valid time.Duration) {
	t.Helper()
	pub, _, _, _, err := ssh.ParseAuthorizedKey([]byte(key.Public))
	if err != nil {
		t.Fatal(err)
	}
	ca, err := ssh.ParsePrivateKey(authority.Private)
	if err != nil {
		t.Fatal(err)
	}
	cert := &ssh.Certificate{Key: pub, CertType: ssh.UserCert, ValidPrincipals: []string{"tester"},
		ValidBefore: uint64(time.Now().Add(valid).Unix())}
	if err := cert.SignCert(rand.Reader, ca); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(identity+"-cert.pub", ssh.MarshalAuthorizedKey(cert), 0o600); err != nil {
		t.Fatal(err)
	}
}

func startAgent(t *testing.T, keys ...tuntest.KeyPair) string {
	t.Helper()
	ring := agent.NewKeyring()
	for _, k := range keys {
		raw, err := ssh.ParseRawPrivateKey(k.Private)
		if err != nil {
			t.Fatal(err)
		}
		if err := ring.Add(agent.AddedKey{PrivateKey: raw}); err != nil {
			t.Fatal(err)
		}
	}
	return serveAgent(t, ring)
}

// TestNoDescriptorsForAKey: what we are short of ourselves is no refusal of the server's,
// which fallback-to-plain would cover.
func TestNoDescriptorsForAKey(t *testing.T) {
	p := tuntest.StartOpenSSH(t, "PasswordAuthentication yes").Profile
	for name, change := range map[string]func(q *profiles.Profile){
		"key file":      func(*profiles.Profile) {},
		"agent":         func(q *profiles.Profile) { q.Identities, q.Agent = nil, startAgent(t, keyPair(t, "")) },
		"password file": func(q *profiles.Profile) { q.Identities, q.PasswordFile = nil, file(t, "password", "secret\n") },
	} {
		t.Run(name, func(t *testing.T) {
			q := *p
			change(&q)
			c := connector(t)
			c.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
				conn, err := new(net.Dialer).DialContext(ctx, network, address)
				takeDescriptors(t)
				return conn, err
			}
			_, err := c.Connect(t.Context(), &q, nil, nil)
			if !errors.Is(err, syscall.EMFILE) || errors.Is(err, profiles.ErrAuth) || !errors.Is(err, profiles.ErrSetup) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// takeDescriptors leaves the process none until the test ends.
func takeDescriptors(t *testing.T) {
	t.Helper()
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	free, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(free)
	t.Cleanup(func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
			t.Error(err)
		}
	})
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(free), Max: before.Max}); err != nil {
		t.Fatal(err)
	}
}

func TestHostKeyRefused(t *testing.T) {
	_, p := tuntest.StartServer(t, nil)
	_, other := tuntest.StartServer(t, nil)
	t.Run("unknown", func(t *testing.T) {
		q := *p
		q.KnownHosts = []string{filepath.Join(t.TempDir(), "none")}
		_, err := connect(t, &q, nil)
		if !errors.Is(err, profiles.ErrHostKey) || !strings.Contains(err.Error(), "SHA256:") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("changed", func(t *testing.T) {
		text, err := os.ReadFile(p.KnownHosts[0])
		if err != nil {
			t.Fatal(err)
		}
		q := *other
		q.KnownHosts = []string{file(t, "known_hosts", strings.Replace(string(text), fmt.Sprint(p.Port), fmt.Sprint(q.Port), 1))}
		_, err = connect(t, &q, nil)
		if !errors.Is(err, profiles.ErrHostKey) || !strings.Contains(err.Error(), "CHANGED") || strings.Count(err.Error(), "SHA256:") != 2 {
			t.Errorf("got %v", err)
		}
	})
	t.Run("asked", func(t *testing.T) {
		q := *p
		q.HostKeyPolicy = profiles.Ask
		q.KnownHosts = nil
		q.StoreKnownHost = filepath.Join(t.TempDir(), ".ssh", "known_hosts")
		// The person takes longer than the machine may.
		q.ConnectTimeout = 2 * time.Second
		who := &person{answers: map[string]string{"SHA256:": "yes"}, delay: 3 * time.Second}
		if _, err := connect(t, &q, who); err != nil {
			t.Fatal(err)
		}
		if _, err := connect(t, &q, nil); err != nil {
			t.Errorf("after storing: %v", err)
		}
	})
}

func TestConnectFailures(t *testing.T) {
	_, good := tuntest.StartServer(t, nil)
	silent := listenRaw(t, func(c net.Conn) { io.Copy(io.Discard, c) })
	rubbish := listenRaw(t, func(c net.Conn) { c.Write(bytes.Repeat([]byte("\x1b[31mrubbish\r\n"), 5000)) })
	ends := listenRaw(t, func(c net.Conn) { io.WriteString(c, "SSH-2.0-x\r\n") })
	closed := listenRaw(t, nil)
	for _, test := range []struct {
		name string
		edit func(p *profiles.Profile)
		want error
		part string
	}{
		{"refused", func(p *profiles.Profile) { p.Port = closed }, profiles.ErrConnect, "connection refused"},
		{"silent", func(p *profiles.Profile) { p.Port, p.ConnectTimeout = silent, 200*time.Millisecond }, profiles.ErrConnect, "no connection within 200ms"},
		{"rubbish", func(p *profiles.Profile) { p.Port = rubbish }, profiles.ErrConnect, ""},
		{"ends", func(p *profiles.Profile) { p.Port = ends }, profiles.ErrConnect, ""},
		{"no common cipher", func(p *profiles.Profile) { p.Ciphers = []string{"aes128-cbc"} }, profiles.ErrSetup, "cipher"},
		{"no known cipher", func(p *profiles.Profile) { p.Ciphers = []string{"rot13"} }, profiles.ErrSetup, "rot13"},
		{"no user", func(p *profiles.Profile) { p.User = "" }, profiles.ErrAuth, "nobody is there to ask"},
		{"no host", func(p *profiles.Profile) { p.Host = "" }, profiles.ErrSetup, "no host"},
		{"hostile host", func(p *profiles.Profile) { p.Host = "-oProxyCommand=x" }, profiles.ErrSetup, "hyphen"},
		{"hostile host", func(p *profiles.Profile) { p.Host = "a b" }, profiles.ErrSetup, "character"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := *good
			test.edit(&p)
			_, err := connect(t, &p, nil)
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.part) {
				t.Errorf("got %v, want %v with %q", err, test.want, test.part)
			}
			if err != nil && strings.ContainsAny(err.Error(), "\x1b\n") {
				t.Errorf("raw text of the server: %q", err)
			}
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		p := *good
		p.Port = silent
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, err := connector(t).Connect(ctx, &p, nil, nil); !errors.Is(err, profiles.ErrConnect) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}

// listenRaw serves a port that is no SSH server's; nil leaves it closed.
func listenRaw(t *testing.T, serve func(net.Conn)) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	if serve == nil {
		l.Close()
		return port
	}
	var tasks sync.WaitGroup
	tasks.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			tasks.Go(func() { defer c.Close(); serve(c) })
		}
	})
	t.Cleanup(func() { l.Close(); tasks.Wait() })
	return port
}

var echoAt = profiles.Destination{Host: "echo.internal", Port: 7}

// toEcho makes every destination an echo in memory.
func toEcho(context.Context, string, string) (net.Conn, error) {
	a, b := net.Pipe()
	go func() { io.Copy(b, b); b.Close() }()
	return a, nil
}

// What a server says of a failure decides its class.
func TestOpenFailures(t *testing.T) {
	for _, test := range []struct {
		reason ssh.RejectionReason
		text   string
		want   error
	}{
		{ssh.Prohibited, "open failed", profiles.ErrProhibited},
		{ssh.Prohibited, "Connection refused", profiles.ErrProhibited},
		{ssh.ConnectionFailed, "Connection refused", profiles.ErrRefused},
		{ssh.ConnectionFailed, "dial tcp 10.0.0.1:80: connect: connection refused", profiles.ErrRefused},
		{ssh.ConnectionFailed, "[Errno 111] Connect call failed", profiles.ErrRefused},
		{ssh.ConnectionFailed, "Name or service not known", profiles.ErrNameNotFound},
		{ssh.ConnectionFailed, "Temporary failure in name resolution", profiles.ErrNameNotFound},
		{ssh.ConnectionFailed, "dial tcp: lookup x: no such host", profiles.ErrNameNotFound},
		{ssh.ConnectionFailed, "Connection timed out", profiles.ErrOpen},
		{ssh.ConnectionFailed, "No route to host", profiles.ErrOpen},
		{ssh.UnknownChannelType, "Connection refused", profiles.ErrOpen},
		{ssh.ResourceShortage, "too many", profiles.ErrOpen},
		{77, "\x1b[2Jgone\r\nand more", profiles.ErrOpen},
	} {
		t.Run(test.text, func(t *testing.T) {
			_, p := tuntest.StartServer(t, &tuntest.Server{Decide: func(context.Context, tuntest.Open) error {
				return tuntest.Refusal{Reason: uint32(test.reason), Text: test.text}
			}})
			tr, err := connect(t, p, nil)
			if err != nil {
				t.Fatal(err)
			}
			_, err = tr.Open(t.Context(), echoAt)
			if !errors.Is(err, test.want) || strings.ContainsAny(err.Error(), "\x1b\n") || !strings.Contains(err.Error(), "echo.internal:7") {
				t.Errorf("got %q, want %v", err, test.want)
			}
		})
	}
}

// The server gets the name as it is and the program's own address.
func TestOpenTellsTheTruth(t *testing.T) {
	asked := make(chan tuntest.Open, 1)
	_, p := tuntest.StartServer(t, &tuntest.Server{Dial: toEcho,
		Decide: func(_ context.Context, o tuntest.Open) error { asked <- o; return nil }})
	tr, err := connect(t, p, nil)
	if err != nil {
		t.Fatal(err)
	}
	dst := echoAt
	dst.Origin = netip.MustParseAddrPort("[2001:db8::9]:4321")
	s, err := tr.Open(t.Context(), dst)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	want := tuntest.Open{User: "tester", Host: "echo.internal", Port: 7, OriginHost: "2001:db8::9", OriginPort: 4321}
	if got := <-asked; got != want {
		t.Errorf("server was told %+v, want %+v", got, want)
	}
	if s.LocalAddr().String() != "[2001:db8::9]:4321" || s.RemoteAddr().String() != "echo.internal:7" {
		t.Errorf("addresses %s, %s", s.LocalAddr(), s.RemoteAddr())
	}
}

// Open has not returned while the server keeps its confirmation back, and one given
// up is closed when the confirmation comes.
func TestLateConfirmation(t *testing.T) {
	release := make(chan struct{})
	srv, p := tuntest.StartServer(t, &tuntest.Server{Dial: toEcho, Confirm: func(ctx context.Context, _ tuntest.Open) {
		select {
		case <-release:
		case <-ctx.Done():
		}
	}})
	p.OpenTimeout = 100 * time.Millisecond
	tr, err := connect(t, p, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := tr.Open(ctx, echoAt); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("given up: %v", err)
	}
	if _, err := tr.Open(t.Context(), echoAt); !errors.Is(err, profiles.ErrOpen) || !strings.Contains(err.Error(), "no answer") {
		t.Errorf("OpenTimeout: %v", err)
	}
	close(release)
	s, err := tr.Open(t.Context(), echoAt)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	eventually(t, "late channels are closed", func() bool { return srv.Opened() == 3 && srv.OpenChannels() == 0 })
}

// eventually polls what has no event here: counters of a server.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 2000 {
		if ok() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Errorf("never: %s", what)
}

// A server that closes without EOF: a reset, after all data; but not where we had
// ended our side, as the two cannot be told apart then.
func TestCloseWithoutEOF(t *testing.T) {
	_, p := tuntest.StartServer(t, &tuntest.Server{CloseWithoutEOF: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		a, b := net.Pipe()
		go func() {
			b.Write(bytes.Repeat([]byte("x"), 300<<10))
			b.Close()
		}()
		return a, nil
	}})
	tr, err := connect(t, p, nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 200 {
		s, err := tr.Open(t.Context(), echoAt)
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, s)
		if n != 300<<10 || !errors.Is(err, profiles.ErrReset) {
			t.Fatalf("%d bytes, %v", n, err)
		}
		<-s.(profiles.FarCloser).Closed()
		if _, err := s.Write([]byte("x")); !errors.Is(err, profiles.ErrReset) {
			t.Fatalf("write: %v", err)
		}
		s.Close()
	}
}

// A server that answers our end with EOF and CLOSE at once never looks like a reset.
func TestOrderlyEndIsNeverAReset(t *testing.T) {
	for name, p := range map[string]func(t *testing.T) *profiles.Profile{
		"InProcess": func(t *testing.T) *profiles.Profile {
			_, p := tuntest.StartServer(t, nil)
			return p
		},
		"OpenSSH": func(t *testing.T) *profiles.Profile { return tuntest.StartOpenSSH(t).Profile },
	} {
		t.Run(name, func(t *testing.T) {
			tr, err := connect(t, p(t), nil)
			if err != nil {
				t.Fatal(err)
			}
			port := listenRaw(t, func(c net.Conn) { io.Copy(struct{ io.Writer }{c}, c) })
			var tasks sync.WaitGroup
			for range 8 {
				tasks.Go(func() {
					for range 250 {
						s, err := tr.Open(t.Context(), profiles.Destination{Host: "127.0.0.1", Port: port})
						if err != nil {
							t.Error(err)
							return
						}
						io.WriteString(s, "x")
						s.CloseWrite()
						n, err := io.Copy(io.Discard, s)
						s.Close()
						if n != 1 || err != nil {
							t.Errorf("%d bytes, %v", n, err)
							return
						}
					}
				})
			}
			tasks.Wait()
		})
	}
}

// TestKernelGivesUp: what is sent to a server that is gone is not sent for a quarter of an
// hour, with keepalives or without.
func TestKernelGivesUp(t *testing.T) {
	_, p := tuntest.StartServer(t, nil)
	for _, test := range []struct {
		interval time.Duration
		misses   int
		want     time.Duration
	}{{0, 3, 2 * time.Minute}, {10 * time.Second, 3, 40 * time.Second}} {
		q := *p
		q.KeepaliveInterval, q.KeepaliveMisses = test.interval, test.misses
		var conn net.Conn
		c := connector(t)
		c.Dial = func(ctx context.Context, network, address string) (_ net.Conn, err error) {
			conn, err = new(net.Dialer).DialContext(ctx, network, address)
			return conn, err
		}
		tr, err := c.Connect(t.Context(), &q, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := conn.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		got := 0
		if cerr := raw.Control(func(fd uintptr) { got, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT) }); cerr != nil || err != nil {
			t.Fatal(cerr, err)
		}
		if int64(got) != test.want.Milliseconds() {
			t.Errorf("keepalives each %v: %d ms, want %v", test.interval, got, test.want)
		}
		tr.Close()
	}
}

// Silence ends the transport after the misses, and traffic keeps it.
func TestKeepalive(t *testing.T) {
	_, p := tuntest.StartServer(t, &tuntest.Server{Dial: toEcho})
	p.KeepaliveInterval, p.KeepaliveMisses = 50*time.Millisecond, 2
	var frozen sync.Mutex
	via := func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, network, address)
		return &gated{Conn: c, gate: &frozen}, err
	}
	tr, err := connector(t).Connect(t.Context(), p, via, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	s, err := tr.Open(t.Context(), echoAt)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	select {
	case <-tr.Done():
		t.Fatalf("lost while the server answers: %v", tr.Err())
	case <-time.After(500 * time.Millisecond):
	}
	frozen.Lock()
	defer frozen.Unlock()
	select {
	case <-tr.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("not lost")
	}
	if err := tr.Err(); !errors.Is(err, profiles.ErrLost) || !strings.Contains(err.Error(), "no sign of life") {
		t.Errorf("Err: %v", err)
	}
	if _, err := s.Write([]byte("x")); !errors.Is(err, profiles.ErrLost) {
		t.Errorf("write: %v", err)
	}
}

// gated passes what comes only while its gate is open.
type gated struct {
	net.Conn
	gate *sync.Mutex
}

func (g *gated) Read(p []byte) (int, error) {
	n, err := g.Conn.Read(p)
	for err == nil && !g.gate.TryLock() {
		// Blocked until the connection is closed under it.
		if _, werr := g.Conn.Write(nil); werr != nil {
			return 0, werr
		}
		time.Sleep(time.Millisecond)
	}
	if err == nil {
		g.gate.Unlock()
	}
	return n, err
}

// Data survives many key exchanges that the server begins, and flows that end
// meanwhile do not stall it.
func TestRekey(t *testing.T) {
	p := tuntest.StartOpenSSH(t, "RekeyLimit 1M").Profile
	p.RekeyBytes = 1 << 20
	tr, err := connect(t, p, nil)
	if err != nil {
		t.Fatal(err)
	}
	port := listenRaw(t, func(c net.Conn) { io.Copy(struct{ io.Writer }{c}, c) })
	var tasks sync.WaitGroup
	for i := range 8 {
		size := 8 << 20
		if i >= 4 {
			size = 10
		}
		tasks.Go(func() {
			for range 8 << 20 / size % 200 {
				s, err := tr.Open(t.Context(), profiles.Destination{Host: "127.0.0.1", Port: port})
				if err != nil {
					t.Error(err)
					return
				}
				data := bytes.Repeat([]byte{byte(i), 1}, size/2)
				go func() { s.Write(data); s.CloseWrite() }()
				got, err := io.ReadAll(s)
				s.Close()
				if err != nil || !bytes.Equal(got, data) {
					t.Errorf("%d bytes of %d, %v", len(got), len(data), err)
				}
			}
		})
	}
	tasks.Wait()
}

// Each cipher works, and the transport says which it is.
func TestCiphers(t *testing.T) {
	p := tuntest.StartOpenSSH(t).Profile
	for _, cipher := range ssh.SupportedAlgorithms().Ciphers {
		q := *p
		q.Ciphers = []string{"unknown-cipher", cipher}
		tr, err := connect(t, &q, nil)
		if err != nil {
			t.Errorf("%s: %v", cipher, err)
			continue
		}
		d := tr.(profiles.Describer).Describe()
		if d.Cipher != cipher || !strings.Contains(d.HostKey, "SHA256:") || !strings.HasPrefix(d.ServerVersion, "SSH-2.0-OpenSSH") || d.Sent == 0 || d.Received == 0 {
			t.Errorf("%+v", d)
		}
	}
}

// Through a gateway and the pool, against real servers.
func TestPoolWithGateway(t *testing.T) {
	outer, inner := tuntest.StartOpenSSH(t).Profile, tuntest.StartOpenSSH(t).Profile
	p := *inner
	p.ID, p.Gateway = "inner", outer
	pool := profiles.NewPool(connector(t), connector(t).Log)
	defer pool.Close()
	port := listenRaw(t, func(c net.Conn) { io.Copy(struct{ io.Writer }{c}, c) })
	s, err := pool.Open(t.Context(), &p, profiles.Destination{Host: "127.0.0.1", Port: port}, nil)
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("gateway"), 500<<10)
	go func() { s.Write(data); s.CloseWrite() }()
	got, err := io.ReadAll(s)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes of %d, %v", len(got), len(data), err)
	}
	if list := pool.List(); len(list) != 2 || !slices.ContainsFunc(list, func(i profiles.Info) bool { return i.Gateway == "test" && i.Transport.Cipher != "" }) {
		t.Errorf("%+v", list)
	}
	s.Close()
}

// AllowTcpForwarding no, as sshd says it.
func TestForwardingForbidden(t *testing.T) {
	for _, line := range []string{"AllowTcpForwarding no", "PermitOpen 127.0.0.1:1"} {
		tr, err := connect(t, tuntest.StartOpenSSH(t, line).Profile, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tr.Open(t.Context(), profiles.Destination{Host: "127.0.0.1", Port: 80}); !errors.Is(err, profiles.ErrProhibited) {
			t.Errorf("%s: %v", line, err)
		}
	}
}

var _ profiles.Connector = (*sshtun.Connector)(nil)
