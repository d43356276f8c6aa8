package interop

// Item 3 of what the issue asks to be shown: connect() tells the truth. What the
// far side, the server, the rules or the network answered is what the program's
// connect() returns, in both families, blocking or not, no earlier than it is known
// and not much later; and an attempt that is given up leaves nothing behind.

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"sshbroker/profiles/tuntest"
	"sshbroker/test/netns"
)

// promptly is what a program may wait beyond the moment at which the broker knew.
const promptly = 100 * time.Millisecond

// attemptResult is one line of testprog connect.
type attemptResult struct {
	target  netip.AddrPort
	outcome string
	took    time.Duration
	began   time.Time // with -clock
}

// connects runs testprog connect inside a capture and returns what it printed.
func (w *world) connects(t *testing.T, args ...string) []attemptResult {
	t.Helper()
	return parseAttempts(t, expect(t, w.Client.Run(t, w.capture(append([]string{w.Testprog, "connect"}, args...)...)), 0).Stdout)
}

func parseAttempts(t *testing.T, text string) []attemptResult {
	t.Helper()
	var list []attemptResult
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 3 {
			t.Fatalf("testprog printed %q", line)
		}
		target, err := netip.ParseAddrPort(words[0])
		if err != nil {
			t.Fatal(err)
		}
		ms, err := strconv.ParseFloat(words[2], 64)
		if err != nil {
			t.Fatal(err)
		}
		a := attemptResult{target: target, outcome: words[1], took: time.Duration(ms * float64(time.Millisecond))}
		if len(words) > 3 && len(words[3]) > 15 {
			ns, err := strconv.ParseInt(words[3], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			a.began = time.Unix(0, ns)
		}
		list = append(list, a)
	}
	return list
}

// known is when the broker knew what to tell, after the SYN came.
func (r record) known() time.Duration {
	return time.Duration((r.DecisionMS + r.OpenMS) * float64(time.Millisecond))
}

// arrivals are when the broker read the SYN of each flow, by its number.
func (w *world) arrivals(t *testing.T) map[uint64]time.Time {
	t.Helper()
	b, err := os.ReadFile(w.Alice.Path(".ssh2/ssh-broker-audit.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	all := map[uint64]time.Time{}
	for line := range strings.Lines(string(b)) {
		var r struct {
			Flow uint64    `json:"flow"`
			Time time.Time `json:"time"`
		}
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatal(err)
		}
		all[r.Flow] = r.Time
	}
	return all
}

// programs connect in the three ways that programs have. Each returns the errno by
// name, "ok" for none.
var programs = []struct {
	name    string
	connect func(t *testing.T, w *world, target string) string
}{
	{"blocking", func(t *testing.T, w *world, target string) string { return w.connects(t, target)[0].outcome }},
	{"epoll", func(t *testing.T, w *world, target string) string {
		return w.connects(t, "-nonblock", target)[0].outcome
	}},
	{"curl", func(t *testing.T, w *world, target string) string {
		curl := netns.RequireProgram(t, "curl", "curl")
		args := w.capture(curl, "-sv", "--max-time", "60", "http://"+target+"/")
		r := w.Client.Run(t, args)
		// curl asks for SO_ERROR once, and Linux wakes it for an ICMP error over IPv4 a
		// moment before the error is set, in some of a thousand connects: it then fails
		// without saying why.
		for try := 1; try < 3 && r.Code == 7 && !strings.Contains(r.Stderr, " failed: "); try++ {
			r = w.Client.Run(t, args)
		}
		for text, errno := range map[string]string{
			"Connection refused": "ECONNREFUSED", "No route to host": "EHOSTUNREACH", "Connected to ": "ok",
		} {
			if strings.Contains(r.Stderr, text) && (r.Code == 7) == (errno != "ok") {
				return errno
			}
		}
		return r.String()
	}},
}

// truth is what a connect to a target must tell, and what is recorded of it.
type truth struct {
	what, target  string
	outcome       string
	reason, error string // error: what the record's must contain
}

// requireTruth tries every target with every program.
func (w *world) requireTruth(t *testing.T, truths []truth) {
	t.Helper()
	for _, want := range truths {
		for _, p := range programs {
			t.Run(want.what+"/"+p.name, func(t *testing.T) {
				before := len(w.records(t))
				if got := p.connect(t, w, want.target); got != want.outcome {
					t.Errorf("connect to %s: %s, want %s", want.target, got, want.outcome)
				}
				for _, r := range w.awaitRecords(t, before+1)[before:] {
					if r.Reason != want.reason || !strings.Contains(r.Error, want.error) {
						t.Errorf("recorded %s %q, want %s %q", r.Reason, r.Error, want.reason, want.error)
					}
				}
			})
		}
	}
}

// serveInside starts testprog serve on a machine, for both families.
func (w *world) serveInside(t *testing.T, m *netns.Machine, port uint16, options ...string) *netns.Process {
	t.Helper()
	args := append(append([]string{w.Testprog, "serve"}, options...), fmt.Sprintf(":%d", port))
	p := m.Start(t, netns.Cmd{Args: args, Limit: -1})
	p.WaitFor(t, "listening")
	return p
}

// tunnelAll is a configuration that sends everything through the server. Children of
// the profile may be added.
func (w *world) tunnelAll(inProfile string) string {
	return "<profiles>" + withChildren(w.profile("srv"), inProfile) + `</profiles>
<filter-engine><rule ip-address=".*" action="TUNNEL" profile-id="srv"/></filter-engine>`
}

func withChildren(profile, children string) string {
	return strings.Replace(profile, "<server-authentication-methods>", children+"<server-authentication-methods>", 1)
}

// both gives the addresses of a machine with a port.
func both(m *netns.Machine, port uint16) [2]string {
	return [2]string{netip.AddrPortFrom(m.Addr4, port).String(), netip.AddrPortFrom(m.Addr6, port).String()}
}

func TestTruthOfTheFarSide(t *testing.T) {
	w := newBastionWorld(t, netns.SSHDOptions{})
	w.serveInside(t, w.Inner, 7000)
	w.noWayBehindServer(t)
	before := w.Snapshot(t)
	w.configure(t, w.tunnelAll(""))
	open, closed := both(w.Inner, 7000), both(w.Inner, 7001)
	w.requireTruth(t, []truth{
		{"closed port IPv4", closed[0], "ECONNREFUSED", "refused-by-destination", "Connection refused"},
		{"closed port IPv6", closed[1], "ECONNREFUSED", "refused-by-destination", "Connection refused"},
		{"unreachable IPv4", nowhere4 + ":80", "EHOSTUNREACH", "unreachable", ""},
		{"unreachable IPv6", "[" + nowhere6 + "]:80", "EHOSTUNREACH", "unreachable", ""},
		{"open port IPv4", open[0], "ok", "carried", ""},
		{"open port IPv6", open[1], "ok", "carried", ""},
	})
	w.finish(t, before)
}

// What the server answers for at once with "no route to host".
const nowhere4, nowhere6 = "10.99.3.1", "fd99:3::1"

func (w *world) noWayBehindServer(t *testing.T) {
	t.Helper()
	w.Server.Output(t, nil, "ip", "route", "add", "unreachable", "10.99.3.0/24")
	w.Server.Output(t, nil, "ip", "-6", "route", "add", "unreachable", "fd99:3::/64")
}

func TestTruthOfNamesKnownOnlyBehindServer(t *testing.T) {
	w := newBastionWorld(t, netns.SSHDOptions{})
	w.serveInside(t, w.Inner, 7000)
	before := w.Snapshot(t)
	w.configure(t, "<profiles>"+w.profile("srv")+`</profiles>
<filter-engine ip6-generate-start="fd00:77::"><rule host=".*" action="TUNNEL" profile-id="srv" pseudo-ip="yes"/></filter-engine>`)
	w.requireTruth(t, []truth{
		{"known, open port", "db.internal:7000", "ok", "carried", ""},
		{"known, closed port", "db.internal:7001", "ECONNREFUSED", "refused-by-destination", ""},
		{"unknown", "no-such-host.internal:80", "EHOSTUNREACH", "name-not-found", ""},
	})
	w.finish(t, before)
}

func TestTruthWhenForwardingIsForbidden(t *testing.T) {
	for name, o := range map[string]netns.SSHDOptions{
		"AllowTcpForwarding no": {Forwarding: "no"},
		"PermitOpen elsewhere":  {Config: []string{"PermitOpen 192.0.2.1:1"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newBastionWorld(t, o)
			w.serveInside(t, w.Inner, 7000)
			before := w.Snapshot(t)
			w.configure(t, w.tunnelAll(""))
			open := both(w.Inner, 7000)
			// The last part is what sshd says with reason 1.
			w.requireTruth(t, []truth{
				{"IPv4", open[0], "EHOSTUNREACH", "prohibited", `"open failed"`},
				{"IPv6", open[1], "EHOSTUNREACH", "prohibited", `"open failed"`},
			})
			w.finish(t, before)
		})
	}
}

func TestTruthOfBlock(t *testing.T) {
	w := newWorld(t, netns.SSHDOptions{})
	w.Server.AllowAll(t)
	w.serveInside(t, w.Server, 7000)
	before := w.Snapshot(t)
	w.configure(t, `<filter-engine><rule ip-address=".*" action="BLOCK"/></filter-engine>`)
	wire := w.Client.Capture(t, "to-server")
	open := both(w.Server, 7000)
	w.requireTruth(t, []truth{
		{"IPv4", open[0], "ECONNREFUSED", "blocked", ""},
		{"IPv6", open[1], "ECONNREFUSED", "blocked", ""},
	})
	if sent := wire.Packets(t, func(p netns.Packet) bool { return p.Proto == 6 }); len(sent) != 0 {
		t.Errorf("%d TCP packets left for a blocked destination", len(sent))
	}
	w.finish(t, before)
}

func TestTruthWhenServerIsDown(t *testing.T) {
	w := newBastionWorld(t, netns.SSHDOptions{})
	w.serveInside(t, w.Inner, 7000)
	w.configure(t, w.tunnelAll(`<tcp-connect-timeout time="2"/><keepalive-interval time="1"/>`))
	open := both(w.Inner, 7000)

	t.Run("killed", func(t *testing.T) {
		w.Server.KillAll(t, "sshd")
		w.requireTruth(t, []truth{
			{"IPv4", open[0], "EHOSTUNREACH", "server-unreachable", "connection refused"},
			{"IPv6", open[1], "EHOSTUNREACH", "server-unreachable", "connection refused"},
		})
		w.stopBroker(t, w.Alice)
	})

	t.Run("silent before the connect", func(t *testing.T) {
		w.Server.AllowOnly(t, netns.Silence)
		began := len(w.records(t))
		for _, options := range [][]string{{}, {"-nonblock"}} {
			got := w.connects(t, append(options, open[0], open[1])...)
			for _, a := range got {
				if a.outcome != "EHOSTUNREACH" || a.took > 2*time.Second+promptly {
					t.Errorf("%v: %s after %v, want EHOSTUNREACH within tcp-connect-timeout of 2 s", options, a.outcome, a.took)
				}
			}
		}
		for _, r := range w.awaitRecords(t, began+4)[began:] {
			if r.Reason != "server-unreachable" {
				t.Errorf("recorded %s: %s", r.Reason, r.Error)
			}
		}
		w.stopBroker(t, w.Alice)
	})

	t.Run("silent with a transport open", func(t *testing.T) {
		w.Server.AllowAll(t)
		w.Server.StartSSHD(t, netns.SSHDOptions{HostKey: w.sshd.HostKeyFile})
		s := w.startShell(t)
		s.run(t, w.Testprog+" connect "+open[0])
		if n := len(w.connections(t)); n != 1 {
			t.Fatalf("%d transports", n)
		}
		w.dropAll(t)
		// Three keepalives a second apart go unanswered; then a new connect is tried.
		for _, a := range parseAttempts(t, s.run(t, w.Testprog+" connect "+open[0]+" "+open[1])) {
			if a.outcome != "EHOSTUNREACH" || a.took > 7*time.Second {
				t.Errorf("%s after %v, want EHOSTUNREACH within 4 s of keepalives and 2 s of connect", a.outcome, a.took)
			} else {
				t.Logf("EHOSTUNREACH after %v", a.took)
			}
		}
		s.end(t)
	})
}

// dropAll makes the server's machine drop all that comes from others, also of what
// is established.
func (w *world) dropAll(t *testing.T) {
	t.Helper()
	nft := netns.RequireProgram(t, "nft", "nftables")
	expect(t, w.Server.Run(t, netns.Cmd{Args: []string{nft, "-f", "-"}, Stdin: strings.NewReader(
		"table inet test_silence { chain input { type filter hook input priority -300; iifname \"to-client\" meta l4proto tcp drop; }; }\n")}), 0)
}

func TestTruthWhenServerIsNotTheOneWeKnow(t *testing.T) {
	w := newBastionWorld(t, netns.SSHDOptions{})
	w.serveInside(t, w.Inner, 7000)
	open := both(w.Inner, 7000)
	w.configure(t, w.tunnelAll(""))

	t.Run("host key changed", func(t *testing.T) {
		w.Server.KillAll(t, "sshd")
		w.Server.StartSSHD(t, netns.SSHDOptions{}) // with a key of its own
		w.requireTruth(t, []truth{
			{"IPv4", open[0], "EHOSTUNREACH", "host-key", "host key not trusted"},
			{"IPv6", open[1], "EHOSTUNREACH", "host-key", "host key not trusted"},
		})
		w.stopBroker(t, w.Alice)
	})

	t.Run("authentication refused", func(t *testing.T) {
		w.Server.KillAll(t, "sshd")
		w.Server.StartSSHD(t, netns.SSHDOptions{HostKey: w.sshd.HostKeyFile, Users: []*netns.User{w.Bob}})
		w.requireTruth(t, []truth{
			{"IPv4", open[0], "EHOSTUNREACH", "auth-failed", "authentication failed"},
			{"IPv6", open[1], "EHOSTUNREACH", "auth-failed", "authentication failed"},
		})
		w.stopBroker(t, w.Alice)
	})
}

// misbehaving starts the SSH server of tuntest on the server's machine, with what
// ours may do to it, and returns a configuration that sends everything through it.
func (w *world) misbehaving(t *testing.T, s *tuntest.Server) string {
	t.Helper()
	const port = 2222
	host, err := tuntest.NewKeyPair("")
	if err != nil {
		t.Fatal(err)
	}
	s.HostKey, s.Authorized = host.Private, []string{w.Alice.AuthorizedKey}
	if s.Dial == nil {
		s.Dial = func(_ context.Context, network, address string) (net.Conn, error) {
			return w.Server.Dial(network, address)
		}
	}
	line, err := s.HostKeyLine(netip.AddrPortFrom(w.Server.Addr4, port).String())
	if err != nil {
		t.Fatal(err)
	}
	w.Alice.Write(t, ".ssh/known_hosts", w.sshd.KnownHosts()+line+"\n", 0o600)
	w.Server.AllowOnly(t, netns.Reset, w.sshd.Addr4.Port(), port)
	l := w.Server.Listen(t, "tcp", fmt.Sprintf(":%d", port))
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-served; err != nil {
			t.Errorf("tuntest server: %v", err)
		}
	})
	return strings.Replace(w.tunnelAll(""), fmt.Sprintf(`port="%d"`, w.sshd.Addr4.Port()), fmt.Sprintf(`port="%d"`, port), 1)
}

// TestConnectWaitsForConfirmation has a server that confirms late. Until then the
// program's socket is in SYN-SENT and nothing inside is connected; connect() returns
// right after the confirmation.
func TestConnectWaitsForConfirmation(t *testing.T) {
	w := newWorld(t, netns.SSHDOptions{})
	w.serveInside(t, w.Server, 7000)
	asked, confirm := make(chan struct{}), make(chan struct{})
	server := &tuntest.Server{Confirm: func(ctx context.Context, o tuntest.Open) {
		select {
		case asked <- struct{}{}:
		case <-ctx.Done():
		}
		select {
		case <-confirm:
		case <-ctx.Done():
		}
	}}
	w.configure(t, w.misbehaving(t, server))
	s := w.startShell(t)
	done := 0
	for _, target := range both(w.Server, 7000) {
		for _, options := range []string{"", "-nonblock "} {
			out := s.begin(t, w.Testprog+" connect "+options+target)
			<-asked
			began := time.Now()
			// The delay is what is under test: no event can tell that nothing happens.
			<-time.After(300 * time.Millisecond)
			if states := s.sockets(t); states["SYN_SENT"] != 1 || states["ESTABLISHED"] != 0 || states["SYN_RECV"] != 0 {
				t.Errorf("%s%s: before the confirmation the capture has %v", options, target, states)
			}
			if rows := w.channels(t); len(rows) != 1 || rows[0].State != "decided" {
				t.Errorf("%s%s: before the confirmation: %+v", options, target, rows)
			}
			held := time.Since(began)
			confirm <- struct{}{}
			a := parseAttempts(t, out())[0]
			if a.outcome != "ok" || a.took < held {
				t.Errorf("%s%s: %s after %v, confirmed after %v", options, target, a.outcome, a.took, held)
			}
			done++
			r := w.awaitRecords(t, done)[done-1]
			if r.Reason != "carried" || r.known() < held || a.took > r.known()+promptly {
				t.Errorf("%s%s: connect() took %v, the confirmation %v to come; recorded %+v", options, target, a.took, r.known(), r)
			}
			t.Logf("%s%s: held %v, known after %v, connect() %v", options, target, held, r.known(), a.took)
		}
	}
	s.end(t)
}

// TestTruthOfDirect: what a namespace's broker relays in clear fails as it would
// without a capture.
func TestTruthOfDirect(t *testing.T) {
	w := newWorld(t, netns.SSHDOptions{})
	w.serveInside(t, w.Server, 7000)
	w.configure(t, `<filter-engine><rule ip-address=".*" action="DIRECT"/></filter-engine>`)
	w.Server.AllowAll(t)
	open, closed := both(w.Server, 7000), both(w.Server, 7001)
	w.requireTruth(t, []truth{
		{"open port IPv4", open[0], "ok", "direct", ""},
		{"open port IPv6", open[1], "ok", "direct", ""},
		{"refused IPv4", closed[0], "ECONNREFUSED", "refused-by-destination", ""},
		{"refused IPv6", closed[1], "ECONNREFUSED", "refused-by-destination", ""},
	})
	w.Server.AllowOnly(t, netns.Unreachable)
	w.requireTruth(t, []truth{
		{"unreachable IPv4", open[0], "EHOSTUNREACH", "unreachable", ""},
		{"unreachable IPv6", open[1], "EHOSTUNREACH", "unreachable", ""},
	})
	w.Server.AllowOnly(t, netns.Silence)
	began := time.Now()
	for _, a := range w.connects(t, "-nonblock", "-timeout", "1500ms", open[0], open[1]) {
		if a.outcome != "ETIMEDOUT" || a.took < 1500*time.Millisecond {
			t.Errorf("silent %v: %s after %v, want no answer until the program's own limit of 1.5 s", a.target, a.outcome, a.took)
		}
	}
	curl := netns.RequireProgram(t, "curl", "curl")
	const timedOut = 28 // curl's exit code
	expect(t, w.Client.Run(t, w.capture(curl, "-s", "--connect-timeout", "1", "http://"+open[0]+"/")), timedOut)
	t.Logf("silence took %v", time.Since(began))
}

// TestUnreachableInTime: thousands of connects that must fail, 2,000 all at once and
// 2,000 one after the other, and not one is told later than 100 ms after it is known.
func TestUnreachableInTime(t *testing.T) {
	w := newWorld(t, netns.SSHDOptions{})
	w.noWayBehindServer(t)
	before := w.Snapshot(t)
	w.configure(t, w.tunnelAll(`<idle-timeout time="60"/>`))
	s := w.startShell(t)
	s.run(t, w.Testprog+" connect "+nowhere4+":1") // connects to the server
	w.awaitRecords(t, 1)
	idle := w.idle(t)
	done := 1
	for _, test := range []struct {
		name, options, target string
		n                     int
	}{
		// A thread each: hundreds of them would measure the scheduler.
		{"at once, blocking, IPv4", "", nowhere4, 100},
		{"at once, epoll, IPv4", "-nonblock", nowhere4, 2000},
		{"at once, epoll, IPv6", "-nonblock", nowhere6, 2000},
		{"in series, blocking, IPv4", "-series", nowhere4, 1000},
		{"in series, epoll, IPv6", "-series -nonblock", nowhere6, 1000},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := test.n
			// A port of its own for each, by which record and attempt find each other.
			target := net.JoinHostPort(test.target, "10000")
			got := parseAttempts(t, s.run(t, fmt.Sprintf("%s connect -clock %s -n %d -step-port %s", w.Testprog, test.options, n, target)))
			known := map[string]record{}
			for _, r := range w.awaitRecords(t, done+n)[done:] {
				known[r.Dst] = r
			}
			done += n
			arrived := w.arrivals(t)
			var late, queued []time.Duration
			for _, a := range got {
				r, ok := known[a.target.String()]
				if !ok || a.outcome != "EHOSTUNREACH" || r.Reason != "unreachable" {
					t.Fatalf("%v: %s, recorded %+v", a.target, a.outcome, r)
				}
				queued = append(queued, arrived[r.Flow].Sub(a.began))
				late = append(late, a.began.Add(a.took).Sub(arrived[r.Flow].Add(r.known())))
			}
			slices.Sort(late)
			slices.Sort(queued)
			if len(late) != n || late[n-1] > promptly {
				t.Errorf("%d attempts; the slowest heard of it %v after it was known", len(late), late[len(late)-1])
			}
			t.Logf("heard of it after it was known: median %v, 99%% %v, slowest %v", late[n/2], late[n*99/100], late[n-1])
			t.Logf("the SYN was read after connect() began: median %v, slowest %v", queued[n/2], queued[n-1])
		})
	}
	w.requireFlat(t, idle)
	s.end(t)
	w.finish(t, before)
}

// TestCancelledConnectsLeaveNothing: programs that give up while the channel is being
// opened, just opened, or confirmed.
func TestCancelledConnectsLeaveNothing(t *testing.T) {
	const n = 1000
	w := newWorld(t, netns.SSHDOptions{})
	w.serveInside(t, w.Server, 7000)
	server := &tuntest.Server{
		Dial: func(_ context.Context, network, _ string) (net.Conn, error) {
			return w.Server.Dial(network, both(w.Server, 7000)[0])
		},
		Confirm: func(ctx context.Context, o tuntest.Open) {
			select { // a server that takes its time
			case <-time.After(rand.N(60 * time.Millisecond)):
			case <-ctx.Done():
			}
		},
	}
	w.configure(t, w.misbehaving(t, server))
	before := w.Snapshot(t)
	s := w.startShell(t)
	s.run(t, w.Testprog+" connect 192.0.2.1:1")
	w.awaitRecords(t, 1)
	idle := w.idle(t)

	outcomes := map[string]int{}
	for _, target := range []string{"192.0.2.1:80", "[2001:db8::1]:80"} {
		for _, a := range parseAttempts(t, s.run(t, fmt.Sprintf("%s connect -n %d -cancel 250ms %s", w.Testprog, n/2, target))) {
			outcomes[a.outcome]++
		}
	}
	reasons := map[string]int{}
	for _, r := range w.awaitRecords(t, n+1)[1:] {
		reasons[r.Reason]++
	}
	t.Logf("program: %v; records: %v", outcomes, reasons)
	if outcomes["cancelled"] < n/10 || outcomes["ok"] < n/100 || outcomes["cancelled"]+outcomes["ok"] != n {
		t.Errorf("outcomes %v are not what random moments give", outcomes)
	}
	if reasons["abandoned"] < n/20 || reasons["abandoned"]+reasons["carried"] != n || reasons["carried"] < outcomes["ok"] {
		t.Errorf("recorded %v for outcomes %v", reasons, outcomes)
	}
	eventually(t, "channels at the server to end", func() bool { return server.OpenChannels() == 0 })
	if rows := w.channels(t); len(rows) != 0 {
		t.Errorf("the broker still lists %d channels: %+v", len(rows), rows[0])
	}
	if c := w.connections(t); len(c) > 1 || len(c) == 1 && c[0].Channels != 0 {
		t.Errorf("transports: %+v", c)
	}
	if states := s.sockets(t); states["SYN_SENT"]+states["SYN_RECV"]+states["ESTABLISHED"]+states["CLOSE_WAIT"] != 0 {
		t.Errorf("sockets in the capture: %v", states)
	}
	if held := s.queued(t); held != 0 {
		t.Errorf("%d packets wait in the queue", held)
	}
	w.requireFlat(t, idle)
	s.end(t)
	w.finish(t, before)
}

// shell is a capture that lasts: sh inside it, given one command line after another.
type shell struct {
	*netns.Process
	stdin *os.File
	pid   string // of sh, in the capture's network namespace
	n     int    // command lines so far
}

func (w *world) startShell(t *testing.T, options ...string) *shell {
	t.Helper()
	r, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	t.Cleanup(func() { in.Close() })
	cmd := w.capture(append(options, "/bin/sh")...)
	cmd.Stdin, cmd.Limit = r, -1
	s := &shell{Process: w.Client.Start(t, cmd), stdin: in}
	s.pid = strings.TrimSpace(s.run(t, "echo $$"))
	return s
}

// begin starts a command line and returns what waits for its end and gives its
// output. It fails the test where the line does.
func (s *shell) begin(t *testing.T, line string) func() string {
	t.Helper()
	s.n++
	start, end := fmt.Sprintf("<%d>", s.n), fmt.Sprintf("</%d ", s.n)
	fmt.Fprintf(s.stdin, "echo '%s'; %s </dev/null; echo '%s'$?'>'\n", start, line, end)
	return func() string {
		t.Helper()
		s.WaitFor(t, end)
		_, out, _ := strings.Cut(s.WaitFor(t, end+"0>"), start+"\n")
		out, _, _ = strings.Cut(out, end)
		return out
	}
}

func (s *shell) run(t *testing.T, line string) string {
	t.Helper()
	return s.begin(t, line)()
}

func (s *shell) end(t *testing.T) {
	t.Helper()
	s.stdin.Close()
	if r := s.Wait(t); r.Code != 0 {
		t.Errorf("the shell in the capture: %v", r)
	}
}

// inside is a path below /proc/PID of the shell, which is in the capture.
func (s *shell) inside(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%s/%s", s.pid, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// sockets counts the TCP sockets in the capture by state (net/tcp_states.h).
func (s *shell) sockets(t *testing.T) map[string]int {
	t.Helper()
	names := map[string]string{"01": "ESTABLISHED", "02": "SYN_SENT", "03": "SYN_RECV", "04": "FIN_WAIT1", "05": "FIN_WAIT2",
		"06": "TIME_WAIT", "08": "CLOSE_WAIT", "09": "LAST_ACK", "0A": "LISTEN", "0B": "CLOSING"}
	states := map[string]int{}
	for _, file := range []string{"net/tcp", "net/tcp6"} {
		for line := range strings.Lines(string(s.inside(t, file))) {
			if words := strings.Fields(line); len(words) > 3 && words[0] != "sl" {
				states[cmp.Or(names[words[3]], words[3])]++
			}
		}
	}
	return states
}

// queued is how many packets the capture's queue holds (the third field of
// /proc/net/netfilter/nfnetlink_queue).
func (s *shell) queued(t *testing.T) int {
	t.Helper()
	total := 0
	for line := range strings.Lines(string(s.inside(t, "net/netfilter/nfnetlink_queue"))) {
		n, err := strconv.Atoi(strings.Fields(line)[2])
		if err != nil {
			t.Fatal(err)
		}
		total += n
	}
	return total
}

// brokerStatus is what status -s says of the broker's own use of things.
type brokerStatus struct {
	PID        int    `json:"pid"`
	FlowsLive  int    `json:"flows_live"`
	Memory     uint64 `json:"memory"`
	Goroutines int    `json:"goroutines"`
	FDs        int    `json:"fds"`
}

func (w *world) status(t *testing.T) brokerStatus {
	t.Helper()
	return ctlRows[brokerStatus](t, w, "status")[0]
}

// idle is the status once nothing moves: no flow, and twice the same use of things.
func (w *world) idle(t *testing.T) brokerStatus {
	t.Helper()
	var now brokerStatus
	eventually(t, "the broker to be idle", func() bool {
		last := now
		now = w.status(t)
		return now.FlowsLive == 0 && now.FDs == last.FDs && now.Goroutines == last.Goroutines
	})
	return now
}

type connectionRow struct {
	ID       uint64 `json:"id"`
	State    string `json:"state"`
	Number   int    `json:"number"`
	Channels int    `json:"channels"`
}

func (w *world) connections(t *testing.T) []connectionRow {
	t.Helper()
	return ctlRows[connectionRow](t, w, "list-connections")
}

type channelRow struct {
	ID         uint64 `json:"id"`
	Connection uint64 `json:"connection"`
	Dst        string `json:"dst"`
	State      string `json:"state"`
	BytesUp    int64  `json:"bytes_up"`
	BytesDown  int64  `json:"bytes_down"`
}

func (w *world) channels(t *testing.T) []channelRow {
	t.Helper()
	return ctlRows[channelRow](t, w, "list-channels")
}

// ctlRows runs a command of ssh-broker-ctl that prints JSON, an object a line.
func ctlRows[row any](t *testing.T, w *world, command string) []row {
	t.Helper()
	var rows []row
	for line := range strings.Lines(expect(t, w.ctl(t, command, "-s"), 0).Stdout) {
		var r row
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%s: %q: %v", command, line, err)
		}
		rows = append(rows, r)
	}
	return rows
}

// requireFlat fails the test unless the broker comes back to the descriptors and
// goroutines it had.
func (w *world) requireFlat(t *testing.T, before brokerStatus) {
	t.Helper()
	var now brokerStatus
	for end := time.Now().Add(settle); ; {
		now = w.status(t)
		if now.FDs <= before.FDs && now.Goroutines <= before.Goroutines && now.FlowsLive == 0 {
			break
		}
		if time.Now().After(end) {
			t.Errorf("the broker had %+v and has %+v", before, now)
			break
		}
		<-time.After(20 * time.Millisecond)
	}
	t.Logf("broker: %d descriptors, %d goroutines, %d MiB; before %d, %d, %d MiB",
		now.FDs, now.Goroutines, now.Memory>>20, before.FDs, before.Goroutines, before.Memory>>20)
}
