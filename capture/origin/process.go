package origin

import (
	"os"
	"strconv"
	"strings"

	"sshbroker/capture"
)

// Holder finds, among pids, the process that holds the socket with that inode. It
// reads /proc, about 50 µs a process; the zero Origin means that none was found.
func Holder(pids []int, inode uint32) capture.Origin {
	if inode == 0 {
		return capture.Origin{}
	}
	want := "socket:[" + strconv.FormatUint(uint64(inode), 10) + "]"
	// The newest process and its newest descriptor are the likeliest.
	for i := len(pids) - 1; i >= 0; i-- {
		if holds(pids[i], want) {
			exe, err := os.Readlink(proc(pids[i], "exe"))
			if err != nil {
				return capture.Origin{}
			}
			// A program that was replaced while it runs, as by an upgrade, keeps its rules.
			return capture.Origin{Known: true, PID: pids[i], Exe: strings.TrimSuffix(exe, " (deleted)")}
		}
	}
	return capture.Origin{}
}

func holds(pid int, want string) bool {
	dir, err := os.Open(proc(pid, "fd"))
	if err != nil {
		return false
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return false
	}
	for i := len(names) - 1; i >= 0; i-- {
		if link, err := os.Readlink(proc(pid, "fd/"+names[i])); err == nil && link == want {
			return true
		}
	}
	return false
}

// InNamespace lists the processes whose network namespace has that inode, in
// ascending order, as far as this process may look at them.
func InNamespace(netns uint64) []int {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil
	}
	want := "net:[" + strconv.FormatUint(netns, 10) + "]"
	var pids []int
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if link, err := os.Readlink(proc(pid, "ns/net")); err == nil && link == want {
			pids = append(pids, pid)
		}
	}
	return pids
}

func proc(pid int, name string) string { return "/proc/" + strconv.Itoa(pid) + "/" + name }
