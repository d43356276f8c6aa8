package netns

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Machine is one host of a topology: a network, mount and UTS namespace.
type Machine struct {
	Name string

	// Addr4 and Addr6 are where others on its network reach it: for the server,
	// the addresses towards the client.
	Addr4, Addr6 netip.Addr

	net   *Net
	dir   string   // files that stand in for those of the machine
	netns *os.File // the network namespace, for setns(2)
	inode uint64   // of netns

	cgroup   string   // of OwnCgroup, as the host sees it; "" without
	cgroupFD *os.File // for processes to begin in

	// The thread that holds the namespaces runs what work delivers. Processes
	// are started by it and no other, as PR_SET_PDEATHSIG is about the thread.
	work chan func()
	tid  int
	quit chan struct{} // closed to end the thread
	gone chan struct{} // closed by it
}

// NetNS is a path that leads to the network namespace for as long as the machine
// lives: for nsenter --net=PATH, or to compare.
func (m *Machine) NetNS() string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), m.netns.Fd())
}

// Inode identifies the network namespace, as in net:[INODE].
func (m *Machine) Inode() uint64 { return m.inode }

// proc is a path below the machine's own view of /proc/self.
func (m *Machine) proc(name string) string {
	return fmt.Sprintf("/proc/%d/task/%d/%s", os.Getpid(), m.tid, name)
}

// onNewThread runs f on a thread that ends with it, and never on the process's
// first thread, whose namespaces /proc/self shows.
func onNewThread(f func()) {
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			f() // still locked when it returns: the thread ends
			return
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			wait := make(chan struct{})
			onNewThread(func() { defer close(wait); f() })
			<-wait
		}()
		<-done // keeps the first thread busy meanwhile
		runtime.UnlockOSThread()
	}()
}

func newMachine(n *Net, name string) (*Machine, error) {
	m := &Machine{
		Name: name, net: n, dir: filepath.Join(n.Dir, name),
		work: make(chan func()), quit: make(chan struct{}), gone: make(chan struct{}),
	}
	if err := os.Mkdir(m.dir, 0o755); err != nil {
		return nil, err
	}
	ready := make(chan error, 1)
	onNewThread(func() {
		defer close(m.gone)
		err := m.enterNew()
		ready <- err
		if err != nil {
			return
		}
		for {
			select {
			case f := <-m.work:
				f()
			case <-m.quit:
				return
			}
		}
	})
	if err := <-ready; err != nil {
		return nil, fmt.Errorf("machine %s: %w", name, err)
	}
	return m, nil
}

// enterNew moves the calling thread into new namespaces and prepares them.
func (m *Machine) enterNew() error {
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	m.tid = unix.Gettid()
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Sethostname([]byte(m.Name)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	var err error
	if m.netns, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		return err
	}
	var stat unix.Stat_t
	if err := unix.Fstat(int(m.netns.Fd()), &stat); err != nil {
		return err
	}
	m.inode = stat.Ino
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("lo up: %w", err)
	}
	return nil
}

// onThread runs f on the thread that holds the machine and returns its error.
func (m *Machine) onThread(f func() error) error {
	done := make(chan error, 1)
	select {
	case m.work <- func() { done <- f() }:
		return <-done
	case <-m.gone:
		return fmt.Errorf("machine %s: %w", m.Name, os.ErrClosed)
	}
}

// Do runs f on a thread inside the machine's network namespace, for sockets that
// the test itself opens there. Goroutines that f starts are outside again. f may
// block; a panic or runtime.Goexit in it is not caught.
func (m *Machine) Do(f func() error) error {
	done := make(chan error, 1)
	onNewThread(func() {
		if err := unix.Setns(int(m.netns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter %s: %w", m.Name, err)
			return
		}
		done <- f()
	})
	return <-done
}

// Listen is net.Listen inside the machine. The test's end closes the listener.
func (m *Machine) Listen(t testing.TB, network, address string) net.Listener {
	t.Helper()
	var l net.Listener
	err := m.Do(func() (err error) { l, err = net.Listen(network, address); return err })
	if err != nil {
		t.Fatalf("%s: %v", m.Name, err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// Dial is a net.Dialer's inside the machine, to a literal address. The caller
// closes the connection.
func (m *Machine) Dial(network, address string) (net.Conn, error) {
	var c net.Conn
	err := m.Do(func() (err error) {
		c, err = (&net.Dialer{Timeout: patience}).Dial(network, address)
		return err
	})
	return c, err
}

// Replace puts content in the place of a file of the machine, for this machine
// only; again, when called again. The file must exist. Running programs see it.
func (m *Machine) Replace(t testing.TB, path, content string) {
	t.Helper()
	if err := m.replace(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
}

func (m *Machine) replace(path, content string, perm os.FileMode) error {
	stand := filepath.Join(m.dir, strings.ReplaceAll(strings.Trim(path, "/"), "/", "-"))
	_, err := os.Stat(stand)
	mounted := err == nil
	// Written in place: the mount is of the inode, not of the name.
	if err := os.WriteFile(stand, []byte(content), perm); err != nil {
		return err
	}
	if err := os.Chmod(stand, perm); err != nil {
		return err
	}
	if mounted {
		return nil
	}
	return m.onThread(func() error {
		if err := unix.Mount(stand, path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("machine %s: replace %s: %w", m.Name, path, err)
		}
		return nil
	})
}

// cover mounts an empty tmpfs on a directory of the machine, with the
// directories named inside it.
func (m *Machine) cover(dir string, inside ...string) error {
	return m.onThread(func() error {
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
			return fmt.Errorf("machine %s: cover %s: %w", m.Name, dir, err)
		}
		for _, name := range inside {
			if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
				return err
			}
		}
		return nil
	})
}

// Sysctl writes a kernel parameter of the machine, "net.ipv4.ip_forward" say.
func (m *Machine) Sysctl(t testing.TB, name, value string) {
	t.Helper()
	err := m.onThread(func() error {
		return os.WriteFile("/proc/sys/"+strings.ReplaceAll(name, ".", "/"), []byte(value), 0)
	})
	if err != nil {
		t.Fatalf("%s: %v", m.Name, err)
	}
}

// Listening reports whether a TCP socket of the machine listens on port, for
// either family.
func (m *Machine) Listening(port uint16) bool {
	for _, name := range []string{"net/tcp", "net/tcp6"} {
		table, err := os.ReadFile(m.proc(name))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(table)) {
			fields := strings.Fields(line)
			if len(fields) < 4 || fields[3] != tcpListen {
				continue
			}
			_, text, _ := strings.Cut(fields[1], ":")
			if got, err := strconv.ParseUint(text, 16, 16); err == nil && uint16(got) == port {
				return true
			}
		}
	}
	return false
}

// The states of /proc/net/tcp, include/net/tcp_states.h.
const (
	tcpTimeWait = "06"
	tcpListen   = "0A"
)

// link joins two machines by a veth pair.
func link(a *Machine, aName string, aAddrs []string, b *Machine, bName string, bAddrs []string) error {
	err := a.onThread(func() error {
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: aName}, PeerName: bName, PeerNamespace: netlink.NsFd(b.netns.Fd()),
		})
	})
	if err != nil {
		return fmt.Errorf("veth %s: %w", aName, err)
	}
	for _, end := range []struct {
		m     *Machine
		name  string
		addrs []string
	}{{a, aName, aAddrs}, {b, bName, bAddrs}} {
		if err := end.m.onThread(func() error { return bringUp(end.name, end.addrs) }); err != nil {
			return fmt.Errorf("%s of %s: %w", end.name, end.m.Name, err)
		}
	}
	return nil
}

func bringUp(name string, addrs []string) error {
	// The peer side of a veth is there at once, but IPv6 may be switched off for it.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("0"), 0); err != nil {
		return err
	}
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return err
	}
	for _, text := range addrs {
		addr, err := netlink.ParseAddr(text)
		if err != nil {
			return err
		}
		if addr.IP.To4() == nil {
			addr.Flags = unix.IFA_F_NODAD // usable at once
		}
		if err := netlink.AddrAdd(l, addr); err != nil {
			return fmt.Errorf("address %s: %w", text, err)
		}
	}
	return nil
}

// route sends everything else by way of a neighbour.
func (m *Machine) defaultRoute(via ...netip.Addr) error {
	return m.onThread(func() error {
		for _, gateway := range via {
			if err := netlink.RouteAdd(&netlink.Route{Gw: gateway.AsSlice()}); err != nil {
				return fmt.Errorf("machine %s: default route via %s: %w", m.Name, gateway, err)
			}
		}
		return nil
	})
}

// close lets go of the namespaces. The kernel keeps them for as long as a
// process or a descriptor is in them.
func (m *Machine) close() {
	close(m.quit)
	<-m.gone
	m.netns.Close()
}
