package leaks

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/test/host"
	"sshbroker/test/netns"
)

// scratch is a directory of the user's for trials.
func scratch(t *testing.T, h *host.Host) string {
	t.Helper()
	return filepath.Dir(h.Alice.Write(t, "t/x", "", 0o600))
}

// clean fails the test if a trial has left something.
func clean(t *testing.T, h *host.Host, dir string) {
	t.Helper()
	if left, err := filepath.Glob(filepath.Join(dir, "ssh-trial-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	for _, name := range []string{"ssh-broker", "ssh-capture"} {
		if n := h.Client.KillAll(t, name); n > 0 {
			t.Errorf("%d processes of %s are left", n, name)
		}
	}
}

// TestFaults: there is no place for a trial, or a part of it dies.
func TestFaults(t *testing.T) {
	h := bare(t)
	dir := scratch(t, h)
	run := func(env string, args ...string) netns.Result {
		t.Helper()
		c := h.Cmd(h.Alice, append([]string{h.Ctl, "leak-test", "--backend=namespace"}, args...)...)
		c.Env = append(c.Env, "TMPDIR="+env)
		return h.Client.Run(t, c)
	}
	for env, says := range map[string]string{
		"/no/such/directory": "/no/such/directory",
		"/proc":              "/proc/ssh-trial-",
		filepath.Dir(h.Alice.Write(t, strings.Repeat("long/", 20)+"x", "", 0o600)): "at most 107",
	} {
		r := run(env, "--probe", "udp4")
		if r.Code != 1 || !strings.Contains(r.Stderr, says) {
			t.Errorf("TMPDIR=%s: not said: %q: %v", env, says, r)
		}
		if env[1] != 'p' {
			clean(t, h, env)
		}
	}

	// Interrupted, or with its broker killed, at whatever moment.
	start := func() *netns.Process {
		t.Helper()
		c := h.Cmd(h.Alice, h.Ctl, "leak-test", "-s", "--backend=namespace", "--close-sockets")
		c.Env = append(c.Env, "TMPDIR="+dir)
		p := h.Client.Start(t, c)
		p.WaitFor(t, `"tcp4"`)
		return p
	}
	p := start()
	p.Signal(t, syscall.SIGINT)
	if r := p.Wait(t); r.Code == 0 {
		t.Errorf("interrupted: %v", r)
	}
	clean(t, h, dir)

	p = start()
	h.Client.SignalAll(t, "ssh-broker", unix.SIGKILL)
	// ssh-capture starts another for the capture, whose rules stay.
	if r := p.Wait(t); strings.Contains(r.Stdout, "LEAK") {
		t.Errorf("its broker killed: %v", r)
	}
	clean(t, h, dir)

	p = start()
	h.Client.SignalAll(t, "ssh-capture", unix.SIGKILL)
	if r := p.Wait(t); strings.Contains(r.Stdout, "LEAK") {
		t.Errorf("ssh-capture killed: %v", r)
	}
	clean(t, h, dir)

	// What it says cannot be written.
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	c := h.Cmd(h.Alice, "sh", "-c", `exec "$@" >&3`, "sh", h.Ctl, "leak-test", "--backend=namespace", "--close-sockets", "--probe", "udp4")
	c.Files = []*os.File{full}
	if r := h.Client.Run(t, c); r.Code != 1 || !strings.Contains(r.Stderr, "no space left") {
		t.Errorf("a full disk: %v", r)
	}
}

// TestStrictIsInterrupted: Ctrl-C while the probes are made ends all, and COMMAND never runs.
func TestStrictIsInterrupted(t *testing.T) {
	h := bare(t)
	rules(h, h.Alice, t, everything)
	ran, started := h.Alice.Path("ran"), h.Alice.Path("started")
	b, err := os.ReadFile(h.Capture)
	if err != nil {
		t.Fatal(err)
	}
	alone := h.Alice.Write(t, "bin/ssh-capture", string(b), 0o755)
	tester := h.Alice.Write(t, "bin/ssh-broker-ctl", "#!/bin/sh\ntouch "+started+"\nexec sleep 600\n", 0o755)
	p := h.Client.Start(t, h.Cmd(h.Alice, alone, "--strict", "--backend=namespace", "touch", ran))
	for end := time.Now().Add(patience); ; <-time.After(time.Millisecond) { // a file has no event of its own
		if _, err := os.Stat(started); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the probes are not begun with: %s", p.Output())
		}
	}
	p.Signal(t, syscall.SIGTERM)
	expect(t, p.Wait(t), 128+int(syscall.SIGTERM), "")
	if n := h.Client.KillAll(t, "sleep"); n > 0 {
		t.Error("the tester is left")
	}
	// One of another version, or that is something else.
	for script, says := range map[string]string{
		"echo '{}'": "made 1 of", "echo hello": "invalid character", "exit 0": "made 0 of", "echo no such command >&2; exit 2": "no such command",
	} {
		if err := os.WriteFile(tester, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		expect(t, h.Run(t, h.Alice, alone, "--strict", "--backend=namespace", "touch", ran), 125, "", says)
	}
	if err := os.Remove(tester); err != nil {
		t.Fatal(err)
	}
	// Without ssh-broker-ctl nothing is proved, so nothing is started.
	expect(t, h.Run(t, h.Alice, alone, "--strict", "--backend=namespace", "touch", ran), 125, "", "ssh-broker-ctl is neither beside this program nor on PATH")
	if _, err := os.Stat(ran); err == nil {
		t.Error("the command ran")
	}
}
