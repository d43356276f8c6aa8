package listeners

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"sshbroker/capture"
	"sshbroker/profiles/proxy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a Set whose attempts the test decides about.
type world struct {
	*Set
	t        *testing.T
	attempts chan capture.Attempt
	peer     Peer
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, attempts: make(chan capture.Attempt), peer: Peer{Here: true, UID: 1000}}
	w.Set = NewSet(Config{UID: 1000, Log: slog.New(slog.DiscardHandler),
		Peer: func(*net.TCPConn) (Peer, error) { return w.peer, nil },
		Serve: func(l *Listener) {
			for {
				a, err := l.Next(context.Background())
				if err != nil {
					return
				}
				w.attempts <- a
			}
		}})
	t.Cleanup(w.Shutdown)
	return w
}

func (w *world) open(s Spec) Info {
	w.t.Helper()
	if !s.Listen.IsValid() {
		s.Listen = netip.MustParseAddrPort("127.0.0.1:0")
	}
	in, err := w.Open(s)
	if err != nil {
		w.t.Fatal(err)
	}
	return in
}

func (w *world) dial(at netip.AddrPort) *net.TCPConn {
	w.t.Helper()
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(at))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

// echo lets an attempt in and answers all it says.
func echo(t *testing.T, a capture.Attempt) {
	t.Helper()
	c, err := a.Admit(t.Context())
	if err != nil {
		t.Error(err)
		return
	}
	go func() { io.Copy(struct{ io.Writer }{c}, c); c.Close() }()
}

func says(c net.Conn, text string) error {
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
		return fmt.Errorf("%q, %v", got, err)
	}
	return nil
}

func TestTCP(t *testing.T) {
	w := newWorld(t)
	in := w.open(Spec{Kind: TCP, Host: "db.internal", Port: 5432, Profile: "gw"})
	c := w.dial(in.At)
	a := <-w.attempts
	if r := a.(*attempt).Request(); r.Host != "db.internal" || r.Port != 5432 || r.Profile != "gw" || r.Judged || r.Stranger {
		t.Errorf("%+v", r)
	}
	if f := a.Flow(); f.Src != c.LocalAddr().(*net.TCPAddr).AddrPort() || f.UID != 1000 || f.Dst.Port() != 5432 || f.Arrived.IsZero() || f.Origin().Known {
		t.Errorf("%+v", f)
	}
	if !a.(capture.Waiter).Waits() || !errors.Is(a.Pass(), capture.ErrNoWayOut) {
		t.Error("it waits, and the kernel does not carry it")
	}
	echo(t, a)
	if err := says(c, "hello"); err != nil {
		t.Error(err)
	}

	for _, r := range []capture.Refusal{capture.Refused, capture.Unreachable} {
		c = w.dial(in.At)
		(<-w.attempts).Refuse(r)
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("refused: %v", err)
		}
	}
	c = w.dial(in.At)
	a = <-w.attempts
	c.CloseWrite()
	if !a.(capture.Waiter).Waits() {
		t.Error("a program that has said all it has to say waits for the answer")
	}
	c.SetLinger(0)
	c.Close()
	for a.(capture.Waiter).Waits() {
		time.Sleep(time.Millisecond) // nothing tells
	}
	a.Refuse(capture.Silent)
}

// Every protocol, by its client: what was asked for, the answers, and no byte lost.
func TestProtocols(t *testing.T) {
	w := newWorld(t)
	socks, http := w.open(Spec{Kind: SOCKS, Judged: true}), w.open(Spec{Kind: HTTPConnect, Judged: true})
	for _, tt := range []struct {
		scheme, target string
		host           string
		refused        string // what the client says
		unreachable    string
	}{
		{"socks4", "192.0.2.7:23", "192.0.2.7", "rejected", "rejected"},
		{"socks4a", "h.example.com:23", "h.example.com", "rejected", "rejected"},
		{"socks5", "192.0.2.7:23", "192.0.2.7", "connection refused", "host unreachable"},
		{"socks5", "[fd00::7]:23", "fd00::7", "connection refused", "host unreachable"},
		{"socks5", "h.example.com:23", "h.example.com", "connection refused", "host unreachable"},
		{"http-connect", "h.example.com:23", "h.example.com", "502 Bad Gateway", "504 Gateway Timeout"},
		{"http-connect", "[fd00::7]:23", "fd00::7", "502 Bad Gateway", "504 Gateway Timeout"},
	} {
		at := socks.At
		if tt.scheme == "http-connect" {
			at = http.At
		}
		set, err := proxy.Parse(tt.scheme + "://" + at.String() + "/")
		if err != nil {
			t.Fatal(err)
		}
		dial := func(decide func(capture.Attempt)) (net.Conn, error) {
			go func() { decide(<-w.attempts) }()
			return proxy.Dialer{Dial: (&net.Dialer{}).DialContext}.DialContext(t.Context(), set, "tcp", tt.target)
		}
		c, err := dial(func(a capture.Attempt) {
			if r := a.(*attempt).Request(); r.Host != tt.host || r.Port != 23 || !r.Judged {
				t.Errorf("%s %s: %+v", tt.scheme, tt.target, r)
			}
			echo(t, a)
		})
		if err == nil {
			err = says(c, "hello")
			c.Close()
		}
		if err != nil {
			t.Errorf("%s %s: %v", tt.scheme, tt.target, err)
		}
		for refusal, want := range map[capture.Refusal]string{capture.Refused: tt.refused, capture.Unreachable: tt.unreachable} {
			if _, err := dial(func(a capture.Attempt) { a.Refuse(refusal) }); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s %s: %v, want %q", tt.scheme, tt.target, err, want)
			}
		}
	}
}

// What is no request is answered where there is an answer, and gets no further.
func TestBadRequests(t *testing.T) {
	w := newWorld(t)
	socks, http := w.open(Spec{Kind: SOCKS, Judged: true}), w.open(Spec{Kind: HTTPConnect, Judged: true})
	n := uint64(0)
	for _, tt := range []struct {
		at           netip.AddrPort
		say, answers string
	}{
		{socks.At, "GET / HTTP/1.1\r\n\r\n", ""},
		{socks.At, "\x05\x01\x02", "\x05\xff"}, // a password, and nothing else
		{socks.At, "\x05\x00", "\x05\xff"},
		{socks.At, "\x05\x01\x00\x05\x02\x00\x01\x7f\x00\x00\x01\x00\x17", "\x05\x00\x05\x07"}, // bind
		{socks.At, "\x05\x01\x00\x05\x01\x00\x09", "\x05\x00\x05\x08"},
		{socks.At, "\x05\x01\x00\x04", "\x05\x00"},
		{socks.At, "\x05\x01\x00\x05\x01\x00\x03\x02-x\x00\x17", "\x05\x00\x05\x04"},
		{socks.At, "\x05\x01\x00\x05\x01\x00\x03\x00\x00\x17", "\x05\x00\x05\x04"},
		{socks.At, "\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x00", "\x05\x00\x05\x04"},
		{socks.At, "\x04\x02\x00\x17\x7f\x00\x00\x01\x00", "\x00\x5b"},
		{socks.At, "\x04\x01\x00\x17\x00\x00\x00\x01u\x00a b\x00", "\x00\x5b"},
		{socks.At, "\x04\x01\x00\x17\x7f\x00\x00\x01" + strings.Repeat("x", 300), ""},
		{http.At, "GET http://h/ HTTP/1.1\r\nHost: h\r\n\r\n", "HTTP/1.1 405 Method Not Allowed\r\nAllow: CONNECT\r\n"},
		{http.At, "CONNECT h HTTP/1.1\r\n\r\n", "HTTP/1.1 400 "},
		{http.At, "CONNECT a/b:1 HTTP/1.1\r\n\r\n", "HTTP/1.1 400 "},
		{http.At, "CONNECT h:0 HTTP/1.1\r\n\r\n", "HTTP/1.1 400 "},
		{http.At, "\x16\x03\x01 hello\n\n", "HTTP/1.1 400 "},
		{http.At, "CONNECT h:1 HTTP/1.1\r\nX: " + strings.Repeat("y", 17<<10), ""},
	} {
		c := w.dial(tt.at)
		io.WriteString(c, tt.say)
		c.CloseWrite()
		got, _ := io.ReadAll(c) // the end is a reset, which may take the answer with it
		if len(got) > 0 && !strings.HasPrefix(string(got), tt.answers) || len(got) == 0 && tt.answers != "" && strings.HasPrefix(tt.answers, "\x05\x00") {
			t.Errorf("%.30q: answered %q, want %q", tt.say, got, tt.answers)
		}
		n++
	}
	refused := uint64(0)
	for _, in := range w.List() {
		refused += in.Refused
	}
	if refused != n {
		t.Errorf("%d of %d refused", refused, n)
	}
}

// A program that stops in the middle of its request is not waited for longer than the
// listener lives, nor is its place lost.
func TestStopsTalking(t *testing.T) {
	w := newWorld(t)
	in := w.open(Spec{Kind: SOCKS, Judged: true})
	c := w.dial(in.At)
	io.WriteString(c, "\x05")
	for w.List()[0].Accepted == 0 {
		time.Sleep(time.Millisecond)
	}
	if err := w.Set.Close(in.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%v", err)
	}
}

func TestWhoMayConnect(t *testing.T) {
	for _, tt := range []struct {
		peer           Peer
		relay, anyUser bool
		allowed        bool
	}{
		{Peer{Here: true, UID: 1000}, false, false, true},
		{Peer{Here: true, UID: 0}, false, false, true},
		{Peer{Here: true, UID: 1001}, false, false, false},
		{Peer{Here: true, UID: 1001}, false, true, true},
		{Peer{UID: 1<<32 - 1}, false, false, false},
		{Peer{UID: 1<<32 - 1}, false, true, false},
		{Peer{Here: true, UID: 1001}, true, false, true},
		{Peer{UID: 1<<32 - 1}, true, false, true},
	} {
		w := newWorld(t)
		w.peer, w.AnyUser = tt.peer, tt.anyUser
		in := w.open(Spec{Kind: TCP, Host: "h", Port: 1, Relay: tt.relay})
		if tt.allowed {
			w.dial(in.At)
			a := <-w.attempts
			if r := a.(*attempt).Request(); r.Stranger != (!tt.peer.Here || tt.peer.UID == 1001 && !tt.anyUser) {
				t.Errorf("%+v: %+v", tt, r)
			}
			a.Refuse(capture.Refused)
			continue
		}
		c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(in.At))
		if err == nil { // before the reset came
			_, err = c.Read(make([]byte, 1))
			c.Close()
		}
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%+v: %v", tt, err)
		}
	}
}

// Only what has changed is opened and closed.
func TestWant(t *testing.T) {
	w := newWorld(t)
	free := func() netip.AddrPort {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return l.Addr().(*net.TCPAddr).AddrPort()
	}
	spec := func(host string) Spec { return Spec{Kind: TCP, Listen: free(), Host: host, Port: 1} }
	a, b, c := spec("a"), spec("b"), spec("c")
	is := func(want string) {
		t.Helper()
		var got string
		for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			got = ""
			for _, in := range w.List() {
				got += fmt.Sprintf("%d:%s:%t ", in.ID, in.Spec.Host, in.Open)
			}
			if got == want {
				return
			}
		}
		t.Fatalf("listeners %q, want %q", got, want)
	}
	w.Want([]Spec{a, b})
	is("1:a:true 2:b:true ")
	conn := w.dial(a.Listen)
	echo(t, <-w.attempts)
	w.Want([]Spec{b, c, c})
	is("2:b:true 3:c:true ")
	if err := says(conn, "still here"); err != nil {
		t.Error(err)
	}
	if _, err := net.Dial("tcp", a.Listen.String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a closed listener: %v", err)
	}

	// What a person closes stays closed, until it is something else.
	if id, err := w.At(b.Listen); err != nil || w.Set.Close(id) != nil {
		t.Fatal(err)
	}
	w.Want([]Spec{b, c})
	is("3:c:true ")
	w.Want([]Spec{c})
	w.Want([]Spec{b, c})
	is("3:c:true 4:b:true ")

	// What a person opens is no business of the configuration's.
	in := w.open(Spec{Kind: TCP, Host: "d", Port: 1})
	w.Want(nil)
	is("5:d:true ")
	if err := w.Set.Close(in.ID); err != nil {
		t.Error(err)
	}
	if err := w.Set.Close(in.ID); !errors.Is(err, ErrUnknown) {
		t.Error(err)
	}

	// A port that is taken is opened when it is free.
	taken, err := net.Listen("tcp", a.Listen.String())
	if err != nil {
		t.Fatal(err)
	}
	w.Want([]Spec{a})
	is("6:a:false ")
	for w.List()[0].Err == nil {
		time.Sleep(time.Millisecond)
	}
	if in := w.List()[0]; !errors.Is(in.Err, syscall.EADDRINUSE) || in.At != a.Listen {
		t.Errorf("%+v", in)
	}
	if _, err := w.Open(a); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), a.Listen.String()) {
		t.Errorf("%v", err)
	}
	taken.Close()
	is("6:a:true ")
	w.Shutdown()
	if _, err := w.Open(a); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

// rw is a client that says what it has and hears nothing.
type rw struct{ *bytes.Reader }

func (rw) Write(p []byte) (int, error) { return len(p), nil }

func FuzzRequests(f *testing.F) {
	f.Add([]byte("\x05\x01\x00\x05\x01\x00\x03\x01h\x00\x17rest"))
	f.Add([]byte("\x04\x01\x00\x17\x00\x00\x00\x01u\x00h\x00rest"))
	f.Add([]byte("CONNECT h:1 HTTP/1.1\r\n\r\nrest"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for name, read := range map[string]func(io.ReadWriter) (string, uint16, reply, error){"socks": readSOCKS, "connect": readConnect} {
			host, port, r, err := read(rw{bytes.NewReader(b)})
			if (err == nil) != (host != "" && port != 0 && len(r.granted) > 0 && len(r.refused) > 0 && len(r.unreachable) > 0) {
				t.Fatalf("%s: %q, %d, %v, %v", name, host, port, r, err)
			}
			if err == nil && checkTarget(host, port) != nil {
				t.Fatalf("%s: %q, %d", name, host, port)
			}
		}
	})
}
