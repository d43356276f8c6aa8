package endurance

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/test/host"
	"sshbroker/test/netns"
	"sshbroker/test/sut"
)

func TestMain(m *testing.M) { sut.Main(m, nil) }

// patience is how long things may take that happen by themselves.
const patience = 60 * time.Second

// long says that the test may take minutes.
func long() bool { return os.Getenv("SSHBROKER_LONG") == "1" }

// Ports of the server. Those of targets are many, as a client has only so many ports of
// its own for each. So are the SSH servers behind them: an sshd looks at each channel of
// a connection whenever one of them has anything, and 3,000 take it a processor.
const (
	firstTarget = 7000
	targets     = 12
	firstSSHD   = 2200
	closedPort  = 7100 // nobody listens there
	floodTarget = 7200
	floodSSHD   = 2300
	manyFiles   = 16 << 10
)

// world is a host whose users' flows to the targets are tunneled.
type world struct {
	*host.Host
	ports []string // their addresses
}

// newWorld starts everything but the load.
func newWorld(t *testing.T) *world {
	t.Helper()
	netns.RequireRoot(t)
	allowFiles(t, manyFiles) // before anything is started
	w := &world{Host: host.New(t)}
	for _, m := range []*netns.Machine{w.Client, w.Server} {
		m.Sysctl(t, "net.ipv4.ip_local_port_range", "10000 65535")
		m.Sysctl(t, "net.ipv4.tcp_tw_reuse", "1")
	}
	// What has ended is soon forgotten, as it is where many connections are made.
	for _, state := range []string{"time_wait", "close", "close_wait", "last_ack", "fin_wait"} {
		w.Client.Sysctl(t, "net.netfilter.nf_conntrack_tcp_timeout_"+state, "1")
	}
	args := []string{w.Testprog, "target"}
	for i := range uint16(targets) {
		w.ports = append(w.ports, w.at(firstTarget+i))
	}
	target := w.Server.Start(t, netns.Cmd{Args: append(args, w.ports...), Limit: -1})
	target.WaitFor(t, "listening "+w.ports[targets-1])
	return w
}

func (w *world) at(port uint16) string { return netip.AddrPortFrom(w.Server.Addr4, port).String() }

// sshds starts an SSH server for each target, and returns the profiles and rules.
func (w *world) sshds(t *testing.T) (profiles, rules string) {
	t.Helper()
	known := w.SSHD.KnownHosts()
	for i := range uint16(targets) {
		s := w.Server.StartSSHD(t, netns.SSHDOptions{Port: firstSSHD + i, HostKey: w.SSHD.HostKeyFile})
		known += s.KnownHosts()
		profiles += w.profile(fmt.Sprintf("p%d", i), firstSSHD+i)
		rules += fmt.Sprintf("<rule ports=\"%d\" action=\"TUNNEL\" profile-id=\"p%d\"/>\n", firstTarget+i, i)
	}
	w.Service.Write(t, ".ssh/known_hosts", known, 0o600)
	return profiles, rules
}

// profile is a profile element for an SSH server on that port.
func (w *world) profile(id string, port uint16) string {
	return fmt.Sprintf(`<profile id="%s" host="%s" port="%d" user="%s"><server-authentication-methods><auth-server-publickey policy="strict"/></server-authentication-methods></profile>
`, id, w.Server.Addr4, port, w.Service.Name)
}

// serve has ssh-captured and the system broker serve these rules.
func (w *world) serve(t *testing.T, profiles, rules string) {
	t.Helper()
	w.StartCaptured(t)
	w.StartSystemBroker(t, host.Config("<profiles>"+profiles+"</profiles>\n<filter-engine>\n"+rules+"\n</filter-engine>"))
	w.Enable(t)
}

// load is a running testprog load.
type load struct {
	process *netns.Process
	jobs    *os.File
	asked   int
}

// result is what it answers.
type result struct {
	Count    int64
	Seconds  float64
	P50, P99 float64 // microseconds
	Outcomes map[string]int64
	Error    string
}

// load starts one as u for the target at an address, by the command in front, if any.
func (w *world) load(t *testing.T, u *netns.User, address string, front ...string) *load {
	t.Helper()
	r, jobs, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	args := append(front, w.Testprog, "load", address, address)
	l := &load{jobs: jobs}
	t.Cleanup(func() { jobs.Close() })
	c := w.Cmd(u, args...)
	c.Stdin, c.Limit = r, -1
	l.process = w.Client.Start(t, c)
	return l
}

// begin gives it a job.
func (l *load) begin(t *testing.T, format string, args ...any) {
	t.Helper()
	l.asked++
	if _, err := fmt.Fprintf(l.jobs, format+"\n", args...); err != nil {
		t.Fatalf("%s: %v", l.process, err)
	}
}

// end waits until the job is done, which may take so long.
func (l *load) end(t *testing.T, within time.Duration) result {
	t.Helper()
	end := fmt.Sprintf("\nend %d\n", l.asked)
	for limit := time.Now().Add(within); !strings.Contains(l.process.Stdout(), end); time.Sleep(10 * time.Millisecond) { // not WaitFor, whose patience is less
		select {
		case <-l.process.Done():
			t.Fatalf("%s has ended: %s", l.process, l.process.Output())
		default:
		}
		if time.Now().After(limit) {
			t.Fatalf("%s: not done within %v", l.process, within)
		}
	}
	said, _, _ := strings.Cut(l.process.Stdout(), end)
	var r result
	if err := json.Unmarshal([]byte(said[strings.LastIndex(said, "\n")+1:]), &r); err != nil {
		t.Fatalf("%s: %v; it said %q", l.process, err, said)
	}
	if r.Error != "" {
		t.Fatalf("%s: %s", l.process, r.Error)
	}
	return r
}

// do is begin and end.
func (l *load) do(t *testing.T, within time.Duration, format string, args ...any) result {
	t.Helper()
	l.begin(t, format, args...)
	return l.end(t, within)
}

// use is what a process takes of the machine.
type use struct {
	memory int64 // resident, in bytes
	files  int
}

func (u use) String() string {
	return fmt.Sprintf("%.1f MiB, %d descriptors", float64(u.memory)/(1<<20), u.files)
}

// above says whether u is more than there was before. What the runtime keeps for itself
// varies.
func (u use) above(before use) bool {
	return u.files > before.files || u.memory > before.memory+before.memory/4+4<<20
}

// using looks at a process.
func using(t *testing.T, pid int) (u use) {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(value)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return use{kib << 10, len(entries)}
		}
	}
	t.Fatalf("no VmRSS of %d", pid)
	return use{}
}

// ours are the processes that a host's captures need.
type ours struct{ captured, broker use }

func (o ours) String() string { return fmt.Sprintf("ssh-captured %v; broker %v", o.captured, o.broker) }

func (w *world) ours(t *testing.T) ours {
	t.Helper()
	return ours{using(t, w.Status(t).PID), using(t, w.SystemBroker().Pid())}
}

// allowFiles makes what is started from now on able to hold at least n descriptors.
func allowFiles(t *testing.T, n uint64) {
	t.Helper()
	var before unix.Rlimit
	err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before)
	if err == nil {
		n = max(n, before.Max)
		err = unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: n})
	}
	if err != nil {
		t.Fatalf("limit of descriptors, %d: %v", n, err)
	}
	t.Cleanup(func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &before) })
}
