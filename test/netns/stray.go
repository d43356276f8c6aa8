package netns

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// stray is a process that belongs to a Net: started in it, in one of its
// network namespaces, or a test user's.
type stray struct {
	pid  int
	name string
	uid  uint32
}

func (s stray) String() string { return fmt.Sprintf("process %d %s (uid %d)", s.pid, s.name, s.uid) }

// ours lists the living processes of the Net. Zombies are not living.
func (n *Net) ours() []stray {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var found []stray
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if s, ok := n.isOurs(pid); ok {
			found = append(found, s)
		}
	}
	return found
}

func (n *Net) isOurs(pid int) (stray, bool) {
	s := stray{pid: pid}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return s, false
	}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		fields := strings.Fields(value)
		switch {
		case len(fields) == 0:
		case name == "Name":
			s.name = strings.TrimSpace(value)
		case name == "State" && (fields[0] == "Z" || fields[0] == "X"):
			return s, false
		case name == "Uid":
			uid, _ := strconv.ParseUint(fields[0], 10, 32)
			s.uid = uint32(uid)
		}
	}
	if slices.ContainsFunc(n.users(), func(u *User) bool { return u.UID == s.uid }) {
		return s, true
	}
	if inode, err := netnsOf(fmt.Sprintf("/proc/%d/ns/net", pid)); err == nil {
		if slices.ContainsFunc(n.machines(), func(m *Machine) bool { return m.inode == inode }) {
			return s, true
		}
	}
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	return s, err == nil && bytes.Contains(environ, []byte(mark+"="+n.id))
}

// netnsOf reads the inode out of a link like net:[4026531840].
func netnsOf(link string) (uint64, error) {
	target, err := os.Readlink(link)
	if err != nil {
		return 0, err
	}
	text, ok := strings.CutPrefix(target, "net:[")
	if !ok {
		return 0, fmt.Errorf("%s leads to %s", link, target)
	}
	return strconv.ParseUint(strings.TrimSuffix(text, "]"), 10, 64)
}

// killAndWait kills a process that may have gone meanwhile, and waits.
func (n *Net) killAndWait(s stray) {
	fd, err := unix.PidfdOpen(s.pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	// The descriptor stands for whoever has the number now.
	if _, ok := n.isOurs(s.pid); !ok {
		return
	}
	if unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) != nil {
		return
	}
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(patience.Milliseconds()))
		if err != unix.EINTR {
			return
		}
	}
}

// KillAll kills every process of that name in the machine's network namespace
// and waits for their end: "sshd" for a server with all its connections. It
// returns how many there were.
func (m *Machine) KillAll(t testing.TB, name string) int {
	t.Helper()
	killed := 0
	for {
		// Again until none is left: one may just be starting another.
		found := m.named(name)
		if len(found) == 0 {
			return killed
		}
		for _, s := range found {
			m.net.killAndWait(s)
			killed++
		}
	}
}

// SignalAll sends a signal to every process of that name in the machine's network
// namespace, "sshd" for a server with all its connections, and returns how many there
// were.
func (m *Machine) SignalAll(t testing.TB, name string, sig unix.Signal) int {
	t.Helper()
	found := m.named(name)
	for _, s := range found {
		if err := unix.Kill(s.pid, sig); err != nil && err != unix.ESRCH {
			t.Fatalf("signal %v to %d: %v", sig, s.pid, err)
		}
	}
	return len(found)
}

// named are the processes of that name in the machine's network namespace.
func (m *Machine) named(name string) []stray {
	return slices.DeleteFunc(m.net.ours(), func(s stray) bool {
		inode, err := netnsOf(fmt.Sprintf("/proc/%d/ns/net", s.pid))
		return err != nil || inode != m.inode || s.name != name
	})
}
