package view

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// settle is longer than the kernel puts a notice off that is less than 10 ms after the
// last one (cgroup_file_notify). Removal within that time takes it back: so once after
// every notice it has to be looked again.
const settle = 50 * time.Millisecond

// WaitEmpty returns once no process is in the cgroup whose directory is path, nor below it,
// or with ctx's error. It needs no privilege, one descriptor and no thread, and does
// nothing while nothing happens.
func WaitEmpty(ctx context.Context, path string) error {
	f, err := os.Open(filepath.Join(path, "cgroup.events"))
	if isGone(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("watch cgroup: %w", err)
	}
	defer f.Close()
	defer context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })()
	raw, err := f.SyscallConn()
	var rerr error
	buf, rest := make([]byte, 512), false
	for err == nil {
		// A change is EPOLLERR, which wakes readers too (kernfs_generic_poll), and to
		// read takes note of it.
		err = raw.Read(func(fd uintptr) bool {
			if !rest {
				_ = f.SetReadDeadline(time.Now().Add(settle))
			}
			var n int
			rest = false
			n, rerr = unix.Pread(int(fd), buf, 0)
			return rerr != nil || !populated(buf[:n])
		})
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			err = errors.Join(err, rerr)
			break
		}
		rest, err = true, f.SetReadDeadline(time.Time{})
		if ctx.Err() != nil { // its deadline, or one that is taken back just now
			return ctx.Err()
		}
	}
	switch {
	case err == nil, isGone(err):
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return fmt.Errorf("watch cgroup %s: %w", path, err)
}

// populated reads cgroup.events.
func populated(b []byte) bool { return strings.Contains("\n"+string(b), "\npopulated 1\n") }

// isGone tells that a cgroup was removed: ENODEV is what its open files answer.
func isGone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) }
