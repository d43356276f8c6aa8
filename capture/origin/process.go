package origin

import (
	"errors"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"sshbroker/capture"
)

// Holder finds, among pids, the process that holds the socket with that inode. It
// reads /proc, about 50 µs a process; the zero Origin means that none was found, one
// with an error that not everywhere could be looked.
func Holder(pids []int, inode uint32) capture.Origin {
	if inode == 0 {
		return capture.Origin{}
	}
	want := "socket:[" + strconv.FormatUint(uint64(inode), 10) + "]"
	// The newest process and its newest descriptor are the likeliest.
	var failed error
	for _, pid := range slices.Backward(pids) {
		switch found, err := holds(pid, want); {
		case err != nil:
			failed = err
		case found:
			return Running(pid)
		}
	}
	return capture.Origin{Err: failed}
}

// Running is the process with that id, whatever it does; the zero Origin where it is gone,
// or a thread of the kernel.
func Running(pid int) capture.Origin {
	exe, err := os.Readlink(proc(pid, "exe"))
	if err != nil {
		return capture.Origin{}
	}
	// A program that was replaced while it runs, as by an upgrade, keeps its rules.
	return capture.Origin{Known: true, PID: pid, Exe: strings.TrimSuffix(exe, " (deleted)")}
}

// holds returns an error only for a failure that is ours: a process may end, or be
// another user's.
func holds(pid int, want string) (bool, error) {
	names, err := list(proc(pid, "fd"))
	if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
		return false, err
	}
	for _, name := range slices.Backward(names) {
		if link, err := os.Readlink(proc(pid, "fd/"+name)); err == nil && link == want {
			return true, nil
		}
	}
	return false, nil
}

// Processes lists all processes that can be seen, in ascending order.
func Processes() ([]int, error) {
	names, err := list("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// list returns the names in a directory, in the kernel's order.
func list(path string) ([]string, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return dir.Readdirnames(-1)
}

func proc(pid int, name string) string { return "/proc/" + strconv.Itoa(pid) + "/" + name }
