package gateway

import (
	"fmt"
	"io"
	"strings"
	"testing"

	"sshbroker/broker/gateway/gatewaytest"
	"sshbroker/profiles/tlstun/wire"
)

// Each hostile request is answered with its status, or closed where it is none; each has
// one record, none reaches a backend, and the gateway serves on.
func TestHostileRequests(t *testing.T) {
	w := newWorld(t, setup{top: "limits: {connects_per_second: 10000}"})
	cert := w.client("anna@example.com")
	table := gatewaytest.Hostile()
	for i, h := range table {
		c := w.dial(cert, "web.test")
		if _, err := io.WriteString(c, h.Text); err != nil {
			t.Fatal(err)
		}
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(c)
		want := fmt.Sprintf("HTTP/1.1 %d ", h.Status)
		if h.Status == 0 {
			want = "HTTP/1.1 400 " // as the client listens still
		}
		if err != nil || !strings.HasPrefix(string(answer), want) || strings.Contains(string(answer), "HTTP/1.1 200") {
			t.Errorf("%q: answer %q, %v, want %q", h.Text, answer, err, want)
		}
		c.Close()
		number := uint64(i + 1)
		w.await(fmt.Sprintf("%q", h.Text), func(r record) bool { return r.Flow == number && r.Event == "refused" })
	}
	if records := w.records(); len(records) != len(table)+1 {
		t.Errorf("%d records of %d requests and the start", len(records), len(table))
	}
	if n := w.echo.accepted(); n != 0 {
		t.Errorf("the backend was connected to %d times", n)
	}
	c := w.dial(cert, "web.test")
	fmt.Fprintf(c, "CONNECT a.test:%d HTTP/1.1\r\nHost: x\r\n\r\n", w.echo.addr.Port())
	buf := make([]byte, 13)
	if _, err := io.ReadFull(c, buf); err != nil || string(buf) != "HTTP/1.1 200 " {
		t.Errorf("a good request afterwards: %q, %v", buf, err)
	}
}

// The same on a session: streams that say nothing sensible are answered or closed, and
// others of the same session go on.
func TestHostileStreams(t *testing.T) {
	w := newWorld(t, setup{top: "limits: {connects_per_second: 10000}"})
	session := w.mux(w.client("anna@example.com"), "gw.test")
	live, a := w.ask(session, wire.Request{Kind: wire.KindFlow, Service: "echo"})
	if a.Status != wire.OK {
		t.Fatal(a)
	}
	for _, text := range []string{"", "\x00", "\x00\x00", "\xff\xff", "\x00\x01\x01", "\x00\x01\x02", "\x00\x02\x01\x07", "GET / HTTP/1.1\r\n\r\n", "\x00\x09\x01\x01\x00\x50\xff\xffaaaa", strings.Repeat("\x00", 5000)} {
		ys, err := session.Open()
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(ys, text)
		ys.Close()
		if a, err := wire.ReadAnswer(ys); err != nil || a.Status != wire.BadRequest {
			t.Errorf("%q: %+v, %v", text, a, err)
		}
		w.echoes(live, "still here")
	}
	if n := w.echo.accepted(); n != 1 {
		t.Errorf("the backend was connected to %d times", n)
	}
}
