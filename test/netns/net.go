package netns

import (
	"crypto/rand"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
)

// patience is how long a helper waits for what must happen before it fails the
// test. Nothing takes that long on a machine that works.
const patience = 30 * time.Second

// Net is a topology with its users and everything started in it.
type Net struct {
	Client, Server *Machine
	Inner          *Machine // nil unless made by NewBastion

	// Alice and Bob are strangers to each other but for one shared group.
	Alice, Bob *User

	// Dir is a scratch directory that every user can read, gone with the test.
	Dir string

	id string // in the environment of everything started here

	mu        sync.Mutex
	processes []*Process // guarded by mu
	wires     []*Wire    // guarded by mu
	more      []*User    // beside Alice and Bob; guarded by mu
}

// environment variable that marks whatever was started in a Net.
const mark = "SSHBROKER_TEST_NET"

// New returns the topology of two machines. The test's end takes it down.
func New(t testing.TB) *Net {
	t.Helper()
	return build(t, false)
}

// NewBastion returns the topology of three machines, with a network behind the
// server. The test's end takes it down.
func NewBastion(t testing.TB) *Net {
	t.Helper()
	return build(t, true)
}

func build(t testing.TB, inner bool) *Net {
	t.Helper()
	RequireRoot(t)
	n := &Net{id: rand.Text()}
	// Registered before anything is made: a topology half built is taken down too.
	t.Cleanup(func() { n.close(t) })
	if err := n.build(inner); err != nil {
		t.Fatalf("topology: %v", err)
	}
	return n
}

func (n *Net) build(inner bool) (err error) {
	if n.Dir, err = scratchDir(); err != nil {
		return err
	}
	if n.Alice, err = newUser(n.Dir, "alice", 0); err != nil {
		return err
	}
	if n.Bob, err = newUser(n.Dir, "bob", n.Alice.Groups[0]); err != nil {
		return err
	}
	if n.Client, err = newMachine(n, "client"); err != nil {
		return err
	}
	if n.Server, err = newMachine(n, "server"); err != nil {
		return err
	}
	n.Client.Addr4, n.Client.Addr6 = netip.MustParseAddr("10.99.1.1"), netip.MustParseAddr("fd99:1::1")
	n.Server.Addr4, n.Server.Addr6 = netip.MustParseAddr("10.99.1.2"), netip.MustParseAddr("fd99:1::2")
	err = link(n.Client, "to-server", []string{"10.99.1.1/24", "fd99:1::1/64"},
		n.Server, "to-client", []string{"10.99.1.2/24", "fd99:1::2/64"})
	if err != nil {
		return err
	}
	if err := n.Client.defaultRoute(n.Server.Addr4, n.Server.Addr6); err != nil {
		return err
	}
	if inner {
		if n.Inner, err = newMachine(n, "inner"); err != nil {
			return err
		}
		n.Inner.Addr4, n.Inner.Addr6 = netip.MustParseAddr("10.99.2.2"), netip.MustParseAddr("fd99:2::2")
		err = link(n.Server, "to-inner", []string{"10.99.2.1/24", "fd99:2::1/64"},
			n.Inner, "to-server", []string{"10.99.2.2/24", "fd99:2::2/64"})
		if err != nil {
			return err
		}
	}
	return n.furnish()
}

// furnish gives every machine its names and users.
func (n *Net) furnish() error {
	passwd, group, shadow, err := accounts([]*User{n.Alice, n.Bob})
	if err != nil {
		return err
	}
	hosts := "127.0.0.1 localhost\n::1 localhost ip6-localhost\n" +
		"10.99.1.1 client\nfd99:1::1 client\n10.99.1.2 server\nfd99:1::2 server\n"
	for _, m := range n.machines() {
		hosts, order := hosts, "files dns"
		if m != n.Client {
			hosts += "10.99.2.2 inner db.internal\nfd99:2::2 inner db.internal\n"
			order = "files"
		}
		for _, file := range []struct {
			path, content string
			perm          os.FileMode
		}{
			{"/etc/passwd", passwd, 0o644},
			{"/etc/group", group, 0o644},
			{"/etc/shadow", shadow, 0o600},
			{"/etc/hosts", hosts, 0o644},
			{"/etc/nsswitch.conf", "passwd: files\ngroup: files\nshadow: files\nhosts: " + order + "\n", 0o644},
			// Nobody answers there, which a resolver learns at once.
			{"/etc/resolv.conf", "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n", 0o644},
		} {
			if err := m.replace(file.path, file.content, file.perm); err != nil {
				return err
			}
		}
		if m == n.Client {
			continue
		}
		if err := m.cover("/run", "sshd", "lock", "user"); err != nil {
			return err
		}
		if err := m.cover("/var/log"); err != nil {
			return err
		}
	}
	return nil
}

func (n *Net) machines() []*Machine {
	all := []*Machine{n.Client, n.Server, n.Inner}
	return slices.DeleteFunc(all, func(m *Machine) bool { return m == nil })
}

func (n *Net) users() []*User {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := append([]*User{n.Alice, n.Bob}, n.more...)
	return slices.DeleteFunc(all, func(u *User) bool { return u == nil })
}

// scratchDir makes a directory that ordinary users can reach, which below a
// TMPDIR of root's they could not.
func scratchDir() (string, error) {
	parent := os.TempDir()
	for dir := parent; ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil || info.Mode()&0o001 == 0 {
			parent = "/tmp"
			break
		}
		if dir == "/" {
			break
		}
	}
	dir, err := os.MkdirTemp(parent, "sshbroker-net-")
	if err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o755)
}

// close kills everything that runs in the topology and takes it down.
func (n *Net) close(t testing.TB) {
	n.mu.Lock()
	processes, wires := n.processes, n.wires
	n.mu.Unlock()
	if t.Failed() {
		for _, p := range processes {
			if said := p.Output(); said != "" {
				t.Logf("%s said:\n%s", p, tail(said, 8<<10))
			}
		}
	}
	for _, p := range slices.Backward(processes) {
		p.kill()
	}
	// What outlived its parent holds the pipes of it, so that comes first.
	if err := n.killStrays(); err != nil {
		t.Error(err)
	}
	for _, p := range processes {
		<-p.done
	}
	for _, w := range wires {
		w.close()
	}
	for _, m := range n.machines() {
		if err := m.closeCgroup(); err != nil {
			t.Error(err)
		}
		m.close()
	}
	for _, u := range n.users() {
		os.RemoveAll("/tmp/ssh-" + u.Name)
		u.reservation.Close()
	}
	if n.Dir != "" {
		if err := os.RemoveAll(n.Dir); err != nil {
			t.Error(err)
		}
	}
}

// killStrays kills what was started by processes of the test and outlived them.
func (n *Net) killStrays() error {
	for begin := time.Now(); ; {
		strays := n.ours()
		if len(strays) == 0 {
			return nil
		}
		if time.Since(begin) > patience {
			return fmt.Errorf("these processes do not die: %v", strays)
		}
		for _, p := range strays {
			n.killAndWait(p)
		}
	}
}

func tail(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return "..." + s[len(s)-n:]
}
