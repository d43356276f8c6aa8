package daemon

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"sshbroker/broker/control"
	"sshbroker/broker/eventlog"
	"sshbroker/capture/capturetest"
	"sshbroker/capture/service"
	"sshbroker/profiles"
)

// logging writes a configuration with that element.
func (b *bench) logging(element string) {
	b.t.Helper()
	text := strings.NewReplacer("%ATTRS%", "", "%RULES%", tunnel, "</secsh-broker>", element+"</secsh-broker>").Replace(engine)
	if err := os.WriteFile(b.file, []byte(text), 0o600); err != nil {
		b.t.Fatal(err)
	}
}

// logged is a daemon with a log of events that a test reads.
func logged(t *testing.T, element string) *bench {
	t.Helper()
	b := prepare(t, "", "")
	b.logging(strings.ReplaceAll(element, "DIR", b.dir))
	l := eventlog.New(eventlog.Options{Logger: slog.New(slog.DiscardHandler), RetryEvery: time.Millisecond, Strict: true})
	t.Cleanup(l.Close)
	if err := b.start(func(o *Options) { o.Events = l }); err != nil {
		t.Fatal(err)
	}
	return b
}

var eventName = regexp.MustCompile(`\]: [a-z0-9]+\.[a-z-]+: \d+ (\w+)`)

// events waits until the last of the named events is in the file, and returns the names in
// it and the text.
func (b *bench) events(file, last string) (names []string, text string) {
	b.t.Helper()
	eventually(b.t, last+" in "+file, func() bool {
		read, _ := os.ReadFile(filepath.Join(b.dir, file))
		text, names = string(read), nil
		for _, m := range eventName.FindAllStringSubmatch(text, -1) {
			names = append(names, m[1])
		}
		return slices.Contains(names, last)
	})
	return names, text
}

func (b *bench) wants(file, last string, want ...string) string {
	b.t.Helper()
	names, text := b.events(file, last)
	if !slices.Equal(names, want) {
		b.t.Errorf("%s has %q\nwant %q", file, names, want)
	}
	return text
}

// The log tells of a broker's life, as the configuration in force says.
func TestEvents(t *testing.T) {
	b := logged(t, `<logging><log-target file="DIR/a.log"/></logging>`)
	args := cgroupArgs()
	args.Command = []string{"psql", "--password=hunter2"}
	c := b.capture(args)
	s := b.captured.source(t, "abcd")
	within(t, c.rows)
	b.events("a.log", "Capture_started")
	a := capturetest.NewAttempt("192.0.2.7:23")
	s.Offer(a)
	if !a.Outcome().Admitted {
		t.Fatal("not admitted")
	}
	text := b.wants("a.log", "Tunnel_opened", "Broker_started", "Capture_started", "Connector_filter_rule", "Server_connected", "Tunnel_opened")
	for _, part := range []string{", Files: " + b.file + ", Generation: 1\n", ", Capture: abcd, Backend: cgroup", ", Command: psql\n",
		"Server_connected, Username: tunnel, Profile: gw, Server: 192.0.2.10:22\n"} {
		if !strings.Contains(text, part) {
			t.Errorf("%q lacks %q", text, part)
		}
	}
	if strings.Contains(text, "hunter2") {
		t.Error("the command line is in the log")
	}

	// A reload that fails changes nothing, but opens the files anew: it may be for that.
	if err := os.Rename(filepath.Join(b.dir, "a.log"), filepath.Join(b.dir, "a.log.1")); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(b.file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(b.file, []byte("<secsh-broker>\n<nothing/></secsh-broker>"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Reload(); err == nil {
		t.Error("a broken file was loaded")
	}
	text = b.wants("a.log", "Broker_reload_failed", "Broker_reload_failed")
	if !strings.Contains(text, "error: 20004 Broker_reload_failed, Generation: 1, Text: \"") || !strings.Contains(text, `rules.xml:2:1: nothing: secsh-broker cannot hold`) {
		t.Errorf("told %q", text)
	}
	if err := os.WriteFile(b.file, good, 0o600); err != nil {
		t.Fatal(err)
	}

	// The next configuration counts for flows that live already.
	b.logging(`<logging><log-target file="` + b.dir + `/b.log"/><log-events facility="discard">Connector_*</log-events></logging>`)
	if _, err := b.Reload(); err != nil {
		t.Fatal(err)
	}
	talk(t, a)
	text = b.wants("b.log", "Tunnel_closed", "Broker_reloaded", "Tunnel_closed")
	if !strings.Contains(text, ", Generation: 2, Changed: yes\n") {
		t.Errorf("told %q", text)
	}
	row, err := one[control.StatusRow](b, control.OpStatus, nil)
	if want := (control.LogTarget{Target: "file " + b.dir + "/b.log", Written: 2}); err != nil || len(row.Log) != 1 || row.Log[0] != want {
		t.Errorf("status %+v, %v", row.Log, err)
	}
	s.end(service.CodeEnded)
	c.conn.Close()
	b.events("b.log", "Capture_ended")

	b.Stop(0)
	b.wants("b.log", "Broker_stopped", "Broker_reloaded", "Tunnel_closed", "Capture_ended", "Broker_stopping", "Server_disconnected", "Broker_stopped")
	b.wants("a.log", "Broker_reload_failed", "Broker_reload_failed")
}

// By default no event is logged, and a log that cannot be written stops nothing: status
// tells of it, and the configuration's warnings do.
func TestLogThatCannotBeWritten(t *testing.T) {
	b := logged(t, "")
	row, err := one[control.StatusRow](b, control.OpStatus, nil)
	if err != nil || row.Log == nil || len(row.Log) != 0 {
		t.Errorf("status %+v, %v", row.Log, err)
	}
	b.logging(`<logging><log-target file="` + b.dir + `/no/e.log"/></logging>`)
	r, err := b.Reload()
	if err != nil || len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], "rules.xml:2:99: warning: log-target: "+b.dir+"/no/e.log cannot be logged to: ") {
		t.Errorf("reloaded %+v, %v", r, err)
	}
	eventually(t, "status", func() bool {
		row, err := one[control.StatusRow](b, control.OpStatus, nil)
		return err == nil && len(row.Log) == 1 && row.Log[0].Pending == 1 && strings.Contains(row.Log[0].Error, "no such file or directory")
	})
	b.capture(cgroupArgs())
	a := capturetest.NewAttempt("192.0.2.7:23")
	b.captured.source(t, "abcd").Offer(a)
	if !a.Outcome().Admitted {
		t.Fatal("not admitted")
	}
	talk(t, a)
}

// The capture of the whole host is one too.
func TestEventsOfSystem(t *testing.T) {
	b := prepare(t, "", "")
	b.logging(`<logging><log-events>Capture_*<log-target file="` + b.dir + `/e.log"/></log-events></logging>`)
	l := eventlog.New(eventlog.Options{Logger: slog.New(slog.DiscardHandler), Strict: true})
	t.Cleanup(l.Close)
	if err := b.start(func(o *Options) { o.Events, o.System = l, true }); err != nil {
		t.Fatal(err)
	}
	b.captured.source(t, service.System).end(service.CodeEnded)
	names, _ := b.events("e.log", "Capture_ended")
	if names[0] != "Capture_started" || names[1] != "Capture_ended" {
		t.Errorf("told %q", names)
	}
}

// Every kind of event of profiles has one of the log, whose arguments it fills in.
func TestObserver(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "e.log")
	l := eventlog.New(eventlog.Options{Logger: slog.New(slog.DiscardHandler), Strict: true})
	defer l.Close()
	l.Apply(eventlog.Routing{Targets: []eventlog.Target{{Type: eventlog.File, Path: path}}})
	observe := Observer(l)
	p := &profiles.Profile{ID: "id1", Host: "2001:db8::1", Port: 22, User: "ann", PasswordText: "hunter2",
		Gateway: &profiles.Profile{ID: "bastion", PasswordText: "hunter2"}}
	for kind := profiles.Connected; kind <= profiles.AgentFailed; kind++ {
		if eventOf[kind] == 0 {
			t.Errorf("kind %d has no event", kind)
		}
		observe(profiles.Event{Kind: kind, Profile: p, Session: 7, Protocol: "c0ffee", Algorithms: "the algorithms", Ours: []string{"a", "b"},
			Theirs: []string{"c\n", "d"}, Cipher: "aes", KeyType: "ssh-rsa", KeyHash: "SHA256:x", File: "/k y", Status: "stored", Method: "the method",
			Lived: time.Second, Err: errors.New("its reason")})
	}
	l.Close()
	read, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := string(read)
	for _, line := range []string{
		`Server_connected, Username: ann, Profile: id1, Server: [2001:db8::1]:22, Via: bastion, Cipher: aes, Public-key-hash: SHA256:x`,
		`Server_connection_lost, Username: ann, Profile: id1, Server: [2001:db8::1]:22, Via: bastion, Duration: 1.000000s, Text: "its reason"`,
		`1001 Algorithm_negotiation_failure, Username: ann, Server: [2001:db8::1]:22, Algorithm: "the algorithms", Client-algorithms: "a,b", Server-algorithms: "c ,d", Session-Id: 7`,
		`1003 KEX_success, Username: ann, Server: [2001:db8::1]:22, Algorithm: "the algorithms", Session-Id: 7, Protocol-session-Id: c0ffee`,
		`140 Server_hostkey, Status: stored, Server: [2001:db8::1]:22, Key-type: ssh-rsa, Public-key-hash: SHA256:x, Text: "its reason", Session-Id: 7`,
		`Authentication_success, Username: ann, Profile: id1, Server: [2001:db8::1]:22, Method: "the method", Session-Id: 7`,
		`Key_store_key_failed, Key-file: "/k y", Profile: id1, Text: "its reason", Session-Id: 7`,
	} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("there is no %s", line)
		}
	}
	for line := range strings.Lines(text) {
		e := slices.IndexFunc(eventlog.Events(), func(e eventlog.Event) bool { return strings.Contains(line, " "+e.String()+", ") })
		for _, arg := range eventlog.Events()[e].Definition().Args {
			if !strings.Contains(line, ", "+string(arg)+": ") {
				t.Errorf("%q lacks %s", line, arg)
			}
		}
	}
	if strings.Contains(text, "hunter2") || strings.Count(text, "\n") != len(eventOf) {
		t.Error(text)
	}
}

// prompter answers.
type prompter struct {
	answer string
	err    error
}

func (p prompter) Ask(context.Context, profiles.Prompt) (string, error) { return p.answer, p.err }

// What a person answers is nobody's business.
func TestPromptEvents(t *testing.T) {
	b := logged(t, `<logging><log-events>Prompt_*<log-target file="DIR/p.log"/></log-events></logging>`)
	args := control.CaptureArgs{ID: "wxyz", Via: "ann@gw"}
	for _, p := range []prompter{{answer: "hunter2"}, {err: io.EOF}} {
		answer, err := toldPrompter{p, b.Daemon, args}.Ask(t.Context(), profiles.Prompt{Text: "Password for ann@gw: ", Secret: true})
		if answer != p.answer || err != p.err {
			t.Errorf("answered %q, %v", answer, err)
		}
	}
	text := b.wants("p.log", "Prompt_failed", "Prompt_asked", "Prompt_answered", "Prompt_asked", "Prompt_failed")
	for _, part := range []string{`Prompt_asked, Capture: wxyz, Via: ann@gw, Text: "Password for ann@gw: ", Secret: yes`,
		`Prompt_answered, Capture: wxyz, Via: ann@gw, Secret: yes`, `Prompt_failed, Capture: wxyz, Via: ann@gw, Text: EOF`} {
		if !strings.Contains(text, part+"\n") {
			t.Errorf("%q lacks %q", text, part)
		}
	}
	if strings.Contains(text, "hunter2") {
		t.Error("the answer is in the log")
	}
}

// Rules of a capture's own bring no log of their own, and its client is told so.
func TestLoggingOfOwnRules(t *testing.T) {
	b := logged(t, "")
	args := cgroupArgs()
	args.ConfigFile = filepath.Join(b.dir, "own.xml")
	if err := os.WriteFile(args.ConfigFile, []byte(`<secsh-broker><filter-engine>`+direct+`</filter-engine><logging><log-target type="syslog"/></logging></secsh-broker>`), 0o600); err != nil {
		t.Fatal(err)
	}
	c := b.capture(args)
	b.captured.source(t, "abcd")
	if row := within(t, c.rows); len(row.Warnings) != 1 || !strings.Contains(row.Warnings[0], "own.xml: its element logging is not acted on") {
		t.Errorf("warnings %q", row.Warnings)
	}
	if s := b.Events.Stats(); len(s) > 0 {
		t.Errorf("targets %v", s)
	}
}
