package sshtun_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"sshbroker/profiles"
	"sshbroker/profiles/tuntest"
)

// wires are the TCP connections that a connector has made, by their local address.
type wires struct {
	mu    sync.Mutex
	conns map[string]net.Conn
}

func (w *wires) dial(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, network, address)
	if err == nil {
		w.mu.Lock()
		w.conns[c.LocalAddr().String()] = c
		w.mu.Unlock()
	}
	return c, err
}

func (w *wires) cut(t *testing.T, address string) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.conns[address].Close(); err != nil {
		t.Fatal(err)
	}
}

// severalPool is a pool with several connections to a server, and what is said of it.
type severalPool struct {
	*profiles.Pool
	*wires
	profile profiles.Profile
	log     *logged
}

type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), text)
}

func newSeveral(t *testing.T, p *profiles.Profile, transports int) *severalPool {
	s := &severalPool{profile: *p, wires: &wires{conns: map[string]net.Conn{}}, log: &logged{}}
	s.profile.Transports = transports
	c := connector(t)
	c.Dial = s.dial
	s.Pool = profiles.NewPool(c, slog.New(slog.NewTextHandler(io.MultiWriter(s.log, t.Output()), nil)))
	t.Cleanup(func() { s.Pool.Close() })
	return s
}

func (s *severalPool) open(t *testing.T, port uint16) profiles.Stream {
	t.Helper()
	stream, err := s.Open(t.Context(), &s.profile, profiles.Destination{Host: "127.0.0.1", Port: port}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stream.Close() })
	return stream
}

// use opens streams for a while, in which the pool would make another connection.
func (s *severalPool) use(t *testing.T, port uint16, length time.Duration) {
	t.Helper()
	end := time.After(length)
	for {
		stream := s.open(t, port)
		echoes(t, stream)
		stream.Close()
		select {
		case <-end:
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// wire is the local address of the TCP connection that a stream is on.
func (s *severalPool) wire(t *testing.T, stream profiles.Stream) string {
	t.Helper()
	way := stream.(interface{ Way() uint64 }).Way()
	for _, in := range s.List() {
		if in.ID == way {
			return in.Transport.Local
		}
	}
	t.Fatalf("no transport %d in %+v", way, s.List())
	return ""
}

// pump writes to a stream until that fails, and tells how.
func pump(s profiles.Stream) chan error {
	ended := make(chan error, 1)
	go func() {
		piece := make([]byte, 32<<10)
		for {
			if _, err := s.Write(piece); err != nil {
				ended <- err
				return
			}
		}
	}()
	return ended
}

func echoes(t *testing.T, s profiles.Stream) {
	t.Helper()
	s.SetDeadline(time.Now().Add(20 * time.Second))
	defer s.SetDeadline(time.Time{})
	b := []byte("x")
	if _, err := s.Write(b); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(s, b); err != nil {
		t.Fatal(err)
	}
}

// TestTransfersApart: with a real server each transfer has a TCP connection, and sessions,
// older and newer, have another. With one of these connections its streams go, no others.
// The server lets in one login at a time and one session for each connection.
func TestTransfersApart(t *testing.T) {
	peer := tuntest.StartOpenSSH(t, "MaxStartups 1:100:1", "MaxSessions 1")
	eventually(t, "the server has forgotten who looked whether it is there", func() bool {
		tr, err := connector(t).Connect(t.Context(), peer.Profile, nil, nil)
		if err == nil {
			tr.Close()
		}
		return err == nil
	})
	s := newSeveral(t, peer.Profile, 3)
	echo := listenRaw(t, func(c net.Conn) { io.Copy(c, c) })
	sinks := []uint16{listenRaw(t, func(c net.Conn) { io.Copy(io.Discard, c) }), listenRaw(t, func(c net.Conn) { io.Copy(io.Discard, c) })}

	old := s.open(t, echo)
	var transfers []profiles.Stream
	var ends []chan error
	for i, sink := range sinks {
		tuntest.AwaitTransports(t, s.Pool, i+2) // an empty one, made ahead
		b := s.open(t, sink)
		transfers, ends = append(transfers, b), append(ends, pump(b))
	}
	bulk := func() (n int) {
		for _, in := range s.List() {
			if in.Bulk {
				n++
			}
		}
		return n
	}
	eventually(t, "both transfers are seen", func() bool { return bulk() == 2 })
	young := s.open(t, echo)
	for range 8 { // more than a session at a time
		echoes(t, s.open(t, echo))
	}
	on := []string{s.wire(t, old), s.wire(t, transfers[0]), s.wire(t, transfers[1])}
	if on[0] == on[1] || on[1] == on[2] || on[0] == on[2] || s.wire(t, young) != on[0] || len(s.conns) != 3 {
		t.Errorf("a session on %s, transfers on %s and %s, another session on %s; %d connections", on[0], on[1], on[2], s.wire(t, young), len(s.conns))
	}

	s.cut(t, on[1])
	if err := <-ends[0]; !errors.Is(err, profiles.ErrLost) {
		t.Errorf("the transfer whose connection was cut: %v", err)
	}
	echoes(t, old)
	echoes(t, young)
	select {
	case err := <-ends[1]:
		t.Errorf("the other transfer: %v", err)
	default:
	}
	echoes(t, s.open(t, echo))
	if accepted := strings.Count(peer.Log(), "Accepted publickey"); accepted != 1+3 {
		t.Errorf("%d logins at the server", accepted)
	}
}

// TestSecondLoginRefused: where the server takes no second login, flows go on over the
// first, the server is tried once, and it is said once.
func TestSecondLoginRefused(t *testing.T) {
	peer := tuntest.StartOpenSSH(t)
	s := newSeveral(t, peer.Profile, 3)
	echo := listenRaw(t, func(c net.Conn) { io.Copy(c, c) })
	first := s.open(t, echo)
	if err := os.WriteFile(peer.Dir+"/authorized_keys", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the second login is refused", func() bool { return s.log.count("no further connection to the server") == 1 })
	s.use(t, echo, 3*time.Second)
	echoes(t, first)
	if len(s.conns) != 2 || s.log.count("level=WARN") != 1 {
		t.Errorf("%d connections, %d warnings", len(s.conns), s.log.count("level=WARN"))
	}
	if list := s.List(); len(list) != 1 || !list[0].Connected || list[0].LastError != "" {
		t.Errorf("listed %+v", list)
	}
}

// TestAttended: what logins a person may have had a part in.
func TestAttended(t *testing.T) {
	const secret = "open sesame"
	for name, test := range map[string]struct {
		server  *tuntest.Server
		profile func(p *profiles.Profile)
		ask     profiles.Prompter
		want    bool
	}{
		"key":                        {server: nil},
		"password":                   {server: &tuntest.Server{Password: secret}, profile: func(p *profiles.Profile) { p.PasswordText = secret }},
		"password from a file":       {server: &tuntest.Server{Password: secret}, profile: func(p *profiles.Profile) { p.PasswordFile = file(t, "password", secret) }},
		"password by a command":      {server: &tuntest.Server{Password: secret}, profile: func(p *profiles.Profile) { p.PasswordCmd = "echo " + secret }, want: true},
		"keyboard-interactive":       {server: &tuntest.Server{Challenge: func(a string) bool { return a == secret }}, profile: func(p *profiles.Profile) { p.PasswordText = secret }, want: true},
		"password that is asked for": {server: &tuntest.Server{Password: secret}, ask: &person{answers: map[string]string{"Password": secret}}, want: true},
	} {
		t.Run(name, func(t *testing.T) {
			_, p := tuntest.StartServer(t, test.server)
			if test.server != nil {
				p.Identities = nil
			}
			if test.profile != nil {
				test.profile(p)
			}
			tr, err := connect(t, p, test.ask)
			if err != nil {
				t.Fatal(err)
			}
			if got := tr.(profiles.Attended).Attended(); got != test.want {
				t.Errorf("attended is %t", got)
			}
		})
	}
}

// TestOneTimePassword: a person who was asked once is not asked for a second connection.
func TestOneTimePassword(t *testing.T) {
	answers := map[string]int{}
	var mu sync.Mutex
	server, p := tuntest.StartServer(t, &tuntest.Server{Challenge: func(a string) bool {
		mu.Lock()
		defer mu.Unlock()
		answers[a]++
		return a == "123456" && answers[a] == 1
	}})
	p.Identities = nil
	s := newSeveral(t, p, 3)
	who := &person{answers: map[string]string{"Password": "123456"}}
	if err := s.Ready(t.Context(), &s.profile, who); err != nil {
		t.Fatal(err)
	}
	echo := listenRaw(t, func(c net.Conn) { io.Copy(c, c) })
	first := s.open(t, echo)
	s.use(t, echo, 3*time.Second)
	echoes(t, first)
	if len(s.conns) != 1 || server.Connections() != 1 || fmt.Sprint(answers) != "map[123456:1]" {
		t.Errorf("%d connections, answered %v", len(s.conns), answers)
	}
}
