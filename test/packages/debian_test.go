package packages

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sshbroker/test/netns"
)

// patience is how long a system may take for what it does by itself.
const patience = 30 * time.Second

// debian is a Debian system with its own systemd as PID 1. It is the client machine of a
// netns.Net: what it boots into is that machine's network.
type debian struct {
	*netns.Net
	root   string // of its files
	booted *netns.Process
	pid    string // of its PID 1, on this host
}

// cacheEnv may name a directory in which the trees that debootstrap makes are kept for
// the next run.
const cacheEnv = "SSHBROKER_DEBOOTSTRAP_CACHE"

// installed beside a minimal Debian: the service manager with users' sessions, and what
// the test looks at the system with.
const installed = "systemd,systemd-sysv,dbus,libpam-systemd,init-system-helpers,iproute2,nftables,passwd,util-linux,procps,apparmor"

// newDebian makes a system of a release; it is not booted.
func newDebian(t *testing.T, release string) *debian {
	t.Helper()
	netns.RequireRoot(t)
	bootstrap := netns.RequireProgram(t, "debootstrap", "debootstrap")
	d := &debian{root: filepath.Join(t.TempDir(), "root")} // before the network: it goes last
	d.Net = netns.New(t)
	d.Client.OwnCgroup(t)
	from := d.root
	if cache := os.Getenv(cacheEnv); cache != "" {
		from = filepath.Join(cache, release)
	}
	if _, err := os.Stat(filepath.Join(from, "lib/systemd/systemd")); err != nil {
		run(t, "/", nil, bootstrap, "--variant=minbase", "--include="+installed, release, from)
	}
	if from != d.root {
		run(t, "/", nil, "cp", "-a", from, d.root)
	}
	return d
}

// boot boots it and waits until it is up, with no unit failed.
func (d *debian) boot(t *testing.T) {
	t.Helper()
	script, err := filepath.Abs("boot.sh")
	if err != nil {
		t.Fatal(err)
	}
	d.booted = d.Client.Start(t, netns.Cmd{Limit: -1,
		Args: []string{"unshare", "--pid", "--fork", "--kill-child", "--mount", "--uts", "--ipc", "--cgroup", script, d.root}})
	children := fmt.Sprintf("/proc/%d/task/%[1]d/children", d.booted.Pid())
	d.until(t, "PID 1", func() bool {
		b, _ := os.ReadFile(children)
		d.pid = strings.TrimSpace(string(b))
		return d.pid != ""
	})
	d.until(t, "the system to be up", func() bool {
		select {
		case <-d.booted.Done():
			t.Fatalf("it does not boot: %s", d.booted.Output())
		default:
		}
		return d.try(t, "systemctl is-system-running").Code == 0
	})
}

// powerOff has the system end all it runs.
func (d *debian) powerOff(t *testing.T) {
	t.Helper()
	d.try(t, "systemctl --no-block --no-wall poweroff")
	select {
	case <-d.booted.Done():
	case <-time.After(2 * patience):
		t.Fatal("it does not end")
	}
}

// until waits for what has no event that could be waited for from here.
func (d *debian) until(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !done(); {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v\n%s", what, patience, d.try(t, "systemctl --no-pager --failed; journalctl --no-pager -n 60").Stdout)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// command is a shell script inside the system, as root.
func (d *debian) command(script string) netns.Cmd {
	return netns.Cmd{Limit: 4 * time.Minute, Args: []string{"nsenter", "--target", d.pid, "--all", "env", "-i", "--chdir=/",
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive", "bash", "-c", script}}
}

func (d *debian) try(t *testing.T, script string) netns.Result {
	t.Helper()
	return d.Client.Run(t, d.command(script))
}

// must runs a script that succeeds, and returns what it prints.
func (d *debian) must(t *testing.T, script string) string {
	t.Helper()
	r := d.try(t, "set -e; "+script)
	if r.Code != 0 {
		t.Fatalf("%s: %v\n%s", script, r, d.try(t, "journalctl --no-pager -n 40").Stdout)
	}
	return strings.TrimSpace(r.Stdout)
}

// user is a script of alice's, who has an ordinary account there.
func (d *debian) user(script string) string {
	return "runuser -u alice -- env HOME=/home/alice XDG_RUNTIME_DIR=/run/user/1000 bash -c '" + script + "'"
}

// write makes a file of the system's.
func (d *debian) write(t *testing.T, name, content string, perm os.FileMode) {
	t.Helper()
	path := filepath.Join(d.root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), perm); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, perm); err != nil {
		t.Fatal(err)
	}
}

// flow is a connection of alice's to an echo that says who has come.
type flow struct {
	*netns.Process
	in io.WriteCloser
}

// talk is the shell that has the connection. It says "open" once connect() has returned,
// and "cut" when the connection has ended.
const talk = `#!/bin/bash
exec 3<>/dev/tcp/$1/$2 || { echo refused; exit 1; }
echo open
while read -r line; do
	echo "$line" >&3
	read -r answer <&3 || { echo cut; exit 1; }
	echo "$answer"
done
`

// connect begins one; program is put before the shell that has it.
func (d *debian) connect(t *testing.T, program, address string) *flow {
	t.Helper()
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c := d.command(d.user(program + " talk " + host + " " + port))
	c.Stdin = r
	f := &flow{Process: d.Client.Start(t, c), in: w}
	t.Cleanup(func() { w.Close() })
	return f
}

// say sends a line and wants it back, from whoever is to have brought it.
func (f *flow) say(t *testing.T, text, from string) {
	t.Helper()
	if _, err := io.WriteString(f.in, text+"\n"); err != nil {
		t.Fatal(err)
	}
	f.WaitFor(t, from+" "+text+"\n")
}

// end closes the connection from here.
func (f *flow) end(t *testing.T) {
	t.Helper()
	f.in.Close()
	if r := f.Wait(t); r.Code != 0 {
		t.Errorf("the program: %v", r)
	}
}

// echo answers on an address of the server: who has come, and the line.
func (d *debian) echo(t *testing.T, address string) {
	t.Helper()
	l := d.Server.Listen(t, "tcp", address)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				from := c.RemoteAddr().(*net.TCPAddr).IP.String()
				b := make([]byte, 4<<10)
				for {
					n, err := c.Read(b) // a line comes in one piece
					if err != nil {
						return
					}
					if _, err := fmt.Fprintf(c, "%s %s", from, b[:n]); err != nil {
						return
					}
				}
			}()
		}
	}()
}
