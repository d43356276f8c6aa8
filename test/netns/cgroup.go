package netns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/capture/cgroup"
)

// CgroupPrefix begins the names of the cgroups of machines; the process that made it
// follows.
const CgroupPrefix = "sshbroker-test-"

// OwnCgroup has the machine see a cgroup2 hierarchy of its own, in which whatever is
// started from now on begins: a cgroup of the host's that is the root of a cgroup
// namespace. It is gone with the machine, and so is what is made in it. No service
// manager is to be found in the machine then. A host without cgroup2 stays without, and
// a machine that has its own keeps it.
func (m *Machine) OwnCgroup(t testing.TB) {
	t.Helper()
	tree, err := cgroup.Find()
	if errors.Is(err, cgroup.ErrNone) || m.cgroup != "" {
		return
	}
	if err == nil {
		sweep(tree.Mount)
		err = m.ownCgroup(tree.Mount)
	}
	if err != nil {
		t.Fatalf("cgroup of %s: %v", m.Name, err)
	}
	m.MountCgroup(t, tree.Mount)
}

func (m *Machine) ownCgroup(mount string) (err error) {
	if m.cgroup, err = os.MkdirTemp(mount, fmt.Sprintf("%s%d-", CgroupPrefix, os.Getpid())); err != nil {
		return err
	}
	if err := os.Chmod(m.cgroup, 0o755); err != nil {
		return err
	}
	if m.cgroupFD, err = os.Open(m.cgroup); err != nil {
		return err
	}
	// A cgroup namespace is rooted where the process is that makes it, and a thread
	// cannot be elsewhere than its process.
	maker := exec.Command("unshare", "--cgroup", "sh", "-c", "echo made; read end")
	maker.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(m.cgroupFD.Fd())}
	stdin, err := maker.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := maker.StdoutPipe()
	if err != nil {
		return err
	}
	if err := maker.Start(); err != nil {
		return err
	}
	defer func() { stdin.Close(); _ = maker.Wait() }()
	if _, err := stdout.Read(make([]byte, 1)); err != nil {
		return fmt.Errorf("unshare --cgroup: %w", err)
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/cgroup", maker.Process.Pid))
	if err != nil {
		return err
	}
	defer ns.Close()
	return m.onThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWCGROUP); err != nil {
			return fmt.Errorf("enter cgroup namespace: %w", err)
		}
		const serviceManager = "/run/systemd"
		if _, err := os.Stat(serviceManager); err != nil {
			return nil
		}
		return unix.Mount("tmpfs", serviceManager, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755")
	})
}

// sweep removes what test processes left that were killed, where nothing runs in it.
func sweep(mount string) {
	left, _ := filepath.Glob(filepath.Join(mount, CgroupPrefix+"*"))
	for _, dir := range left {
		var pid int
		if _, err := fmt.Sscanf(filepath.Base(dir), CgroupPrefix+"%d-", &pid); err == nil && unix.Kill(pid, 0) == unix.ESRCH {
			_ = removeCgroup(dir)
		}
	}
}

// MountCgroup mounts the machine's own cgroup2 hierarchy at dir, over what is there, or
// in the place of another one.
func (m *Machine) MountCgroup(t testing.TB, dir string) {
	t.Helper()
	err := m.onThread(func() error {
		var there unix.Statfs_t
		if unix.Statfs(dir, &there) == nil && there.Type == unix.CGROUP2_SUPER_MAGIC {
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
				return fmt.Errorf("unmount: %w", err)
			}
		}
		return unix.Mount("cgroup2", dir, "cgroup2", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	})
	if err != nil {
		t.Fatalf("cgroup2 of %s at %s: %v", m.Name, dir, err)
	}
}

// CgroupPath is where the test sees a cgroup of the machine: path is below the root of
// the machine's own hierarchy, as in /proc/PID/cgroup there.
func (m *Machine) CgroupPath(path string) string { return filepath.Join(m.cgroup, path) }

// closeCgroup ends what is in the machine's cgroup and removes it.
func (m *Machine) closeCgroup() error {
	if m.cgroup == "" {
		return nil
	}
	if m.cgroupFD != nil {
		m.cgroupFD.Close()
	}
	for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		_ = os.WriteFile(filepath.Join(m.cgroup, "cgroup.kill"), []byte("1"), 0)
		err := removeCgroup(m.cgroup)
		if err == nil || time.Since(begin) > patience {
			return err
		}
	}
}

func removeCgroup(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if e.IsDir() {
			err = errors.Join(err, removeCgroup(filepath.Join(dir, e.Name())))
		}
	}
	if rerr := unix.Rmdir(dir); rerr != nil && rerr != unix.ENOENT {
		return errors.Join(err, fmt.Errorf("remove %s: %w", dir, rerr))
	}
	return err
}

// captureCgroup matches the last part of the path of a capture's cgroup, its owner's uid
// being the only group; see capture/cgroup.
var captureCgroup = regexp.MustCompile(`^(?:ssh-capture-)?(\d+)-[a-z0-9]+(?:\.scope)?$`)

// ownsCgroup says whether a cgroup is in one of the machines' own, or of a capture of one
// of the users.
func (n *Net) ownsCgroup(path string) bool {
	for _, m := range n.machines() {
		if m.cgroup != "" && strings.HasPrefix(path, m.cgroup+"/") {
			return true
		}
	}
	match := captureCgroup.FindStringSubmatch(filepath.Base(path))
	return match != nil && slices.ContainsFunc(n.users(), func(u *User) bool { return strconv.FormatUint(uint64(u.UID), 10) == match[1] })
}
