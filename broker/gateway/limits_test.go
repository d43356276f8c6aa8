package gateway

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"sshbroker/profiles/tlstun/wire"
)

// connectTo asks by HTTP and returns the answer.
func (w *world) connectTo(email, host string) (*tls.Conn, string) {
	w.t.Helper()
	c := w.dial(w.client(email), "web.test")
	fmt.Fprintf(c, "CONNECT %s:%d HTTP/1.1\r\nHost: x\r\n\r\n", host, w.echo.addr.Port())
	return c, answerOf(w.t, bufio.NewReader(c))
}

// Each limit refuses with its word, counts, and leaves alone who is there already.
func TestLimits(t *testing.T) {
	t.Run("flows of an identity", func(t *testing.T) {
		w := newWorld(t, setup{top: "limits: {flows_per_identity: 2}"})
		session := w.mux(w.client("anna@example.com"), "gw.test")
		one := w.open(session, w.flowTo("a.test"))
		w.open(session, w.flowTo("a.test"))
		if _, a := w.ask(session, w.flowTo("a.test")); a.Status != wire.Limited || !strings.Contains(a.Detail, "identity-flows, at most 2") {
			t.Errorf("a third: %+v", a)
		}
		if _, a := w.connectTo("anna@example.com", "a.test"); !strings.HasPrefix(a, "HTTP/1.1 429 ") || !strings.Contains(a, "error=connection_limit_reached") {
			t.Errorf("by HTTP: %q", a)
		}
		if _, a := w.connectTo("bob@example.com", "a.test"); !strings.HasPrefix(a, "HTTP/1.1 200 ") {
			t.Errorf("another identity: %q", a)
		}
		w.echoes(one, "still here")
		one.Close()
		w.awaitEvent("close", "carried")
		if err := w.eventually(func() bool { _, a := w.ask(session, w.flowTo("a.test")); return a.Status == wire.OK }); err != nil {
			t.Errorf("after one has ended: %v", err)
		}
		if n := w.metric(`ssh_gateway_limit_hits_total{limit="identity-flows"}`); n < 2 {
			t.Errorf("%v are counted", n)
		}
		w.awaitEvent("refused", "limit")
	})
	t.Run("connections that are flows", func(t *testing.T) {
		w := newWorld(t, setup{top: "limits: {flows_per_identity: 2}"})
		anna := w.client("anna@example.com")
		for range 2 {
			w.echoes(w.dial(anna, "echo.test"), "hello")
		}
		if _, a := w.connectTo("anna@example.com", "a.test"); !strings.HasPrefix(a, "HTTP/1.1 429 ") {
			t.Errorf("by HTTP: %q", a)
		}
		resetSeen(t, w.dial(anna, "echo.test"))
		for _, carrier := range []string{"connect", "raw"} {
			w.await(carrier, func(r record) bool { return r.Carrier == carrier && r.Event == "refused" && r.Reason == "limit" })
		}
	})
	t.Run("flows in all", func(t *testing.T) {
		w := newWorld(t, setup{top: "limits: {flows: 1}"})
		w.open(w.mux(w.client("anna@example.com"), "gw.test"), w.flowTo("a.test"))
		if _, a := w.connectTo("bob@example.com", "a.test"); !strings.HasPrefix(a, "HTTP/1.1 503 ") || !strings.Contains(a, "error=connection_limit_reached") {
			t.Errorf("got %q", a)
		}
		w.awaitLog("limit reached: flows, at most 1")
	})
	t.Run("rate", func(t *testing.T) {
		w := newWorld(t, setup{top: "limits: {connects_per_second: 1}"})
		session := w.mux(w.client("anna@example.com"), "gw.test")
		var last wire.Answer
		for range 4 {
			if _, last = w.ask(session, w.flowTo("a.test")); last.Status != wire.OK {
				break
			}
		}
		if last.Status != wire.Limited || !strings.Contains(last.Detail, "identity-rate") {
			t.Errorf("got %+v", last)
		}
	})
	t.Run("records", func(t *testing.T) {
		w := newWorld(t, setup{top: "limits: {connects_per_second: 1}"})
		session := w.mux(w.client("anna@example.com"), "gw.test")
		const asked = 500
		for range asked {
			w.ask(session, w.flowTo("a.test"))
		}
		left := w.metric("ssh_gateway_audit_suppressed_total")
		if left < asked/2 {
			t.Errorf("of %d refusals %v have no record", asked, left)
		}
		w.await("those that have", func(r record) bool { return r.Event == "refused" && r.Reason == "limit" })
	})
	t.Run("connections", func(t *testing.T) {
		w := newWorld(t, setup{top: "limits: {connections: 1}"})
		c := w.dial(w.client("anna@example.com"), "echo.test")
		w.echoes(c, "hello")
		if _, err := tls.Dial("tcp", w.addr, w.tlsConfig(w.client("bob@example.com"), "echo.test")); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
			t.Errorf("a second: %v", err)
		}
		w.awaitLog("connections, at most 1")
		w.echoes(c, "still here")
		c.Close()
		if err := w.eventually(func() bool {
			c, err := tls.Dial("tcp", w.addr, w.tlsConfig(w.client("bob@example.com"), "echo.test"))
			if err == nil {
				c.Close()
			}
			return err == nil
		}); err != nil {
			t.Errorf("after one has gone: %v", err)
		}
	})
	t.Run("handshakes", func(t *testing.T) {
		w := newWorld(t, setup{top: "limits: {handshakes: 4}"})
		c, err := net.Dial("tcp", w.addr) // says nothing, and is a quarter
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := w.eventually(func() bool {
			_, err := tls.Dial("tcp", w.addr, w.tlsConfig(w.client("bob@example.com"), "echo.test"))
			return err != nil
		}); err != nil {
			t.Errorf("a second of one address: %v", err)
		}
		w.awaitLog("address-handshakes, at most 1")
		c.Close()
	})
}

// eventually tries until it works.
func (w *world) eventually(works func() bool) error {
	for end := time.Now().Add(patience); time.Now().Before(end); <-time.After(5 * time.Millisecond) {
		if works() {
			return nil
		}
	}
	return errors.New("it never does")
}

// Out of descriptors the gateway refuses, and goes on when there are some again.
func TestNoDescriptors(t *testing.T) {
	w := newWorld(t, setup{})
	cert := w.client("anna@example.com")
	session := w.mux(cert, "gw.test")
	live := w.open(session, w.flowTo("a.test"))

	socket, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	waiting := os.NewFile(uintptr(socket), "waiting client")
	defer waiting.Close()
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	none := before
	none.Cur = 3 // no new descriptor, whichever is closed meanwhile
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	restore := func() { syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before) }
	defer restore()
	_, a := w.ask(session, w.flowTo("a.test"))
	if a.Status != wire.Limited {
		t.Errorf("a flow without descriptors: %+v", a)
	}
	w.echoes(live, "still here")
	// A client that waits in the kernel's queue is served afterwards.
	at := netip.MustParseAddrPort(w.addr)
	if err := syscall.Connect(socket, &syscall.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}); err != nil {
		t.Fatal(err)
	}
	w.awaitLog("cannot accept connections")
	restore()
	c, err := net.FileConn(waiting)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	conn := tls.Client(c, w.tlsConfig(cert, "echo.test"))
	conn.SetDeadline(time.Now().Add(patience))
	w.echoes(conn, "served after all")
	w.open(session, w.flowTo("a.test"))
}

// The descriptors that are kept in reserve are never a client's.
func TestReserve(t *testing.T) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Cur > 1<<20 {
		t.Skip("the bound on descriptors is above all reserves")
	}
	w := newWorld(t, setup{top: fmt.Sprintf("limits: {reserve: %d}", limit.Cur-1)})
	_, a := w.ask(w.mux(w.client("anna@example.com"), "gw.test"), w.flowTo("a.test"))
	if a.Status != wire.Limited || !strings.Contains(a.Detail, "descriptors, at most 1") {
		t.Errorf("got %+v", a)
	}
}

// A flow on which nothing moves is ended where the configuration wants that, with words;
// one that moves is not.
func TestIdle(t *testing.T) {
	w := newWorld(t, setup{top: "limits: {idle_timeout: 3s}"})
	session := w.mux(w.client("anna@example.com"), "gw.test")
	quiet, busy := w.open(session, w.flowTo("a.test")), w.open(session, w.flowTo("a.test"))
	stop := make(chan struct{})
	done := make(chan struct{})
	var beats atomic.Int32
	go func() {
		defer close(done)
		for b := make([]byte, 1); ; {
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Millisecond):
			}
			if _, err := busy.Write(b); err != nil {
				return
			}
			if _, err := io.ReadFull(busy, b); err != nil {
				return
			}
			beats.Add(1)
		}
	}()
	endedFor(t, quiet, "nothing was sent for too long")
	close(stop)
	<-done
	w.echoes(busy, "still here")
	if beats.Load() == 0 {
		t.Error("nothing moved on the other flow")
	}
	w.awaitEvent("close", "idle")
}

// With required no flow goes unrecorded; else flows go on, and it is counted.
func TestAuditFails(t *testing.T) {
	for _, required := range []bool{true, false} {
		t.Run(fmt.Sprint("required ", required), func(t *testing.T) {
			if _, err := os.Stat("/dev/full"); err != nil {
				t.Skip("no /dev/full")
			}
			w := prepare(t, setup{})
			w.change("audit: {file: audit.jsonl}", fmt.Sprintf("audit: {file: /dev/full, required: %v}", required))
			w.start()
			session := w.mux(w.client("anna@example.com"), "gw.test")
			w.awaitLog("audit file cannot be written") // the record of the start
			s, a := w.ask(session, w.flowTo("a.test"))
			switch {
			case required && a.Status != wire.Failed, !required && a.Status != wire.OK:
				t.Errorf("got %+v", a)
			case !required:
				w.echoes(s, "hello")
			}
			if n := w.metric("ssh_gateway_audit_failures_total"); n == 0 {
				t.Error("nothing is counted")
			}
			if n := w.echo.accepted(); required && n > 0 {
				t.Errorf("%d connections to the backend", n)
			}
			w.gw.Stop(0)
			if err := w.stopped(); err == nil || !strings.Contains(err.Error(), "records lost") {
				t.Errorf("the gateway ends with %v", err)
			}
		})
	}
}

// A destination that does not answer is given up in time, and the client is told.
func TestDialTimeout(t *testing.T) {
	w := prepare(t, setup{top: "limits: {dial_timeout: 1s}"})
	// A listener whose queue is full takes no more connections.
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(name.(*syscall.SockaddrInet4).Port)
	full := make(chan struct{})
	go func() { // until one of them has to wait
		defer close(full)
		for {
			c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), 300*time.Millisecond)
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
		}
	}()
	<-full
	w.start()
	_, a := w.ask(w.mux(w.client("anna@example.com"), "gw.test"), wire.Request{Kind: wire.KindFlow, Host: "a.test", Port: port})
	if a.Status != wire.TimedOut {
		t.Errorf("got %+v", a)
	}
	w.awaitEvent("refused", "timed-out")
}

// A reader that does not read holds the sender up, and costs no more than the windows.
func TestSlowReader(t *testing.T) {
	sent := new(atomic.Int64)
	w := newWorld(t, setup{backend: func(c *net.TCPConn) {
		b := make([]byte, 64<<10)
		for {
			n, err := c.Write(b)
			sent.Add(int64(n))
			if err != nil {
				return
			}
		}
	}})
	session := w.mux(w.client("anna@example.com"), "gw.test")
	s, a := w.ask(session, wire.Request{Kind: wire.KindFlow, Service: "echo"})
	if a.Status != wire.OK {
		t.Fatal(a)
	}
	settled := w.settle(sent)
	if settled == 0 || settled > 64<<20 {
		t.Errorf("%d bytes were taken for a reader that does not read", settled)
	}
	// Another flow of the session is not held up by it.
	other, _ := w.ask(session, wire.Request{Kind: wire.KindFlow, Service: "echo"})
	if _, err := io.ReadFull(other, make([]byte, 1<<20)); err != nil {
		t.Errorf("beside it: %v", err)
	}
	if _, err := io.ReadFull(s, make([]byte, settled)); err != nil {
		t.Errorf("reading on: %v", err)
	}
}

// settle waits until a number stays as it is.
func (w *world) settle(n *atomic.Int64) int64 {
	last, since := n.Load(), time.Now()
	for end := time.Now().Add(patience); time.Now().Before(end); <-time.After(20 * time.Millisecond) {
		if now := n.Load(); now != last {
			last, since = now, time.Now()
		} else if now > 0 && time.Since(since) > time.Second {
			return last
		}
	}
	w.t.Fatal("it never stops")
	return 0
}
