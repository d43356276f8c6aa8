package broker_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"sshbroker/broker/audit"
	"sshbroker/capture"
	"sshbroker/capture/capturetest"
	"sshbroker/filter"
)

// The name stands in a file, which is read when the rule decides; what is no name
// refuses the flow, fallback or not.
func TestUsernameFromFile(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "name")
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	rule := func(path string) filter.Rule {
		return filter.Rule{Action: filter.Tunnel, Profile: "gw", UsernameFile: path, FallbackToPlain: true, Ports: []filter.PortRange{{Lo: 23, Hi: 23}}}
	}

	b := newBench(t, set(t, filter.Block, rule(file)))
	for _, text := range []string{"bob", "carol\n", "dave\r\n", strings.Repeat("e", 256) + "\r\n"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		a := b.source.Offer(capturetest.NewAttempt("203.0.113.9:23"))
		if !a.Outcome().Admitted {
			t.Fatalf("%q: not admitted", text)
		}
		talk(t, a)
		<-b.records.ch
		want := strings.TrimRight(text, "\r\n") + "@gw.example -> 203.0.113.9:23"
		if last := b.opener.opened[len(b.opener.opened)-1]; last != want {
			t.Errorf("%q: opened %q, want %q", text, last, want)
		}
	}

	opened := slices.Clone(b.opener.opened)
	for text, want := range map[string]string{
		"": "no user", "\n": "no user", "a\nb\n": "has more than one line", "a\n\n": "has more than one line", "a\tb\n": "control character", "-oX\n": "begins with a hyphen",
		"a\x00": "control character", strings.Repeat("e", 257): "longer than 256 bytes", strings.Repeat("e", 1<<20): "longer than 256 bytes",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		refusedFor(t, b, want)
	}
	if !slices.Equal(b.opener.opened, opened) {
		t.Errorf("opened %q", b.opener.opened)
	}

	for path, want := range map[string]string{filepath.Join(dir, "missing"): "no such file", dir: "not a regular file", pipe: "not a regular file"} {
		refusedFor(t, newBench(t, set(t, filter.Block, rule(path))), want)
	}
}

func refusedFor(t *testing.T, b *bench, want string) {
	t.Helper()
	a := b.source.Offer(capturetest.NewAttempt("203.0.113.9:23"))
	if got := a.Outcome(); got != (capturetest.Outcome{Refusal: capture.Unreachable}) {
		t.Errorf("%s: outcome %+v", want, got)
	}
	if rec := <-b.records.ch; rec.Reason != audit.ProfileError || !strings.Contains(rec.Error, want) || !strings.Contains(rec.Error, "user name of rule 1") {
		t.Errorf("recorded %v, %q; want %q", rec.Reason, rec.Error, want)
	}
}
