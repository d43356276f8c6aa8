package interop

// Item 4 of what the issue asks to be shown: what a program sends and receives
// through a tunnel is what it would be without one. Ends and resets in either
// order, volume with equal checksums, many at once, and nobody waits for one who
// does not read; the broker's own use of things is flat afterwards.

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"sshbroker/profiles/tuntest"
	"sshbroker/test/netns"
)

// long is whether SSHBROKER_LONG=1 asks for what takes its time.
func long() bool { return os.Getenv("SSHBROKER_LONG") == "1" }

// exchange runs testprog exchange in the shell's capture.
func (s *shell) exchange(t *testing.T, w *world, args string) string {
	t.Helper()
	return s.run(t, w.Testprog+" exchange "+args)
}

// sshServers are the servers that flows are carried through, and the configuration
// for each.
var sshServers = []struct {
	name  string
	start func(t *testing.T, w *world) (config string)
}{
	{"OpenSSH", func(t *testing.T, w *world) string { return w.tunnelAll("") }},
	{"Dropbear", func(t *testing.T, w *world) string {
		const port = 2222
		d := w.Server.StartDropbear(t, port)
		w.Alice.Write(t, ".ssh/known_hosts", d.KnownHosts(), 0o600)
		// Dropbear reads the keys of ~/.ssh.
		w.Alice.Write(t, ".ssh/authorized_keys", w.Alice.AuthorizedKey+"\n", 0o600)
		w.Server.AllowOnly(t, netns.Reset, port)
		return strings.Replace(w.tunnelAll(""), `port="22"`, fmt.Sprintf(`port="%d"`, port), 1)
	}},
	{"tuntest", func(t *testing.T, w *world) string { return w.misbehaving(t, &tuntest.Server{}) }},
}

// TestHalfClose has either end finish first and the other send on, late; nothing at
// all sent; and a server that speaks before it is asked.
func TestHalfClose(t *testing.T) {
	for _, server := range sshServers {
		t.Run(server.name, func(t *testing.T) {
			w := newWorld(t, netns.SSHDOptions{})
			serve := w.serveInside(t, w.Server, 7000)
			w.serveInside(t, w.Server, 7001, "-greet")
			w.configure(t, server.start(t, w))
			before := w.Snapshot(t)
			s := w.startShell(t)
			target := both(w.Server, 7000)
			greeting := both(w.Server, 7001)
			flows := 0
			for _, args := range []string{
				"-ms 100 late", "-ms 100 early", "-ms 100 delay", "echo", "sink", "source",
				"-n 0 echo", "-n 0 sink", "-n 0 source", "-n 0 -ms 20 late", "-n 0 -ms 20 early",
				"-n 1 echo", "-n 65537 sink", "-n 200 talk",
			} {
				for i := range target {
					s.exchange(t, w, args+" "+target[i])
					s.exchange(t, w, "-greet "+args+" "+greeting[i])
					flows += 2
				}
			}
			// What came after the server's own end reached it, in full.
			if got := strings.Count(serve.WaitFor(t, "early 0 "), "early 1048576 "); got != 2 {
				t.Errorf("%d late megabytes of 2 reached the server:\n%s", got, serve.Output())
			}
			for _, r := range w.awaitRecords(t, flows) {
				if r.Reason != "carried" || r.UpEnd != "eof" || r.DownEnd != "eof" {
					t.Errorf("recorded %+v", r)
				}
			}
			s.end(t)
			w.finish(t, before)
		})
	}
}

// sshdChannelEnds are the lines by which sshd's debug log tells how a client ended a
// channel.
var sshdChannelEnds = regexp.MustCompile(`channel \d+: rcvd (eof|close)`)

// TestResetByProgram: the channel is closed without EOF, and the target, which is
// still sending, learns of it.
func TestResetByProgram(t *testing.T) {
	w := newWorld(t, netns.SSHDOptions{Config: []string{"LogLevel DEBUG3"}})
	before := w.Snapshot(t)
	serve := w.serveInside(t, w.Server, 7000)
	w.configure(t, w.tunnelAll(""))
	s := w.startShell(t)
	flows := 0
	for _, target := range both(w.Server, 7000) {
		t.Run("while receiving/"+target, func(t *testing.T) {
			told := len(serve.Output())
			s.exchange(t, w, "-n 1000000 abort "+target)
			eventually(t, "the target's write to fail", func() bool {
				return regexp.MustCompile(`source \d+: .*write: (connection reset|broken pipe)`).MatchString(serve.Output()[told:])
			})
			flows++
			w.requireResetUp(t, flows)
		})
		t.Run("while its sending is blocked/"+target, func(t *testing.T) {
			// sshd gives the target what it has taken first, so this one, which reads
			// nothing, is not told; the channel's end is what can be seen.
			s.exchange(t, w, "-n 100000000 -ms 300 stall "+target)
			flows++
			w.requireResetUp(t, flows)
		})
	}
	eventually(t, "sshd to log the channels' ends", func() bool {
		return len(sshdChannelEnds.FindAllString(w.sshd.Output(), -1)) >= flows
	})
	for _, m := range sshdChannelEnds.FindAllStringSubmatch(w.sshd.Output(), -1) {
		if m[1] == "eof" {
			t.Errorf("sshd was sent EOF for a reset")
		}
	}
	// The positive control: an orderly end is seen as EOF in the same log.
	s.exchange(t, w, "echo "+both(w.Server, 7000)[0])
	w.sshd.WaitFor(t, "rcvd eof")
	s.end(t)
	serve.Kill(t)
	w.finish(t, before)
}

func (w *world) requireResetUp(t *testing.T, n int) {
	t.Helper()
	if r := w.awaitRecords(t, n)[n-1]; r.Reason != "carried" || r.UpEnd != "reset-by-program" {
		t.Errorf("recorded %+v", r)
	}
}

// TestResetByFarSide: what a program sees when the target resets, per way.
func TestResetByFarSide(t *testing.T) {
	for _, test := range []struct {
		name   string
		config func(t *testing.T, w *world) string
		ask    string
		want   []string // of what await prints
	}{
		// sshd turns the reset into EOF, and closes the channel at the next write.
		{"OpenSSH turns a reset into EOF", func(t *testing.T, w *world) string { return w.tunnelAll("") },
			"reset 100000", []string{"ended after 100000 bytes: EOF", "write: E"}},
		{"channel closed without EOF", func(t *testing.T, w *world) string {
			return w.misbehaving(t, &tuntest.Server{CloseWithoutEOF: true})
		}, "source 100000", []string{"ended after 100000 bytes: ECONNRESET"}},
		{"target's reset, by a server that closes the channel", func(t *testing.T, w *world) string {
			return w.misbehaving(t, &tuntest.Server{})
		}, "reset 100000", []string{"ended after 100000 bytes: ECONNRESET"}},
		{"DIRECT", func(t *testing.T, w *world) string {
			w.Server.AllowAll(t)
			return `<filter-engine><rule ip-address=".*" action="DIRECT"/></filter-engine>`
		}, "reset 100000", []string{"ended after 100000 bytes: ECONNRESET"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t, netns.SSHDOptions{})
			w.serveInside(t, w.Server, 7000)
			w.configure(t, test.config(t, w))
			before := w.Snapshot(t)
			s := w.startShell(t)
			for _, target := range both(w.Server, 7000) {
				out := s.exchange(t, w, "-write -ask '"+test.ask+"' await "+target)
				for _, want := range test.want {
					if !strings.Contains(out, want) {
						t.Errorf("%s: the program saw %q, want %q", target, out, want)
					}
				}
			}
			s.end(t)
			w.finish(t, before)
		})
	}
}

// TestTransportKilled: every flow of the transport sees a reset, and the next connect
// opens a new one.
func TestTransportKilled(t *testing.T) {
	const n = 20
	w := newBastionWorld(t, netns.SSHDOptions{})
	w.serveInside(t, w.Inner, 7000)
	w.configure(t, w.tunnelAll(`<idle-timeout time="60"/>`))
	s := w.startShell(t)
	target := both(w.Inner, 7000)
	s.run(t, w.Testprog+" connect "+target[0])
	idle := w.idle(t) // with a transport
	// n flows that wait and one that receives.
	out := s.begin(t, fmt.Sprintf("(for i in $(seq %d); do %s exchange await %s & done; %s exchange -ask 'source 1000000000000' await %s; wait)",
		n, w.Testprog, target[0], w.Testprog, target[1]))
	eventually(t, "all flows to be established", func() bool { return strings.Count(s.Output(), "established") == n+1 })
	first := w.connections(t)
	if len(first) != 1 || first[0].Channels != n+1 {
		t.Fatalf("transports: %+v", first)
	}
	since := time.Now()
	w.Server.KillAll(t, "sshd")
	text := out()
	if got := strings.Count(text, "ECONNRESET"); got != n+1 || strings.Contains(text, "EOF") {
		t.Errorf("%d of %d flows saw a reset:\n%s", got, n+1, text)
	}
	t.Logf("all had it after %v", time.Since(since))
	for _, r := range w.awaitRecords(t, n+2)[1:] {
		if r.Reason != "carried" || r.DownEnd != "reset-by-far" || !strings.Contains(r.Error, "transport lost") {
			t.Errorf("recorded %+v", r)
		}
	}

	w.Server.StartSSHD(t, netns.SSHDOptions{HostKey: w.sshd.HostKeyFile})
	// A transport that lived less than ten seconds is followed by a short rest.
	eventually(t, "a connect through a new transport", func() bool {
		return parseAttempts(t, s.run(t, w.Testprog+" connect "+target[0]))[0].outcome == "ok"
	})
	t.Logf("a new transport carried after %v", time.Since(since))
	eventually(t, "the one transport", func() bool {
		now := w.connections(t)
		return len(now) == 1 && now[0].State == "connected"
	})
	w.requireFlat(t, idle)
	s.end(t)
}

// TestBulk moves 256 MiB each way, both at once, and compares checksums; 2 GiB with
// SSHBROKER_LONG=1.
func TestBulk(t *testing.T) {
	volume := int64(128 << 20) // by each family
	if long() {
		volume = 1 << 30
	}
	w := newBastionWorld(t, netns.SSHDOptions{})
	w.serveInside(t, w.Inner, 7000)
	w.configure(t, w.tunnelAll(`<idle-timeout time="60"/>`))
	before := w.Snapshot(t)
	s := w.startShell(t)
	target := both(w.Inner, 7000)
	s.run(t, w.Testprog+" connect "+target[0])
	w.awaitRecords(t, 1)
	idle := w.idle(t)
	for i, address := range target {
		out := s.run(t, fmt.Sprintf("%s flood -up %d -down %d %s", w.Testprog, volume, volume, address))
		t.Logf("MB/s: %s", strings.ReplaceAll(strings.TrimSpace(out), "\n", "; "))
		list := w.awaitRecords(t, 1+2*(i+1))[1+2*i:]
		up, down := list[0], list[1]
		if up.BytesUp < down.BytesUp {
			up, down = down, up
		}
		if up.BytesUp != volume+int64(len("sink\n")) || down.BytesDown != volume || up.UpEnd != "eof" || down.DownEnd != "eof" {
			t.Errorf("recorded %+v\nand %+v", up, down)
		}
	}
	now := w.status(t)
	if grown := int64(now.Memory) - int64(idle.Memory); grown > 64<<20 {
		t.Errorf("the broker's memory grew by %d MiB", grown>>20)
	}
	w.requireFlat(t, idle)
	s.end(t)
	w.finish(t, before)
}

// TestThousandConnections has them all open at once through one SSH connection, each
// with a byte that the far side spoke first.
func TestThousandConnections(t *testing.T) {
	const n = 1000
	w := newBastionWorld(t, netns.SSHDOptions{})
	w.serveInside(t, w.Inner, 7000, "-greet")
	w.configure(t, w.tunnelAll(`<idle-timeout time="60"/>`))
	before := w.Snapshot(t)
	s := w.startShell(t)
	target := both(w.Inner, 7000)
	s.run(t, w.Testprog+" connect "+target[0])
	w.awaitRecords(t, 1)
	idle := w.idle(t)
	for _, options := range []string{"", "-nonblock"} {
		r, in, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		c := w.capture(w.Testprog, "connect", "-hold", "-first-byte", "-n", strconv.Itoa(n/2), target[0], target[1])
		if options != "" {
			c.Args = slices.Insert(c.Args, 3, options)
		}
		c.Stdin = r
		p := w.Client.Start(t, c)
		r.Close()
		eventually(t, "all to be told", func() bool { return strings.Count(p.Output(), "\n") >= n })
		if got := strings.Count(p.Output(), " ok "); got != n {
			t.Errorf("%d of %d are connected:\n%.2000s", got, n, p.Output())
		}
		transports, channels := w.connections(t), w.channels(t)
		if len(transports) != 1 || transports[0].Channels != n || len(channels) != n {
			t.Errorf("%d channels listed, transports %+v", len(channels), transports)
		}
		for _, c := range channels {
			if c.State != "admitted" || c.Connection != transports[0].ID {
				t.Errorf("listed %+v", c)
				break
			}
		}
		full := w.status(t)
		t.Logf("%s: %d descriptors, %.1f KiB a flow", options, full.FDs-idle.FDs, float64(int64(full.Memory)-int64(idle.Memory))/n/1024)
		in.Close()
		expect(t, p.Wait(t), 0)
		w.requireFlat(t, idle)
	}
	if got := strings.Count(w.sshd.Output(), "Accepted publickey"); got != 1 {
		t.Errorf("%d logins at the server", got)
	}
	s.end(t)
	w.finish(t, before)
}

// TestStalledReaderStallsNobodyElse: programs that do not read, and targets that do
// not, beside a conversation whose latency is measured.
func TestStalledReaderStallsNobodyElse(t *testing.T) {
	w := newBastionWorld(t, netns.SSHDOptions{})
	before := w.Snapshot(t)
	serve := w.serveInside(t, w.Inner, 7000)
	w.configure(t, w.tunnelAll(""))
	s := w.startShell(t)
	target := both(w.Inner, 7000)
	const rounds = 500
	talk := func() time.Duration {
		t.Helper()
		out := s.exchange(t, w, fmt.Sprintf("-n %d talk %s", rounds, target[0]))
		words := strings.Fields(out) // ok talk N bytes SECONDS s
		seconds, err := strconv.ParseFloat(words[4], 64)
		if err != nil {
			t.Fatalf("%q: %v", out, err)
		}
		return time.Duration(seconds / rounds * float64(time.Second))
	}
	talk() // connects
	alone := talk()

	r, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	// Background jobs of sh have no standard input but by a descriptor of another name.
	c := w.capture("/bin/sh", "-c", fmt.Sprintf(`exec 3<&0
for a in %s %s; do
	%s exchange unread $a <&3 &
	%[3]s exchange -n 100000000 -ms 60000 stall $a &
done; wait`, target[0], target[1], w.Testprog))
	c.Stdin = r
	p := w.Client.Start(t, c)
	r.Close()
	// Stalled is when nothing moves any more.
	var moved string
	eventually(t, "four flows to stall", func() bool {
		var now []string
		for _, ch := range w.channels(t) {
			now = append(now, fmt.Sprintf("%d/%d", ch.BytesUp, ch.BytesDown))
		}
		last := moved
		moved = strings.Join(now, " ")
		return len(now) == 4 && moved == last && !strings.Contains(" "+moved, " 0/")
	})
	beside := talk()
	t.Logf("a round trip takes %v alone and %v beside four stalled flows (%s bytes)", alone, beside, moved)
	if beside > 3*alone+2*time.Millisecond {
		t.Errorf("a round trip takes %v beside stalled flows, %v alone", beside, alone)
	}
	s.exchange(t, w, "-n 20000000 echo "+target[1]) // volume passes as well
	in.Close()
	p.Kill(t)
	s.end(t)
	serve.Kill(t) // its stalled connections are told nothing until it reads
	w.finish(t, before)
}

// TestShortFlows opens and closes many, some without a byte, in series and at once.
// 10,000 of each with SSHBROKER_LONG=1.
func TestShortFlows(t *testing.T) {
	series, rounds := 300, 3
	if long() {
		series, rounds = 10000, 10
	}
	const atOnce = 500
	w := newBastionWorld(t, netns.SSHDOptions{})
	w.serveInside(t, w.Inner, 7000, "-greet")
	w.configure(t, w.tunnelAll(`<idle-timeout time="60"/>`))
	before := w.Snapshot(t)
	s := w.startShell(t)
	target := both(w.Inner, 7000)
	s.run(t, w.Testprog+" connect "+target[0])
	first := w.idle(t)
	flows := 1
	connect := func(options string, n int, target string) {
		t.Helper()
		for _, a := range parseAttempts(t, s.run(t, fmt.Sprintf("%s connect %s -n %d %s", w.Testprog, options, n, target))) {
			if a.outcome != "ok" {
				t.Fatalf("%s: %+v", options, a)
			}
			flows++
		}
	}
	round := func() {
		t.Helper()
		connect("", atOnce, target[1])
		connect("-nonblock -first-byte", atOnce, target[1])
	}
	round() // what a rush needs once: buffers, maps, threads
	w.requireFlat(t, first)
	idle := w.idle(t)
	began := time.Now()
	warm := flows
	for left := series; left > 0; left -= 1000 { // a command is waited for only so long
		connect("-series", min(left, 1000), target[0])
		connect("-series -first-byte", min(left, 1000), target[0])
	}
	t.Logf("in series: %v a flow", time.Since(began)/time.Duration(flows-warm))
	for range rounds {
		round()
	}
	for _, r := range w.awaitRecords(t, flows) {
		if r.Reason != "carried" {
			t.Fatalf("recorded %+v", r)
		}
	}
	// What was decided of a SYN is remembered for 80 s, some 450 bytes of heap a flow.
	if now := w.status(t); int64(now.Memory)-int64(idle.Memory) > 64<<20 {
		t.Errorf("the broker's memory grew from %d to %d MiB in %d flows", idle.Memory>>20, now.Memory>>20, flows)
	}
	w.requireFlat(t, idle)
	s.end(t)
	w.finish(t, before)
}
