package leaks

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"sshbroker/capture/leak"
	"sshbroker/test/host"
	"sshbroker/test/netns"
	"sshbroker/test/sut"
)

func TestMain(m *testing.M) { sut.Main(m, nil) }

const patience = 20 * time.Second

// bare is a host on which nothing of ours runs, and no server.
func bare(t *testing.T) *host.Host {
	t.Helper()
	netns.RequireRoot(t)
	return host.Bare(t, sut.Build(t))
}

// withDaemons runs a command of a user's in a mount namespace where the daemons are there that look
// names up for others, under the paths of the real ones.
const withDaemons = `import os, socket, sys, threading
for path in ("/run/nscd/socket", "/run/systemd/resolve/io.systemd.Resolve", "/run/avahi-daemon/socket"):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    s = socket.socket(socket.AF_UNIX)
    s.bind(path)
    os.chmod(path, 0o666)
    s.listen()
    def serve(s=s):
        while True:
            c, _ = s.accept()
            if c.recv(100): c.sendall(b"{}\0")
            c.close()
    threading.Thread(target=serve, daemon=True).start()
uid, gid = int(sys.argv[1]), int(sys.argv[2])
pid = os.fork()
if pid == 0:
    if uid:
        os.setgroups([]); os.setgid(gid); os.setuid(uid)
    os.execvp(sys.argv[3], sys.argv[3:])
_, status = os.waitpid(pid, 0)
os._exit(os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))
`

// amongDaemons is a command that finds those daemons.
func amongDaemons(t *testing.T, h *host.Host, u *netns.User, args ...string) netns.Cmd {
	t.Helper()
	python := netns.RequireProgram(t, "python3", "python3")
	c := h.Cmd(u, args...)
	uid, gid := uint32(0), uint32(0)
	if u != nil {
		uid, gid = u.UID, u.GID
		c.Env = append(c.Env, "HOME="+u.Home, "USER="+u.Name, "LOGNAME="+u.Name)
		c.User = nil
	}
	c.Args = append([]string{"unshare", "--mount", "sh", "-c", `mount -t tmpfs -o mode=755 tmpfs /run && exec "$@"`, "sh",
		python, "-c", withDaemons, fmt.Sprint(uid), fmt.Sprint(gid)}, c.Args...)
	return c
}

// found runs leak-test and returns its findings by probe.
func found(t *testing.T, h *host.Host, c netns.Cmd, code int) map[string]leak.Finding {
	t.Helper()
	r := h.Client.Run(t, c)
	if r.Code != code {
		t.Fatalf("exit code %d, want %d: %v", r.Code, code, r)
	}
	all := map[string]leak.Finding{}
	for d := json.NewDecoder(strings.NewReader(r.Stdout)); ; {
		var f leak.Finding
		if err := d.Decode(&f); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("%v: %v", err, r)
		}
		if _, twice := all[f.Probe]; twice || f.Verdict == "" || f.Detail == "" || (f.Verdict == leak.Leaked) != (f.Cure != "") {
			t.Errorf("finding %+v", f)
		}
		all[f.Probe] = f
	}
	if len(all) != len(leak.All()) {
		t.Errorf("%d of %d probes: %v", len(all), len(leak.All()), r)
	}
	return all
}

// leakTest is a command line of it.
func leakTest(h *host.Host, args ...string) []string {
	return append([]string{h.Ctl, "leak-test", "-s"}, args...)
}

// require fails the test unless exactly these probes leak. Those that are not possible
// have to be among notPossible.
func require(t *testing.T, all map[string]leak.Finding, notPossible []string, leaks ...string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(all)) {
		f := all[name]
		want := slices.Contains(leaks, name)
		switch {
		case f.Verdict == leak.NotPossible && slices.Contains(notPossible, name):
		case (f.Verdict == leak.Leaked) != want, f.Verdict == leak.NotPossible:
			t.Errorf("%s: %s (%s), want a leak: %t", name, f.Verdict, f.Detail, want)
		}
	}
}

// What is not possible: for want of protocols in the kernel, of a system bus, of privilege.
var (
	ofKernel    = []string{"sctp", "dccp", "udp-lite"}
	ofBus       = []string{"resolved-dbus"}
	privileged  = []string{"tcp-mark-pass", "tcp-mark-direct", "tcp-raw", "icmp", "raw", "packet"}
	inheritance = []string{"inherited-tcp", "inherited-udp"}
	daemons     = []string{"nscd", "resolved", "avahi"}
	datagrams   = []string{"udp4", "udp6", "udp-device", "udp-lite", "icmp", "raw"}
)

func lists(of ...[]string) []string { return slices.Concat(of...) }

// account is who tries, and what is not possible for them.
type account struct {
	name        string
	user        *netns.User
	notPossible []string
}

func accounts(h *host.Host) []account {
	return []account{
		{"alice", h.Alice, lists(ofKernel, ofBus, privileged)},
		{"root", nil, lists(ofKernel, ofBus)},
	}
}

// names of all probes.
func names() (list []string) {
	for _, p := range leak.All() {
		list = append(list, p.Name)
	}
	return list
}
