package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Leaf is the cgroup of one capture. It is safe for concurrent use.
type Leaf struct {
	ID  string
	UID uint32 // of the capture's owner

	Path     string // its directory
	CgroupID uint64 // the directory's inode, never that of another cgroup later
	Level    uint32 // for `socket cgroupv2 level` in rules that this process loads

	tree    *Tree
	settled func() // ends the placeholder
}

func (l *Leaf) identify() error {
	info, err := os.Stat(l.Path)
	if err != nil {
		return err
	}
	l.CgroupID = info.Sys().(*syscall.Stat_t).Ino
	l.Level = uint32(strings.Count(strings.TrimPrefix(l.Path, l.tree.Mount), "/"))
	return nil
}

// Enter moves the process behind pidfd, with all its threads and without its children,
// into the leaf. All of its uids must be owner's. ErrNotYours,
// ErrGone and ErrForeignNamespace say why it was not moved. The caller keeps pidfd.
func (l *Leaf) Enter(pidfd *os.File, owner uint32) error {
	raw, err := pidfd.SyscallConn()
	if err == nil {
		err = errors.Join(raw.Control(func(fd uintptr) {
			var pid string
			if pid, err = pidOf(int(fd)); err == nil {
				err = l.enter(int(fd), pid, owner)
			}
		}), err)
	}
	if err != nil {
		return fmt.Errorf("enter cgroup: %w", err)
	}
	l.settled()
	return nil
}

// enter moves pid if it is pidfd's. The number of a live process is no other's: so what
// was learnt of it holds, and the right one was moved, if pidfd is alive afterwards.
func (l *Leaf) enter(pidfd int, pid string, owner uint32) error {
	err := checkOwner(pid, owner)
	if !alive(pidfd) {
		return ErrGone
	}
	if err == nil {
		err = move(pid, l.Path)
	}
	if alive(pidfd) {
		return err
	}
	if _, perr := pidOf(pidfd); err == nil && errors.Is(perr, ErrGone) {
		l.putBack(pid) // the number may have been given to another in between
	}
	return ErrGone
}

// putBack undoes the move of a process that was taken for another. It began a moment
// ago, most likely in its parent's cgroup.
func (l *Leaf) putBack(pid string) {
	if path, err := cgroupOf(pid); err != nil || l.tree.Mount+path != l.Path {
		return
	}
	if parent, err := field("/proc/"+pid+"/status", "PPid"); err == nil {
		if path, err := cgroupOf(parent[0]); err == nil {
			_ = move(pid, l.tree.Mount+path)
		}
	}
}

// Populated reports whether a process is in the leaf or below it, the placeholder
// included. A leaf that is gone has none.
func (l *Leaf) Populated() (bool, error) {
	b, err := os.ReadFile(filepath.Join(l.Path, "cgroup.events"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) { // the latter is what its open file answers
		return false, nil
	}
	return strings.Contains(string(b), "populated 1\n"), err
}

func move(pid, dir string) error {
	return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(pid), 0)
}

// Remove removes the leaf, and empty cgroups that were made in it. unix.EBUSY means
// that a process is in it. There is no error if it is gone, nor where
// systemd is about to remove it.
func (l *Leaf) Remove() error {
	l.settled()
	populated, err := l.Populated()
	switch {
	case populated:
		err = unix.EBUSY
	case !l.tree.systemd:
		err = removeTree(l.Path) // the kernel knows, also where there was no descriptor to ask
	case err == nil: // systemd misses the end of a scope whose directory goes before
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove cgroup %s: %w", l.Path, err)
	}
	l.tree.mu.Lock()
	defer l.tree.mu.Unlock()
	_ = unix.Rmdir(filepath.Dir(l.Path)) // unless there are others
	return nil
}

// removeTree removes path and the cgroups below it. The files in it go by themselves.
func removeTree(path string) error {
	entries, _ := os.ReadDir(path)
	for _, e := range entries {
		if e.IsDir() {
			_ = removeTree(filepath.Join(path, e.Name())) // or path cannot be removed
		}
	}
	if err := unix.Rmdir(path); err != unix.ENOENT {
		return err
	}
	return nil
}
