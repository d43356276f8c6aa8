package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/capture/cgroup/view"
)

const (
	systemd   = "/lib/systemd/systemd"
	inSystemd = "CGROUP_TEST_IN_SYSTEMD" // set in what runs under the systemd of a test
)

// TestSystemd boots systemd as PID 1 of namespaces of its own, in a cgroup that is the
// root of its hierarchy, and runs TestScope there. Nothing but PID 1 itself is started.
func TestSystemd(t *testing.T) {
	tr := tree(t)
	if os.Getenv(inSystemd) != "" {
		t.Skip("this is inside")
	}
	if _, err := os.Stat(systemd); err != nil {
		t.Skip("systemd (Debian package systemd) is not installed")
	}
	root := &Leaf{Path: filepath.Join(tr.Mount, fmt.Sprintf("cgroup-test-%d", os.Getpid())), tree: &Tree{Mount: tr.Mount}, settled: func() {}}
	if err := os.Mkdir(root.Path, 0o755); err != nil {
		t.Fatal(err)
	}
	cleanUp(t, root)
	fd, err := os.Open(root.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()

	cmd := startRole(t, 0, "boot")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWNET,
		UseCgroupFD: true, CgroupFD: int(fd.Fd()), Setsid: true,
	}
	out, err := io.ReadAll(startCmd(t, 0, cmd).out)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []string{"TestScope", "TestScopeCrash", "TestScopeCapabilities"} {
		if !strings.Contains(string(out), "--- PASS: "+test+" ") {
			t.Fatalf("%s under systemd:\n%s", test, out)
		}
	}
	t.Logf("%s", out)
}

// boot prepares the namespaces, starts the tests, which wait for systemd, and becomes it.
func boot() error {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return err
	}
	for _, m := range []struct {
		source, target, fstype string
		flags                  uintptr
	}{
		{"", "/", "", unix.MS_REC | unix.MS_PRIVATE},
		{"proc", "/proc", "proc", 0},
		{"/proc/sys", "/proc/sys", "", unix.MS_BIND},
		{"", "/proc/sys", "", unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY},
		{"/dev/null", "/dev/console", "", unix.MS_BIND},
		{"/dev/null", "/dev/kmsg", "", unix.MS_BIND},
		{"tmpfs", "/run", "tmpfs", 0},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", 0},
		{"/", "/", "", unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY},
	} {
		err := unix.Mount(m.source, m.target, m.fstype, m.flags, "")
		if err != nil && !(errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(m.target, "/dev/")) {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	units := "/run/systemd/system"
	if err := os.MkdirAll(units, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(units+"/test.target", []byte("[Unit]\nDefaultDependencies=no\n"), 0o644); err != nil {
		return err
	}
	tests := exec.Command("/proc/self/exe", "-test.run=^TestScope", "-test.v", "-test.timeout=1m")
	tests.Env = append(os.Environ(), role+"=", inSystemd+"=1")
	tests.Stdout, tests.Stderr = os.Stdout, os.Stderr
	if err := tests.Start(); err != nil {
		return err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	for fd := range 3 { // the end of the tests is the end of their output
		if err := unix.Dup3(int(null.Fd()), fd, 0); err != nil {
			return err
		}
	}
	return unix.Exec(systemd, []string{systemd, "--unit=test.target", "--log-target=null"},
		[]string{"container=test", "PATH=/usr/sbin:/usr/bin", "SYSTEMD_UNIT_PATH=" + units, "SYSTEMD_GENERATOR_PATH=" + units})
}

// booted waits for the systemd that boot becomes.
func booted(t *testing.T) *Tree {
	t.Helper()
	if os.Getenv(inSystemd) == "" {
		t.Skip("runs inside of TestSystemd")
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		_, err := os.Stat("/run/systemd/private")
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	tr := tree(t)
	if !tr.systemd {
		t.Fatal("systemd is not noticed")
	}
	return tr
}

func property(t *testing.T, unit, name string) string {
	t.Helper()
	out, err := exec.Command("systemctl", "show", "--value", "-p", name, unit).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

func TestScope(t *testing.T) {
	tr := booted(t)
	l := newLeaf(t, tr, user)
	unit := "ssh-capture-" + uid(user) + "-" + l.ID + ".scope"
	if want := filepath.Join(tr.Mount, "user.slice", "user-"+uid(user)+".slice", unit); l.Path != want || l.Level != 3 || l.CgroupID == 0 {
		t.Errorf("made %+v, want %s", l, want)
	}
	if got := view.Unit(strings.TrimPrefix(l.Path, tr.Mount)); got != unit {
		t.Errorf("it is unit %q", got)
	}
	for name, want := range map[string]string{"ActiveState": "active", "Delegate": "yes", "DelegateControllers": "", "CollectMode": "inactive-or-failed"} {
		if got := property(t, unit, name); got != want {
			t.Errorf("%s=%s, want %s", name, got, want)
		}
	}
	if _, err := tr.Make(t.Context(), user, l.ID); err == nil {
		t.Error("made twice")
	}
	if !populatedNow(t, l) {
		t.Error("there is no placeholder")
	}
	p := waiting(t, user)
	if err := l.Enter(p.pidfd, user+1); !errors.Is(err, ErrNotYours) {
		t.Errorf("another's process: %v", err)
	}
	if err := l.Enter(p.pidfd, user); err != nil {
		t.Fatal(err)
	}
	expectIn(t, l, p, true)
	procs, err := os.ReadFile(filepath.Join(l.Path, "cgroup.procs"))
	if err != nil || string(procs) != strconv.Itoa(p.pid())+"\n" {
		t.Errorf("in it are %q (%v), want only %d", procs, err, p.pid())
	}
	// systemd leaves it alone when it reads its configuration again, or is replaced.
	for _, verb := range []string{"daemon-reload", "daemon-reexec"} {
		if out, err := exec.Command("systemctl", verb).CombinedOutput(); err != nil {
			t.Errorf("%s: %v %s", verb, err, out)
		}
		expectIn(t, l, p, true)
	}

	leaves, err := tr.Leaves()
	if err != nil || len(leaves) != 1 {
		t.Fatalf("%d leaves (%v)", len(leaves), err)
	}
	if got := leaves[0]; got.ID != l.ID || got.UID != l.UID || got.Path != l.Path || got.CgroupID != l.CgroupID || got.Level != l.Level {
		t.Errorf("found %+v, made %+v", got, l)
	}
	if err := l.Remove(); !errors.Is(err, unix.EBUSY) {
		t.Errorf("removed with a process in it: %v", err)
	}
	p.stdin.Close()
	if err := errors.Join(view.WaitEmpty(t.Context(), l.Path), l.Remove()); err != nil {
		t.Error(err)
	}
	expectCollected(t, unit, l)

	// Nobody enters.
	l = newLeaf(t, tr, user)
	if err := l.Remove(); err != nil {
		t.Error(err)
	}
	expectCollected(t, "ssh-capture-"+uid(user)+"-"+l.ID+".scope", l)
}

// TestScopeCrash kills the process that made a scope, before and after another entered.
func TestScopeCrash(t *testing.T) {
	tr := booted(t)
	for _, enter := range []bool{false, true} {
		maker := startCmd(t, 0, startRole(t, 0, "maker"))
		l := &Leaf{Path: maker.line(t), tree: tr, settled: func() {}}
		cleanUp(t, l)
		p := waiting(t, user)
		if enter { // without the end of the placeholder
			if err := l.Enter(p.pidfd, user); err != nil {
				t.Fatal(err)
			}
		}
		if !populatedNow(t, l) {
			t.Error("there is no placeholder")
		}
		if err := maker.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if enter {
			deadline := time.Now().Add(10 * time.Second)
			for procs := ""; procs != strconv.Itoa(p.pid())+"\n"; time.Sleep(time.Millisecond) {
				b, err := os.ReadFile(filepath.Join(l.Path, "cgroup.procs"))
				if procs = string(b); err != nil || time.Now().After(deadline) {
					t.Fatalf("in the scope are %q (%v), want %d", b, err, p.pid())
				}
			}
			p.stdin.Close()
		}
		expectCollected(t, filepath.Base(l.Path), l)
	}
}

func maker() error {
	tr, err := Find()
	if err != nil {
		return err
	}
	l, err := tr.Make(context.Background(), user, "crash")
	if err != nil {
		return err
	}
	fmt.Println(l.Path)
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

func TestScopeCapabilities(t *testing.T) {
	tr := booted(t)
	withCapabilities(t, tr, waiting(t, user))
}

// expectCollected waits until systemd has forgotten a unit and removed its cgroup.
func expectCollected(t *testing.T, unit string, l *Leaf) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		state := property(t, unit, "LoadState")
		_, err := os.Stat(l.Path)
		if state == "not-found" && errors.Is(err, fs.ErrNotExist) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is %s still, its directory: %v", unit, state, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
