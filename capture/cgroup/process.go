package cgroup

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Why a process was not moved.
var (
	ErrNotYours         = errors.New("the process is another user's")
	ErrGone             = errors.New("the process has ended")
	ErrForeignNamespace = errors.New("the process is not visible in this PID namespace")
)

// OfProcess returns the cgroup of a process as a path below the root of the hierarchy.
// Where that says nothing, as without cgroup2, it is the one by which systemd knows it.
func OfProcess(pid int) (string, error) { return cgroupOf(strconv.Itoa(pid)) }

func cgroupOf(pid string) (string, error) {
	b, err := os.ReadFile("/proc/" + pid + "/cgroup")
	if err != nil {
		return "", fmt.Errorf("cgroup of a process: %w", err)
	}
	return parseCgroup(string(b)), nil
}

// parseCgroup reads /proc/PID/cgroup, cgroups(7).
func parseCgroup(text string) string {
	found := "/"
	for line := range strings.Lines(text) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) != 3 || !strings.HasPrefix(f[2], "/") {
			continue
		}
		path := strings.TrimSuffix(f[2], " (deleted)")
		if f[0] == "0" && path != "/" {
			return path
		}
		if f[1] == "name=systemd" {
			found = path
		}
	}
	return found
}

// pidOf returns the number of the process behind pidfd in this PID namespace.
func pidOf(pidfd int) (string, error) {
	pid, err := field("/proc/self/fdinfo/"+strconv.Itoa(pidfd), "Pid")
	switch {
	case err != nil:
		return "", fmt.Errorf("not a pidfd: %w", err)
	case pid[0] == "-1":
		return "", ErrGone // and waited for
	case pid[0] == "0":
		return "", ErrForeignNamespace
	}
	return pid[0], nil
}

// alive reports whether a process has not ended. It takes no right to signal it.
func alive(pidfd int) bool {
	p := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		if n, err := unix.Poll(p, 0); err != unix.EINTR {
			return err == nil && n == 0
		}
	}
}

// checkOwner wants all uids of a process, real, effective, saved and file system, to be
// owner's.
func checkOwner(pid string, owner uint32) error {
	uids, err := field("/proc/"+pid+"/status", "Uid")
	if err != nil {
		return err
	}
	for _, uid := range uids {
		if uid != strconv.FormatUint(uint64(owner), 10) {
			return fmt.Errorf("%w: %s", ErrNotYours, pid)
		}
	}
	return nil
}

// field returns what a file of /proc says behind "name:", one word at least.
func field(file, name string) ([]string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(b)) {
		if values, ok := strings.CutPrefix(line, name+":"); ok && strings.TrimSpace(values) != "" {
			return strings.Fields(values), nil
		}
	}
	return nil, fmt.Errorf("%s has no %s", file, name)
}
