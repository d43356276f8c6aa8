package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sshbroker/broker/gateway/gatewaytest"
	"sshbroker/profiles"
	"sshbroker/profiles/tlstun/wire"
)

// open asks for a flow that has to be carried, and tries it.
func (w *world) open(s *wire.Session, q wire.Request) *wire.Stream {
	w.t.Helper()
	stream, a := w.ask(s, q)
	if a.Status != wire.OK {
		w.t.Fatalf("%+v: %+v", q, a)
	}
	w.echoes(stream, "hello")
	return stream
}

// endedFor wants a stream to be reset with words.
func endedFor(t *testing.T, s *wire.Stream, words string) {
	t.Helper()
	if _, err := io.ReadAll(s); !errors.Is(err, profiles.ErrReset) || !strings.Contains(s.Ended(), words) {
		t.Errorf("ended with %v, %q; want %q", err, s.Ended(), words)
	}
}

// resetSeen wants a connection without words to be reset.
func resetSeen(t *testing.T, c *tls.Conn) {
	t.Helper()
	if _, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("ended with %v", err)
	}
}

// A reload leaves alone what is still allowed, and ends what is not with the reason at
// both ends: by service, by pattern, by policy, by override.
func TestReload(t *testing.T) {
	w := newWorld(t, setup{names: map[string][]string{"b.test": {"127.0.0.1"}, "c.test": {"127.0.0.1"}}})
	anna, root := w.client("anna@example.com"), w.client("root@example.com")
	session := w.mux(anna, "gw.test")
	stays := w.open(session, w.flowTo("a.test"))
	byPattern := w.open(session, w.flowTo("b.test"))
	byOverride := w.open(session, w.flowTo("old.test"))
	byService := w.open(session, wire.Request{Kind: wire.KindFlow, Service: "echo"})
	byRole := w.open(w.mux(root, "gw.test"), wire.Request{Kind: wire.KindFlow, Service: "admins"})
	raw := w.dial(anna, "echo.test")
	w.echoes(raw, "hello")
	backends := w.echo.accepted()

	w.change("hostnames: [secret.test]", "hostnames: [secret.test, b.test]")
	w.change("old.test: new.test", "old.test: 127.0.0.2")
	w.change("name: echo", "name: other")
	w.change("emails: [root@example.com]", "emails: [boss@example.com]")
	w.names.mu.Lock()
	w.names.zone["a.test"], w.names.asked = []string{"192.0.2.1"}, nil // nobody is to ask again
	w.names.mu.Unlock()
	if err := w.gw.Reload(); err != nil {
		t.Fatal(err)
	}
	endedFor(t, byPattern, "excluded")
	endedFor(t, byOverride, "another address")
	endedFor(t, byService, "the service echo is gone")
	endedFor(t, byRole, "no-role")
	resetSeen(t, raw)
	w.echoes(stays, "still here")
	if len(w.names.asked) > 0 {
		t.Errorf("a reload looked up %v", w.names.asked)
	}
	for _, words := range []string{"excluded", "another address", "the service echo is gone", "no-role"} {
		w.await(words, func(r record) bool {
			return r.Event == "close" && r.Reason == "no-longer-allowed" && strings.Contains(r.Error, words) && r.ClientEnd == "cancelled"
		})
	}
	// A session whose own service is gone is over, others take new flows by the new rules.
	if _, a := w.ask(session, w.flowTo("b.test")); a.Status != wire.Prohibited {
		t.Errorf("by the new rules: %+v", a)
	}
	w.open(session, wire.Request{Kind: wire.KindFlow, Service: "other"})
	if n := w.echo.accepted(); n != backends+1 {
		t.Errorf("%d connections to the backend", n)
	}
	if g := w.metric("ssh_gateway_config_generation"); g != 2 {
		t.Errorf("generation %v", g)
	}
}

// A broken configuration, or a broken file of it, changes nothing, and says where it is
// broken.
func TestBrokenReload(t *testing.T) {
	w := newWorld(t, setup{})
	stream := w.open(w.mux(w.client("anna@example.com"), "gw.test"), w.flowTo("a.test"))
	path := filepath.Join(w.dir, "gateway.yaml")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ old, new, want string }{
		{"name: web", "name: echo", "gateway.yaml:"},
		{"client_ca: ca.pem", "client_ca: none.pem", "none.pem: no such file"},
		{"certificate: server.pem", "certificate: ca.pem", "ca.pem with the key"},
		{"services:", "services", "gateway.yaml:"},
	} {
		w.change(tc.old, tc.new)
		if err := w.gw.Reload(); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.new, err, tc.want)
		}
		gatewaytest.Write(t, w.dir, "gateway.yaml", good)
	}
	w.echoes(stream, "still here")
	if g := w.metric("ssh_gateway_config_generation"); g != 1 {
		t.Errorf("generation %v", g)
	}
	if n := w.metric(`ssh_gateway_reloads_total{outcome="failed"}`); n != 4 {
		t.Errorf("%v failed reloads are counted", n)
	}
	if err := w.gw.Reload(); err != nil {
		t.Error(err)
	}
	w.echoes(stream, "still here")
}

// Listeners come and go with the configuration; where one cannot be had nothing changes.
func TestReloadListeners(t *testing.T) {
	w := newWorld(t, setup{})
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	first := w.addr
	second := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	w.change(fmt.Sprintf("listen: %q", first), fmt.Sprintf("listen: [%q, %q]", second, busy.Addr()))
	if err := w.gw.Reload(); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("a port that is taken: %v", err)
	}
	if c, err := net.Dial("tcp", second); err == nil {
		c.Close()
		t.Error("the other listener of a refused configuration is open")
	}
	cert := w.client("anna@example.com")
	old := w.dial(cert, "echo.test")
	w.echoes(old, "hello")
	w.change(fmt.Sprintf(", %q", busy.Addr()), "")
	if err := w.gw.Reload(); err != nil {
		t.Fatal(err)
	}
	if c, err := net.Dial("tcp", first); err == nil {
		c.Close()
		t.Error("the listener that is gone from the file is open")
	}
	w.echoes(old, "still here")
	w.addr = second
	w.echoes(w.dial(cert, "echo.test"), "hello")
}

// A list that revokes ends the flows of who is on it, by itself, and no others. A file
// that cannot be used is complained of, and the old one counts.
func TestRevocation(t *testing.T) {
	w := newWorld(t, setup{})
	anna, bob := w.client("anna@example.com"), w.client("bob@example.com")
	session := w.mux(anna, "gw.test")
	gone := w.open(session, w.flowTo("a.test"))
	raw := w.dial(anna, "echo.test")
	w.echoes(raw, "hello")
	stays := w.open(w.mux(bob, "gw.test"), w.flowTo("a.test"))
	gatewaytest.Write(t, w.dir, "ca.crl", []byte("garbage"))
	w.awaitLog("the old ones stay in force")
	w.echoes(gone, "still here")
	gatewaytest.Write(t, w.dir, "ca.crl", w.ca.List(nil, anna.Leaf))
	endedFor(t, gone, "revoked")
	resetSeen(t, raw)
	w.await("the revocation", func(r record) bool {
		return r.Event == "close" && r.Reason == "no-longer-allowed" && r.Carrier == "mux" && strings.Contains(r.Error, "certificate is revoked")
	})
	w.await("the revocation", func(r record) bool {
		return r.Event == "close" && r.Reason == "no-longer-allowed" && r.Carrier == "raw"
	})
	select {
	case <-session.Done():
	case <-time.After(patience):
		t.Error("the session of who was revoked is still there")
	}
	w.echoes(stays, "still here")
	w.open(w.mux(bob, "gw.test"), w.flowTo("a.test"))
}

// A flow lives no longer than the certificate of its client.
func TestExpiry(t *testing.T) {
	w := newWorld(t, setup{})
	template := gatewaytest.ClientTemplate("anna@example.com")
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(2*time.Second)
	cert := w.ca.Sign(template)
	session := w.mux(cert, "gw.test")
	stream := w.open(session, w.flowTo("a.test"))
	raw := w.dial(cert, "echo.test")
	w.echoes(raw, "hello")
	other := w.open(w.mux(w.client("bob@example.com"), "gw.test"), w.flowTo("a.test"))
	endedFor(t, stream, "certificate has ended")
	resetSeen(t, raw)
	if late := time.Since(cert.Leaf.NotAfter); late < 0 {
		t.Errorf("ended %v too early", -late)
	}
	for _, carrier := range []string{"mux", "raw"} {
		w.await(carrier, func(r record) bool { return r.Carrier == carrier && r.Event == "close" && r.Reason == "expired" })
	}
	w.echoes(other, "still here")
	if conn, err := tls.Dial("tcp", w.addr, w.tlsConfig(cert, "echo.test")); err == nil {
		conn.SetDeadline(time.Now().Add(patience))
		if err := refusalOf(conn); err == nil {
			t.Error("let in after the end of the certificate")
		}
		conn.Close()
	}
}

// A new certificate of the gateway's own counts without a word.
func TestServerCertificateReplaced(t *testing.T) {
	w := newWorld(t, setup{})
	renewed := w.serverCA.Server("gw.test", "echo.test")
	gatewaytest.WritePair(t, w.dir, "server", renewed)
	w.awaitLog("generation=2")
	for {
		c := w.dial(w.client("anna@example.com"), "echo.test")
		serial := c.ConnectionState().PeerCertificates[0].SerialNumber
		c.Close()
		if serial.Cmp(renewed.Leaf.SerialNumber) == 0 {
			return
		}
		w.awaitLog("generation=3") // the key and the certificate came one after the other
	}
}

// Told to stop, the gateway lets nobody in, has its clients go elsewhere, waits for the
// flows, and ends those that stay with the reason.
func TestDrain(t *testing.T) {
	w := newWorld(t, setup{})
	cert := w.client("anna@example.com")
	session := w.mux(cert, "gw.test")
	stays := w.open(session, w.flowTo("a.test"))
	ends := w.open(session, w.flowTo("a.test"))
	idle := w.mux(cert, "gw.test")
	w.open(idle, w.flowTo("a.test")).Close()
	w.awaitEvent("close", "carried")
	w.gw.Stop(2 * time.Second)
	select { // it has nothing to wait for
	case <-idle.Done():
	case <-time.After(patience):
		t.Error("a session without flows is not closed")
	}
	if _, _, err := ask(session, w.flowTo("a.test")); err == nil {
		t.Error("a new flow is taken")
	}
	if c, err := net.Dial("tcp", w.addr); err == nil {
		c.Close()
		t.Error("the listener is still open")
	}
	w.echoes(ends, "still here")
	ends.CloseWrite()
	if _, err := io.ReadAll(ends); err != nil {
		t.Errorf("a flow that ends meanwhile: %v", err)
	}
	ends.Close()
	endedFor(t, stays, "shutting down")
	if err := w.stopped(); err != nil {
		t.Error(err)
	}
	w.awaitEvent("close", "shutdown")
	w.awaitEvent("stop", "shutdown")
	opens, closes := 0, 0
	for _, r := range w.records() {
		switch r.Event {
		case "open":
			opens++
		case "close":
			closes++
		}
	}
	if opens != 3 || closes != 3 {
		t.Errorf("%d flows were opened, %d closed", opens, closes)
	}
}

// The end of the context is that of everything, at once.
func TestRunCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	w := prepare(t, setup{})
	w.startWith(ctx)
	stream := w.open(w.mux(w.client("anna@example.com"), "gw.test"), w.flowTo("a.test"))
	cancel()
	endedFor(t, stream, "shutting down")
	if err := w.stopped(); err != nil {
		t.Error(err)
	}
}
