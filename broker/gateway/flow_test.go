package gateway

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"

	"sshbroker/profiles"
	"sshbroker/profiles/tlstun/wire"
)

// Each way to ask for a flow reaches the backend, and leaves two records that tell who
// has asked and what was carried.
func TestCarriers(t *testing.T) {
	for _, carrier := range []string{"mux", "mux by service", "connect", "raw", "raw by port"} {
		t.Run(carrier, func(t *testing.T) {
			w := newWorld(t, setup{})
			cert := w.client("anna@example.com")
			var conn io.ReadWriteCloser
			want := record{Service: "web", Host: "old.test", Port: w.echo.addr.Port(), Target: fmt.Sprintf("new.test:%d", w.echo.addr.Port()),
				Rule: "allow_patterns[0], policy staff", FlowID: "flow-1"}
			switch carrier {
			case "mux":
				s, a := w.ask(w.mux(cert, "gw.test"), w.flowTo("old.test"))
				if a.Status != wire.OK {
					t.Fatal(a)
				}
				conn, want.Program = s, "/bin/test"
			case "mux by service":
				s, a := w.ask(w.mux(cert, "gw.test"), wire.Request{Kind: wire.KindFlow, Service: "echo"})
				if a.Status != wire.OK {
					t.Fatal(a)
				}
				conn = s
			case "connect":
				c := w.dial(cert, "web.test", "http/1.1")
				fmt.Fprintf(c, "CONNECT old.test:%d HTTP/1.1\r\nHost: old.test\r\nSsh-Broker-Flow: flow-1\r\n\r\nearly", want.Port)
				r := bufio.NewReader(c)
				if a := answerOf(t, r); !strings.HasPrefix(a, "HTTP/1.1 200 ") || !strings.Contains(a, "Ssh-Gateway: half-close\r\n") || strings.Contains(a, "Content-Length") {
					t.Fatalf("answer %q", a)
				}
				early := make([]byte, 5)
				if _, err := io.ReadFull(r, early); err != nil || string(early) != "early" {
					t.Fatalf("what was sent with the request came back as %q, %v", early, err)
				}
				conn = c
			case "raw":
				conn = w.dial(cert, "echo.test", "h2", "http/1.1")
			case "raw by port":
				w.addr = w.own
				conn = w.dial(cert, "gw.test")
			}
			if want.Host = "old.test"; strings.HasPrefix(carrier, "raw") || carrier == "mux by service" {
				want = record{Service: "echo", Target: w.echo.addr.String(), Rule: "target, policy staff"}
			}
			if carrier == "raw by port" {
				want.Service = "own"
			}
			w.echoes(conn, "hello")
			half := conn.(interface{ CloseWrite() error })
			if err := half.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if rest, err := io.ReadAll(conn); err != nil || len(rest) > 0 {
				t.Errorf("behind the end: %q, %v", rest, err)
			}
			conn.Close()
			r := w.awaitEvent("close", "carried")
			want.V, want.Event, want.Reason, want.Instance, want.Generation, want.Connection, want.Flow = 1, "close", "carried", r.Instance, 1, 1, 1
			want.Carrier, _, _ = strings.Cut(carrier, " ")
			want.Client, want.Serial, want.Emails, want.Fingerprint = r.Client, cert.Leaf.SerialNumber.Text(16), []string{"anna@example.com"}, r.Fingerprint
			want.Dialled, want.ClientEnd, want.BackendEnd, want.BytesUp, want.BytesDown, want.DurationMS = w.echo.addr.String(), "eof", "eof", 5, 5, r.DurationMS
			if carrier == "connect" {
				want.BytesUp, want.BytesDown = 10, 10
			}
			if fmt.Sprintf("%+v", r) != fmt.Sprintf("%+v", want) {
				t.Errorf("recorded\n%+v, want\n%+v", r, want)
			}
			if r.Instance == "" || len(r.Fingerprint) != 64 || !strings.HasPrefix(r.Client, "127.0.0.1:") || r.DurationMS <= 0 {
				t.Errorf("recorded %+v", r)
			}
			events := []string{}
			for _, r := range w.records() {
				events = append(events, r.Event)
			}
			if !slices.Equal(events, []string{"start", "open", "close"}) {
				t.Errorf("events %v", events)
			}
		})
	}
}

// What is refused says why at the client, in HTTP, and in one record.
func TestRefusals(t *testing.T) {
	closed := freePort(t)
	w := newWorld(t, setup{names: map[string][]string{
		"far.test":  {"192.0.2.1"},
		"both.test": {"192.0.2.1", "127.0.0.1"},
		"turn.test": {"|192.0.2.1", "|127.0.0.1"},
	}})
	cert := w.client("anna@example.com")
	session := w.mux(cert, "gw.test")
	port := w.echo.addr.Port()
	for _, tc := range []struct {
		host    string
		port    uint16
		status  wire.Status
		http    int
		proxy   string
		reason  string
		rule    string
		dialled bool
	}{
		{"a.example.org", port, wire.Prohibited, 403, "http_request_denied", "host-not-allowed", "", false},
		{"secret.test", port, wire.Prohibited, 403, "http_request_denied", "excluded", "exclude_patterns[0]", false},
		{"far.test", port, wire.Prohibited, 403, "destination_ip_prohibited", "address-not-allowed", "", false},
		{"nowhere.test", port, wire.NameNotFound, 502, "dns_error", "name-not-found", "", false},
		{"127.0.0.1", port, wire.Prohibited, 403, "http_request_denied", "host-not-allowed", "", false},
		{"0177.1", port, wire.BadRequest, 400, "http_request_error", "bad-host", "", false},
		{"a.test", closed, wire.Refused, 502, "connection_refused", "refused-by-destination", "allow_patterns[0], policy staff", false},
	} {
		t.Run(tc.host, func(t *testing.T) {
			_, a := w.ask(session, wire.Request{Kind: wire.KindFlow, Host: tc.host, Port: tc.port, Flow: "mux-" + tc.host, Service: "web"})
			if a.Status != tc.status || a.Detail == "" {
				t.Errorf("answer %+v, want %v", a, tc.status)
			}
			c := w.dial(cert, "web.test")
			fmt.Fprintf(c, "CONNECT %s:%d HTTP/1.1\r\nHost: x\r\nSsh-Broker-Flow: http-%s\r\n\r\n", tc.host, tc.port, tc.host)
			text, err := io.ReadAll(c)
			if err != nil || !strings.HasPrefix(string(text), fmt.Sprintf("HTTP/1.1 %d ", tc.http)) ||
				!strings.Contains(string(text), "\r\nProxy-Status: ssh-gateway; error="+tc.proxy) {
				t.Errorf("answer %q, %v, want %d %s", text, err, tc.http, tc.proxy)
			}
			for _, id := range []string{"mux-", "http-"} {
				fits := func(r record) bool { return r.FlowID == id+tc.host }
				r := w.await(id+tc.host, fits)
				if r.Event != "refused" || r.Reason != tc.reason || r.Rule != tc.rule || r.Host != tc.host || r.Service != "web" {
					t.Errorf("recorded %+v", r)
				}
			}
		})
	}
	if n := w.echo.accepted(); n != 0 {
		t.Errorf("the backend was connected to %d times", n)
	}
	// Of several addresses those that are allowed are dialled.
	if _, a := w.ask(session, w.flowTo("both.test")); a.Status != wire.OK {
		t.Errorf("a name with an address that is allowed: %+v", a)
	}
	// A name whose second answer would be allowed is looked up once.
	if _, a := w.ask(session, w.flowTo("turn.test")); a.Status != wire.Prohibited {
		t.Errorf("rebinding: %+v", a)
	}
	// Nor is the second answer dialled, where the first was allowed.
	w.names.mu.Lock()
	w.names.zone["turn.test"] = []string{"|127.0.0.1", "|192.0.2.1"}
	w.names.asked = nil
	w.names.mu.Unlock()
	s, a := w.ask(session, w.flowTo("turn.test"))
	if a.Status != wire.OK {
		t.Fatal(a)
	}
	w.echoes(s, "x")
	if !slices.Equal(w.names.asked, []string{"turn.test"}) {
		t.Errorf("looked up %v", w.names.asked)
	}
}

// What a service may be used by is asked for each flow, too.
func TestServiceOfOthers(t *testing.T) {
	w := newWorld(t, setup{})
	session := w.mux(w.client("anna@example.com"), "gw.test")
	for service, reason := range map[string]string{"admins": "no-role", "nosuch": "unknown-service"} {
		if _, a := w.ask(session, wire.Request{Kind: wire.KindFlow, Service: service}); a.Status != wire.Prohibited {
			t.Errorf("%s: %+v", service, a)
		}
		w.awaitEvent("refused", reason)
	}
	// A connection by the port of a service has no other.
	w.addr = w.own
	bound := w.mux(w.client("anna@example.com"), "gw.test")
	if _, a := w.ask(bound, wire.Request{Kind: wire.KindFlow, Service: "echo"}); a.Status != wire.Prohibited {
		t.Errorf("another service at the port of one: %+v", a)
	}
	if s, a := w.ask(bound, wire.Request{Kind: wire.KindFlow, Service: "own"}); a.Status != wire.OK {
		t.Errorf("the service of the port: %+v", a)
	} else {
		w.echoes(s, "x")
	}
}

// A permissive service lets through what its policy refuses, says so, and nothing else.
func TestPermissive(t *testing.T) {
	w := prepare(t, setup{})
	w.change("  - name: admins\n    tls_sni: admins.test\n", "  - name: admins\n    tls_sni: admins.test\n    enforcement: permissive\n")
	w.start()
	session := w.mux(w.client("anna@example.com"), "gw.test")
	w.open(session, wire.Request{Kind: wire.KindFlow, Service: "admins"})
	if r := w.awaitEvent("open", "carried"); !r.Permissive || !strings.Contains(r.Error, "no-role") {
		t.Errorf("recorded %+v", r)
	}
	w.awaitLog("let through by a permissive service")
	if _, a := w.ask(session, wire.Request{Kind: wire.KindFlow, Service: "admins", Host: "a.test", Port: 1}); a.Status != wire.Prohibited {
		t.Errorf("another destination: %+v", a)
	}
}

func TestListServices(t *testing.T) {
	w := newWorld(t, setup{})
	list := func(email string) []string {
		ys, err := w.mux(w.client(email), "gw.test").Open()
		if err != nil {
			t.Fatal(err)
		}
		if err := wire.WriteRequest(ys, wire.Request{Kind: wire.KindServices}); err != nil {
			t.Fatal(err)
		}
		if a, err := wire.ReadAnswer(ys); err != nil || a.Status != wire.OK {
			t.Fatal(a, err)
		}
		services, err := wire.ReadServices(ys)
		if err != nil {
			t.Fatal(err)
		}
		var said []string
		for _, s := range services {
			said = append(said, fmt.Sprintf("%s|%s|%s|%v|%d|%v|%s", s.Name, s.Kind, s.Target, s.Hosts, s.Port, s.Overridable, s.Description))
		}
		return said
	}
	echo := w.echo.addr.String()
	mine := []string{"echo|tcp|" + echo + "|[]|0|true|", "own|tcp|" + echo + "|[]|0|true|", "web|http||[*.test 127.0.0.0/8]|18080|false|what the staff needs"}
	if got := list("anna@example.com"); !slices.Equal(got, mine) {
		t.Errorf("got %q", got)
	}
	if got := list("root@example.com"); !slices.Equal(got, append(mine, "admins|tcp|"+echo+"|[]|0|true|")) {
		t.Errorf("an administrator: %q", got)
	}
}

// A reset on one side is one on the other, for each carrier.
func TestResets(t *testing.T) {
	for _, carrier := range []string{"mux", "raw"} {
		open := func(w *world) (net.Conn, func()) {
			if carrier == "raw" {
				c := w.dial(w.client("anna@example.com"), "echo.test")
				return c, func() {
					tcp := c.NetConn().(*net.TCPConn)
					tcp.SetLinger(0)
					tcp.Close()
				}
			}
			s, a := w.ask(w.mux(w.client("anna@example.com"), "gw.test"), wire.Request{Kind: wire.KindFlow, Service: "echo"})
			if a.Status != wire.OK {
				t.Fatal(a)
			}
			return s, func() { s.Reset() }
		}
		t.Run(carrier+" by backend", func(t *testing.T) {
			w := newWorld(t, setup{backend: func(c *net.TCPConn) {
				io.ReadFull(c, make([]byte, 1))
				io.WriteString(c, "last words")
				c.SetLinger(0)
			}})
			c, _ := open(w)
			io.WriteString(c, "x")
			text, err := io.ReadAll(c)
			if err == nil || string(text) != "last words" && string(text) != "" {
				t.Errorf("got %q, %v", text, err)
			}
			if carrier == "mux" && !errors.Is(err, profiles.ErrReset) || carrier == "raw" && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("got %v", err)
			}
			if r := w.awaitEvent("close", "carried"); r.BackendEnd != "reset-by-backend" {
				t.Errorf("recorded %+v", r)
			}
		})
		t.Run(carrier+" by client", func(t *testing.T) {
			seen := make(chan error, 1)
			w := newWorld(t, setup{backend: func(c *net.TCPConn) {
				_, err := io.Copy(io.Discard, c)
				seen <- err
			}})
			c, reset := open(w)
			io.WriteString(c, "x")
			reset()
			if err := <-seen; !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the backend saw %v", err)
			}
			if r := w.awaitEvent("close", "carried"); r.ClientEnd != "reset-by-client" {
				t.Errorf("recorded %+v", r)
			}
		})
	}
}

// An end of TCP that TLS has not announced is no end of data.
func TestTruncated(t *testing.T) {
	seen := make(chan error, 1)
	w := newWorld(t, setup{backend: func(c *net.TCPConn) {
		_, err := io.Copy(io.Discard, c)
		seen <- err
	}})
	c := w.dial(w.client("anna@example.com"), "echo.test")
	io.WriteString(c, "half of it")
	c.NetConn().(*net.TCPConn).CloseWrite()
	if err := <-seen; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the backend saw %v", err)
	}
}

// A server may speak first.
func TestServerFirst(t *testing.T) {
	w := newWorld(t, setup{backend: func(c *net.TCPConn) {
		io.WriteString(c, "220 hello\r\n")
		io.Copy(io.Discard, c)
	}})
	cert := w.client("anna@example.com")
	c := w.dial(cert, "echo.test")
	if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || line != "220 hello\r\n" {
		t.Errorf("raw: %q, %v", line, err)
	}
	s, _ := w.ask(w.mux(cert, "gw.test"), wire.Request{Kind: wire.KindFlow, Service: "echo"})
	if line, err := bufio.NewReader(s).ReadString('\n'); err != nil || line != "220 hello\r\n" {
		t.Errorf("mux: %q, %v", line, err)
	}
}
