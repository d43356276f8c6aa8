package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sshbroker/capture/service"
	"sshbroker/capture/service/client"
	"sshbroker/test/netns"
	"sshbroker/test/sut"
)

// patience is how long things may take that happen by themselves.
const patience = 20 * time.Second

// Host is the client machine of a netns.Net with everything on it. Its server machine
// answers SSH alone, on which all users and the service log in with their keys.
type Host struct {
	*netns.Net
	sut.Programs
	SSHD    *netns.SSHD
	Carol   *netns.User
	Service *netns.User // the system broker's account; its group is the administrators'

	Dir    string // of ssh-captured and the system broker
	Socket string // of ssh-captured

	captured *netns.Process
	broker   *netns.Process
}

// New makes the machines and users; nothing of ours runs yet. The test's end stops
// everything and has ssh-captured release the machine.
func New(t testing.TB) *Host {
	t.Helper()
	netns.RequireRoot(t) // before anything is built
	h := Bare(t, sut.Build(t))
	h.SSHD = h.Server.StartSSHD(t, netns.SSHDOptions{})
	for _, u := range []*netns.User{h.Alice, h.Bob, h.Carol, h.Service} {
		h.SSHD.Trust(t, u)
	}
	return h
}

// Bare is New without an sshd, for programs that are built: SSHD is nil.
func Bare(t testing.TB, programs sut.Programs) *Host {
	t.Helper()
	h := &Host{Net: netns.New(t), Programs: programs}
	h.Client.OwnCgroup(t) // other hosts run their own ssh-captured meanwhile
	h.Carol, h.Service = h.AddUser(t, "carol"), h.AddService(t, "sshbroker")
	h.Dir = filepath.Join(h.Net.Dir, "host")
	h.Socket = filepath.Join(h.Dir, "captured.socket")
	for dir, owner := range map[string]*netns.User{h.Dir: nil, h.path("captured"): nil, h.path("run"): h.Service, h.path("log"): h.Service} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if owner != nil {
			if err := os.Chown(dir, int(owner.UID), int(owner.GID)); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Cleanup(func() {
		h.StopSystemBroker(t)
		for _, u := range []*netns.User{h.Alice, h.Bob, h.Carol} {
			h.StopBroker(t, u)
		}
		h.Release(t)
		h.StopCaptured(t)
	})
	return h
}

func (h *Host) path(name string) string { return filepath.Join(h.Dir, name) }

// Address is where the system broker is controlled.
func (h *Host) Address() string { return h.path("run/broker") }

// Cmd is a command of a user's, nil for root, which finds this host's ssh-captured.
func (h *Host) Cmd(u *netns.User, args ...string) netns.Cmd {
	return netns.Cmd{Args: args, User: u, Env: []string{service.EnvSocket + "=" + h.Socket}}
}

// Run runs one on the client machine to its end.
func (h *Host) Run(t testing.TB, u *netns.User, args ...string) netns.Result {
	t.Helper()
	return h.Client.Run(t, h.Cmd(u, args...))
}

// StartCaptured starts ssh-captured and waits until it answers.
func (h *Host) StartCaptured(t testing.TB, args ...string) *netns.Process {
	t.Helper()
	return h.StartCapturedEnv(t, nil, args...)
}

// StartCapturedEnv does so with more in its environment.
func (h *Host) StartCapturedEnv(t testing.TB, env []string, args ...string) *netns.Process {
	t.Helper()
	c := netns.Cmd{Args: append([]string{h.Captured, "--socket", h.Socket, "--state-dir", h.path("captured"), "--admin-group", h.Service.Name}, args...), Env: env, Limit: -1}
	h.captured = h.Client.Start(t, c)
	h.AwaitCaptured(t)
	return h.captured
}

// AwaitCaptured waits until ssh-captured answers.
func (h *Host) AwaitCaptured(t testing.TB) service.Status {
	t.Helper()
	var last error
	for end := time.Now().Add(patience); time.Now().Before(end); {
		st, err := h.status()
		if err == nil {
			return st
		}
		last = err
		select {
		case <-h.captured.Done():
			t.Fatalf("ssh-captured has ended: %s", h.captured.Output())
		case <-time.After(5 * time.Millisecond): // a socket has no event for having come up
		}
	}
	t.Fatalf("ssh-captured does not answer: %v\n%s", last, h.captured.Output())
	return service.Status{}
}

// Status is what ssh-captured says to root.
func (h *Host) Status(t testing.TB) service.Status {
	t.Helper()
	st, err := h.status()
	if err != nil {
		t.Fatalf("status of ssh-captured: %v", err)
	}
	return st
}

func (h *Host) status() (service.Status, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := client.Dial(ctx, h.Socket, "test")
	if err != nil {
		return service.Status{}, err
	}
	defer c.Close()
	return c.Status(ctx)
}

// KillCaptured kills the worker with SIGKILL, and its keeper too if all is set.
func (h *Host) KillCaptured(t testing.TB, all bool) {
	t.Helper()
	pid := h.Status(t).PID
	if all {
		h.captured.Signal(t, syscall.SIGKILL) // first, or it starts another
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		t.Fatal(err)
	}
	if all {
		h.captured.Wait(t)
	}
}

// Release has ssh-captured open everything, running or not.
func (h *Host) Release(t testing.TB) {
	t.Helper()
	if r := h.Run(t, nil, h.Captured, "--socket", h.Socket, "--state-dir", h.path("captured"), "--release"); r.Code != 0 {
		t.Errorf("release: %v", r)
	}
}

// StopCaptured stops ssh-captured, if it runs, as a service manager would.
func (h *Host) StopCaptured(t testing.TB) {
	t.Helper()
	if h.captured == nil {
		return
	}
	select {
	case <-h.captured.Done():
	default:
		h.captured.Signal(t, syscall.SIGTERM)
		if r := h.captured.Wait(t); r.Code != 0 {
			t.Errorf("ssh-captured: %v", r)
		}
	}
	h.captured = nil
}

// Config is the system configuration around the elements that are given.
func Config(inside string) string {
	return "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<secsh-broker version=\"1.0\">\n" + inside + "\n</secsh-broker>\n"
}

// Profile is a profile element for the server; user "" leaves the login name open.
func (h *Host) Profile(id, user string) string {
	login := ""
	if user != "" {
		login = fmt.Sprintf(" user=%q", user)
	}
	return fmt.Sprintf(`<profile id="%s" name="%s" host="%s" port="%d"%s>
  <server-authentication-methods><auth-server-publickey policy="strict"/></server-authentication-methods></profile>`,
		id, id, h.Server.Addr4, h.SSHD.Addr4.Port(), login)
}

// ServerAddr is where the SSH server listens.
func (h *Host) ServerAddr() netip.AddrPort { return h.SSHD.Addr4 }

// ConfigFile is the system broker's configuration.
func (h *Host) ConfigFile() string { return h.path("ssh-broker-config.xml") }

// WriteConfig writes it, for the next start or reload.
func (h *Host) WriteConfig(t testing.TB, text string) {
	t.Helper()
	if err := os.WriteFile(h.ConfigFile(), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// StartSystemBroker starts the system broker as the service's account with that
// configuration and waits until it serves.
func (h *Host) StartSystemBroker(t testing.TB, config string, args ...string) *netns.Process {
	t.Helper()
	return h.StartSystemBrokerEnv(t, config, nil, args...)
}

// StartSystemBrokerEnv does so with more in its environment.
func (h *Host) StartSystemBrokerEnv(t testing.TB, config string, env []string, args ...string) *netns.Process {
	t.Helper()
	if config != "" {
		h.WriteConfig(t, config)
	}
	c := h.Cmd(h.Service, append([]string{h.Broker, "--system", "--foreground", "-f", h.ConfigFile(), "-a", h.Address(),
		"--audit-file", h.AuditFile(), "--state-dir", h.Service.Home}, args...)...)
	c.Env, c.Limit = append(c.Env, env...), -1
	h.broker = h.Client.Start(t, c)
	h.Await(t, "a system broker that serves", func(st service.Status) bool { return st.Serving })
	return h.broker
}

// Await waits until ssh-captured's status is as wanted.
func (h *Host) Await(t testing.TB, what string, as func(service.Status) bool) service.Status {
	t.Helper()
	for end := time.Now().Add(patience); ; {
		st, err := h.status()
		if err == nil && as(st) {
			return st
		}
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s; %v, %+v", patience, what, err, st)
		}
		<-time.After(5 * time.Millisecond) // there is no event to wait for outside
	}
}

// StopSystemBroker stops it, if it runs.
func (h *Host) StopSystemBroker(t testing.TB) {
	t.Helper()
	if h.broker == nil {
		return
	}
	select {
	case <-h.broker.Done():
	default:
		h.broker.Signal(t, syscall.SIGTERM)
		h.broker.Wait(t)
	}
	h.broker = nil
}

// KillSystemBroker kills it.
func (h *Host) KillSystemBroker(t testing.TB) {
	t.Helper()
	h.broker.Kill(t)
	h.broker = nil
}

// SystemBroker is the running one, nil where there is none.
func (h *Host) SystemBroker() *netns.Process { return h.broker }

// Enable switches system-wide capture on.
func (h *Host) Enable(t testing.TB) {
	t.Helper()
	if r := h.Run(t, nil, h.Ctl, "connector", "enable"); r.Code != 0 {
		t.Fatalf("connector enable: %v", r)
	}
}

// StartBroker starts a user's own broker in the background, with that configuration,
// and waits until it can carry.
func (h *Host) StartBroker(t testing.TB, u *netns.User, config string, args ...string) {
	t.Helper()
	if config != "" {
		u.Write(t, ".ssh2/ssh-broker-config.xml", config, 0o600)
	}
	if r := h.Run(t, u, append([]string{h.Broker}, args...)...); r.Code != 0 {
		t.Fatalf("broker of %s: %v", u.Name, r)
	}
	h.Await(t, "a broker of "+u.Name+" that carries", func(st service.Status) bool {
		for _, uid := range st.Carriers {
			if uid == u.UID {
				return true
			}
		}
		return false
	})
}

// StopBroker stops a user's broker, if there is one.
func (h *Host) StopBroker(t testing.TB, u *netns.User) {
	t.Helper()
	r := h.Run(t, u, h.Ctl, "stop", "--drain", "0")
	if r.Code != 0 && r.Code != 3 {
		t.Errorf("stop the broker of %s: %v", u.Name, r)
	}
}

// AuditFile is the system broker's record; a user's is below the home directory.
func (h *Host) AuditFile() string { return h.path("log/audit.jsonl") }

// UserAuditFile is the record of a user's own broker.
func UserAuditFile(u *netns.User) string { return u.Path(".ssh2/ssh-broker-audit.jsonl") }

// Record is one line of an audit file.
type Record struct {
	Flow      uint64   `json:"flow"`
	Capture   string   `json:"capture"`
	Backend   string   `json:"backend"`
	UID       uint32   `json:"uid"`
	User      string   `json:"user"`
	PID       int      `json:"pid"`
	Program   string   `json:"program"`
	Src       string   `json:"src"`
	Dst       string   `json:"dst"`
	Names     []string `json:"names"`
	Name      string   `json:"name"`
	Rule      int      `json:"rule"`
	Action    string   `json:"action"`
	Profile   string   `json:"profile"`
	Server    string   `json:"server"`
	Target    string   `json:"target"`
	Reason    string   `json:"reason"`
	Error     string   `json:"error"`
	BytesUp   int64    `json:"bytes_up"`
	BytesDown int64    `json:"bytes_down"`
}

// Records reads an audit file; none if it is not there yet.
func Records(t testing.TB, file string) []Record {
	t.Helper()
	b, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	var list []Record
	for line := range strings.Lines(string(b)) {
		if !strings.HasSuffix(line, "\n") {
			break // it is being written
		}
		var r Record
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("audit line %q: %v", line, err)
		}
		list = append(list, r)
	}
	return list
}

// AwaitRecords waits until there are n records, which are written after the program
// has its answer, and returns them all.
func AwaitRecords(t testing.TB, file string, n int) []Record {
	t.Helper()
	for end := time.Now().Add(patience); ; {
		list := Records(t, file)
		if len(list) >= n {
			return list
		}
		if time.Now().After(end) {
			t.Fatalf("%d audit records in %s, want %d: %+v", len(list), file, n, list)
		}
		<-time.After(5 * time.Millisecond) // a file has no event that says it is complete
	}
}
