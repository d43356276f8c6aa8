package netns

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(orphanEnv); path != "" {
		orphan(path)
	}
	goleak.VerifyTestMain(m)
}

// serveOnce answers one connection with a greeting.
func serveOnce(t *testing.T, m *Machine, address netip.AddrPort) {
	t.Helper()
	l := m.Listen(t, "tcp", address.String())
	go func() {
		if c, err := l.Accept(); err == nil {
			io.WriteString(c, "hello from "+m.Name+"\n")
			c.Close()
		}
	}()
}

var errTimeout = errors.New("a timeout of either kind")

func TestReachability(t *testing.T) {
	n := NewBastion(t)
	for _, test := range []struct {
		from, to *Machine
		want     error
	}{
		{n.Client, n.Server, nil},
		{n.Server, n.Client, nil},
		{n.Server, n.Inner, nil},
		{n.Inner, n.Server, nil},
		{n.Client, n.Inner, errTimeout},
		{n.Inner, n.Client, unix.ENETUNREACH},
	} {
		to := []netip.Addr{test.to.Addr4, test.to.Addr6}
		if test.from == n.Inner && test.to == n.Server {
			to = []netip.Addr{netip.MustParseAddr("10.99.2.1"), netip.MustParseAddr("fd99:2::1")}
		}
		for _, addr := range to {
			t.Run(fmt.Sprintf("%s to %s at %s", test.from.Name, test.to.Name, addr), func(t *testing.T) {
				address := netip.AddrPortFrom(addr, 7000)
				serveOnce(t, test.to, address)
				var c net.Conn
				err := test.from.Do(func() (err error) {
					c, err = (&net.Dialer{Timeout: 200 * time.Millisecond}).Dial("tcp", address.String())
					return err
				})
				if test.want != nil {
					var netErr net.Error
					timeout := errors.As(err, &netErr) && netErr.Timeout()
					if !errors.Is(err, test.want) && (!timeout || test.want != errTimeout) {
						t.Errorf("got %v, want %v", err, test.want)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				line, err := bufio.NewReader(c).ReadString('\n')
				if err != nil || line != "hello from "+test.to.Name+"\n" {
					t.Errorf("%q, %v", line, err)
				}
			})
		}
	}
}

func TestNamesAndFiles(t *testing.T) {
	n := NewBastion(t)
	if got := n.Server.Output(t, nil, "getent", "ahostsv4", "db.internal"); !strings.HasPrefix(got, "10.99.2.2 ") {
		t.Errorf("the server finds db.internal at %q", got)
	}
	if r := n.Client.Run(t, Cmd{Args: []string{"getent", "ahosts", "db.internal"}}); r.Code == 0 {
		t.Errorf("the client knows db.internal: %s", r)
	} else if r.Took > 5*time.Second {
		t.Errorf("that took the client %v", r.Took)
	}
	if got := n.Inner.Output(t, nil, "uname", "-n"); got != "inner" {
		t.Errorf("the host name is %q", got)
	}

	n.Client.Replace(t, "/etc/hosts", "192.0.2.1 one\n")
	n.Client.Replace(t, "/etc/hosts", "192.0.2.2 two\n")
	if got := n.Client.Output(t, nil, "cat", "/etc/hosts"); got != "192.0.2.2 two" {
		t.Errorf("the client's hosts file is %q", got)
	}
	for _, m := range []*Machine{n.Server, n.Inner} {
		if got := m.Output(t, nil, "cat", "/etc/hosts"); strings.Contains(got, "192.0.2") {
			t.Errorf("%s sees the client's hosts file", m.Name)
		}
	}
	if host, err := os.ReadFile("/etc/hosts"); err != nil || strings.Contains(string(host), "db.internal") {
		t.Errorf("the host's own file was changed (%v)", err)
	}
}

func TestUsers(t *testing.T) {
	n := New(t)
	for _, m := range []*Machine{n.Client, n.Server} {
		got := m.Output(t, n.Alice, "id", "-Gn")
		if groups := strings.Fields(got); len(groups) != 2 || groups[0] != n.Alice.Name || !strings.HasPrefix(groups[1], "projects") {
			t.Errorf("on %s alice is in %q", m.Name, got)
		}
	}
	env := n.Client.Output(t, n.Alice, "env")
	for line := range strings.Lines(env + "\n") {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		want := map[string]string{
			"HOME": n.Alice.Home, "USER": n.Alice.Name, "LOGNAME": n.Alice.Name, "SHELL": "/bin/bash",
			"LANG": "C.UTF-8", "TERM": "dumb", "PATH": value, mark: n.id,
		}
		if expected, ok := want[name]; !ok || value != expected {
			t.Errorf("alice's environment has %s", line)
		}
	}
	if got := n.Client.Output(t, n.Alice, "sh", "-c", "pwd; test -w . && stat -c %a ."); got != n.Alice.Home+"\n700" {
		t.Errorf("alice's home: %q", got)
	}
	if r := n.Client.Run(t, Cmd{Args: []string{"cat", n.Alice.Path(".ssh/id_ed25519")}, User: n.Bob}); r.Code == 0 {
		t.Error("bob can read alice's key")
	}
	if _, err := os.Stat(fmt.Sprintf("/run/user/%d", n.Alice.UID)); !os.IsNotExist(err) {
		t.Errorf("alice's runtime directory: %v", err)
	}
	t.Run("with a runtime directory", func(t *testing.T) {
		dir := n.Alice.RuntimeDir(t)
		if got := n.Client.Output(t, n.Alice, "stat", "-c", "%a %u", dir); got != fmt.Sprintf("700 %d", n.Alice.UID) {
			t.Errorf("it is %s", got)
		}
	})
	if _, err := os.Stat(fmt.Sprintf("/run/user/%d", n.Alice.UID)); !os.IsNotExist(err) {
		t.Errorf("alice's runtime directory afterwards: %v", err)
	}
	if passwd, err := os.ReadFile("/etc/passwd"); err != nil || strings.Contains(string(passwd), n.Alice.Name) {
		t.Errorf("the host's own users were changed (%v)", err)
	}
	other := New(t)
	if other.Alice.UID == n.Alice.UID || other.Alice.Name == n.Alice.Name || other.Bob.UID == other.Alice.UID {
		t.Error("two tests share a user")
	}
}

func TestProcess(t *testing.T) {
	n := New(t)
	t.Run("result", func(t *testing.T) {
		r := n.Client.Run(t, Cmd{Args: []string{"sh", "-c", "cat; echo error >&2; exit 7"}, Stdin: strings.NewReader("input")})
		if r.Code != 7 || r.Signal != 0 || r.Stdout != "input" || r.Stderr != "error\n" || r.PipesHeld {
			t.Errorf("got %+v", r)
		}
	})
	t.Run("signal", func(t *testing.T) {
		p := n.Client.Start(t, Cmd{Args: []string{"sh", "-c", "echo up; exec sleep 1000"}})
		p.WaitFor(t, "up\n")
		p.Signal(t, syscall.SIGTERM)
		if r := p.Wait(t); r.Signal != syscall.SIGTERM || r.Code != -1 {
			t.Errorf("got %s", r)
		}
	})
	t.Run("limit", func(t *testing.T) {
		r := n.Client.Run(t, Cmd{Args: []string{"sh", "-c", "sleep 1000; true"}, Limit: 50 * time.Millisecond})
		if r.Signal != syscall.SIGKILL {
			t.Errorf("got %s", r)
		}
	})
	t.Run("output left open", func(t *testing.T) {
		r := n.Client.Run(t, Cmd{Args: []string{"sh", "-c", "sleep 1000 & echo done"}})
		if r.Code != 0 || r.Stdout != "done\n" || !r.PipesHeld {
			t.Errorf("got %+v", r)
		}
	})
	t.Run("not found", func(t *testing.T) {
		if _, err := n.Client.start(Cmd{Args: []string{"no-such-program"}}); err == nil {
			t.Error("it was started")
		}
	})
	t.Run("terminal", func(t *testing.T) {
		p := n.Client.Start(t, Cmd{
			Args: []string{"sh", "-c", "tty; stty size; read -r a; echo got $a; read -r b"},
			User: n.Alice, TTY: &pty.Winsize{Rows: 33, Cols: 99},
		})
		said := p.WaitFor(t, "33 99")
		if !strings.HasPrefix(said, "/dev/pts/") {
			t.Errorf("it said %q", said)
		}
		p.Type(t, "something\n")
		p.WaitFor(t, "got something")
		p.Type(t, "\x03")
		if r := p.Wait(t); r.Signal != syscall.SIGINT {
			t.Errorf("Ctrl-C: %s", r)
		}
	})
}

const orphanEnv = "SSHBROKER_TEST_ORPHAN"

// orphan is the test process of TestNothingSurvivesTheTestProcess: it starts
// what a test starts, writes down who that is, and is killed.
func orphan(path string) {
	testing.Init()
	t := new(fatalTB)
	n := New(t)
	sshd := n.Server.StartSSHD(t, SSHDOptions{})
	forward := func() *Process {
		sshd.Trust(t, n.Alice)
		return sshd.Forward(t, n.Client, n.Alice, "127.0.0.1:2000", "127.0.0.1:22")
	}()
	report := fmt.Sprintf("%s %d %d %d %d %s\n", n.id, n.Alice.UID, sshd.Pid(), forward.Pid(), n.Server.inode, n.Dir)
	if err := os.WriteFile(path, []byte(report), 0o600); err != nil {
		panic(err)
	}
	syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

// fatalTB is a testing.TB outside of a test.
type fatalTB struct{ testing.TB }

func (fatalTB) Helper()                           {}
func (fatalTB) Cleanup(func())                    {}
func (fatalTB) Fatal(args ...any)                 { panic(fmt.Sprint(args...)) }
func (fatalTB) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

func TestNothingSurvivesTheTestProcess(t *testing.T) {
	n := New(t)
	RequireProgram(t, "sshd", "openssh-server")
	RequireProgram(t, "ssh", "openssh-client")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	report := n.Dir + "/orphan"
	r := n.Client.Run(t, Cmd{Args: []string{self}, Env: []string{orphanEnv + "=" + report, mark + "=none"}})
	content, err := os.ReadFile(report)
	if err != nil {
		t.Fatalf("%v: %s", err, r)
	}
	var id, dir string
	var uid, inode uint64
	var sshd, forward int
	if _, err := fmt.Sscanf(string(content), "%s %d %d %d %d %s", &id, &uid, &sshd, &forward, &inode, &dir); err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	// The kernel kills what was started; the server's children see their
	// connections end.
	dead := &Net{id: id, Alice: &User{UID: uint32(uid)}, Server: &Machine{inode: inode}}
	deadline := time.Now().Add(patience)
	for strays := dead.ours(); len(strays) > 0; strays = dead.ours() {
		if time.Now().After(deadline) {
			t.Fatalf("alive: %v", strays)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestOwnCgroup: what a machine makes in its hierarchy is nobody else's, and is gone with
// the machine, processes included.
func TestOwnCgroup(t *testing.T) {
	var dir string
	t.Run("net", func(t *testing.T) {
		n, other := New(t), New(t)
		n.Client.OwnCgroup(t)
		if n.Client.cgroup == "" {
			t.Skip("this host has no cgroup2")
		}
		dir = n.Client.cgroup
		before, others := n.Snapshot(t), other.Snapshot(t)
		mount := strings.TrimSuffix(dir, "/"+filepath.Base(dir))
		p := n.Client.Start(t, Cmd{Args: []string{"sh", "-c", `mkdir -p "$0/a/b" && echo $$ >"$0/a/b/cgroup.procs" && sed -n s/^0:://p /proc/self/cgroup && exec sleep 1003`, mount}, Limit: -1})
		if said := p.WaitFor(t, "\n"); said != "/a/b\n" {
			t.Errorf("the process is in %q of the machine's hierarchy", said)
		}
		if _, err := os.Stat(n.Client.CgroupPath("/a/b")); err != nil {
			t.Error(err)
		}
		if diff := n.Snapshot(t).Diff(before); !slices.Contains(diff, "+ cgroup "+n.Client.CgroupPath("/a/b")) {
			t.Errorf("a snapshot does not see it: %q", diff)
		}
		if diff := other.Snapshot(t).Diff(others); len(diff) > 0 {
			t.Errorf("another net's snapshot sees it: %q", diff)
		}
	})
	if _, err := os.Stat(dir); dir != "" && !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", dir, err)
	}
}
