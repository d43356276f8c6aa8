package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sshbroker/broker/control"
)

var keyRows = []control.KeyRow{
	{ID: "0123456789abcdef", Type: "ssh-ed25519", Fingerprint: "SHA256:aaa", Public: "ssh-ed25519 AAAA", Comment: "ann@host", File: "/home/ann/.ssh/id_ed25519", State: "ready",
		Certificate: &control.CertificateRow{File: "/home/ann/.ssh/id_ed25519-cert.pub", KeyID: "ann", Serial: 7, Principals: []string{"ann", "ops"},
			Authority: "SHA256:ca", ValidBefore: since, Problem: "certificate expired at 2026-03-04T05:06:07Z"}},
	{ID: "1111111111111111", Type: "ssh-rsa", Fingerprint: "SHA256:bbb", Public: "ssh-rsa BBBB", File: "/k/locked", State: "open", Until: since, Added: true},
	{ID: "2222222222222222", File: "/k/hidden", State: "locked"},
	{ID: "3333333333333333", Type: "sk-ssh-ed25519@openssh.com", Fingerprint: "SHA256:ccc", Comment: "token\x1b[31m", State: "agent"},
	{ID: "4444444444444444", File: "/k/open", State: "unusable", Problem: "others may read it; use chmod 600"},
	{Note: "agent: nobody answers"},
}

func TestListKeys(t *testing.T) {
	address := fakeBroker(t, func(s *control.Server, _ func()) { s.Handle(control.OpListKeys, rows(keyRows...)) })
	code, out, errs := ctl(t, address, "--time-format=%Y", "list-keys")
	if code != 0 {
		t.Errorf("exit code %d", code)
	}
	wants(t, out, "ID                TYPE ", "0123456789abcdef  ssh-ed25519 ", "  ready ", "open until 2026  SHA256:bbb   /k/locked (added)",
		"2222222222222222  ?  ", "token?[31m", "    others may read it; use chmod 600\n")
	wants(t, errs, "ssh-broker-ctl: agent: nobody answers\n")
	if strings.Contains(out, "certificate") {
		t.Errorf("certificates without being asked for:\n%s", out)
	}
	_, out, _ = ctl(t, address, "--time-format=%Y", "list-keys", "--extra=certificates")
	wants(t, out, `    certificate "ann", serial 7, for ann,ops, until 2026, of authority SHA256:ca: NOT OFFERED, certificate expired at 2026-03-04T05:06:07Z`+"\n")
	code, out, _ = ctl(t, address, "list-keys", "-s")
	if code != 0 || strings.Count(out, "\n") != len(keyRows) {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	wants(t, out, `{"id":"2222222222222222","file":"/k/hidden","state":"locked"}`+"\n", `"key_id":"ann","serial":7,"principals":["ann","ops"]`, `{"note":"agent: nobody answers"}`)
	if code, _, errs := ctl(t, address, "list-keys", "--extra=all"); code != exitUsage {
		t.Errorf("exit code %d: %s", code, errs)
	}
}

func TestViewKey(t *testing.T) {
	var asked shared[control.KeyArgs]
	address := fakeBroker(t, func(s *control.Server, _ func()) {
		s.Handle(control.OpListKeys, func(_ context.Context, c *control.Call) error {
			var args control.KeyArgs
			if err := c.Decode(&args); err != nil {
				return err
			}
			asked.set(args)
			return c.Send(keyRows[0])
		})
	})
	file := filepath.Join(t.TempDir(), "key.pub")
	code, out, _ := ctl(t, address, "view-key", "-v", "--write-key="+file, "SHA256:aaa")
	if code != 0 || asked.get().Key != "SHA256:aaa" {
		t.Errorf("exit code %d, asked for %+v", code, asked.get())
	}
	wants(t, out, "id           0123456789abcdef\n", "file         /home/ann/.ssh/id_ed25519\n", "fingerprint  SHA256:aaa\n", "state        ready\n",
		`certificate  certificate "ann"`, "public       ssh-ed25519 AAAA\n")
	if text, err := os.ReadFile(file); err != nil || string(text) != "ssh-ed25519 AAAA ann@host\n" {
		t.Errorf("written %q, %v", text, err)
	}
	t.Chdir(filepath.Dir(file)) // a file that is there is told with its whole path
	if ctl(t, address, "view-key", "key.pub"); asked.get().Key != file {
		t.Errorf("asked for %+v", asked.get())
	}
}

func TestKeyCommands(t *testing.T) {
	var got shared[control.PassphraseArgs]
	var key shared[string]
	note := func(_ context.Context, c *control.Call) error {
		var args control.KeyArgs
		if err := c.Decode(&args); err != nil {
			return err
		}
		key.set(c.Op + " " + args.Key)
		return c.Send(control.KeyRow{File: "/k/locked"})
	}
	address := fakeBroker(t, func(s *control.Server, _ func()) {
		s.Handle(control.OpAddKey, note)
		s.Handle(control.OpRemoveKey, note)
		s.Handle(control.OpPassphrase, func(_ context.Context, c *control.Call) error {
			var args control.PassphraseArgs
			if err := c.Decode(&args); err != nil {
				return err
			}
			got.set(args)
			return c.Send(control.KeyRow{File: "/k/locked"})
		})
	})
	dir := t.TempDir()
	phrase := filepath.Join(dir, "phrase")
	if err := os.WriteFile(phrase, []byte("open sesame\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	for _, test := range []struct {
		args []string
		want control.PassphraseArgs
		says string
	}{
		{[]string{"k"}, control.PassphraseArgs{Key: "k"}, "opened /k/locked\n"},
		{[]string{"--all"}, control.PassphraseArgs{}, "opened /k/locked\n"},
		{[]string{"--clear", "--all"}, control.PassphraseArgs{Clear: true}, "locked /k/locked\n"},
		{[]string{"--clear", "k"}, control.PassphraseArgs{Key: "k", Clear: true}, "locked /k/locked\n"},
		{[]string{"--passphrase-file=phrase", "k"}, control.PassphraseArgs{Key: "k", Passphrase: "open sesame"}, "opened /k/locked\n"},
		{[]string{"--passphrase-string=x", "k"}, control.PassphraseArgs{Key: "k", Passphrase: "x"}, "opened /k/locked\n"},
	} {
		code, out, errs := ctl(t, address, append([]string{"key-passphrase"}, test.args...)...)
		if code != 0 || out != test.says || got.get() != test.want {
			t.Errorf("%q: exit code %d, %q%q, asked %+v", test.args, code, out, errs, got.get())
		}
	}
	for _, bad := range [][]string{{"key-passphrase"}, {"key-passphrase", "--all", "k"}, {"key-passphrase", "k", "l"},
		{"key-passphrase", "k", "--passphrase-file=phrase", "--passphrase-string=x"}, {"add-key"}, {"remove-key"}, {"view-key"}} {
		if code, _, errs := ctl(t, address, bad...); code != exitUsage {
			t.Errorf("%q: exit code %d, %s", bad, code, errs)
		}
	}
	if code, _, errs := ctl(t, address, "key-passphrase", "--passphrase-file=/dev/null", "k"); code != exitFailed {
		t.Errorf("an empty file: exit code %d, %s", code, errs)
	}
	ctl(t, address, "add-key", "new")
	if want := "add-key " + filepath.Join(dir, "new"); key.get() != want {
		t.Errorf("%q, want %q", key.get(), want)
	}
	if code, out, _ := ctl(t, address, "remove-key", "0123"); code != 0 || out != "removed /k/locked\n" || key.get() != "remove-key 0123" {
		t.Errorf("exit code %d, %q, %q", code, out, key.get())
	}
}

func TestProbeKey(t *testing.T) {
	var got shared[control.ProbeKeyArgs]
	address := fakeBroker(t, func(s *control.Server, _ func()) {
		s.Handle(control.OpProbeKey, func(_ context.Context, c *control.Call) error {
			var args control.ProbeKeyArgs
			if err := c.Decode(&args); err != nil {
				return err
			}
			got.set(args)
			return c.Send(control.HostKeyRow{Host: args.Host, Port: args.Port, Type: "ssh-ed25519", Fingerprint: "SHA256:aaa", Public: "AAAA"})
		})
	})
	for _, test := range []struct {
		args []string
		want control.ProbeKeyArgs
		says string
	}{
		{[]string{"gw"}, control.ProbeKeyArgs{Host: "gw", Port: 22}, "gw:22  SHA256:aaa  ssh-ed25519\n"},
		{[]string{"2001:db8::1#2222"}, control.ProbeKeyArgs{Host: "2001:db8::1", Port: 2222}, "[2001:db8::1]:2222  SHA256:aaa  ssh-ed25519\n"},
		{[]string{"-v", "gw"}, control.ProbeKeyArgs{Host: "gw", Port: 22}, "gw ssh-ed25519 AAAA\n"},
		{[]string{"-v", "gw#2222"}, control.ProbeKeyArgs{Host: "gw", Port: 2222}, "[gw]:2222 ssh-ed25519 AAAA\n"},
		{[]string{"-s", "gw"}, control.ProbeKeyArgs{Host: "gw", Port: 22}, `{"host":"gw","port":22,"type":"ssh-ed25519","fingerprint":"SHA256:aaa","public":"AAAA"}` + "\n"},
	} {
		code, out, errs := ctl(t, address, append([]string{"probe-key"}, test.args...)...)
		if code != 0 || out != test.says || got.get() != test.want {
			t.Errorf("%q: exit code %d, %q%q, asked %+v", test.args, code, out, errs, got.get())
		}
	}
	for _, bad := range []string{"gw#", "gw#0", "gw#65536", "gw#ssh"} {
		if code, _, errs := ctl(t, address, "probe-key", bad); code != exitUsage {
			t.Errorf("%s: exit code %d, %s", bad, code, errs)
		}
	}
}

// auth-handler says that it is there, and ends well when it is interrupted.
func TestAuthHandler(t *testing.T) {
	here := make(chan struct{})
	address := fakeBroker(t, func(s *control.Server, _ func()) {
		s.Handle(control.OpAuthHandler, func(ctx context.Context, c *control.Call) error {
			if err := c.Send(control.AuthHandlerRow{Ready: true}); err != nil {
				return err
			}
			close(here)
			<-ctx.Done()
			return nil
		})
	})
	ctx, interrupt := context.WithTimeout(t.Context(), time.Minute)
	go func() { <-here; interrupt() }()
	var out, errs strings.Builder
	if code := run(ctx, []string{"-a", address, "auth-handler"}, strings.NewReader(""), &out, &errs); code != 0 {
		t.Errorf("exit code %d, %s", code, errs.String())
	}
}
