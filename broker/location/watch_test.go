package location

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"sshbroker/filter"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// host is a network and UTS namespace, in which one thread does what it is asked to.
type host struct {
	t    *testing.T
	jobs chan func()
	fds  [2]int
}

func newHost(t *testing.T) *host {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root, to make namespaces")
		}
		t.Skip("needs root, to make namespaces")
	}
	h := &host{t: t, jobs: make(chan func())}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread() // and never unlocked: the thread ends with this goroutine
		for job := range h.jobs {
			job()
		}
	}()
	t.Cleanup(func() { close(h.jobs); <-ended })
	h.do(func() (err error) {
		if err = unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWUTS); err != nil {
			return err
		}
		for i, name := range []string{"net", "uts"} {
			if h.fds[i], err = unix.Open("/proc/thread-self/ns/"+name, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
				return err
			}
		}
		return unix.Sethostname([]byte("box"))
	})
	t.Cleanup(func() { unix.Close(h.fds[0]); unix.Close(h.fds[1]) })
	return h
}

func (h *host) do(f func() error) {
	h.t.Helper()
	failed := make(chan error)
	h.jobs <- func() { failed <- f() }
	if err := <-failed; err != nil {
		h.t.Fatal(err)
	}
}

// address gives an interface an address, or takes it away.
func (h *host) address(change func(netlink.Link, *netlink.Addr) error, name, text string) {
	h.t.Helper()
	h.do(func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		a, err := netlink.ParseAddr(text)
		if err != nil {
			return err
		}
		return change(l, a)
	})
}

// pair makes two interfaces that are joined, a and b; both are up.
func (h *host) pair() {
	h.t.Helper()
	h.do(func() error {
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "a"}, PeerName: "b"}); err != nil {
			return err
		}
		return errors.Join(set("a", netlink.LinkSetUp), set("b", netlink.LinkSetUp))
	})
}

func set(name string, to func(netlink.Link) error) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return to(l)
}

// watched is a Watch that runs on the host.
func (h *host) watched(f Files) <-chan *Place {
	h.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	places, ended := make(chan *Place, 100), make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := errors.Join(unix.Setns(h.fds[0], unix.CLONE_NEWNET), unix.Setns(h.fds[1], unix.CLONE_NEWUTS))
		if err == nil {
			Watch(ctx, f, slog.New(slog.DiscardHandler), func(p *Place) { places <- p })
		}
		ended <- err
	}()
	h.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			h.t.Error(err)
		}
	})
	return places
}

// await waits until the host is on the network, or not.
func await(t *testing.T, places <-chan *Place, what, prefix string, exact bool, domain string, want filter.Presence) *Place {
	t.Helper()
	var p netip.Prefix
	if prefix != "" {
		p = netip.MustParsePrefix(prefix)
	}
	// Shorter than anyway: it is an event that has to tell.
	for limit := time.After(20 * time.Second); ; {
		select {
		case place := <-places:
			if place.On(p, exact, domain) == want && place.Err() == nil {
				return place
			}
		case <-limit:
			t.Fatalf("%s: not seen within 20 s", what)
		}
	}
}

func TestWatchAddresses(t *testing.T) {
	h := newHost(t)
	places := h.watched(Files{})
	const office = "10.1.0.0/16"
	await(t, places, "nothing", office, false, "", filter.Away)
	h.pair()
	h.address(netlink.AddrAdd, "a", "10.1.5.7/24")
	p := await(t, places, "an address", office, false, "", filter.Here)
	for prefix, want := range map[string]filter.Presence{"10.1.5.0/32": filter.Here, "10.1.5.7/32": filter.Away} {
		if got := p.On(netip.MustParsePrefix(prefix), true, ""); got != want {
			t.Errorf("exactly %s: %d, want %d", prefix, got, want)
		}
	}
	h.address(netlink.AddrDel, "a", "10.1.5.7/24")
	await(t, places, "no address", office, false, "", filter.Away)
	h.address(netlink.AddrAdd, "a", "10.1.5.8/24")
	await(t, places, "another address", office, false, "", filter.Here)
	h.do(func() error { return set("b", netlink.LinkSetDown) })
	await(t, places, "nobody at the other end", office, false, "", filter.Away)
	h.do(func() error { return set("b", netlink.LinkSetUp) })
	await(t, places, "somebody at the other end", office, false, "", filter.Here)
	h.do(func() error { return set("a", netlink.LinkSetDown) })
	await(t, places, "down", office, false, "", filter.Away)
	h.do(func() error { return errors.Join(set("lo", netlink.LinkSetUp), set("a", netlink.LinkSetUp)) })
	h.address(netlink.AddrAdd, "lo", "10.2.0.1/16")
	h.address(netlink.AddrAdd, "a", "fd00:7::5/64")
	p = await(t, places, "an IPv6 address, once it is the host's alone", "fd00:7::/128", true, "", filter.Here)
	if p.On(netip.MustParsePrefix("10.2.0.0/16"), false, "") != filter.Away {
		t.Error("an address of loopback counts")
	}
	h.address(func(l netlink.Link, a *netlink.Addr) error {
		peer, err := netlink.ParseAddr("10.8.0.9/24")
		a.Peer = peer.IPNet
		return errors.Join(err, netlink.AddrAdd(l, a))
	}, "a", "10.9.0.1/32")
	p = await(t, places, "a peer", "10.8.0.0/32", true, "", filter.Here)
	if p.On(netip.MustParsePrefix("10.9.0.1/32"), false, "") != filter.Here {
		t.Error("the own address of a point-to-point interface does not count")
	}
}

// TestWatchNames changes files in all the ways in which files are.
func TestWatchNames(t *testing.T) {
	h := newHost(t)
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(path(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	move := func(from, to string) {
		t.Helper()
		if err := os.Rename(path(from), path(to)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(path("run"), 0o700); err != nil {
		t.Fatal(err)
	}
	places := h.watched(Files{Hosts: path("hosts"), Resolv: path("resolv.conf")})
	step := func(what, domain string) {
		t.Helper()
		await(t, places, what, "", false, domain, filter.Here)
	}
	await(t, places, "nothing", "", false, "a", filter.Away)
	write("resolv.conf", "search a\n")
	step("a new file", "a")
	write("resolv.conf", "search bb\n")
	step("written over", "bb")
	write("new", "domain c\n")
	move("new", "resolv.conf")
	step("replaced", "c")
	write("run/resolv.conf", "search d\n")
	if err := os.Symlink("run/resolv.conf", path("new")); err != nil {
		t.Fatal(err)
	}
	move("new", "resolv.conf")
	step("a link", "d")
	write("run/resolv.conf", "search e\n")
	step("behind a link", "e")
	write("run/new", "search f\n")
	move("run/new", "run/resolv.conf")
	step("replaced behind a link", "f")
	if err := os.Remove(path("run/resolv.conf")); err != nil {
		t.Fatal(err)
	}
	await(t, places, "removed", "", false, "f", filter.Away)
	write("hosts", "127.0.1.1 box.office.example box\n")
	step("the full name", "office.example")
	h.do(func() error { return unix.Sethostname([]byte("box.Home.example")) })
	step("another name", "home.example")
}

// TestWatchIsQuiet: what alters nothing is not told.
func TestWatchIsQuiet(t *testing.T) {
	h := newHost(t)
	dir := t.TempDir()
	places := h.watched(Files{Resolv: filepath.Join(dir, "resolv.conf")})
	await(t, places, "nothing", "", false, "a", filter.Away)
	h.do(func() error { return set("lo", netlink.LinkSetUp) })
	for range 20 {
		if err := os.WriteFile(filepath.Join(dir, "else"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(dir, "else")); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "resolv.conf"), []byte("search a\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if p := <-places; p.On(netip.Prefix{}, false, "a") != filter.Here {
		t.Errorf("told of %+v", p)
	}
}

// TestWatchInDoubt: what cannot be read is unknown, until it can be.
func TestWatchInDoubt(t *testing.T) {
	h := newHost(t)
	file := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.Mkdir(file, 0o700); err != nil {
		t.Fatal(err)
	}
	places := h.watched(Files{Resolv: file})
	if p := <-places; p.On(netip.Prefix{}, false, "a") != filter.Unknown || p.Err() == nil {
		t.Errorf("a directory: %+v", p)
	}
	if err := errors.Join(os.Remove(file), os.WriteFile(file, []byte("search a\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	await(t, places, "a file in its place", "", false, "a", filter.Here)
}

// TestWatchWithoutDescriptors: without descriptors nothing is known; with some all is again.
func TestWatchWithoutDescriptors(t *testing.T) {
	h := newHost(t)
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	h.do(func() error { return unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: before.Max}) })
	restore := func() error { return unix.Setrlimit(unix.RLIMIT_NOFILE, &before) }
	t.Cleanup(func() { _ = restore() })
	places := h.watched(Files{Resolv: "/etc/resolv.conf"})
	p := <-places
	h.do(restore)
	if p.On(netip.MustParsePrefix("10.1.0.0/16"), false, "") != filter.Unknown || p.On(netip.Prefix{}, false, "a") != filter.Unknown || !errors.Is(p.Err(), unix.EMFILE) {
		t.Errorf("without descriptors: %+v, %v", p, p.Err())
	}
	await(t, places, "descriptors", "10.1.0.0/16", false, "", filter.Away)
}

func TestDirectories(t *testing.T) {
	dir := t.TempDir()
	for name, target := range map[string]string{"a": "sub/b", "sub/b": filepath.Join(dir, "other/c"), "loop": "loop"} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{dir, filepath.Join(dir, "sub"), filepath.Join(dir, "other")}
	if got := directories(filepath.Join(dir, "a")); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got := directories(filepath.Join(dir, "loop")); len(got) != maxLinks {
		t.Errorf("%d directories of a link to itself", len(got))
	}
	if _, err := readFile(filepath.Join(dir, "loop")); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a link to itself is read: %v", err)
	}
}
