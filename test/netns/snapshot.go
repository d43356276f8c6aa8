package netns

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Snapshot is what a test could leave behind, at one moment. It holds of the
// host only what has to do with the Net, so that other tests may run meanwhile.
//
//	processes       of the test users, of the machines, and whatever descends
//	                from something started here
//	namespaces      network namespaces other than the machines' and the host's that
//	                those processes are in, have open, or have a socket in, or that
//	                are mounted
//	interfaces, nftables rulesets, routes, policy rules, kernel parameters of IPv4 and
//	                IPv6, mounts, TCP, UDP and Unix sockets of the machines; of the
//	                host the ruleset
//	cgroups         of the test users and their captures, and whatever is in the machines' own
//	files           in /tmp, /var/tmp, /dev/shm and /run: the test users', and /tmp/ssh-NAME, for root
//	                while a broker of a machine's has its socket there
type Snapshot struct{ items map[string]bool }

// Snapshot describes the present state.
func (n *Net) Snapshot(t testing.TB) Snapshot {
	t.Helper()
	s := Snapshot{items: map[string]bool{}}
	processes := n.ours()
	s.addProcesses(processes)
	for _, collect := range []func(testing.TB, *Net, []stray){
		s.addNamespaces, s.addRulesets, s.addInterfaces, s.addRouting, s.addSettings, s.addTables, s.addCgroups, s.addFiles,
	} {
		collect(t, n, processes)
	}
	return s
}

// Diff lists what has come ("+ ...") and gone ("- ...") since before.
func (s Snapshot) Diff(before Snapshot) []string {
	var diff []string
	for item := range s.items {
		if !before.items[item] {
			diff = append(diff, "+ "+item)
		}
	}
	for item := range before.items {
		if !s.items[item] {
			diff = append(diff, "- "+item)
		}
	}
	slices.Sort(diff)
	return diff
}

// String lists everything, a line each.
func (s Snapshot) String() string {
	return strings.Join(slices.Sorted(maps.Keys(s.items)), "\n")
}

// RequireRestored fails the test unless the state is what it was before, within
// the time given. There is no one event to wait for: processes end, sockets
// close and namespaces go each in its own time, so it looks again and again.
func (n *Net) RequireRestored(t testing.TB, before Snapshot, within time.Duration) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		diff := n.Snapshot(t).Diff(before)
		if len(diff) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not as before after %v:\n%s%s", within, strings.Join(diff, "\n"), ages(diff))
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// ages tells when files that were left behind were made and last changed: by whom is
// then easier to guess.
func ages(diff []string) string {
	var text strings.Builder
	for _, line := range diff {
		rest, isFile := strings.CutPrefix(line, "+ file ")
		path, _, _ := strings.Cut(rest, " ")
		var st unix.Statx_t
		if !isFile || unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BTIME|unix.STATX_BASIC_STATS, &st) != nil {
			continue
		}
		ago := func(at unix.StatxTimestamp) time.Duration {
			return time.Since(time.Unix(at.Sec, int64(at.Nsec))).Round(time.Millisecond)
		}
		fmt.Fprintf(&text, "\n%s: made %v ago, changed %v ago", path, ago(st.Btime), ago(st.Ctime))
	}
	return text.String()
}

func (s Snapshot) add(format string, args ...any) { s.items[fmt.Sprintf(format, args...)] = true }

func (s Snapshot) addProcesses(processes []stray) {
	for _, p := range processes {
		s.add("%s", p)
	}
}

func (s Snapshot) addNamespaces(_ testing.TB, n *Net, processes []stray) {
	known := map[uint64]bool{}
	if host, err := netnsOf("/proc/self/ns/net"); err == nil {
		known[host] = true
	}
	for _, m := range n.machines() {
		known[m.inode] = true
	}
	add := func(inode uint64, why string) {
		if !known[inode] {
			s.add("network namespace %d %s", inode, why)
		}
	}
	for _, p := range processes {
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/ns/net", p.pid))
		for _, thread := range threads {
			if inode, err := netnsOf(thread); err == nil {
				add(inode, fmt.Sprintf("entered by %d %s", p.pid, p.name))
			}
		}
		descriptors, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", p.pid))
		for _, descriptor := range descriptors {
			target, err := os.Readlink(descriptor)
			switch {
			case err != nil:
			case strings.HasPrefix(target, "net:["):
				if inode, err := netnsOf(descriptor); err == nil {
					add(inode, fmt.Sprintf("open in %d %s", p.pid, p.name))
				}
			case strings.HasPrefix(target, "socket:["):
				fd, err := strconv.Atoi(filepath.Base(descriptor))
				if err != nil {
					continue
				}
				if inode, err := netnsOfSocket(p.pid, fd); err == nil {
					add(inode, fmt.Sprintf("held by a socket of %d %s", p.pid, p.name))
				}
			}
		}
	}
}

// netnsOfSocket asks which network namespace a socket of another process is in.
// Such a socket keeps the namespace although no process is in it any more.
func netnsOfSocket(pid, fd int) (uint64, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(pidfd)
	socket, err := unix.PidfdGetfd(pidfd, fd, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(socket)
	ns, err := unix.IoctlRetInt(socket, unix.SIOCGSKNS)
	if err != nil {
		return 0, err
	}
	defer unix.Close(ns)
	var stat unix.Stat_t
	if err := unix.Fstat(ns, &stat); err != nil {
		return 0, err
	}
	return stat.Ino, nil
}

func (s Snapshot) addRulesets(t testing.TB, n *Net, _ []stray) {
	nft := RequireProgram(t, "nft", "nftables")
	list := func(where string, m *Machine, args ...string) {
		// Stateless: counters change by themselves.
		r := m.runUnlisted(t, Cmd{Args: append(args, nft, "-s", "list", "ruleset")})
		if r.Code != 0 {
			t.Fatalf("nft list ruleset of %s: %s", where, r)
		}
		path := ""
		for line := range strings.Lines(r.Stdout) {
			line = strings.TrimSpace(line)
			switch {
			case line == "" || line == "}":
			case strings.HasPrefix(line, "table "):
				path = line
				s.add("nftables of %s: %s", where, line)
			default:
				s.add("nftables of %s: %s %s", where, path, line)
			}
		}
	}
	list("the host", n.Client, "nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", os.Getpid()))
	for _, m := range n.machines() {
		list(m.Name, m)
	}
}

// runUnlisted runs a short command that is not to appear among the processes of
// the test when it fails.
func (m *Machine) runUnlisted(t testing.TB, c Cmd) Result {
	t.Helper()
	r := m.Run(t, c)
	m.net.mu.Lock()
	defer m.net.mu.Unlock()
	m.net.processes = slices.DeleteFunc(m.net.processes, func(p *Process) bool {
		select {
		case <-p.done:
			return slices.Equal(p.args, c.Args)
		default:
			return false
		}
	})
	return r
}

func (s Snapshot) addInterfaces(t testing.TB, n *Net, _ []stray) {
	for _, m := range n.machines() {
		err := m.onThread(func() error {
			links, err := netlink.LinkList()
			for _, l := range links {
				s.add("interface %s of %s", l.Attrs().Name, m.Name)
			}
			return err
		})
		if err != nil {
			t.Fatalf("interfaces of %s: %v", m.Name, err)
		}
	}
}

// addTables reads the machines' own tables below /proc.
func (s Snapshot) addTables(t testing.TB, n *Net, _ []stray) {
	for _, m := range n.machines() {
		read := func(name string) string {
			content, err := os.ReadFile(m.proc(name))
			if err != nil {
				t.Fatalf("%s: %v", m.Name, err)
			}
			return string(content)
		}
		for line := range strings.Lines(read("mountinfo")) {
			before, after, _ := strings.Cut(line, " - ")
			left, right := strings.Fields(before), strings.Fields(after)
			if len(left) > 4 && len(right) > 0 {
				s.add("mount %s (%s) of %s", left[4], right[0], m.Name)
			}
		}
		for _, table := range []string{"tcp", "tcp6", "udp", "udp6"} {
			for line := range strings.Lines(read("net/" + table)) {
				// Number, local, remote, state.
				f := strings.Fields(line)
				if len(f) > 3 && f[0] != "sl" && f[3] != tcpTimeWait {
					s.add("%s socket %s %s state %s of %s", table, f[1], f[2], f[3], m.Name)
				}
			}
		}
		for line := range strings.Lines(read("net/unix")) {
			// Sockets without a name belong to processes, which are listed.
			if f := strings.Fields(line); len(f) > 7 && f[0] != "Num" {
				s.add("unix socket %s of %s", f[7], m.Name)
			}
		}
	}
}

func (s Snapshot) addCgroups(_ testing.TB, n *Net, _ []stray) {
	filepath.WalkDir("/sys/fs/cgroup", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return nil // gone while we looked
		}
		if n.ownsCgroup(path) || n.ownsFile(entry) {
			s.add("cgroup %s", path)
		}
		return nil
	})
}

// hasSocket tells whether a socket below dir was made on one of the machines. Root's
// directory is that of other tests' programs as well.
func (n *Net) hasSocket(dir string) bool {
	return slices.ContainsFunc(n.machines(), func(m *Machine) bool {
		table, err := os.ReadFile(m.proc("net/unix"))
		return err == nil && strings.Contains(string(table), " "+dir+"/")
	})
}

func (n *Net) ownsFile(entry fs.DirEntry) bool {
	info, err := entry.Info()
	if err != nil {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && slices.ContainsFunc(n.users(), func(u *User) bool { return u.UID == stat.Uid })
}

func (s Snapshot) addFiles(_ testing.TB, n *Net, _ []stray) {
	for _, dir := range []string{"/tmp", "/var/tmp", "/dev/shm", "/run", "/run/lock", "/run/user"} {
		entries, _ := os.ReadDir(dir)
		for _, entry := range entries {
			path := filepath.Join(dir, entry.Name())
			ours := n.ownsFile(entry) || entry.Name() == "ssh-root" && n.hasSocket(path) ||
				slices.ContainsFunc(n.users(), func(u *User) bool { return strings.HasPrefix(entry.Name(), "ssh-"+u.Name) })
			if !ours {
				continue
			}
			filepath.WalkDir(path, func(path string, entry fs.DirEntry, err error) error {
				if err == nil {
					s.add("file %s (%s)", path, entry.Type())
				}
				return nil
			})
		}
	}
}
