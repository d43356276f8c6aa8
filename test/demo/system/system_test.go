package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"sshbroker/test/netns"
	"sshbroker/test/sut"
)

func TestMain(m *testing.M) { sut.Main(m, nil) }

// demonstration is the program as `make demo-system` runs it, with a directory for
// temporary files of its own, which has to be empty in the end.
func demonstration(t *testing.T) (*exec.Cmd, string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "demo-system-test")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	program := filepath.Join(t.TempDir(), "system")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cmd := exec.Command(program, "-dir", sut.Build(t).Dir)
	cmd.Env = append(os.Environ(), "TMPDIR="+dir)
	return cmd, dir
}

// nothingLeft looks for files, cgroups and processes of a demonstration that has ended.
func nothingLeft(t *testing.T, pid int, dir string) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, pattern := range []string{"/sys/fs/cgroup/%s%d-*", "/sys/fs/cgroup/*/%s%d-*"} {
		groups, err := filepath.Glob(fmt.Sprintf(pattern, netns.CgroupPrefix, pid))
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, groups...)
	}
	commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range commands {
		if b, _ := os.ReadFile(file); bytes.Contains(b, []byte(dir)) {
			left = append(left, fmt.Sprintf("%s: %q", file, b))
		}
	}
	if len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

func TestDemonstration(t *testing.T) {
	netns.RequireRoot(t)
	netns.RequireProgram(t, "nft", "nftables")
	cmd, dir := demonstration(t)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, user := range []string{"alice", "bob", "carol"} {
		if n := strings.Count(string(out), "\n   "+user+" "); n != 8 {
			t.Errorf("%d lines of %s, not one for each of 8 rules\n%s", n, user, out)
		}
	}
	// Counts and rules of what the kernel decides by itself.
	for _, line := range []string{"system         1  pass         3  10.99.1.0/24, 80\n", "system         2  reset        3  every address, 25\n"} {
		if !strings.Contains(string(out), line) {
			t.Errorf("it has no line %q\n%s", line, out)
		}
	}
	nothingLeft(t, cmd.Process.Pid, dir)
}

// TestInterrupted sends a signal when the demonstration has come to a line.
func TestInterrupted(t *testing.T) {
	netns.RequireRoot(t)
	netns.RequireProgram(t, "nft", "nftables")
	for _, c := range []struct {
		line   string
		signal syscall.Signal
	}{
		{"1. ", syscall.SIGINT}, {"2. ", syscall.SIGTERM}, {"3. ", syscall.SIGINT}, {"   bob    4", syscall.SIGINT}, {"5. ", syscall.SIGHUP}, {"6. ", syscall.SIGINT},
	} {
		t.Run(strings.TrimSpace(c.line), func(t *testing.T) {
			cmd, dir := demonstration(t)
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			sent := false
			lines := bufio.NewScanner(stdout)
			for lines.Scan() {
				if !sent && strings.HasPrefix(lines.Text(), c.line) {
					sent = true
					if err := cmd.Process.Signal(c.signal); err != nil {
						t.Fatal(err)
					}
				}
			}
			_, _ = io.Copy(io.Discard, stdout)
			err = cmd.Wait()
			if !sent || cmd.ProcessState.ExitCode() != 1 || !strings.Contains(stderr.String(), "everything is taken down") {
				t.Errorf("sent %t, %v\n%s", sent, err, stderr.String())
			}
			if strings.Contains(stderr.String(), "not as it was") || strings.Contains(stderr.String(), "ssh-captured:") {
				t.Error(stderr.String())
			}
			nothingLeft(t, cmd.Process.Pid, dir)
		})
	}
}

// TestOrdinaryUser: it says what it needs.
func TestOrdinaryUser(t *testing.T) {
	cmd, dir := demonstration(t)
	if os.Geteuid() == 0 {
		program := filepath.Join(dir, "system")
		b, err := os.ReadFile(cmd.Path)
		if err == nil {
			err = os.WriteFile(program, b, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
		cmd.Path = program
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		cmd.Dir = "/"
	}
	out, _ := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 1 || !strings.Contains(string(out), "needs root") {
		t.Errorf("exit %d\n%s", cmd.ProcessState.ExitCode(), out)
	}
}
