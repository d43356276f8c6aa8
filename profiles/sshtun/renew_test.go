package sshtun_test

import (
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	"sshbroker/profiles"
	"sshbroker/profiles/tuntest"
)

// TestRenewedConnection: with a real server, a connection that has carried what one set
// of keys may is replaced, and what is open on it goes on.
func TestRenewedConnection(t *testing.T) {
	p := *tuntest.StartOpenSSH(t).Profile
	p.RekeyBytes = 1 << 20
	pool := profiles.NewPool(connector(t), slog.New(slog.NewTextHandler(t.Output(), nil)))
	defer pool.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); io.Copy(c, c) }()
		}
	}()
	addr := l.Addr().(*net.TCPAddr)
	open := func() profiles.Stream {
		t.Helper()
		s, err := pool.Open(t.Context(), &p, profiles.Destination{Host: "127.0.0.1", Port: uint16(addr.Port)}, nil)
		if err != nil {
			t.Fatal(err)
		}
		s.SetDeadline(time.Now().Add(20 * time.Second))
		return s
	}
	echo := func(s profiles.Stream, n int) {
		t.Helper()
		go s.Write(make([]byte, n))
		if _, err := io.CopyN(io.Discard, struct{ io.Reader }{s}, int64(n)); err != nil {
			t.Fatal(err)
		}
	}
	first := open()
	echo(first, 1<<20)
	open().Close() // has another connection made
	for end := time.Now().Add(20 * time.Second); len(pool.List()) < 2; {
		if time.Now().After(end) {
			t.Fatalf("no other connection was made: %+v", pool.List())
		}
		<-pool.Changes()
	}
	second := open()
	echo(second, 1000)
	echo(first, 1000)
	for _, in := range pool.List() {
		if !in.Connected || in.Streams != 1 {
			t.Errorf("%+v, want a stream on each connection", in)
		}
	}
	first.Close()
	for end := time.Now().Add(20 * time.Second); len(pool.List()) > 1; {
		if time.Now().After(end) {
			t.Fatalf("the old connection is kept: %+v", pool.List())
		}
		<-pool.Changes()
	}
	echo(second, 1000)
	second.Close()
}
