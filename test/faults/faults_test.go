package faults

import (
	"cmp"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/broker/control"
	"sshbroker/test/netns"
	"sshbroker/test/sut"
)

// faults are the rows of the table, in its order.
var faults = []fault{
	{
		name: "SSH server killed", detail: "sshd and the processes of its connections, by SIGKILL; started again",
		strike: func(t *testing.T, w *world) { w.killSSHD(t) },
		over:   func(t *testing.T, w *world) { w.startSSHD(t, w.sshd.HostKeyFile) },
	},
	{
		name: "SSH server killed soon after login", detail: "the same within ten seconds of the login", young: true,
		strike: func(t *testing.T, w *world) { w.killSSHD(t) },
		over:   func(t *testing.T, w *world) { w.startSSHD(t, w.sshd.HostKeyFile) },
	},
	{
		name: "SSH server frozen", detail: "sshd and the processes of its connections, by SIGSTOP and SIGCONT",
		strike: func(t *testing.T, w *world) {
			t.Cleanup(func() { w.Server.SignalAll(t, "sshd", unix.SIGCONT) })
			if w.Server.SignalAll(t, "sshd", unix.SIGSTOP) < 2 {
				t.Fatal("there was no sshd with a connection")
			}
		},
		over: func(t *testing.T, w *world) { w.Server.SignalAll(t, "sshd", unix.SIGCONT) },
	},
	{
		name: "packets dropped", detail: "every packet from and to the SSH server's port, by nftables",
		strike: func(t *testing.T, w *world) { w.Server.Cut(t, netns.Silence, w.sshd.Addr4.Port()) },
		over:   func(t *testing.T, w *world) { w.Server.Mend(t) },
	},
	{
		name: "packets dropped, no keepalive", detail: "the same with `keepalive-interval` at its default, never", group: minutes,
		prepare: noKeepalive,
		strike:  func(t *testing.T, w *world) { w.Server.Cut(t, netns.Silence, w.sshd.Addr4.Port()) },
		await:   awaitEnd,
		over:    func(t *testing.T, w *world) { w.Server.Mend(t) },
	},
	{
		name: "port answers with resets", detail: "every packet to the SSH server's port, by nftables",
		strike: func(t *testing.T, w *world) { w.Server.Cut(t, netns.Reset, w.sshd.Addr4.Port()) },
		await:  awaitEnd,
		over:   func(t *testing.T, w *world) { w.Server.Mend(t) },
	},
	{
		name: "network down", detail: "the client's link is taken down, for longer than keepalives bear, and up",
		strike: func(t *testing.T, w *world) { w.link(t, "down") },
		over:   func(t *testing.T, w *world) { w.link(t, "up") },
	},
	{
		name: "network down for a moment", detail: "the client's link is taken down and up at once", lives: true,
		strike: func(t *testing.T, w *world) { w.link(t, "down"); w.link(t, "up") },
		over:   func(*testing.T, *world) {},
	},
	{
		name: "host key changed", detail: "the server is killed and comes back with another key; then that one is put into `known_hosts`",
		strike: func(t *testing.T, w *world) { w.killSSHD(t); w.startSSHD(t, "") },
		over:   func(t *testing.T, w *world) { w.sshd.Trust(t, w.Alice) },
	},
	{
		name: "authentication refused", detail: "the server is killed and comes back without the user's key; then with it",
		strike: func(t *testing.T, w *world) {
			w.killSSHD(t)
			w.sshdKeys = []*netns.User{w.Bob}
			w.startSSHD(t, w.sshd.HostKeyFile)
		},
		over: func(t *testing.T, w *world) {
			w.killSSHD(t)
			w.sshdKeys = nil
			w.startSSHD(t, w.sshd.HostKeyFile)
		},
	},
	{
		name: "agent gone", detail: "the agent with the only key ends while the server is connected", lives: true,
		prepare: startAgent,
		strike:  func(t *testing.T, w *world) { w.Client.KillAll(t, "ssh-agent") },
		over:    func(*testing.T, *world) {},
	},
	{
		name: "agent gone before a login", detail: "the same, and the server is killed and comes back; then a new agent at the same socket",
		prepare: startAgent,
		strike: func(t *testing.T, w *world) {
			w.Client.KillAll(t, "ssh-agent")
			w.killSSHD(t)
			w.startSSHD(t, w.sshd.HostKeyFile)
		},
		over: startAgent,
	},
	{
		name: "disk full", detail: "the file system of the audit record", lives: true,
		prepare: func(t *testing.T, w *world) { auditDisk(t, w) },
		strike:  fillDisk,
		over:    freeDisk,
	},
	{
		name: "disk full, records required", detail: "the same with `--audit-required`", lives: true,
		prepare: func(t *testing.T, w *world) { auditDisk(t, w, "--audit-required") },
		strike:  fillDisk,
		over:    freeDisk,
	},
	{
		name: "no descriptors left", detail: "RLIMIT_NOFILE of the broker set to what it has open; then back", lives: true,
		strike: takeDescriptors,
		over:   func(t *testing.T, w *world) { w.limitDescriptors(t, 4096) },
	},
	{
		name: "no descriptors left, no connection", detail: "the same, and the server is killed and comes back",
		strike: func(t *testing.T, w *world) {
			w.killSSHD(t)
			w.startSSHD(t, w.sshd.HostKeyFile)
			eventually(t, "the end of the connection", func() bool {
				rows, ok := ask[control.ConnectionRow](t, w, control.OpConnections)
				return ok && len(rows) == 1 && rows[0].State != "connected"
			})
			takeDescriptors(t, w)
		},
		over: func(t *testing.T, w *world) { w.limitDescriptors(t, 4096) },
	},
	{
		name: "broker killed", detail: "by SIGKILL; `ssh-capture` starts the next one",
		strike: func(t *testing.T, w *world) {
			if err := unix.Kill(w.brokerPID(t), unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
		},
		over: func(*testing.T, *world) {},
	},
	{
		name: "clock jump, or sleep", detail: "the clock is set, without keepalives; the server has to answer", lives: true, group: clockSet,
		prepare: noKeepalive,
		strike: func(t *testing.T, w *world) {
			before := w.received(t)
			eventually(t, "an answer of the server", func() bool {
				setClock(t)
				return w.received(t) > before
			})
		},
		over: func(*testing.T, *world) {},
	},
	{
		name: "server gone during a sleep", detail: "packets dropped and the clock set, without keepalives", group: clockSet,
		prepare: noKeepalive,
		strike: func(t *testing.T, w *world) {
			w.Server.Cut(t, netns.Silence, w.sshd.Addr4.Port())
			setClock(t)
		},
		over: func(t *testing.T, w *world) { w.Server.Mend(t) },
	},
}

func TestFaults(t *testing.T) {
	netns.RequireRoot(t)
	sut.Build(t)
	doc := readDocument(t)
	// A setting of the clock is everybody's, and has all brokers ask their servers.
	for _, g := range []group{clockSet, usual, minutes} {
		t.Run(string(g), func(t *testing.T) {
			for _, f := range faults {
				if cmp.Or(f.group, usual) != g {
					continue
				}
				t.Run(strings.NewReplacer(",", "", " ", "-").Replace(f.name), func(t *testing.T) {
					if g == minutes && !long() {
						t.Skip("takes minutes; SSHBROKER_LONG=1 has it run")
					}
					t.Parallel()
					doc.check(t, observe(t, f))
				})
			}
		})
	}
	doc.finish(t)
}

// group is what runs at the same time.
type group string

const (
	usual    group = "seen"
	clockSet group = "clock"
	minutes  group = "long"
)

func noKeepalive(_ *testing.T, w *world) {
	w.profile = fmt.Sprintf(`<tcp-connect-timeout time="%d"/>`, connectLimit/time.Second)
}

// awaitEnd waits until the live flow has ended, and so the transport is known to be lost.
func awaitEnd(t *testing.T, w *world) {
	if _, err := awaitText(w.live.Done(), w.live.Stdout, "ended after"); err != nil {
		t.Fatal(err)
	}
}

func (w *world) link(t *testing.T, to string) {
	t.Helper()
	w.Client.Output(t, nil, "ip", "link", "set", "to-server", to)
}

// startAgent starts an agent with Alice's key, which lies nowhere else from then on.
func startAgent(t *testing.T, w *world) {
	netns.RequireProgram(t, "ssh-agent", "openssh-client")
	socket, key := w.Alice.Path("agent"), w.Alice.Path(".ssh/id_ed25519")
	os.Remove(socket) // of one that was killed
	w.env = []string{"SSH_AUTH_SOCK=" + socket}
	w.Client.Start(t, netns.Cmd{Args: []string{"ssh-agent", "-D", "-a", socket}, User: w.Alice, Limit: -1}).WaitFor(t, "SSH_AUTH_SOCK")
	if _, err := os.Stat(key); err == nil {
		if err := os.Rename(key, w.Alice.Path("key")); err != nil {
			t.Fatal(err)
		}
	}
	if r := w.Client.Run(t, netns.Cmd{Args: []string{"ssh-add", w.Alice.Path("key")}, User: w.Alice, Env: w.env}); r.Code != 0 {
		t.Fatalf("ssh-add: %v", r)
	}
}

// auditDisk gives the audit record a file system of its own, and starts the broker.
func auditDisk(t *testing.T, w *world, options ...string) {
	t.Helper()
	w.configure(t)
	dir := w.Alice.Path("disk")
	w.Alice.Write(t, "disk/mountpoint", "", 0o600)
	w.Client.Output(t, nil, "mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=1m,mode=700,uid=%d,gid=%d", w.Alice.UID, w.Alice.GID), "tmpfs", dir)
	w.audit = dir + "/ssh-broker-audit.jsonl"
	if r := w.Client.Run(t, netns.Cmd{Args: append([]string{w.Broker, "--audit-file", w.audit}, options...), User: w.Alice}); r.Code != 0 {
		t.Fatalf("ssh-broker: %v", r)
	}
}

// fillDisk fills it to the last byte, and has the broker see that.
func fillDisk(t *testing.T, w *world) {
	r := w.Client.Run(t, netns.Cmd{Args: []string{"sh", "-c", `cat /dev/zero >"$1"`, "sh", w.Alice.Path("disk/fill")}, User: w.Alice})
	if !strings.Contains(r.Stderr, "No space left") {
		t.Fatalf("the disk is not full: %v", r)
	}
	for i := 0; ; i++ { // what is left of the file's last page takes some records
		w.try(t, fmt.Sprintf("filling-%d", i))
		rows, ok := ask[control.StatusRow](t, w, control.OpStatus)
		if ok && len(rows) == 1 && rows[0].Audit.Error != "" {
			return
		}
	}
}

// freeDisk makes room, and waits until the broker has seen that.
func freeDisk(t *testing.T, w *world) {
	w.Client.Output(t, w.Alice, "rm", w.Alice.Path("disk/fill"))
	eventually(t, "records that are written", func() bool {
		rows, ok := ask[control.StatusRow](t, w, control.OpStatus)
		return ok && len(rows) == 1 && rows[0].Audit.Error == "" && rows[0].Audit.Pending == 0
	})
}

// takeDescriptors leaves the broker none, once it has let go of what ended flows had.
func takeDescriptors(t *testing.T, w *world) {
	w.broker = w.brokerPID(t)
	eventually(t, "a broker with nothing but the live flow", func() bool {
		rows, ok := ask[control.StatusRow](t, w, control.OpStatus)
		return ok && len(rows) == 1 && rows[0].FlowsLive <= 1
	})
	last, same, limit := -1, 0, 1<<20
	eventually(t, "a broker without a free descriptor", func() bool {
		free := w.freeDescriptor(t)
		if same++; free != last {
			last, same = free, 0
		}
		if same > 10 && free < limit {
			limit, same = free, 0
			w.limitDescriptors(t, limit)
		}
		return same > 10
	})
}

// freeDescriptor is the lowest number that the broker has not in use.
func (w *world) freeDescriptor(t *testing.T) (free int) {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", w.broker))
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	for _, e := range entries {
		used[e.Name()] = true
	}
	for used[strconv.Itoa(free)] {
		free++
	}
	return free
}

// limitDescriptors sets the soft limit of the broker, as Alice: root in a container may not.
func (w *world) limitDescriptors(t *testing.T, n int) {
	t.Helper()
	w.Client.Output(t, w.Alice, "prlimit", "--pid", strconv.Itoa(w.broker), fmt.Sprintf("--nofile=%d:", n))
}

// received is how much has come from the server.
func (w *world) received(t *testing.T) uint64 {
	t.Helper()
	rows, ok := ask[control.ConnectionRow](t, w, control.OpConnections)
	if !ok || len(rows) != 1 {
		t.Fatalf("connections %+v", rows)
	}
	return rows[0].BytesDown
}
