package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"sshbroker/broker/control"
)

func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case control.BrokerProgram:
		os.Exit(playBroker(os.Args[1:]))
	case "ssh-capture":
		os.Exit(playCapture(os.Args[1:]))
	}
	goleak.VerifyTestMain(m)
}

// playBroker is as much of an ssh-broker as start and stop need. Its arguments are
// those of control.Start: --ready-fd=3 -a ADDRESS [-f FILE].
func playBroker(args []string) int {
	const ready = 3
	ln, err := control.Listen(args[slices.Index(args, "-a")+1])
	if err != nil {
		_ = control.NotifyFailed(ready, err)
		return 1
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s := control.NewServer(slog.New(slog.DiscardHandler))
	s.Handle(control.OpStatus, rows(control.StatusRow{PID: os.Getpid(), Mode: control.ModeDaemon}))
	s.Handle(control.OpStop, func(context.Context, *control.Call) error { cancel(); return nil })
	if err := control.NotifyReady(ready); err != nil {
		return 1
	}
	if err := s.Serve(ctx, ln); err != nil {
		return 1
	}
	return 0
}

// fakeBroker serves what setup puts into it, and returns its address.
func fakeBroker(t *testing.T, setup func(s *control.Server, stop func())) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ctl")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	ln, err := control.Listen(filepath.Join(dir, "broker"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := control.NewServer(slog.New(slog.DiscardHandler))
	setup(s, cancel)
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return ln.Address()
}

// shared is a value that a handler of the fake broker and the test both use.
type shared[T any] struct {
	mu sync.Mutex
	v  T
}

func (s *shared[T]) set(v T) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.v = v
}

func (s *shared[T]) get() T {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.v
}

// rows answers an operation with fixed rows.
func rows[Row any](list ...Row) control.Handler {
	return func(_ context.Context, c *control.Call) error {
		for _, r := range list {
			if err := c.Send(r); err != nil {
				return err
			}
		}
		return nil
	}
}

// ctl runs the program against the broker at address.
func ctl(t *testing.T, address string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), append([]string{"-a", address}, args...), strings.NewReader(""), &out, &errs)
	return code, out.String(), errs.String()
}

// wants fails unless every one of want is in text.
func wants(t *testing.T, text string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("%q is missing in:\n%s", w, text)
		}
	}
}

var since = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

var statusRow = control.StatusRow{
	PID: 4711, Version: "1.2.3", Since: since, Address: "/run/user/1000/ssh-broker/broker", Mode: control.ModeOnDemand,
	ConfigFiles: []string{"/etc/ssh2/ssh-broker-config.xml", "/home/ann/.ssh2/ssh-broker-config.xml"}, Generation: 3,
	Warnings: []string{"a.xml:3:1: warning: odd"}, Captures: 2, FlowsLive: 5, FlowsTotal: 99,
	Audit: control.AuditStatus{Path: "/home/ann/audit.log", Written: 94, Failed: 2}, HeldSYN: true,
	Log:    []control.LogTarget{{Target: "file /home/ann/events.log", Written: 7}, {Target: "syslog", Written: 1, Pending: 3, Lost: 2, Error: "no syslogd"}},
	Memory: 25_400_000, Goroutines: 31, FDs: 17,
}

func TestStatus(t *testing.T) {
	address := fakeBroker(t, func(s *control.Server, _ func()) { s.Handle(control.OpStatus, rows(statusRow)) })

	code, out, errs := ctl(t, address, "status", "--time-format=%s")
	if code != exitDone || errs != "" {
		t.Errorf("code %d, %s", code, errs)
	}
	wants(t, out, "process 4711, on demand", "1.2.3", fmt.Sprint(since.Unix()), "/etc/ssh2/ssh-broker-config.xml (reloaded 2 times)",
		"/home/ann/.ssh2", "odd", "held: connect()", "5 live, 99 in all", "94 records, 2 COULD NOT BE WRITTEN",
		"events         file /home/ann/events.log, 7 events\n               syslog, 1 events, 2 LOST, 3 WAIT: no syslogd\n")
	if strings.Contains(out, "memory") {
		t.Errorf("without -v:\n%s", out)
	}
	_, out, _ = ctl(t, address, "-v", "status")
	wants(t, out, "25.4 MB", "31", "17")

	for _, args := range [][]string{{"status", "-s"}, {"-s", "status"}, {"status", "--short"}} {
		_, out, _ = ctl(t, address, args...)
		var got control.StatusRow
		if err := json.Unmarshal([]byte(out), &got); err != nil || got.PID != 4711 || !got.Since.Equal(since) || strings.Count(out, "\n") != 1 {
			t.Errorf("%v: %v\n%s", args, err, out)
		}
	}
	if code, out, errs := ctl(t, address, "status", "--pid"); code != 0 || out != "4711\n" || errs != "" {
		t.Errorf("--pid: %d %q %q", code, out, errs)
	}
	if code, out, errs := ctl(t, address, "status", "-q"); code != 0 || out != "" || errs != "" {
		t.Errorf("-q: %d %q %q", code, out, errs)
	}
}

// TestStatusOfPlace has everything that status says of generations and networks.
func TestStatusOfPlace(t *testing.T) {
	for _, tt := range []struct {
		networks, problem string
		want              string
	}{
		{"office=yes vpn=yes home=no", "", "office, vpn; not on home\n"},
		{"office=no", "", "none; not on office\n"},
		{"office=unknown home=no", "no socket", "none; not on home; NOT KNOWN of office: no socket\n"},
	} {
		row := statusRow
		row.PlaceError = tt.problem
		for text := range strings.FieldsSeq(tt.networks) {
			id, on, _ := strings.Cut(text, "=")
			row.Networks = append(row.Networks, control.NetworkStatus{ID: id, On: on})
		}
		row.Generations = []control.GenerationStatus{{Generation: 1, Since: since, Flows: 2, Captures: 1}, {Generation: 2, Since: since, Captures: 3}, {Generation: row.Generation, Since: since, Flows: 7}}
		address := fakeBroker(t, func(s *control.Server, _ func()) { s.Handle(control.OpStatus, rows(row)) })
		_, out, _ := ctl(t, address, "status", "--time-format=%s")
		of := fmt.Sprintf("the one of %d: ", since.Unix())
		wants(t, out, "on networks", tt.want, of+"2 connections and 1 capture still\n", of+"3 captures still\n")
		if strings.Contains(out, "7 connections") {
			t.Errorf("the configuration in force is listed among the old ones:\n%s", out)
		}
	}
}

func TestNoBroker(t *testing.T) {
	address := filepath.Join(t.TempDir(), "b")
	for _, command := range []string{"status", "stop", "reload", "list-connections", "list-channels"} {
		code, out, errs := ctl(t, address, command)
		if code != exitNoBroker || out != "" {
			t.Errorf("%s: %d %q", command, code, out)
		}
		wants(t, errs, address, "no broker is running", "hint: ")
	}
	if code, _, _ := ctl(t, address, "explain", "h", "1"); code != exitNoBroker {
		t.Errorf("explain: %d", code)
	}
	if code, out, errs := ctl(t, address, "status", "-q"); code != exitNoBroker || out+errs != "" {
		t.Errorf("status -q: %d %q %q", code, out, errs)
	}
}

func TestUsage(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want string
	}{
		{nil, "no command given"},
		{[]string{"statsu"}, "did you mean status?"},
		{[]string{"help", "nonsense"}, `no command "nonsense"`},
		{[]string{"status", "now"}, `"now" is one argument too many`},
		{[]string{"status", "--nonsense"}, "unknown flag: --nonsense"},
		{[]string{"--nonsense", "status"}, "unknown flag"},
		{[]string{"-a"}, "-a"},
		{[]string{"check-config"}, "FILE is missing"},
		{[]string{"explain", "host"}, "PORT is missing"},
		{[]string{"explain", "host", "0"}, "not a port"},
		{[]string{"explain", "host", "70000"}, "not a port"},
		{[]string{"explain", "host", "no-such-service"}, "not a port"},
		{[]string{"stop", "--drain", "-1s"}, "from 0 on"},
		{[]string{"stop", "--drain", "soon"}, "soon"},
		{[]string{"status", "--time-format", "%Q"}, "%Q is not supported"},
		{[]string{"-e", "ebcdic", "status"}, "ebcdic"},
		{[]string{"--system", "-a", "x", "status"}, "--system and -a: use one of the two"},
		{[]string{"--system", "start"}, "systemctl start ssh-broker-system"},
		{[]string{"--system", "capture", "--pid", "1"}, "leave out --system"},
		{[]string{"capture"}, "--pid PID is missing"},
		{[]string{"capture", "--pid", "0"}, "--pid 0: not the number of a process"},
		{[]string{"capture", "--pid", "1", "sleep"}, `"sleep" is one argument too many`},
		{[]string{"connector"}, "enable, disable or status is missing"},
		{[]string{"connector", "on"}, `"on" is not one of enable, disable, status`},
		{[]string{"connector", "status", "now"}, `"now" is one argument too many`},
	} {
		var out, errs bytes.Buffer
		if code := run(t.Context(), tc.args, nil, &out, &errs); code != exitUsage || out.Len() > 0 {
			t.Errorf("%v: code %d, %q", tc.args, code, out.String())
		}
		wants(t, errs.String(), "ssh-broker-ctl: ", tc.want)
		if n := strings.Count(errs.String(), "\n"); n != 1 {
			t.Errorf("%v: %d lines:\n%s", tc.args, n, errs.String())
		}
	}
}

func TestHelp(t *testing.T) {
	commands := []string{"start", "stop", "status", "reload", "list-connections", "list-channels", "capture", "check-config", "explain", "config-value", "rule", "connector"}
	var out, errs bytes.Buffer
	if code := run(t.Context(), []string{"--help"}, nil, &out, &errs); code != exitDone || errs.Len() > 0 {
		t.Errorf("code %d, %s", code, errs.String())
	}
	wants(t, out.String(), append(commands, "Exit codes: 0", "--broker-address PATH", "Examples:")...)
	if strings.Contains(out.String(), "completion") {
		t.Error("the completion command shows")
	}
	for _, command := range commands {
		out.Reset()
		if code := run(t.Context(), []string{command, "--help"}, nil, &out, &errs); code != exitDone {
			t.Errorf("%s: code %d", command, code)
		}
		wants(t, out.String(), "Usage: ssh-broker-ctl "+command, "Examples:", "General options:", "--broker-address PATH")
		long := out.String()
		out.Reset()
		if code := run(t.Context(), []string{"help", command}, nil, &out, &errs); code != exitDone || out.String() != long {
			t.Errorf("help %s: code %d, %s", command, code, out.String())
		}
	}
	for _, option := range []string{"-V", "--version"} {
		out.Reset()
		if code := run(t.Context(), []string{option}, nil, &out, &errs); code != exitDone || out.String() != "ssh-broker-ctl "+control.Version()+"\n" {
			t.Errorf("%s: %d %q", option, code, out.String())
		}
	}
}

func TestReload(t *testing.T) {
	var answer shared[control.Handler]
	answer.set(rows(control.ReloadResult{Generation: 4, Changed: true, Warnings: []string{"a.xml:9:2: warning: rule: odd"}}))
	address := fakeBroker(t, func(s *control.Server, _ func()) {
		s.Handle(control.OpReload, func(ctx context.Context, c *control.Call) error { return answer.get()(ctx, c) })
	})
	code, out, _ := ctl(t, address, "reload")
	if code != exitDone {
		t.Errorf("code %d", code)
	}
	wants(t, out, "a.xml:9:2: warning: rule: odd\n", "configuration 4: the new one is in force")
	if _, out, _ := ctl(t, address, "reload", "-s"); !strings.Contains(out, `"generation":4`) {
		t.Error(out)
	}
	if _, out, _ := ctl(t, address, "reload", "-q"); out != "" {
		t.Error(out)
	}
	answer.set(func(context.Context, *control.Call) error {
		return &control.Error{Code: control.CodeConfig, Message: "a.xml:3:7: rule: no such action\na.xml:4:1: rule: no", Hint: "the old configuration stays"}
	})
	code, out, errs := ctl(t, address, "reload")
	if code != exitFailed || out != "" {
		t.Errorf("a bad file: %d %q", code, out)
	}
	wants(t, errs, "a.xml:3:7: rule: no such action\na.xml:4:1: rule: no\n", "hint: the old configuration stays")
}

func TestStop(t *testing.T) {
	var drain shared[int64]
	address := fakeBroker(t, func(s *control.Server, stop func()) {
		s.Handle(control.OpStop, func(_ context.Context, c *control.Call) error {
			var args control.StopArgs
			if err := c.Decode(&args); err != nil {
				return err
			}
			drain.set(args.DrainMS)
			return errors.New("not today") // this process is the broker: it cannot end
		})
	})
	code, _, errs := ctl(t, address, "stop", "--drain", "1m30s")
	if code != exitFailed || drain.get() != 90_000 {
		t.Errorf("code %d, drain %d", code, drain.get())
	}
	wants(t, errs, "not today")
}

// A broker that is about to end anyhow, as nobody needed it any more, is waited for.
func TestStopOfOneThatStops(t *testing.T) {
	address := fakeBroker(t, func(s *control.Server, _ func()) {
		s.Handle(control.OpStop, func(context.Context, *control.Call) error {
			return &control.Error{Code: control.CodeStopping, Message: "the broker is stopping"}
		})
	})
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("seen enough")
	time.AfterFunc(300*time.Millisecond, func() { cancel(enough) }) // this process is the broker: it does not end
	a := &app{out: &output{w: io.Discard}, address: address, getenv: os.Getenv}
	if err := a.stop(ctx, 0); !errors.Is(err, enough) {
		t.Errorf("%v, want to be waiting", err)
	}
}

func TestStartWhereOneRuns(t *testing.T) {
	var stayed shared[int]
	var mode shared[control.Mode]
	mode.set(control.ModeOnDemand)
	address := fakeBroker(t, func(s *control.Server, _ func()) {
		s.Handle(control.OpStatus, func(_ context.Context, c *control.Call) error { return c.Send(control.StatusRow{Mode: mode.get()}) })
		s.Handle(control.OpStay, func(context.Context, *control.Call) error {
			stayed.set(stayed.get() + 1)
			mode.set(control.ModeDaemon)
			return nil
		})
	})
	a := &app{out: &output{w: new(bytes.Buffer)}, address: address, getenv: os.Getenv}
	out := a.out.w.(*bytes.Buffer)
	if err := a.stay(t.Context(), ""); err != nil || stayed.get() != 1 {
		t.Errorf("%v, %d", err, stayed.get())
	}
	wants(t, out.String(), "ran on demand and stays now")
	out.Reset()
	if err := a.stay(t.Context(), ""); err != nil || stayed.get() != 1 {
		t.Errorf("%v, %d", err, stayed.get())
	}
	wants(t, out.String(), "runs already")
	if err := a.stay(t.Context(), "other.xml"); err == nil || !strings.Contains(err.Error(), "other.xml was not read") {
		t.Errorf("with a file: %v", err)
	}
}

// A real process, from start to stop.
func TestStartAndStop(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	if err := os.Symlink(self, filepath.Join(bin, control.BrokerProgram)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin)
	dir := t.TempDir()
	address := filepath.Join(dir, "b")
	t.Cleanup(func() { // it is stopped below, unless the test fails before
		run(context.Background(), []string{"-a", address, "stop"}, nil, io.Discard, io.Discard)
	})
	code, out, errs := ctl(t, address, "start")
	if code != exitDone || !strings.HasPrefix(out, "broker started, process ") {
		t.Fatalf("start: %d %q %q", code, out, errs)
	}
	if code, out, errs := ctl(t, address, "start"); code != exitDone || !strings.HasPrefix(out, "the broker runs already, process ") {
		t.Errorf("start again: %d %q %q", code, out, errs)
	}
	if code, _, errs := ctl(t, address, "start", "-f", "x.xml"); code != exitFailed || !strings.Contains(errs, "not read") {
		t.Errorf("start with a file: %d %q", code, errs)
	}
	_, pid, _ := ctl(t, address, "status", "--pid")
	if code, out, errs := ctl(t, address, "stop"); code != exitDone || out != "broker stopped, process "+pid {
		t.Errorf("stop: %d %q %q", code, out, errs)
	}
	// It is gone by now, not just told to go.
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if code, _, _ := ctl(t, address, "stop"); code != exitNoBroker {
		t.Errorf("stop again: %d", code)
	}
}

func TestStartFindsNoBroker(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	code, _, errs := ctl(t, filepath.Join(t.TempDir(), "b"), "start")
	if code != exitFailed {
		t.Errorf("code %d", code)
	}
	wants(t, errs, "neither beside this program nor on PATH")
}

var connectionRows = []control.ConnectionRow{
	{ID: 1, Profile: "gw", Server: "bastion.example.com:22", User: "ann", HostKey: "ssh-ed25519 SHA256:abc", Cipher: "aes128-gcm@openssh.com",
		Since: since, Channels: 2, BytesUp: 1_234_567, BytesDown: 999, State: "up", Via: "outer"},
	{ID: 12, Server: "[2001:db8::1]:2222", User: "ann", State: "waiting", LastError: "dial: refused\x1b[2J", RetryAt: since},
	{ID: 13, Profile: "gw", Number: 2, Bulk: true, Server: "bastion.example.com:22", User: "ann", State: "connected"},
}

var channelRows = []control.ChannelRow{
	{ID: 7, Connection: 1, Capture: "ab12", Program: "/usr/bin/psql", PID: 42, Src: "10.0.0.1:5000", Dst: "198.18.0.3:5432", Name: "db.internal",
		Rule: "2 (a.xml:9)", Action: "TUNNEL", Profile: "gw", Since: since, BytesUp: 10, BytesDown: 20, State: "carried"},
	{ID: 8, Capture: "ab12", Dst: "[2001:db8::2]:80", Rule: "default", Action: "DIRECT", Since: since, State: "carried"},
}

func listsBroker(t *testing.T) string {
	return fakeBroker(t, func(s *control.Server, _ func()) {
		s.Handle(control.OpConnections, rows(connectionRows...))
		s.Handle(control.OpChannels, rows(channelRows...))
	})
}

func TestListConnections(t *testing.T) {
	address := listsBroker(t)
	code, out, _ := ctl(t, address, "list-connections")
	if code != exitDone {
		t.Errorf("code %d", code)
	}
	lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	if len(lines) != 5 || !strings.HasPrefix(lines[0], "ID  SERVER") || !strings.HasPrefix(lines[1], " 1  bastion.example.com:22  ann") {
		t.Errorf("got\n%s", out)
	}
	wants(t, out, "1.23 MB", "999 B", "[2001:db8::1]:2222", "last error: dial: refused?[2J; next try ", "gw #2    connected, bulk")
	if strings.Contains(out, "\x1b") {
		t.Error("an escape reached the terminal")
	}
	_, out, _ = ctl(t, address, "list-connections", "-c")
	wants(t, out, "channel 7: psql[42] to db.internal:5432, 10 B up, 20 B down")
	_, out, _ = ctl(t, address, "list-connections", "-v")
	wants(t, out, "SHA256:abc", "aes128-gcm", "through profile outer")

	_, out, _ = ctl(t, address, "list-connections", "-s", "--show-channels")
	lines = strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	var got []connectionWithChannels
	for _, l := range lines {
		var row connectionWithChannels
		if err := json.Unmarshal([]byte(l), &row); err != nil {
			t.Fatalf("%v: %s", err, l)
		}
		got = append(got, row)
	}
	if len(got) != 3 || got[0].Server != connectionRows[0].Server || len(got[0].Channels) != 1 || got[0].Channels[0].ID != 7 || got[1].Channels == nil {
		t.Errorf("got %+v", got)
	}
}

func TestListChannels(t *testing.T) {
	address := listsBroker(t)
	_, out, _ := ctl(t, address, "list-channels")
	wants(t, out, "psql[42]", "db.internal:5432", "2 (a.xml:9)", "TUNNEL", "[2001:db8::2]:80", "DIRECT")
	_, out, _ = ctl(t, address, "list-channels", "-v")
	wants(t, out, "/usr/bin/psql", "198.18.0.3:5432")
	_, out, _ = ctl(t, address, "list-channels", "-s")
	if n := strings.Count(out, "\n"); n != 2 || !strings.Contains(out, `"dst":"198.18.0.3:5432"`) {
		t.Errorf("%d lines:\n%s", n, out)
	}
}

func TestEmptyLists(t *testing.T) {
	address := fakeBroker(t, func(s *control.Server, _ func()) {
		s.Handle(control.OpConnections, rows[int]())
		s.Handle(control.OpChannels, rows[int]())
	})
	for _, command := range []string{"list-connections", "list-channels"} {
		if code, out, _ := ctl(t, address, command); code != exitDone || !strings.HasPrefix(out, "no ") {
			t.Errorf("%s: %d %q", command, code, out)
		}
		for _, option := range []string{"-s", "-q"} {
			if code, out, _ := ctl(t, address, command, option); code != exitDone || out != "" {
				t.Errorf("%s %s: %d %q", command, option, code, out)
			}
		}
	}
}

func TestTableIsCutToTheTerminal(t *testing.T) {
	var b bytes.Buffer
	a := &app{out: &output{w: &b}, width: 30, timeFormat: "%F"}
	a.connectionTable(connectionRows, nil)
	for line := range strings.Lines(b.String()) {
		if n := len([]rune(strings.TrimSuffix(line, "\n"))); n > 30 {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	a.wide = true
	b.Reset()
	a.connectionTable(connectionRows, nil)
	wants(t, b.String(), "2026-03-04")
}

func TestExplain(t *testing.T) {
	var asked shared[control.ExplainArgs]
	address := fakeBroker(t, func(s *control.Server, _ func()) {
		s.Handle(control.OpExplain, func(ctx context.Context, c *control.Call) error {
			var args control.ExplainArgs
			if err := c.Decode(&args); err != nil {
				return err
			}
			asked.set(args)
			if args.Host == "broken" {
				return nil
			}
			return rows(
				control.ExplainRow{Step: &control.ExplainStep{Rule: 1, Source: "a.xml:3", Condition: "ports", Value: "5432", Pattern: "23"}},
				control.ExplainRow{Step: &control.ExplainStep{Rule: 2, Source: "a.xml:4", Condition: "application", Pattern: ".*telnet"}},
				control.ExplainRow{Step: &control.ExplainStep{Rule: 9, Source: "a.xml:9", Condition: "network-id", Pattern: "office"}},
				control.ExplainRow{Step: &control.ExplainStep{Rule: 3, Source: "a.xml:5", Matched: true}},
				control.ExplainRow{Result: &control.ExplainResult{Action: "TUNNEL", Rule: 3, Source: "a.xml:5", Profile: "gw",
					Server: "bastion:22", User: "ann", Fallback: true, Destination: "db.internal:5432", Note: "so it is"}},
			)(ctx, c)
		})
	})
	program := filepath.Join(t.TempDir(), "psql")
	if err := os.WriteFile(program, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(program, link); err != nil {
		t.Fatal(err)
	}
	code, out, errs := ctl(t, address, "explain", "--program", link, "--user", "bob", "db.internal", "5432")
	if code != exitDone || errs != "" {
		t.Errorf("code %d, %s", code, errs)
	}
	if real, _ := filepath.EvalSymlinks(program); !reflect.DeepEqual(asked.get(), control.ExplainArgs{Program: real, User: "bob", Host: "db.internal", Port: 5432}) {
		t.Errorf("asked %+v", asked.get())
	}
	wants(t, out, "to db.internal:5432", "rule 1   a.xml:3: no, the port is 5432, the rule wants 23",
		"a.xml:4: no, the program is not known here, the rule wants .*telnet", "a.xml:9: no, the host is not known to be on network office", "a.xml:5: matches",
		"TUNNEL by rule 3, a.xml:5", "ann@bastion:22", "fallback", "so it is")
	_, out, _ = ctl(t, address, "explain", "-s", "::1", "telnet")
	if got := asked.get(); got.Port != 23 || got.Host != "::1" {
		t.Errorf("asked %+v", asked.get())
	}
	if n := strings.Count(out, "\n"); n != 5 || !strings.HasPrefix(out, `{"step":{"rule":1`) {
		t.Errorf("%d lines:\n%s", n, out)
	}
	if code, _, errs := ctl(t, address, "explain", "broken", "1"); code != exitFailed || !strings.Contains(errs, "without a result") {
		t.Errorf("%d %s", code, errs)
	}
}

const goodXML = `<secsh-broker>
  <profiles>
    <profile id="gw" name="gw" host="bastion.example.com" user="ann"/>
  </profiles>
  <filter-engine>
    <rule host="secret.*" action="block"/>
    <rule ports="23" profile-id="gw" action="tunnel"/>
  </filter-engine>
</secsh-broker>
`

func writeFile(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "broker.xml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestCheckConfig(t *testing.T) {
	good := writeFile(t, goodXML)
	bad := writeFile(t, strings.NewReplacer(`"block"`, `"blokc"`, ` id="gw"`, ` id="gw" colour="red"`).Replace(goodXML))
	code, out, errs := ctl(t, "/nonexistent", "check-config", good)
	if code != exitDone || errs != "" {
		t.Errorf("code %d, %s", code, errs)
	}
	wants(t, out, good+": good")

	code, out, errs = ctl(t, "/nonexistent", "check-config", good, bad)
	if code != exitFailed || errs != "" {
		t.Errorf("code %d, %s", code, errs)
	}
	wants(t, out, good+": good", bad+":3:", bad+":6:", "colour", "blokc", "hint: ", bad+": 2 errors")

	code, out, _ = ctl(t, "/nonexistent", "check-config", "-q", good, bad)
	if code != exitFailed || strings.Contains(out, "good") || !strings.Contains(out, "colour") {
		t.Errorf("-q: %d\n%s", code, out)
	}

	_, out, _ = ctl(t, "/nonexistent", "check-config", "-s", good, bad)
	var found []problemRow
	for line := range strings.Lines(out) {
		var p problemRow
		if err := json.Unmarshal([]byte(line), &p); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if !p.Warning {
			found = append(found, p)
		}
	}
	if len(found) != 2 || found[0].File != bad || found[0].Line != 3 || found[0].Col == 0 || found[1].Line != 6 {
		t.Errorf("got %+v", found)
	}

	odd := writeFile(t, `<secsh-broker><filter-engine><rule host="a.example" action="BLOCK"/><rule host="a.example" action="DIRECT"/></filter-engine></secsh-broker>`)
	code, out, errs = ctl(t, "/nonexistent", "check-config", odd)
	if code != exitDone || errs != "" {
		t.Errorf("what is only odd: %d, %s", code, errs)
	}
	wants(t, out, odd+":1:43: warning: rule: host: \".\" matches any character", `hint: write a\.example`, odd+":1:69: warning: rule: it never decides: rule 1, at 1:30,", odd+": good, with 3 warnings")
	if code, out, _ = ctl(t, "/nonexistent", "check-config", "-q", odd); code != exitDone || out != "" {
		t.Errorf("what is only odd, -q: %d, %s", code, out)
	}

	code, out, _ = ctl(t, "/nonexistent", "check-config", "/nonexistent/file.xml")
	if code != exitFailed || !strings.Contains(out, "/nonexistent/file.xml: no such file") {
		t.Errorf("a missing file: %d %q", code, out)
	}
}

func TestExplainFile(t *testing.T) {
	file := writeFile(t, goodXML)
	code, out, errs := ctl(t, "/nonexistent", "explain", "-f", file, "db.internal", "23")
	if code != exitDone || errs != "" {
		t.Fatalf("code %d, %s", code, errs)
	}
	wants(t, out, "rule 1", "no, the host is db.internal, the rule wants secret.*", "TUNNEL by rule 2", "ann@bastion.example.com:22", "db.internal:23")
	_, out, _ = ctl(t, "/nonexistent", "explain", "-f", file, "secrets", "80")
	wants(t, out, "BLOCK by rule 1")
	_, out, _ = ctl(t, "/nonexistent", "explain", "-f", file, "10.0.0.1", "80")
	wants(t, out, "DIRECT as no rule matches")

	nets := writeFile(t, strings.Replace(goodXML, "<filter-engine>", `<filter-engine><network id="everywhere"/><network id="nowhere" domain="nowhere.invalid"/>
<dns id="e" network-id="everywhere"/><dns id="n" network-id="nowhere"/><filter dns-id="n" ports="80" action="DIRECT"/><filter dns-id="e" ports="80" action="BLOCK"/>`, 1))
	_, out, _ = ctl(t, "/nonexistent", "explain", "-f", nets, "10.0.0.1", "80")
	wants(t, out, "rule 1", "no, the host is not known to be on network nowhere", "BLOCK by rule 2")

	code, _, errs = ctl(t, "/nonexistent", "explain", "-f", writeFile(t, "<secsh-broker/>"), "h", "80")
	if code != exitFailed {
		t.Errorf("code %d", code)
	}
	wants(t, errs, "there is no filter-engine", "hint: ")
	code, _, errs = ctl(t, "/nonexistent", "explain", "-f", writeFile(t, strings.ReplaceAll(goodXML, "tunnel", "tunel")), "h", "80")
	if code != exitFailed {
		t.Errorf("code %d", code)
	}
	wants(t, errs, ":7:", "tunel")
	if code, _, errs = ctl(t, "/nonexistent", "explain", "-f", file, "--user", "no-such-user", "h", "80"); code != exitFailed || !strings.Contains(errs, "no-such-user") {
		t.Errorf("%d %s", code, errs)
	}
}

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errors.New("no space left on device") }

func TestOutputThatFails(t *testing.T) {
	address := listsBroker(t)
	for _, args := range [][]string{{"list-channels"}, {"list-channels", "-s"}} {
		var errs bytes.Buffer
		if code := run(t.Context(), append([]string{"-a", address}, args...), nil, fullDisk{}, &errs); code != exitFailed {
			t.Errorf("%v: code %d", args, code)
		}
		wants(t, errs.String(), "no space left on device")
	}
}

func TestOldBroker(t *testing.T) {
	address := fakeBroker(t, func(*control.Server, func()) {})
	code, _, errs := ctl(t, address, "list-channels")
	if code != exitFailed {
		t.Errorf("code %d", code)
	}
	wants(t, errs, "does not know the operation", "hint: the broker may be older")
}

func TestTooManyRows(t *testing.T) {
	address := fakeBroker(t, func(s *control.Server, _ func()) { s.Handle(control.OpStatus, rows(statusRow, statusRow)) })
	if code, _, errs := ctl(t, address, "status"); code != exitFailed || !strings.Contains(errs, "2 rows, not one") {
		t.Errorf("%d %s", code, errs)
	}
}

func TestInterrupted(t *testing.T) {
	asked := make(chan struct{})
	address := fakeBroker(t, func(s *control.Server, _ func()) {
		s.Handle(control.OpStatus, func(ctx context.Context, _ *control.Call) error { close(asked); <-ctx.Done(); return ctx.Err() })
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-asked; cancel() }()
	var out, errs bytes.Buffer
	if code := run(ctx, []string{"-a", address, "status"}, nil, &out, &errs); code != exitFailed {
		t.Errorf("code %d", code)
	}
	wants(t, errs.String(), "canceled")
}
