package broker_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"sshbroker/broker/audit"
	"sshbroker/broker/eventlog"
	"sshbroker/capture"
	"sshbroker/capture/capturetest"
	"sshbroker/capture/service"
	"sshbroker/filter"
	"sshbroker/profiles"
)

// events has what b raises written to a file, and returns what waits for so many lines,
// without what stands before their numbers.
func events(t *testing.T, b *bench) func(n int) []string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "events.log")
	b.Events = eventlog.New(eventlog.Options{Logger: slog.New(slog.DiscardHandler), Strict: true})
	t.Cleanup(b.Events.Close)
	b.Events.Apply(eventlog.Routing{Targets: []eventlog.Target{{Type: eventlog.File, Path: path}}})
	return func(n int) []string {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
			text, _ := os.ReadFile(path)
			var list []string
			for line := range strings.Lines(string(text)) {
				_, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
				severity, rest, _ := strings.Cut(rest, ": ")
				_, severity, _ = strings.Cut(severity, ".")
				list = append(list, severity+" "+rest)
			}
			if len(list) >= n {
				return list
			}
			if time.Now().After(deadline) {
				t.Fatalf("%d events, want %d: %q", len(list), n, list)
			}
		}
	}
}

// Every flow tells of the decision, and of how it ended.
func TestFlowEvents(t *testing.T) {
	tunnel := filter.Rule{Action: filter.Tunnel, Profile: "gw", Source: "rules.xml:7", Number: 1}
	fallback := tunnel
	fallback.FallbackToPlain = true
	for _, c := range []struct {
		name   string
		rule   filter.Rule
		open   error
		change func(*bench, *capturetest.Attempt)
		want   []string // how each line begins
	}{
		{"tunnel", tunnel, nil, nil, []string{"informational 20200 Connector_filter_rule,", "informational 20210 Tunnel_opened,", "informational 20211 Tunnel_closed,"}},
		{"blocked", filter.Rule{Action: filter.Block}, nil, nil, []string{"informational 20200 ", "notice 20221 Connection_blocked,"}},
		{"direct", filter.Rule{Action: filter.Direct}, nil, nil, []string{"informational 20200 ", "informational 20220 Connection_direct,"}},
		{"not built", filter.Rule{Action: filter.FTPTunnel, Profile: "gw"}, nil, nil, []string{"informational 20200 ", "notice 20222 Connection_failed,"}},
		{"refused far away", tunnel, profiles.ErrRefused, nil, []string{"informational 20200 ", "warning 20212 Tunnel_failed,"}},
		{"no login", tunnel, profiles.ErrAuth, nil, []string{"informational 20200 ", "warning 20212 Tunnel_failed,"}},
		{"host key", fallback, profiles.ErrHostKey, nil, []string{"informational 20200 ", "warning 20212 Tunnel_failed,"}},
		{"fallback", fallback, profiles.ErrConnect, nil, []string{"informational 20200 ", "warning 20213 Tunnel_fallback,", "informational 20220 Connection_direct,"}},
		{"abandoned", tunnel, nil, func(_ *bench, a *capturetest.Attempt) { a.Abandoned = true },
			[]string{"informational 20200 ", "informational 20210 Tunnel_opened,", "informational 20224 Connection_abandoned,"}},
		{"limit", tunnel, fmt.Errorf("%w: %w", profiles.ErrConnect, syscall.EMFILE), nil, []string{"informational 20200 ", "warning 20230 Limit_reached,"}},
		{"unrecorded", tunnel, nil, func(b *bench, _ *capturetest.Attempt) { b.records.ready = audit.ErrCannotWrite }, []string{"notice 20222 Connection_failed,"}},
		{"handed over", tunnel, nil, func(b *bench, a *capturetest.Attempt) {
			p := *b.Policy()
			p.UserBrokers = true
			b.SetPolicy(&p)
			a.Carrier = func([]byte) (service.Handed, error) { return service.Handed{Outcome: service.HandAdmitted}, nil }
		}, []string{"informational 20200 ", "informational 20223 Connection_handed_over,"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, set(t, filter.Direct, c.rule))
			read := events(t, b)
			b.opener.err = c.open
			b.capture.WayOut = true
			a := capturetest.NewAttempt("203.0.113.7:23")
			a.CanPass = true
			a.At.Origin = func() capture.Origin { return capture.Origin{Known: true, PID: 12, Exe: "/opt/evil\nname, Rule: 9"} }
			if c.change != nil {
				c.change(b, a)
			}
			b.source.Offer(a)
			if a.Outcome().Admitted && !a.Abandoned {
				talk(t, a)
			}
			rec := <-b.records.ch
			lines := read(len(c.want))
			if len(lines) != len(c.want) {
				t.Fatalf("events %q", lines)
			}
			for i, want := range c.want {
				if !strings.HasPrefix(lines[i], want) {
					t.Errorf("event %q, want %q", lines[i], want)
				}
				for _, arg := range []string{", Capture: c1", ", Username: me", ", Src: ", ", Dst: 203.0.113.7:23"} {
					if !strings.Contains(lines[i], arg) {
						t.Errorf("%q lacks %q", lines[i], arg)
					}
				}
			}
			last := lines[len(lines)-1]
			for _, arg := range []string{`, Pid: 12, Program: "/opt/evil\nname, Rule: 9"`, ", Reason: " + rec.Reason.String(), ", Duration: 0."} {
				if !strings.Contains(last, arg) {
					t.Errorf("%q lacks %q", last, arg)
				}
			}
			if c.rule.Action == filter.Tunnel && len(lines) > 1 {
				want := ", Name: db.example, Rule: 1, Rule-source: rules.xml:7, Action: TUNNEL, Profile: gw, Server: u@gw.example:22, Destination: db.example:23"
				if rec.Reason == audit.HandedOver { // the owner's broker knows the login
					want = strings.Replace(want, "u@", "", 1)
				}
				if !strings.Contains(last, want) {
					t.Errorf("%q lacks %q", last, want)
				}
			}
			if c.name == "tunnel" && !strings.Contains(last, ", Bytes-up: 12, Bytes-down: 12") {
				t.Errorf("%q has other counts", last)
			}
		})
	}
}

// What a change of the routing says holds for flows that live already.
func TestEventsOfOldFlowsFollowARoutingChange(t *testing.T) {
	b := newBench(t, set(t, filter.Direct, filter.Rule{Action: filter.Tunnel, Profile: "gw"}))
	read := events(t, b)
	a := b.source.Offer(capturetest.NewAttempt("203.0.113.7:23"))
	if !a.Outcome().Admitted {
		t.Fatal("not admitted")
	}
	read(2)
	path := filepath.Join(t.TempDir(), "new.log")
	b.Events.Apply(eventlog.Routing{Rules: []eventlog.Rule{{Names: []string{"Tunnel_*"}, Severity: eventlog.Critical,
		Targets: []eventlog.Target{{Type: eventlog.File, Path: path}}}}})
	talk(t, a)
	<-b.records.ch
	b.Drain(context.Background())
	b.Events.Close()
	text, err := os.ReadFile(path)
	if err != nil || strings.Count(string(text), "\n") != 1 || !strings.Contains(string(text), "critical: 20211 Tunnel_closed") {
		t.Errorf("%q, %v", text, err)
	}
	if old := read(2); len(old) != 2 || slices.ContainsFunc(old, func(l string) bool { return strings.Contains(l, "Tunnel_closed") }) {
		t.Errorf("in the old file: %q", old)
	}
}
