package gateway

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	"sshbroker/broker/gateway/gatewaytest"
	"sshbroker/profiles/tlstun/wire"
)

// stuck is a client that asks and reads nothing, until the gateway cannot answer any more.
// It speaks yamux by itself, as the library would read.
type stuck struct {
	conn *tls.Conn
	next uint32
}

func newStuck(w *world, cert tls.Certificate) *stuck {
	conn := w.dial(cert, "gw.test", wire.ALPN)
	conn.SetDeadline(time.Time{})
	return &stuck{conn: conn, next: 1}
}

// ask begins streams, with a request for the list of services in each.
func (s *stuck) ask(t testing.TB, n int) {
	t.Helper()
	var request bytes.Buffer
	if err := wire.WriteRequest(&request, wire.Request{Kind: wire.KindServices}); err != nil {
		t.Fatal(err)
	}
	var out []byte
	for range n {
		out = append(append(out, frame(0, 1, s.next, request.Len())...), request.Bytes()...)
		s.next += 2
	}
	if _, err := s.conn.Write(out); err != nil {
		t.Fatal(err)
	}
}

func frame(kind byte, flags uint16, stream uint32, length int) []byte {
	b := binary.BigEndian.AppendUint16([]byte{0, kind}, flags)
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(b, stream), uint32(length))
}

// fill has the gateway's answers fill all room there is.
func (s *stuck) fill(w *world) {
	w.t.Helper()
	before, same := -1, 0
	for end := time.Now().Add(patience); time.Now().Before(end); <-time.After(5 * time.Millisecond) {
		s.ask(w.t, 20)
		n := w.begun()
		if same++; n == 0 || n != before {
			before, same = n, 0
		}
		if same == 40 { // nothing is taken on any more, and nothing ends
			return
		}
	}
	w.t.Fatal("all answers get out")
}

// begun is how many streams are being served.
func (w *world) begun() int {
	w.gw.mu.Lock()
	defer w.gw.mu.Unlock()
	n := 0
	for c := range w.gw.clients {
		c.mu.Lock()
		n += len(c.flows)
		c.mu.Unlock()
	}
	return n
}

// awaitGone waits until no client is left.
func (w *world) awaitGone() {
	w.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); <-time.After(5 * time.Millisecond) {
		w.gw.mu.Lock()
		n := len(w.gw.clients)
		w.gw.mu.Unlock()
		if n == 0 {
			return
		}
	}
	w.t.Error("a client is left")
}

// manyServices is a list of services that takes some room.
func manyServices() string {
	var text strings.Builder
	text.WriteString("services:\n")
	for n := range 100 {
		fmt.Fprintf(&text, "  - {name: s%d, description: %q, backend: {target: {name: 192.0.2.1, port: 1}}, any_certificate: true}\n", n, strings.Repeat("x", 1000))
	}
	return text.String() + "# %[1]s %[2]d %[3]d\n"
}

// A client that reads nothing keeps neither a reload nor the gateway's end waiting.
func TestStuckClient(t *testing.T) {
	for what, end := range map[string]func(*testing.T, *world, tls.Certificate){
		"revocation": func(t *testing.T, w *world, anna tls.Certificate) {
			gatewaytest.Write(t, w.dir, "ca.crl", w.ca.List(nil, anna.Leaf))
			if err := w.gw.refresh(); err != nil {
				t.Error(err)
			}
			w.awaitLog("client ended")
			w.awaitGone()
		},
		"end": func(t *testing.T, w *world, _ tls.Certificate) {
			w.gw.Stop(time.Millisecond)
			if err := w.stopped(); err != nil {
				t.Error(err)
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, setup{services: manyServices(), top: "limits: {connects_per_second: 100000, flows_per_identity: 4000}"})
			anna := w.client("anna@example.com")
			newStuck(w, anna).fill(w)
			end(t, w, anna)
		})
	}
}
