package interop

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"

	"sshbroker/test/netns"
	"sshbroker/test/sut"
)

func TestMain(m *testing.M) { sut.Main(m, nil) }

// settle is how long things may take that happen by themselves.
const settle = 10 * time.Second

// world is a client machine that can reach nothing of the server but SSH, the server
// itself, and the programs under test. Alice uses them.
type world struct {
	*netns.Net
	sut.Programs
	sshd *netns.SSHD
}

// newWorld has two machines.
func newWorld(t *testing.T, o netns.SSHDOptions) *world {
	t.Helper()
	return furnish(t, netns.New(t), o)
}

// newBastionWorld has a third machine, db.internal, that only the server reaches.
func newBastionWorld(t *testing.T, o netns.SSHDOptions) *world {
	t.Helper()
	return furnish(t, netns.NewBastion(t), o)
}

func furnish(t *testing.T, n *netns.Net, o netns.SSHDOptions) *world {
	t.Helper()
	w := equip(t, n)
	w.sshd = n.Server.StartSSHD(t, o)
	w.sshd.Trust(t, n.Alice)
	w.sshd.Trust(t, n.Bob)
	n.Server.AllowOnly(t, netns.Reset, w.sshd.Addr4.Port())
	return w
}

// equip is furnish without an SSH server.
func equip(t *testing.T, n *netns.Net) *world {
	t.Helper()
	w := &world{Net: n, Programs: sut.Build(t)}
	t.Cleanup(func() { // after the broker is stopped, before the network goes
		for _, u := range []*netns.User{w.Alice, w.Bob} {
			w.stopBroker(t, u)
		}
	})
	return w
}

// via is what --via takes for the server.
func (w *world) via(u *netns.User) string {
	return fmt.Sprintf("%s@%s:%d", u.Name, w.Server.Addr4, w.sshd.Addr4.Port())
}

// capture is a command line of ssh-capture, run by Alice on the client.
func (w *world) capture(args ...string) netns.Cmd {
	return netns.Cmd{Args: append([]string{w.Capture}, args...), User: w.Alice}
}

// ctl runs ssh-broker-ctl as Alice.
func (w *world) ctl(t *testing.T, args ...string) netns.Result {
	t.Helper()
	return w.Client.Run(t, netns.Cmd{Args: append([]string{w.Ctl}, args...), User: w.Alice})
}

// configure writes Alice's ssh-broker-config.xml around what is inside its root.
func (w *world) configure(t *testing.T, inside string) {
	t.Helper()
	w.configureFile(t, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<secsh-broker version=\"1.0\">\n"+inside+"\n</secsh-broker>\n")
}

func (w *world) configureFile(t *testing.T, text string) {
	t.Helper()
	w.Alice.Write(t, ".ssh2/ssh-broker-config.xml", text, 0o600)
}

// profile is a profile element for the server.
func (w *world) profile(id string) string {
	return fmt.Sprintf(`<profile id="%s" name="%s" host="%s" port="%d" user="%s">
  <server-authentication-methods><auth-server-publickey policy="strict"/></server-authentication-methods></profile>`,
		id, id, w.Server.Addr4, w.sshd.Addr4.Port(), w.Alice.Name)
}

// stopBroker stops a user's broker, if there is one, and waits for its end.
func (w *world) stopBroker(t *testing.T, u *netns.User) {
	t.Helper()
	r := w.Client.Run(t, netns.Cmd{Args: []string{w.Ctl, "stop", "--drain", "0"}, User: u})
	if r.Code != 0 && r.Code != 3 {
		t.Errorf("stop the broker of %s: %v", u.Name, r)
	}
}

// record is one line of the audit file.
type record struct {
	V          int      `json:"v"`
	Flow       uint64   `json:"flow"`
	FlowID     string   `json:"flow_id"`
	Capture    string   `json:"capture"`
	Generation uint64   `json:"generation"`
	UID        uint32   `json:"uid"`
	User       string   `json:"user"`
	PID        int      `json:"pid"`
	Program    string   `json:"program"`
	Src        string   `json:"src"`
	Dst        string   `json:"dst"`
	Names      []string `json:"names"`
	Name       string   `json:"name"`
	Rule       int      `json:"rule"`
	Action     string   `json:"action"`
	Profile    string   `json:"profile"`
	Server     string   `json:"server"`
	Target     string   `json:"target"`
	Reason     string   `json:"reason"`
	Error      string   `json:"error"`
	UpEnd      string   `json:"up_end"`
	DownEnd    string   `json:"down_end"`
	DecisionMS float64  `json:"decision_ms"`
	OpenMS     float64  `json:"open_ms"`
	DurationMS float64  `json:"duration_ms"`
	BytesUp    int64    `json:"bytes_up"`
	BytesDown  int64    `json:"bytes_down"`
}

// records are Alice's audit records so far.
func (w *world) records(t *testing.T) []record {
	t.Helper()
	b, err := os.ReadFile(w.Alice.Path(".ssh2/ssh-broker-audit.jsonl"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	var list []record
	for line := range strings.Lines(string(b)) {
		if !strings.HasSuffix(line, "\n") {
			break // it is being written
		}
		var r record
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("audit line %q: %v", line, err)
		}
		list = append(list, r)
	}
	return list
}

// awaitRecords waits until there are n records, as the broker writes them after the
// program has its answer, and returns them all.
func (w *world) awaitRecords(t *testing.T, n int) []record {
	t.Helper()
	for end := time.Now().Add(settle); ; {
		list := w.records(t)
		if len(list) >= n {
			return list
		}
		if time.Now().After(end) {
			t.Fatalf("%d audit records, want %d: %+v", len(list), n, list)
		}
		<-time.After(5 * time.Millisecond) // a file has no event that says it is complete
	}
}

// expect fails the test unless the command ended with that code.
func expect(t *testing.T, r netns.Result, code int) netns.Result {
	t.Helper()
	if r.Code != code {
		t.Fatalf("exit code %d, want %d: %v", r.Code, code, r)
	}
	return r
}

// terminal is the size of those that tests give to programs.
var terminal = pty.Winsize{Rows: 24, Cols: 80}
