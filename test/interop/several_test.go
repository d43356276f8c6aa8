package interop

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"sshbroker/test/netns"
)

// session is a captured program with one connection that answers whenever it is asked to.
type session struct {
	*netns.Process
	lines *os.File
	asked int
}

func (w *world) session(t *testing.T, port uint16) *session {
	t.Helper()
	r, lines, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	t.Cleanup(func() { lines.Close() })
	c := w.capture(w.Testprog, "exchange", "-nudge", "await", fmt.Sprintf("%s:%d", w.Inner.Addr4, port))
	c.Stdin = r
	s := &session{Process: w.Client.Start(t, c), lines: lines}
	s.WaitFor(t, "established")
	return s
}

// answers has a byte go there and back.
func (s *session) answers(t *testing.T) {
	t.Helper()
	if _, err := io.WriteString(s.lines, "\n"); err != nil {
		t.Fatal(err)
	}
	s.asked++
	s.WaitFor(t, strings.Repeat("answered\n", s.asked))
}

// awaitConnections waits until the broker has just these, as state and number.
func (w *world) awaitConnections(t *testing.T, want ...string) []connectionRow {
	t.Helper()
	for end := time.Now().Add(settle); ; time.Sleep(20 * time.Millisecond) { // the broker tells nobody
		var got []string
		rows := w.connections(t)
		for _, r := range rows {
			got = append(got, fmt.Sprintf("%s %d", r.State, r.Number))
		}
		if strings.Join(got, ", ") == strings.Join(want, ", ") {
			return rows
		}
		if time.Now().After(end) {
			t.Fatalf("connections are %q, want %q", got, want)
		}
	}
}

// TestSeveralConnections: captured programs share several connections to one server, each
// of which ends by itself; a reload that changes their number is for new flows.
func TestSeveralConnections(t *testing.T) {
	w := newBastionWorld(t, netns.SSHDOptions{})
	w.serveInside(t, w.Inner, 7001)
	w.serveInside(t, w.Inner, 7002)
	before := w.settled(t)
	configure := func(transports string) {
		w.configure(t, strings.Replace(w.tunnelAll(""), "<profile ", "<profile "+transports+" ", 1))
	}
	configure(`transports="2"`)

	first := w.session(t, 7001)
	w.awaitConnections(t, "connected 1", "connected 2")
	second := w.session(t, 7002)
	again := w.session(t, 7001) // a destination that was quiet so far
	rows := w.awaitConnections(t, "connected 1", "connected 2")
	if rows[0].Channels != 2 || rows[1].Channels != 1 {
		t.Errorf("connections are %+v", rows)
	}
	requireText(t, expect(t, w.ctl(t, "list-connections"), 0), "srv #2")
	requireText(t, expect(t, w.ctl(t, "connection-status", strconv.FormatUint(rows[1].ID, 10)), 0), fmt.Sprintf("to %s:7002", w.Inner.Addr4))

	expect(t, w.ctl(t, "close-connection", strconv.FormatUint(rows[1].ID, 10)), 0)
	second.WaitFor(t, "ended after 0 bytes: ECONNRESET")
	first.answers(t)
	again.answers(t)
	w.awaitConnections(t, "connected 1", "connected 2") // another one in its place

	configure("")
	expect(t, w.ctl(t, "reload"), 0)
	third := w.session(t, 7002)
	w.awaitConnections(t, "retired 1", "connected 0")
	first.answers(t)
	third.answers(t)
	first.lines.Close()
	again.lines.Close()
	w.awaitConnections(t, "disconnected 0", "connected 0")
	third.lines.Close()
	for _, s := range []*session{first, again, third} {
		expect(t, s.Wait(t), 0)
	}
	w.finish(t, before)
}
