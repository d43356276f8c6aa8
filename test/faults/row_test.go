package faults

import (
	"cmp"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"sshbroker/broker/control"
)

// fault is what is done to a world, and undone.
type fault struct {
	name   string
	detail string // for the document
	group  group  // "": usual
	young  bool   // comes soon after login, not ten seconds after it
	lives  bool   // whether the live flow outlives it

	prepare func(*testing.T, *world) // before anything is captured; nil: nothing
	strike  func(*testing.T, *world)
	await   func(*testing.T, *world) // between the fault and the programs that connect; nil: nothing
	over    func(*testing.T, *world)
}

// row is what was seen, in the words of the document.
type row struct {
	fault string

	// What programs see.
	connect string // with a rule without fallback
	loose   string // with fallback-to-plain
	live    string
	after   string // connect(), when the fault is over

	// What the user is told.
	record      string // of the connect
	liveRecord  string
	connections string // ssh-broker-ctl list-connections
	status      string // ssh-broker-ctl status
}

// observe does the fault to a world of its own.
func observe(t *testing.T, f fault) row {
	w := newWorld(t)
	if f.prepare != nil {
		f.prepare(t, w)
	}
	w.begin(t)
	if !f.young {
		w.age(t)
	}
	requireServed(t, w, "before")

	r := row{fault: f.name}
	f.strike(t, w)
	struck := time.Now()
	ended := make(chan time.Duration, 1)
	go func() {
		if _, err := awaitText(w.live.Done(), w.live.Stdout, "ended after"); err == nil {
			ended <- time.Since(struck)
		}
		close(ended)
	}()
	if f.await != nil {
		f.await(t, w)
	}
	strict, loose := w.try(t, "meanwhile")
	failed := time.Now()
	r.connect, r.loose = described(strict), described(loose)
	if loose.clear {
		r.loose += ", in clear"
	}
	if !f.lives {
		took := <-ended
		r.live = howEnded(t, w) + within(took)
	}
	r.connections, r.status = w.connections(t), w.status(t)

	f.over(t, w)
	rest := w.awaitRest(t, failed)
	requireServed(t, w, "afterwards")
	r.after = "connects" + rest
	if f.lives {
		r.live = w.nudge(t)
	}
	w.nudges.Close()
	w.live.Wait(t)
	w.typing.Close()
	w.shell.Wait(t)
	w.stopBroker(t) // everything is recorded then
	r.record = recordOf(t, beforeLast(w.records(t, strictPort)))
	if live := w.records(t, livePort); len(live) > 0 {
		r.liveRecord = recordOf(t, live[0])
	} else {
		r.liveRecord = "none"
	}
	if _, known, ok := strings.Cut(r.connections, ": "); ok && strings.HasSuffix(r.record, known) {
		r.connections = strings.Replace(r.connections, ": "+known, ", with that error", 1)
	}
	fell := beforeLast(w.records(t, loosePort)).Reason == "fallback"
	if fell != loose.clear || fell && !loose.served() {
		t.Errorf("recorded as fallback %t, seen on the wire %t: %+v", fell, loose.clear, loose)
	}
	return r
}

// requireServed has both rules carry what is sent, in the tunnel.
func requireServed(t *testing.T, w *world, word string) {
	t.Helper()
	strict, loose := w.try(t, word)
	if !strict.served() || !loose.served() || loose.clear {
		t.Fatalf("%s the fault: %+v, with fallback %+v", word, strict, loose)
	}
}

// described is one attempt in words.
func described(c tried) string {
	what := c.outcome
	switch {
	case c.outcome == "ok" && c.echoed == "ok":
		what = "connects"
	case c.outcome == "ok":
		what = "connects, then " + c.echoed
	}
	return what + within(c.took)
}

// The classes of times. What takes no time limit is over long before the first one; what
// takes one, or one after the other, before they all have passed twice.
const (
	atOnce = keepalive * 5 / 2
	limits = 2 * (aliveLimit + connectLimit)
)

func within(took time.Duration) string {
	switch {
	case took < atOnce:
		return " at once"
	case took < limits:
		return " after time limits"
	case took > time.Minute && took < 4*time.Minute:
		return " after some minutes"
	}
	return fmt.Sprintf(" after %v", took) // which is in no document
}

// howEnded is how the live flow ended.
func howEnded(t *testing.T, w *world) string {
	t.Helper()
	_, how, ok := strings.Cut(w.live.Stdout(), "ended after ")
	if !ok {
		t.Fatalf("the live flow has not ended: %s", w.live.Output())
	}
	_, how, _ = strings.Cut(strings.SplitN(how, "\n", 2)[0], ": ")
	return how
}

// nudge proves that the live flow lives.
func (w *world) nudge(t *testing.T) string {
	t.Helper()
	before := strings.Count(w.live.Stdout(), "answered")
	if _, err := w.nudges.WriteString("\n"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "an answer on the live flow", func() bool { return strings.Count(w.live.Stdout(), "answered") > before })
	return "goes on"
}

// awaitText waits for a text, or for the end of who is to say it.
func awaitText(done <-chan struct{}, said func() string, text string) (string, error) {
	for end := time.After(5 * time.Minute); ; {
		if s := said(); strings.Contains(s, text) {
			return s, nil
		}
		select {
		case <-done:
			if s := said(); strings.Contains(s, text) {
				return s, nil
			}
			return "", fmt.Errorf("it ended without %q", text)
		case <-end:
			return "", fmt.Errorf("no %q", text)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// told is the one row of a command of ssh-broker-ctl, or what it says in place of one.
func told[Row any](t *testing.T, w *world, command string) (row Row, instead string) {
	t.Helper()
	switch r := w.ctl(t, command, "-s"); {
	case r.Code != 0:
		return row, fmt.Sprintf("exit %d", r.Code) + said(strings.TrimPrefix(strings.TrimSpace(r.Stderr), "ssh-broker-ctl: "))
	case strings.TrimSpace(r.Stdout) == "":
		return row, "none"
	default:
		if err := json.Unmarshal([]byte(r.Stdout), &row); err != nil {
			t.Fatalf("%s: %v: %s", command, err, r.Stdout)
		}
		return row, ""
	}
}

// connections is what ssh-broker-ctl list-connections says of the one way out.
func (w *world) connections(t *testing.T) string {
	t.Helper()
	c, instead := told[control.ConnectionRow](t, w, "list-connections")
	if instead != "" {
		return instead
	}
	if c.State == "disconnected" && !c.RetryAt.IsZero() {
		c.State = "resting" // a moment ago
	}
	return "`" + c.State + "`" + said(c.LastError)
}

// status is what ssh-broker-ctl status says beside that it runs.
func (w *world) status(t *testing.T) string {
	t.Helper()
	s, instead := told[control.StatusRow](t, w, "status")
	switch {
	case instead != "":
		return instead
	case s.Audit.Error == "":
		return "as ever"
	case s.Audit.Pending == 0:
		return "no record waits" + said(s.Audit.Error)
	}
	return "records wait" + said(s.Audit.Error)
}

// awaitRest waits until the way out may be tried again, and tells how long after a failure
// that was to be.
func (w *world) awaitRest(t *testing.T, failed time.Time) string {
	t.Helper()
	var until time.Time
	eventually(t, "a way out that does not rest", func() bool {
		rows, ok := ask[control.ConnectionRow](t, w, control.OpConnections)
		if ok && len(rows) == 1 {
			until = rows[0].RetryAt
		}
		return ok && !slices.ContainsFunc(rows, func(c control.ConnectionRow) bool { return c.State == "resting" })
	})
	switch {
	case until.IsZero():
		return ""
	case until.Sub(failed) < 5*time.Second:
		return " after a rest of seconds"
	}
	return " after a rest of 15 s"
}

// beforeLast is the record of the attempt that came before the last one.
func beforeLast(list []record) record {
	if len(list) < 2 {
		return record{Reason: "not recorded"}
	}
	return list[len(list)-2]
}

// recordOf is what the audit record says of one flow.
func recordOf(t *testing.T, r record) string {
	t.Helper()
	what := "`" + r.Reason + "`"
	if r.DownEnd != "" && r.DownEnd != "eof" {
		what += ", `down_end` `" + r.DownEnd + "`"
	}
	return what + said(r.Error)
}

// said is the first clause of an error's text, without what is another one in every run.
func said(text string) string {
	if text == "" {
		return ""
	}
	for _, r := range replaced {
		text = r.pattern.ReplaceAllString(text, r.by)
	}
	first, _, more := strings.Cut(strings.SplitN(strings.TrimSpace(text), "\n", 2)[0], "; ")
	if more {
		first += "; ..."
	}
	return ": " + first
}

var replaced = []struct {
	pattern *regexp.Regexp
	by      string
}{
	{regexp.MustCompile(`(10\.99\.1\.1|192\.0\.0\.8):\d+`), "CLIENT"},
	{regexp.MustCompile(`10\.99\.1\.2(:\d+)?`), "SERVER"},
	{regexp.MustCompile(`SHA256:[A-Za-z0-9+/]+`), "SHA256:..."},
	{regexp.MustCompile(`/[^ ]*/sshbroker-net-\d+/alice/`), "~/"},
	{regexp.MustCompile(`alice\d+`), "USER"},
	{regexp.MustCompile(` \(next attempt in [^)]*\)`), ""},
	// The kernel and the keepalives look at the same time; either may be first.
	{regexp.MustCompile(`no sign of life (for \S+|within 5s, after a change of the network or a sleep)|read tcp CLIENT->SERVER: read: (connection timed out|network is unreachable|no route to host)`), "(no sign of life)"},
	// What a dying server had not read yet makes the difference.
	{regexp.MustCompile(`EOF|read tcp CLIENT->SERVER: read: connection reset by peer`), "(ended by the server)"},
}

// cell is text that may stand in a table.
func cell(text string) string {
	return strings.ReplaceAll(cmp.Or(text, "–"), "|", `\|`)
}
