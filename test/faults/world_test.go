package faults

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/broker/control"
	"sshbroker/test/host"
	"sshbroker/test/netns"
	"sshbroker/test/sut"
)

func TestMain(m *testing.M) {
	// The faults wait for time limits nearly all the time, whatever the number of CPUs.
	flag.Parse()
	if err := flag.Set("test.parallel", "10"); err != nil {
		panic(err)
	}
	sut.Main(m, nil)
}

func long() bool { return os.Getenv("SSHBROKER_LONG") == "1" }

// settle is how long things may take that happen by themselves.
const settle = 30 * time.Second

// The destinations, by what rules say of their port. All are the same service.
const (
	strictPort = 8000 // tunneled
	loosePort  = 8001 // tunneled, with fallback-to-plain
	livePort   = 8002 // tunneled; the flow that is there when the fault comes
)

// What the profile says, so that faults are noticed soon.
const (
	keepalive    = time.Second
	aliveLimit   = 4 * keepalive // after the third question without an answer
	connectLimit = 3 * time.Second
)

// world is a client machine with a capture whose commands the test gives, the server, and
// a service there that the client reaches in clear only where a rule falls back.
type world struct {
	*netns.Net
	sut.Programs
	sshd *netns.SSHD
	wire *netns.Wire

	audit    string        // file of the audit record
	env      []string      // of whatever is captured, and so of a broker started for it
	profile  string        // elements of the profile
	sshdKeys []*netns.User // who may log in; nil for all
	broker   int           // the process whose descriptors are limited

	shell  *netns.Process // captured; tries what typing tells it
	typing *os.File
	live   *netns.Process // the flow that is there
	nudges *os.File
}

func newWorld(t *testing.T) *world {
	t.Helper()
	n := netns.New(t)
	w := &world{Net: n, Programs: sut.Build(t), audit: n.Alice.Path(".ssh2/ssh-broker-audit.jsonl")}
	w.profile = fmt.Sprintf(`<tcp-connect-timeout time="%d"/><keepalive-interval time="%d"/>`, connectLimit/time.Second, keepalive/time.Second)
	t.Cleanup(func() { w.stopBroker(t) })
	w.startSSHD(t, "")
	w.sshd.Trust(t, n.Alice)
	n.Server.AllowOnly(t, netns.Reset, w.sshd.Addr4.Port(), loosePort)
	addresses := []string{w.Testprog, "serve"}
	for _, port := range []int{strictPort, loosePort, livePort} {
		addresses = append(addresses, fmt.Sprintf("[::]:%d", port))
	}
	n.Server.Start(t, netns.Cmd{Args: addresses, Limit: -1}).WaitFor(t, fmt.Sprintf("listening [::]:%d", livePort))
	return w
}

// startSSHD starts the server, with the key of the one before where hostKey names it.
func (w *world) startSSHD(t *testing.T, hostKey string) {
	t.Helper()
	w.sshd = w.Server.StartSSHD(t, netns.SSHDOptions{HostKey: hostKey, Users: w.sshdKeys})
}

// killSSHD kills the server with all its connections.
func (w *world) killSSHD(t *testing.T) {
	t.Helper()
	if w.Server.KillAll(t, "sshd") == 0 {
		t.Fatal("there was no sshd")
	}
}

// configure writes the rules, with what the profile says beside where and who.
func (w *world) configure(t *testing.T) {
	t.Helper()
	rule := `<rule ip-address=".*" ports="%d" action="TUNNEL" profile-id="srv" fallback-to-plain="%s"/>` + "\n"
	rules := fmt.Sprintf(rule, strictPort, "NO") + fmt.Sprintf(rule, loosePort, "YES") + fmt.Sprintf(rule, livePort, "NO")
	w.Alice.Write(t, ".ssh2/ssh-broker-config.xml", host.Config(fmt.Sprintf(`<profiles>
<profile id="srv" name="srv" host="%s" port="%d" user="%s">%s
<server-authentication-methods><auth-server-publickey policy="strict"/></server-authentication-methods></profile></profiles>
<filter-engine>%s</filter-engine>`, w.Server.Addr4, w.sshd.Addr4.Port(), w.Alice.Name, w.profile, rules)), 0o600)
}

// begin starts the capture and the live flow.
func (w *world) begin(t *testing.T) {
	t.Helper()
	w.configure(t)
	w.wire = w.Server.Capture(t, "to-client") // that end of the link stays up
	var stdin *os.File
	stdin, w.typing = pipe(t)
	w.shell = w.Client.Start(t, netns.Cmd{User: w.Alice, Env: w.env, Stdin: stdin, Limit: -1, Args: []string{w.Capture, "sh", "-c", `echo ready
while read -r word; do
	"$1" connect -echo "strict-$word" "$2:$3" & strict=$!
	"$1" connect -echo "loose-$word" "$2:$4" & loose=$!
	wait $strict $loose
	echo "tried $word"
done`, "sh", w.Testprog, w.Server.Addr4.String(), strconv.Itoa(strictPort), strconv.Itoa(loosePort)}})
	w.shell.WaitFor(t, "ready")
	stdin, w.nudges = pipe(t)
	w.live = w.Client.Start(t, netns.Cmd{User: w.Alice, Env: w.env, Stdin: stdin, Limit: -1, Args: []string{w.Capture, w.Testprog,
		"exchange", "-nudge", "-timeout", "10m", "await", netip.AddrPortFrom(w.Server.Addr4, livePort).String()}})
	w.live.WaitFor(t, "established")
}

// age waits until the transport has lived long enough for its loss to be no failure to
// connect.
func (w *world) age(t *testing.T) {
	t.Helper()
	rows, ok := ask[control.ConnectionRow](t, w, control.OpConnections)
	if !ok || len(rows) != 1 {
		t.Fatalf("connections %+v", rows)
	}
	<-time.After(time.Until(rows[0].Since.Add(proven)))
}

// proven is what profiles.Pool takes for that, and a bit.
const proven = 10*time.Second + 100*time.Millisecond

// tried is how one attempt of the shell went.
type tried struct {
	outcome string // of connect()
	echoed  string
	took    time.Duration
	clear   bool // what it sent was on the wire
}

func (c tried) served() bool { return c.outcome == "ok" && c.echoed == "ok" }

// try has the shell connect once to each port. Whatever happens, the strict one is never
// seen on the wire.
func (w *world) try(t *testing.T, word string) (strict, loose tried) {
	t.Helper()
	said := len(w.shell.Stdout())
	if _, err := w.typing.WriteString(word + "\n"); err != nil {
		t.Fatal(err)
	}
	w.shell.WaitFor(t, "tried "+word+"\n")
	for line := range strings.Lines(w.shell.Stdout()[said:]) {
		f := strings.Fields(line)
		if len(f) != 4 {
			continue
		}
		ms, err := strconv.ParseFloat(f[2], 64)
		if err != nil {
			t.Fatalf("testprog said %q", line)
		}
		c := tried{outcome: f[1], echoed: f[3], took: time.Duration(ms * float64(time.Millisecond))}
		switch {
		case strings.HasSuffix(f[0], ":"+strconv.Itoa(strictPort)):
			strict = c
		case strings.HasSuffix(f[0], ":"+strconv.Itoa(loosePort)):
			loose = c
		}
	}
	if strict.outcome == "" || loose.outcome == "" {
		t.Fatalf("the shell said %q", w.shell.Output()[said:])
	}
	strict.clear = w.wire.Contains(t, []byte("strict-"+word))
	loose.clear = w.wire.Contains(t, []byte("loose-"+word))
	if strict.clear {
		t.Error("what a rule tunnels without fallback was on the wire in clear")
	}
	return strict, loose
}

// record is one line of the audit file.
type record struct {
	Dst     netip.AddrPort `json:"dst"`
	Reason  string         `json:"reason"`
	Error   string         `json:"error"`
	DownEnd string         `json:"down_end"`
}

// records are those of a port, oldest first. The audit file may be on a file system that
// only the client machine sees.
func (w *world) records(t *testing.T, port uint16) (list []record) {
	t.Helper()
	for line := range strings.Lines(w.Client.Output(t, w.Alice, "cat", w.audit)) {
		var r record
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("audit line %q: %v", line, err)
		}
		if r.Dst.Port() == port {
			list = append(list, r)
		}
	}
	return list
}

// ctl runs ssh-broker-ctl as Alice.
func (w *world) ctl(t *testing.T, args ...string) netns.Result {
	t.Helper()
	return w.Client.Run(t, netns.Cmd{Args: append([]string{w.Ctl}, args...), User: w.Alice})
}

// stopBroker stops the broker, if there is one, and waits for its end.
func (w *world) stopBroker(t *testing.T) {
	t.Helper()
	if r := w.ctl(t, "stop", "--drain", "0"); r.Code != 0 && r.Code != 3 {
		t.Errorf("stop the broker: %v", r)
	}
}

// ask has the broker do one thing; false where none answers.
func ask[Row any](t *testing.T, w *world, op string) (rows []Row, ok bool) {
	t.Helper()
	return host.Ask[Row](t.Context(), w.Alice, op)
}

// brokerPID is the process of the broker, which may be about to come up.
func (w *world) brokerPID(t *testing.T) (pid int) {
	t.Helper()
	eventually(t, "a broker", func() bool {
		rows, ok := ask[control.StatusRow](t, w, control.OpStatus)
		if ok && len(rows) == 1 {
			pid = rows[0].PID
		}
		return ok && len(rows) == 1
	})
	return pid
}

// setClock sets the clock to what it says, which the kernel tells as any other setting.
func setClock(t *testing.T) {
	t.Helper()
	var now unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_REALTIME, &now)
	if err == nil {
		err = unix.ClockSettime(unix.CLOCK_REALTIME, &now)
	}
	if err != nil && os.Getenv("CI") != "true" {
		t.Skipf("the clock cannot be set: %v", err)
	}
	if err != nil {
		t.Fatalf("set the clock: %v", err)
	}
}

// pipe is a program's standard input that the test writes to.
func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

// eventually asks again and again, for what has no event to wait for.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(settle); !is(); {
		if time.Now().After(end) {
			t.Fatalf("waited %v in vain for %s", settle, what)
		}
		<-time.After(10 * time.Millisecond)
	}
}
