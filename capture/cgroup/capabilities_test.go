package cgroup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sshbroker/capture/cgroup/view"
)

// What ssh-captured has.
const capabilities = 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_SYS_PTRACE | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_BPF

// TestCapabilities makes, enters and removes a leaf for another user's process as root
// with no other capabilities than ssh-captured's and no new privileges.
func TestCapabilities(t *testing.T) {
	tr := tree(t)
	p := waiting(t, user)
	withCapabilities(t, tr, p)
}

func withCapabilities(t *testing.T, tr *Tree, p *program) {
	t.Helper()
	made++
	id := fmt.Sprintf("test%d-%d", os.Getpid(), made)
	cmd := startRole(t, 0, "drop", id)
	cmd.ExtraFiles = []*os.File{p.pidfd}
	d := startCmd(t, 0, cmd)
	if got, want := d.line(t), fmt.Sprintf("capabilities %016x %016x", uint64(capabilities), uint64(capabilities)); got != want {
		t.Fatalf("%q, want %q", got, want)
	}
	dir, ok := strings.CutPrefix(d.line(t), "made ")
	if !ok {
		t.Fatal(dir)
	}
	l := &Leaf{Path: dir, tree: tr, settled: func() {}}
	cleanUp(t, l)
	if got := d.line(t); got != "entered" {
		t.Fatal(got)
	}
	expectIn(t, l, p, true)
	p.stdin.Close()
	if got := d.line(t); got != "removed" {
		t.Fatal(got)
	}
	if populatedNow(t, l) {
		t.Error("it is still populated")
	}
}

// dropAndExec runs itself again, with the capabilities only.
func dropAndExec() error {
	status := func(name string) string {
		v, err := field("/proc/self/status", name)
		return strings.Join(append(v, errText(err)...), " ")
	}
	if os.Getenv("CGROUP_TEST_DROPPED") == "" {
		runtime.LockOSThread()
		for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
			if capabilities>>c&1 == 0 {
				if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && err != unix.EINVAL {
					return err
				}
			}
		}
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return err
		}
		return unix.Exec("/proc/self/exe", os.Args, append(os.Environ(), "CGROUP_TEST_DROPPED=1"))
	}
	fmt.Println("capabilities", status("CapEff"), status("CapBnd"))
	tr, err := Find()
	if err != nil {
		return err
	}
	l, err := tr.Make(context.Background(), user, os.Args[1])
	if err != nil {
		return err
	}
	fmt.Println("made", l.Path)
	if err := l.Enter(os.NewFile(3, "pidfd"), user); err != nil {
		return errors.Join(err, l.Remove())
	}
	fmt.Println("entered")
	if err := errors.Join(view.WaitEmpty(context.Background(), l.Path), l.Remove()); err != nil {
		return err
	}
	fmt.Println("removed")
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	return nil
}

func errText(err error) []string {
	if err == nil {
		return nil
	}
	return []string{err.Error()}
}
