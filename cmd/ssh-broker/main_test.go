package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sshbroker/broker/control"
)

func TestOptions(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string // "" for none
	}{
		{[]string{"--system"}, ""},
		{[]string{"--system", "--foreground", "--state-dir", "/s", "--admin-group", "wheel", "-f", "x.xml"}, ""},
		{[]string{"--system", "--exit"}, ""},
		{[]string{"--system", "--run-on-demand"}, "--system and --run-on-demand"},
		{[]string{"--state-dir", "/s"}, "--state-dir is for --system"},
		{[]string{"--admin-group", "wheel"}, "--admin-group is for --system"},
	} {
		var o options
		ran := false
		cmd := newCommand(&o, func(context.Context) { ran = true })
		cmd.SetArgs(c.args)
		err := cmd.Execute()
		if c.want == "" && (err != nil || !ran) || c.want != "" && (err == nil || ran || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%q: ran %t, %v, want %q", c.args, ran, err, c.want)
		}
	}
}

// TestSystemSocket: the system's broker is not moved by whoever's environment it is
// started or asked in.
func TestSystemSocket(t *testing.T) {
	t.Setenv(control.EnvAddress, "/tmp/other")
	for _, c := range []struct {
		o    options
		want string
	}{
		{options{system: true}, "/run/ssh-broker-system/broker"},
		{options{system: true, address: "/tmp/mine"}, "/tmp/mine"},
		{options{}, "/tmp/other"},
	} {
		if got, err := c.o.socket(); err != nil || got != c.want {
			t.Errorf("%+v: %q, %v", c.o, got, err)
		}
	}
}

func TestSystemPlaces(t *testing.T) {
	dir := t.TempDir()
	there := filepath.Join(dir, "there")
	if err := os.Mkdir(there, 0o700); err != nil {
		t.Fatal(err)
	}
	o := options{system: true, stateDir: there, auditFile: filepath.Join(there, "audit")}
	if err := o.systemPlaces(filepath.Join(there, "broker")); err != nil || o.stateDir != there {
		t.Errorf("%v, %+v", err, o)
	}
	o = options{system: true, stateDir: filepath.Join(dir, "state"), auditFile: filepath.Join(dir, "log", "audit")}
	err := o.systemPlaces(filepath.Join(there, "broker"))
	var answer *control.Error
	if !errors.As(err, &answer) {
		t.Fatal(err)
	}
	for _, want := range []string{"state: " + dir + "/state does not exist", "audit record: " + dir + "/log does not exist"} {
		if !strings.Contains(answer.Message, want) {
			t.Errorf("it says %q, not %q", answer.Message, want)
		}
	}
	for _, want := range []string{"install -d -m 0700 -o " + account() + " " + dir + "/state", dir + "/log", "ssh-broker-system.service"} {
		if !strings.Contains(answer.Hint, want) {
			t.Errorf("hint %q lacks %q", answer.Hint, want)
		}
	}
	file := filepath.Join(there, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	o = options{system: true, stateDir: file, auditFile: filepath.Join(there, "audit")}
	if err := o.systemPlaces(filepath.Join(there, "broker")); err == nil || !strings.Contains(err.Error(), "is no directory") {
		t.Errorf("a file: %v", err)
	}
}

func TestAdminGroup(t *testing.T) {
	for group, want := range map[string]int{"": 0, "4711": 4711, "root": 0} {
		if got, err := (&options{adminGroup: group}).admins(); err != nil || got != want {
			t.Errorf("%q: %d, %v, want %d", group, got, err, want)
		}
	}
	_, err := (&options{adminGroup: "no-such-group"}).admins()
	var answer *control.Error
	if !errors.As(err, &answer) || !strings.Contains(answer.Hint, "groupadd --system no-such-group") {
		t.Errorf("%v", err)
	}
}

// TestPassedOn: the broker in the background is what was asked for.
func TestPassedOn(t *testing.T) {
	o := options{system: true, stateDir: "/s", adminGroup: "wheel", auditFile: "/a", auditRequired: true}
	got, err := o.passedOn()
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"--audit-required", "--system", "--admin-group", "wheel", "--audit-file", "/a", "--state-dir", "/s"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestMissingPlaces: one message with the cure, and nothing is left.
func TestMissingPlaces(t *testing.T) {
	dir := t.TempDir()
	var out, errs bytes.Buffer
	code := run(t.Context(), []string{"--system", "--foreground", "-a", filepath.Join(dir, "run", "broker"), "--state-dir", filepath.Join(dir, "state"),
		"--audit-file", filepath.Join(dir, "log", "audit"), "-f", filepath.Join(dir, "none.xml")}, &out, &errs)
	if code != exitFailed || strings.Count(errs.String(), "does not exist") != 3 || !strings.Contains(errs.String(), "ssh-broker: hint: as root: install -d") {
		t.Errorf("%d\n%s", code, errs.String())
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
