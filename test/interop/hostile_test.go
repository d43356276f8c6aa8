// Item 7: wrong and hostile input, from files, users, programs, servers and the
// machine itself. Each with its message; the broker serves on after every one.
package interop

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"sshbroker/broker/control"
	"sshbroker/test/netns"
)

// TestBadConfigurationFiles: check-config and ssh-capture say the same about each, and
// COMMAND does not run.
func TestBadConfigurationFiles(t *testing.T) {
	tests := map[string]struct{ want, hint string }{
		"bad-action.xml":          {`6:29: rule: action: "TUNEL" is not one of DIRECT, BLOCK, TUNNEL, FTP-TUNNEL, FTP-PROXY`, "did you mean TUNNEL?"},
		"bad-ports.xml":           {`6:28: rule: wrong ports: 90-80 runs backwards; did you mean 80-90?`, ""},
		"bad-regex.xml":           {`6:17: rule: host: "(" opens a group that no ")" closes; write \( for the character`, ""},
		"duplicate-attribute.xml": {`6:36: rule: attribute action stands twice, first at 6:21`, "keep one of them"},
		"entities.xml":            {`3:24: declarations inside the DOCTYPE are refused`, "take out everything from [ to ]"},
		"misspelt-attribute.xml":  {`6:21: rule: acton is not an attribute of rule`, "did you mean action?"},
		"misspelt-element.xml":    {`6:5: rul: filter-engine cannot hold an element rul`, "did you mean rule?"},
		"no-server.xml":           {`6:29: rule: TUNNEL has no server to go to`, `add profile-id="..." or hostname-from-app="yes"`},
		"truncated.xml":           {`5:20: rule: the file ends inside the tag <rule>, which starts at 5:5`, "close it with > or />"},
		"unknown-profile.xml":     {`6:49: rule: there is no profile "nope"`, "profiles: p"},
		"wrong-order.xml":         {`5:3: profiles: profiles must stand before filter-engine`, "the order is: general, default-settings, profiles, static-tunnels, gui, filter-engine, logging"},
	}
	files, err := filepath.Glob("../../broker/config/testdata/bad/*.xml")
	if err != nil || len(files) != len(tests) {
		t.Fatalf("%d files and %d tests (%v)", len(files), len(tests), err)
	}
	w := newWorld(t, netns.SSHDOptions{})
	before := w.Snapshot(t)
	for _, f := range files {
		t.Run(filepath.Base(f), func(t *testing.T) {
			content, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			file := w.Alice.Write(t, filepath.Base(f), string(content), 0o600)
			test, known := tests[filepath.Base(f)]
			if !known {
				t.Fatal("it is in no test")
			}
			wants := []string{file + ":" + test.want}
			if test.hint != "" {
				wants = append(wants, "hint: "+test.hint)
			}
			checked := expect(t, w.ctl(t, "check-config", file), 1)
			captured := expect(t, w.Client.Run(t, w.capture("-f", file, "echo", "command", "ran")), 125)
			for _, want := range wants {
				if !strings.Contains(checked.Stdout, want) {
					t.Errorf("check-config does not say %q: %v", want, checked)
				}
				if !strings.Contains(captured.Stderr, want) {
					t.Errorf("ssh-capture does not say %q: %v", want, captured)
				}
			}
			if strings.Contains(captured.Stdout, "command ran") {
				t.Error("COMMAND ran without rules")
			}
		})
	}
	w.stopBroker(t, w.Alice)
	w.RequireRestored(t, before, settle)
}

// TestAnotherUserAtTheBrokersSocket: the directory keeps Bob out, then the socket's
// mode, then the credentials, each way round.
func TestAnotherUserAtTheBrokersSocket(t *testing.T) {
	w := newWorld(t, netns.SSHDOptions{})
	w.configure(t, tunnelEverything(w))
	before := w.Snapshot(t)
	expect(t, w.ctl(t, "start"), 0)
	bob := func(args ...string) netns.Result {
		return w.Client.Run(t, netns.Cmd{Args: append([]string{w.Ctl, "-a", w.socket()}, args...), User: w.Bob})
	}
	requireSays := func(r netns.Result, code int, text string) {
		t.Helper()
		if r.Code != code || !strings.Contains(r.Stderr, text) {
			t.Errorf("got %v, want code %d and %q", r, code, text)
		}
	}
	requireSays(bob("status"), 1, "permission denied")
	if err := os.Chmod(filepath.Dir(w.socket()), 0o711); err != nil { // Alice's mistake
		t.Fatal(err)
	}
	requireSays(bob("status"), 1, "permission denied")
	if err := os.Chmod(w.socket(), 0o666); err != nil {
		t.Fatal(err)
	}
	requireSays(bob("status"), 1, "it is run by user "+w.Alice.Name+", not by us: not trusted")
	requireSays(w.Client.Run(t, netns.Cmd{Args: []string{w.Capture, "-a", w.socket(), "echo", "ran"}, User: w.Bob}),
		125, "it is run by user "+w.Alice.Name+", not by us: not trusted")

	// Bob's program does not ask whose broker it is.
	var answer []byte
	err := w.as(w.Bob, func() error {
		c, err := net.Dial("unixpacket", w.socket())
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(settle))
		c.Write([]byte(`{"kind":"hello","protocol":1}`)) // fails when it was turned away already
		answer = make([]byte, control.MaxMessage)
		n, err := c.Read(answer)
		if errors.Is(err, syscall.ECONNRESET) {
			// It closed without reading ours; the kernel says that once, ahead of the answer.
			n, err = c.Read(answer)
		}
		answer = answer[:max(n, 0)]
		return err
	})
	var said struct{ Kind, Error, Code string }
	if err != nil || json.Unmarshal(answer, &said) != nil ||
		said.Kind != "done" || said.Code != "forbidden" || said.Error != "this broker belongs to user "+w.Alice.Name {
		t.Errorf("the broker told Bob %s, %v", answer, err)
	}
	if err := os.Chmod(filepath.Dir(w.socket()), 0o700); err != nil {
		t.Fatal(err)
	}
	expect(t, w.ctl(t, "status"), 0)
	w.stopBroker(t, w.Alice)
	w.RequireRestored(t, before, settle)
}

// TestStrangersAtTheSocketsOfACapture: who connects straight to a listener of a capture
// is reset at once and counted, whoever it is; the resolver's sockets only resolve.
func TestStrangersAtTheSocketsOfACapture(t *testing.T) {
	w := newWorld(t, netns.SSHDOptions{})
	startEcho(t, w)
	before := w.Snapshot(t)
	stdin, typing := pipe(t)
	c := w.capture("--via", w.via(w.Alice), "sh", "-c", `echo up $$; read go; exec "$@"`, "sh",
		w.Testprog, "connect", "-echo", "hello", fmt.Sprintf("server:%d", echoPort))
	c.Stdin = stdin
	p := w.Client.Start(t, c)
	var pid int
	fmt.Sscanf(p.WaitFor(t, "\n"), "up %d", &pid)

	var listeners []netip.AddrPort
	for _, table := range []string{"tcp", "tcp6"} {
		listeners = append(listeners, listening(t, pid, table)...)
	}
	if len(listeners) != 4 {
		t.Fatalf("sockets that listen in the capture: %v, want two for each family", listeners)
	}
	good := query(t, 1, "db.internal.", dnsmessage.TypeA)
	var strangers uint64
	for _, u := range []*netns.User{w.Alice, w.Bob} { // Bob was put there by root
		resolvers := 0
		for _, l := range listeners {
			got, err := askTCP(w, pid, u, l, good)
			if err == nil && len(got) > 0 {
				resolvers++
				continue
			}
			strangers++
			if !errors.Is(err, syscall.ECONNRESET) || len(got) > 0 {
				t.Errorf("%s at %v: %q, %v; want a reset and nothing before it", u.Name, l, got, err)
			}
		}
		if resolvers != 2 {
			t.Errorf("%d listeners answer queries, want the resolver's two", resolvers)
		}
	}
	w.awaitStatus(t, fmt.Sprintf("%d strangers", strangers), func(s control.StatusRow) bool { return s.Strangers == strangers })
	if r := w.ctl(t, "status"); !strings.Contains(r.Stdout, fmt.Sprintf("%d connections straight to a capture's listener, reset", strangers)) {
		t.Errorf("status does not tell: %v", r)
	}
	typing.WriteString("go\n")
	r := expect(t, p.Wait(t), 0)
	if a := connects(t, r.Stdout); len(a) != 1 || a[0].outcome != "ok" || a[0].echoed != "ok" {
		t.Errorf("the captured program after that: %v", r)
	}
	w.stopBroker(t, w.Alice)
	w.RequireRestored(t, before, settle)
}

// TestAuditDiskFull: flows go on, the records wait, those that do not fit into memory
// are counted as lost, and what waited is written when there is room.
func TestAuditDiskFull(t *testing.T) {
	w := newWorld(t, netns.SSHDOptions{})
	startEcho(t, w)
	rules := w.Alice.Write(t, "rules.xml", `<secsh-broker version="1.0"><profiles>`+w.profile("srv")+`</profiles><filter-engine>
<rule ip-address=".*" ports="81" action="BLOCK"/><rule ip-address=".*" action="TUNNEL" profile-id="srv"/></filter-engine></secsh-broker>`, 0o600)
	w.Alice.Write(t, ".ssh2/keep", "", 0o600)
	dir := w.Alice.Path(".ssh2")
	w.Client.Output(t, nil, "mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=16m,mode=700,uid=%d,gid=%d", w.Alice.UID, w.Alice.GID), "tmpfs", dir)
	before := w.Snapshot(t)
	connect := func(args ...string) netns.Result {
		return expect(t, w.Client.Run(t, w.capture(append([]string{"-f", rules, w.Testprog, "connect"}, args...)...)), 0)
	}
	tunneled := netip.AddrPortFrom(w.Server.Addr4, echoPort).String()
	blocked := netip.AddrPortFrom(w.Server.Addr4, 81).String()
	connect(blocked)
	w.awaitStatus(t, "the first record", func(s control.StatusRow) bool { return s.Audit.Written == 1 })

	full := w.Client.Run(t, netns.Cmd{Args: []string{"dd", "if=/dev/zero", "of=" + filepath.Join(dir, "fill"), "bs=64k"}, User: w.Alice})
	if !strings.Contains(full.Stderr, "No space left") {
		t.Fatalf("the disk is not full: %v", full)
	}
	for _, a := range connects(t, connect("-n", "100", "-echo", "hello", tunneled).Stdout) {
		if a.outcome != "ok" || a.echoed != "ok" {
			t.Errorf("with the disk full: %+v", a)
		}
	}
	s := w.awaitStatus(t, "records that wait", func(s control.StatusRow) bool { return s.Audit.Pending > 50 })
	if !strings.Contains(s.Audit.Error, "no space left on device") || s.Audit.Failed != 0 {
		t.Errorf("status says %+v", s.Audit)
	}
	if r := w.ctl(t, "status"); !strings.Contains(r.Stdout, "WAIT, 0 COULD NOT BE WRITTEN: write "+dir) {
		t.Errorf("status does not tell: %v", r)
	}
	// More than the broker keeps.
	for range 14 {
		if out := connect("-n", "1000", blocked).Stdout; strings.Count(out, " ECONNREFUSED ") != 1000 {
			t.Fatalf("BLOCK with the disk full: %.300s", out)
		}
	}
	s = w.awaitStatus(t, "lost records", func(s control.StatusRow) bool { return s.Audit.Failed > 0 && s.FlowsLive == 0 })
	t.Logf("%d flows: %+v", s.FlowsTotal, s.Audit)

	w.Client.Output(t, w.Alice, "rm", filepath.Join(dir, "fill"))
	s = w.awaitStatus(t, "records written again", func(s control.StatusRow) bool { return s.Audit.Pending == 0 && s.Audit.Error == "" })
	if s.Audit.Written+s.Audit.Failed != uint64(s.FlowsTotal) {
		t.Errorf("%d flows, %d records written and %d lost", s.FlowsTotal, s.Audit.Written, s.Audit.Failed)
	}
	connect(blocked)
	s = w.awaitStatus(t, "one more record", func(now control.StatusRow) bool { return now.Audit.Written == s.Audit.Written+1 })
	count := uint64(0)
	for line := range strings.Lines(w.Client.Output(t, w.Alice, "cat", filepath.Join(dir, "ssh-broker-audit.jsonl"))) {
		var r record
		if err := json.Unmarshal([]byte(line), &r); err != nil || r.Reason == "" {
			t.Fatalf("line %d of the audit file is %q: %v", count+1, line, err)
		}
		count++
	}
	if count != s.Audit.Written {
		t.Errorf("%d lines in the audit file, %d written", count, s.Audit.Written)
	}
	w.stopBroker(t, w.Alice)
	w.Client.Output(t, w.Alice, "rm", filepath.Join(dir, "ssh-broker-audit.jsonl"))
	w.RequireRestored(t, before, settle)
}

// TestNoDescriptorsLeft: a flow that finds none is refused before its program is told
// that it is connected, and the next ones are served when others have ended.
func TestNoDescriptorsLeft(t *testing.T) {
	const (
		many = 60
		more = 2 // once the others have ended
	)
	for _, test := range []struct {
		action string
		spare  uint64
	}{{"TUNNEL", 12}, {"DIRECT", 24}} {
		t.Run(test.action, func(t *testing.T) {
			w := newWorld(t, netns.SSHDOptions{})
			startEcho(t, w)
			w.configure(t, tunnelEverything(w))
			if test.action == "DIRECT" {
				w.configure(t, `<filter-engine><rule ip-address=".*" action="DIRECT"/></filter-engine>`)
				w.Server.AllowAll(t)
			}
			before := w.Snapshot(t)
			target := netip.AddrPortFrom(w.Server.Addr4, echoPort).String()
			stdin, typing := pipe(t)
			c := w.capture("sh", "-c", `"$1" connect -echo first "$2"; read go; exec "$1" connect -hold -n "$3" "$2"`,
				"sh", w.Testprog, target, strconv.Itoa(many))
			c.Stdin = stdin
			p := w.Client.Start(t, c)
			p.WaitFor(t, " ok\n")
			status := w.awaitStatus(t, "an idle broker", func(s control.StatusRow) bool { return s.FlowsLive == 0 })
			limit := unix.Rlimit{Cur: uint64(status.FDs) + test.spare, Max: uint64(status.FDs) + test.spare}
			// As Alice: root in a container may not.
			if err := w.as(w.Alice, func() error { return unix.Prlimit(status.PID, unix.RLIMIT_NOFILE, &limit, nil) }); err != nil {
				t.Fatal(err)
			}
			typing.WriteString("go\n")
			eventually(t, "all outcomes", func() bool { return strings.Count(p.Stdout(), target) == 1+many })
			typing.Close() // ends what holds
			r := expect(t, p.Wait(t), 0)
			outcomes := map[string]int{}
			for _, line := range slices.Collect(strings.Lines(r.Stdout))[1:] {
				outcomes[strings.Fields(line)[1]]++
			}
			w.awaitCaptures(t, 0)
			w.awaitFlows(t, 0)
			r = expect(t, w.Client.Run(t, w.capture(w.Testprog, "connect", "-n", strconv.Itoa(more), "-echo", "last", target)), 0)
			for _, a := range connects(t, r.Stdout) {
				if a.outcome != "ok" || a.echoed != "ok" {
					t.Errorf("after the others have ended: %+v", a)
				}
			}
			if outcomes["ok"] == 0 || outcomes["EHOSTUNREACH"] == 0 || outcomes["ok"]+outcomes["EHOSTUNREACH"] != many {
				t.Errorf("outcomes %v, want ok and EHOSTUNREACH and nothing else", outcomes)
			}
			reasons := map[string]int{}
			for _, rec := range w.awaitRecords(t, 1+many+more) {
				reasons[rec.Reason]++
				if rec.Reason == "no-descriptors" && !strings.Contains(rec.Error, "too many open files") {
					t.Errorf("recorded %+v", rec)
				}
			}
			served := map[string]string{"TUNNEL": "carried", "DIRECT": "direct"}[test.action]
			if reasons["no-descriptors"] != outcomes["EHOSTUNREACH"] || reasons[served] != 1+outcomes["ok"]+more {
				t.Errorf("recorded %v, programs saw %v", reasons, outcomes)
			}
			t.Logf("%d spare descriptors: %v", test.spare, reasons)
			w.stopBroker(t, w.Alice)
			w.RequireRestored(t, before, settle)
		})
	}
}

// TestServersThatDoNotSpeakSSH: each costs its profile's patience at most, and leaves
// nothing of its own in the record.
func TestServersThatDoNotSpeakSSH(t *testing.T) {
	const patience = 2 * time.Second
	garbage := make([]byte, 1<<20)
	rand.Read(garbage)
	say := func(parts ...string) func(net.Conn) {
		return func(c net.Conn) {
			for _, part := range parts {
				io.WriteString(c, part)
			}
		}
	}
	stay := func(parts ...string) func(net.Conn) { // until the client goes
		return func(c net.Conn) {
			say(parts...)(c)
			io.Copy(io.Discard, c)
		}
	}
	const (
		version  = "SSH-2.0-OpenSSH_9.9\r\n"
		noServer = "no SSH server, or one that does not want us"
		closed   = "the connection was closed during the handshake"
	)
	servers := []struct {
		name  string
		speak func(net.Conn) // then it closes
		want  string         // of the record
	}{
		{"closes at once", say(), closed},
		{"never speaks", stay(), "no connection within 2s"},
		{"dribbles", func(c net.Conn) {
			for {
				if _, err := c.Write([]byte{'x'}); err != nil {
					return
				}
				<-time.After(100 * time.Millisecond)
			}
		}, "no connection within 2s"},
		{"random bytes", stay(string(garbage)), noServer},
		{"a line without end", func(c net.Conn) {
			for {
				if _, err := c.Write(bytes.Repeat([]byte{'a'}, 64<<10)); err != nil {
					return
				}
			}
		}, noServer},
		{"a web server", say("HTTP/1.1 400 Bad Request\r\nServer: \x1b[31mevil\x07\r\n\r\n"), closed},
		{"SSH 1", say("SSH-1.5-old\r\n"), closed},
		{"closes during the key exchange", say(version), closed},
		{"random bytes for the key exchange", stay(version, string(garbage)), noServer},
		{"a packet of 4 GiB", stay(version, "\xff\xff\xff\xff\x00"), noServer},
		{"control characters", stay(version, disconnect("\x1b[31mevil\x07\r\nfaked line")), noServer},
	}
	w := newWorld(t, netns.SSHDOptions{})
	ports := []uint16{w.sshd.Addr4.Port()}
	var profiles, rules string
	targets := []string{w.Testprog, "connect", "-nonblock"}
	for i, s := range servers {
		port := uint16(2200 + i)
		ports = append(ports, port)
		l := w.Server.Listen(t, "tcp4", fmt.Sprintf("%v:%d", w.Server.Addr4, port))
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					s.speak(c)
				}()
			}
		}()
		profiles += fmt.Sprintf(`<profile id="p%d" host="%v" port="%d" user="x"><tcp-connect-timeout time="%d"/></profile>`, i, w.Server.Addr4, port, int(patience.Seconds()))
		rules += fmt.Sprintf(`<rule ip-address=".*" ports="%d" action="TUNNEL" profile-id="p%d"/>`, 9000+i, i)
		targets = append(targets, fmt.Sprintf("192.0.2.1:%d", 9000+i))
	}
	w.Server.AllowOnly(t, netns.Reset, ports...)
	w.configure(t, "<profiles>"+profiles+"</profiles><filter-engine>"+rules+"</filter-engine>")
	before := w.Snapshot(t)
	r := expect(t, w.Client.Run(t, w.capture(targets...)), 0)
	for i, line := range slices.Collect(strings.Lines(r.Stdout)) {
		f := strings.Fields(line)
		ms, _ := strconv.ParseFloat(f[2], 64)
		if f[1] != "EHOSTUNREACH" || ms > float64((patience+time.Second).Milliseconds()) {
			t.Errorf("%s: %s, want EHOSTUNREACH within %v", servers[i].name, strings.TrimSpace(line), patience)
		}
	}
	for _, rec := range w.awaitRecords(t, len(servers)) {
		_, port, _ := net.SplitHostPort(rec.Dst)
		n, _ := strconv.Atoi(port)
		s := servers[n-9000]
		t.Logf("%s: %s", s.name, rec.Error)
		if rec.Reason != "server-unreachable" || rec.Error == "" || !strings.Contains(rec.Error, s.want) || unprintable(rec.Error) {
			t.Errorf("%s: recorded %q, %q; want server-unreachable with %q", s.name, rec.Reason, rec.Error, s.want)
		}
	}
	// The same at the start of a --via: said at once, COMMAND does not run.
	r = expect(t, w.Client.Run(t, w.capture("--via", fmt.Sprintf("x@%v:2207", w.Server.Addr4), "echo", "ran")), 125)
	if !strings.Contains(r.Stderr, fmt.Sprintf("--via x@%v:2207: ", w.Server.Addr4)) || !strings.Contains(r.Stderr, "server cannot be reached") || strings.Contains(r.Stdout, "ran") {
		t.Errorf("--via to a server that closes: %v", r)
	}
	w.stopBroker(t, w.Alice)
	w.RequireRestored(t, before, settle)
}

// disconnect is a server's unencrypted SSH_MSG_DISCONNECT, RFC 4253 sections 6 and 11.1.
func disconnect(text string) string {
	payload := binary.BigEndian.AppendUint32([]byte{1}, 2)
	payload = append(binary.BigEndian.AppendUint32(payload, uint32(len(text))), text...)
	payload = binary.BigEndian.AppendUint32(payload, 0)
	padding := 16 - (5+len(payload))%8
	packet := binary.BigEndian.AppendUint32(nil, uint32(1+len(payload)+padding))
	packet = append(append(packet, byte(padding)), payload...)
	return string(append(packet, make([]byte, padding)...))
}

// TestHostKeyThatIsNotTrusted: the flow fails and never falls back, while a server that
// is down does, on the same wire.
func TestHostKeyThatIsNotTrusted(t *testing.T) {
	w := newWorld(t, netns.SSHDOptions{})
	startEcho(t, w)
	w.Server.AllowAll(t) // a fallback would succeed
	imposter := w.Server.StartSSHD(t, netns.SSHDOptions{Port: 2222})
	stranger := w.Server.StartSSHD(t, netns.SSHDOptions{Port: 2223})
	shown, onFile := fingerprint(t, imposter.HostKey), fingerprint(t, w.sshd.HostKey)
	w.Alice.Write(t, ".ssh/known_hosts", fmt.Sprintf("[%v]:2222 %s\n", w.Server.Addr4, w.sshd.HostKey), 0o600)

	type server struct {
		name   string
		port   uint16
		policy string
		wants  []string // of the record's error
	}
	servers := []server{
		{"changed, strict", 2222, "strict", []string{"THE HOST KEY HAS CHANGED", shown, onFile, "ssh-keygen -R"}},
		{"changed, ask", 2222, "ask", []string{"THE HOST KEY HAS CHANGED", shown, onFile, "known_hosts:1"}},
		{"changed, trust on first use", 2222, "tofu", []string{"THE HOST KEY HAS CHANGED", shown, onFile}},
		{"unknown, strict", 2223, "strict", []string{"is not known", fingerprint(t, stranger.HostKey), "ssh-keyscan -p 2223"}},
		{"unknown, ask and nobody there", 2223, "ask", []string{"is not known", fingerprint(t, stranger.HostKey), "ssh-keyscan -p 2223"}},
	}
	for _, s := range servers {
		t.Run(s.name, func(t *testing.T) {
			before := w.Snapshot(t)
			known := len(w.records(t))
			wire := w.Client.Capture(t, "to-server")
			marker := "marker-" + rand.Text()
			w.configure(t, fmt.Sprintf(`<profiles><profile id="p" host="%v" port="%d" user="%s"><server-authentication-methods>
<auth-server-publickey policy="%s"/></server-authentication-methods></profile></profiles>
<filter-engine><rule ip-address=".*" action="TUNNEL" profile-id="p" fallback-to-plain="yes"/></filter-engine>`, w.Server.Addr4, s.port, w.Alice.Name, s.policy))
			target := netip.AddrPortFrom(w.Server.Addr4, echoPort).String()
			r := expect(t, w.Client.Run(t, w.capture(w.Testprog, "connect", "-n", "3", "-echo", marker, target)), 0)
			for _, a := range connects(t, r.Stdout) {
				if a.outcome != "EHOSTUNREACH" {
					t.Errorf("%+v, want EHOSTUNREACH", a)
				}
			}
			for _, rec := range w.awaitRecords(t, known+3)[known:] {
				for _, want := range s.wants {
					if rec.Reason != "host-key" || !strings.Contains(rec.Error, want) {
						t.Errorf("recorded %q, %q; want host-key with %q", rec.Reason, rec.Error, want)
					}
				}
			}
			requireNothingInClear(t, wire, marker)
			w.stopBroker(t, w.Alice)
			w.RequireRestored(t, before, settle)
		})
	}
	t.Run("changed, --via", func(t *testing.T) {
		before := w.Snapshot(t)
		for _, tty := range []bool{false, true} {
			c := w.capture("--via", fmt.Sprintf("%s@%v:2222", w.Alice.Name, w.Server.Addr4), "echo", "command", "ran")
			if tty {
				c.TTY = &terminal
			}
			r := expect(t, w.Client.Run(t, c), 125)
			for _, want := range []string{"THE HOST KEY HAS CHANGED", shown, onFile} {
				if !strings.Contains(r.Stdout+r.Stderr, want) || strings.Contains(r.Stdout, "command ran") {
					t.Errorf("terminal %t: want %q: %v", tty, want, r)
				}
			}
		}
		w.stopBroker(t, w.Alice)
		w.RequireRestored(t, before, settle)
	})
	t.Run("a server that is down does fall back", func(t *testing.T) {
		before := w.Snapshot(t)
		known := len(w.records(t))
		wire := w.Client.Capture(t, "to-server")
		marker := "marker-" + rand.Text()
		w.configure(t, fmt.Sprintf(`<profiles><profile id="p" host="%v" port="2224" user="x"/></profiles>
<filter-engine><rule ip-address=".*" action="TUNNEL" profile-id="p" fallback-to-plain="yes"/></filter-engine>`, w.Server.Addr4))
		r := expect(t, w.Client.Run(t, w.capture(w.Testprog, "connect", "-echo", marker, netip.AddrPortFrom(w.Server.Addr4, echoPort).String())), 0)
		if a := connects(t, r.Stdout); len(a) != 1 || a[0].outcome != "ok" || a[0].echoed != "ok" {
			t.Errorf("got %v", r)
		}
		rec := w.awaitRecords(t, known+1)[known]
		if rec.Reason != "fallback" || !strings.Contains(rec.Error, "tunnel failed (server-unreachable), carried in clear") {
			t.Errorf("recorded %+v", rec)
		}
		if !wire.Contains(t, []byte(marker)) {
			t.Error("the fallback is not on the wire: the capture proves nothing")
		}
		w.stopBroker(t, w.Alice)
		w.RequireRestored(t, before, settle)
	})
}

// TestHostileNamesAndQueries: what cannot be a host name gets no address, what cannot
// be read gets no answer or a refusal, and nothing of either reaches a log.
func TestHostileNamesAndQueries(t *testing.T) {
	w := newWorld(t, netns.SSHDOptions{})
	startEcho(t, w)
	logFile := w.Alice.Path("broker.log")
	before := w.Snapshot(t)
	w.Alice.Write(t, ".ssh2/keep", "", 0o600)
	expect(t, w.Client.Run(t, netns.Cmd{Args: []string{w.Broker, "-D", "99", "-l", logFile}, User: w.Alice}), 0)
	stdin, typing := pipe(t)
	c := w.capture("--via", w.via(w.Alice), "sh", "-c", `echo up $$; read go; exec "$@"`, "sh",
		w.Testprog, "connect", "-echo", "hello", fmt.Sprintf("server:%d", echoPort))
	c.Stdin = stdin
	p := w.Client.Start(t, c)
	var pid int
	fmt.Sscanf(p.WaitFor(t, "\n"), "up %d", &pid)
	resolver := netip.MustParseAddrPort("127.0.0.53:53")

	const evil = "EvilMarker"
	label := func(text string) string { return string(rune(len(text))) + text }
	names := map[string]string{ // as on the wire
		"space":              label(evil+" x") + "\x00",
		"newline":            label(evil+"\nlevel=INFO") + "\x00",
		"escape":             label(evil+"\x1b[31m") + "\x00",
		"zero byte":          label(evil+"\x00") + "\x00",
		"leading hyphen":     label("-oProxyCommand"+evil) + "\x00",
		"hyphen in the end":  label(evil) + label("-x") + "\x00",
		"binary":             label(evil+"\xff\xfe\x80") + "\x00",
		"shell":              label(evil+"$(id);`id`|") + "\x00",
		"path":               label("../"+evil) + "\x00",
		"percent":            label(evil+"%h") + "\x00",
		"dot inside a label": label(evil+".x") + "\x00",
		"300 bytes":          strings.Repeat(label(strings.Repeat("a", 59)), 4) + label(evil+strings.Repeat("b", 49)) + "\x00",
		"254 characters":     strings.Repeat(label(strings.Repeat("a", 49)), 4) + label(evil+strings.Repeat("b", 44)) + "\x00",
		"long label":         "\x40" + evil + strings.Repeat("a", 64-len(evil)) + "\x00",
		"empty label":        label(evil) + "\x00" + label("x") + "\x00",
		"pointer to itself":  "\xc0\x0c",
	}
	for _, transport := range []string{"udp", "tcp"} {
		for what, name := range names {
			msg := rawQuery(name)
			answer, err := exchangeDNS(w, pid, transport, resolver, msg)
			var m dnsmessage.Message
			switch {
			case err != nil && what != "pointer to itself" && what != "long label":
				t.Errorf("%s over %s: %v", what, transport, err)
			case err == nil && m.Unpack(answer) == nil && len(m.Answers) > 0:
				t.Errorf("%s over %s got an address: %v", what, transport, m.Answers)
			case err == nil && len(answer) > 3 && answer[3]&15 != byte(dnsmessage.RCodeRefused) && answer[3]&15 != byte(dnsmessage.RCodeFormatError):
				t.Errorf("%s over %s: answer code %d, want REFUSED or FORMERR", what, transport, answer[3]&15)
			}
		}
	}
	// Noise: random datagrams, broken copies of a good query, and streams that stop.
	good := query(t, 7, "db.internal.", dnsmessage.TypeA)
	if err := w.within(pid, w.Alice, func() error { return noise(resolver, good) }); err != nil {
		t.Error(err)
	}
	for _, transport := range []string{"udp", "tcp"} {
		// Asked again where it is lost, as programs do: the queue may still be full.
		eventually(t, "an answer over "+transport+" after the noise", func() bool {
			answer, err := exchangeDNS(w, pid, transport, resolver, good)
			var m dnsmessage.Message
			return err == nil && m.Unpack(answer) == nil && len(m.Answers) == 1
		})
	}
	typing.WriteString("go\n")
	r := expect(t, p.Wait(t), 0)
	if a := connects(t, r.Stdout); len(a) != 1 || a[0].outcome != "ok" || a[0].echoed != "ok" {
		t.Errorf("the captured program after that: %v", r)
	}
	w.awaitRecords(t, 1)
	w.stopBroker(t, w.Alice)
	for _, file := range []string{logFile, w.Alice.Path(".ssh2/ssh-broker-audit.jsonl")} {
		text, err := os.ReadFile(file)
		if err != nil || len(text) == 0 {
			t.Fatalf("%s: %d bytes, %v", file, len(text), err)
		}
		if strings.Contains(strings.ToLower(string(text)), strings.ToLower(evil)) || unprintable(strings.ReplaceAll(string(text), "\n", "")) {
			t.Errorf("a hostile name is in %s:\n%.2000q", file, text)
		}
	}
	w.RequireRestored(t, before, settle)
}

// TestAbusedControlSocket: what Alice's own programs send to her broker does not keep
// it from serving.
func TestAbusedControlSocket(t *testing.T) {
	w := newWorld(t, netns.SSHDOptions{})
	startEcho(t, w)
	before := w.Snapshot(t)
	stdin, typing := pipe(t)
	c := w.capture("--via", w.via(w.Alice), "sh", "-c", `echo up; read go; "$@"; read go; "$@"`, "sh",
		w.Testprog, "connect", "-echo", "hello", fmt.Sprintf("server:%d", echoPort))
	c.Stdin = stdin
	p := w.Client.Start(t, c)
	p.WaitFor(t, "up")
	idle := w.awaitStatus(t, "a broker", func(control.StatusRow) bool { return true })

	hello := []byte(`{"kind":"hello","protocol":1}`)
	manifest := `{"netns":1,"files":["queue","diag","tcp","dns-udp","dns-tcp"]}`
	messages := [][]byte{
		nil, []byte("{"), []byte("null"), []byte("[]"), []byte(`"hello"`), []byte("\x00\xff\xfe"),
		bytes.Repeat([]byte("["), control.MaxMessage), bytes.Repeat([]byte("a"), control.MaxMessage+1), bytes.Repeat([]byte("x"), 150<<10),
		[]byte(`{"kind":"hello","protocol":99}`), []byte(`{"kind":"done"}`), []byte(`{"kind":"answer","id":18446744073709551615}`), []byte(`{"kind":"note","body":{}}`),
		[]byte(`{"kind":"call","op":"no-such-operation"}`), []byte(`{"kind":"call","op":"stop","body":{"drain_ms":"x"}}`),
		[]byte(`{"kind":"call","op":"stop","body":{"drain_ms":0,"more":1}}`), []byte(`{"kind":"call","op":"debug","body":{"level":"\u0000"}}`),
		[]byte(`{"kind":"call","op":"explain","body":{"host":"-x y","port":70000}}`),
		[]byte(`{"kind":"call","op":"capture","body":{"id":"../../x","manifest":{}}}`),
		[]byte(`{"kind":"call","op":"capture","body":{"id":"abcdef","manifest":` + manifest + `}}`),
		[]byte(`{"kind":"call","op":"capture","body":{"id":"abcdef","via":"-oProxyCommand=x","manifest":` + manifest + `}}`),
	}
	err := w.as(w.Alice, func() error {
		for i := range 400 {
			conn, err := net.Dial("unixpacket", w.socket())
			if err != nil {
				return fmt.Errorf("connection %d: %w", i, err)
			}
			conn.SetDeadline(time.Now().Add(settle))
			if i%4 > 0 {
				conn.Write(hello)
			}
			for range 1 + i%3 {
				conn.Write(messages[mathrand.IntN(len(messages))]) // fails once it is thrown out
			}
			if i%8 == 5 {
				withDescriptors(conn.(*net.UnixConn), []byte(`{"kind":"call","op":"capture","body":{"id":"abcdef","manifest":`+manifest+`}}`), 5)
				withDescriptors(conn.(*net.UnixConn), []byte("{"), 100)
			}
			if i%2 == 0 {
				conn.Read(make([]byte, control.MaxMessage))
			}
			conn.Close()
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	for _, m := range messages { // each alone, after a proper hello: the answer is no, and not a crash
		err := w.as(w.Alice, func() error {
			conn, err := net.Dial("unixpacket", w.socket())
			if err != nil {
				return err
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(settle))
			conn.Write(hello)
			if n, err := conn.Read(make([]byte, control.MaxMessage)); err != nil || n == 0 {
				return fmt.Errorf("hello: %d bytes, %w", n, err)
			}
			conn.Write(m)
			return nil
		})
		if err != nil {
			t.Errorf("%.60q: %v", m, err)
		}
	}

	var held []net.Conn
	err = w.as(w.Alice, func() error {
		for range 1000 {
			conn, err := net.Dial("unixpacket", w.socket())
			if errors.Is(err, unix.EAGAIN) { // the backlog is full: that is a refusal, too
				continue
			}
			if err != nil {
				return err
			}
			held = append(held, conn)
		}
		return nil
	})
	if err != nil || len(held) < 500 {
		t.Fatalf("%d connections: %v", len(held), err)
	}
	typing.WriteString("go\n")
	p.WaitFor(t, " ok\n") // flows do not mind
	for _, conn := range held {
		conn.Close()
	}
	now := w.awaitStatus(t, "everything given back", func(s control.StatusRow) bool { return s.FDs <= idle.FDs+2 && s.Goroutines <= idle.Goroutines+4 })
	if now.PID != idle.PID || now.Captures != 1 || now.Generation != idle.Generation {
		t.Errorf("before %+v, after %+v", idle, now)
	}
	typing.WriteString("go\n")
	if a := connects(t, expect(t, p.Wait(t), 0).Stdout); len(a) != 2 || a[1].echoed != "ok" {
		t.Errorf("got %+v", a)
	}
	w.stopBroker(t, w.Alice)
	w.RequireRestored(t, before, settle)
}

// TestStoppedClientHoldsNobodyUp: an ssh-capture that reads none of its events is no
// reason for its own flows, nor for others, to wait.
func TestStoppedClientHoldsNobodyUp(t *testing.T) {
	const many = 2000 // events beyond every buffer
	w := newWorld(t, netns.SSHDOptions{})
	startEcho(t, w)
	w.configure(t, `<profiles>`+w.profile("srv")+`</profiles><filter-engine><rule ip-address=".*" ports="81" action="BLOCK"/>
<rule ip-address=".*" action="TUNNEL" profile-id="srv"/></filter-engine>`)
	before := w.Snapshot(t)
	start := fifo(t, w.Alice, "start")
	target, blocked := netip.AddrPortFrom(w.Server.Addr4, echoPort).String(), netip.AddrPortFrom(w.Server.Addr4, 81).String()
	p := w.Client.Start(t, w.capture("-D", "5", "sh", "-c",
		`echo up; read go <"$HOME/start"; { "$1" connect -n "$4" "$3"; "$1" connect -echo hello "$2"; } >"$HOME/result.new"; mv "$HOME/result.new" "$HOME/result"; read end <"$HOME/start"`,
		"sh", w.Testprog, target, blocked, strconv.Itoa(many)))
	p.WaitFor(t, "up")
	p.Signal(t, unix.SIGSTOP)
	begin := time.Now()
	start(t)
	out := awaitFile(t, w.Alice.Path("result"))
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("the flows of the stopped client took %v", took)
	}
	if strings.Count(out, " ECONNREFUSED ") != many || !strings.HasSuffix(out, " ok\n") {
		t.Errorf("the stopped client's program saw %.500s", out)
	}
	r := expect(t, w.Client.Run(t, w.capture(w.Testprog, "connect", "-echo", "hello", target)), 0)
	if a := connects(t, r.Stdout); len(a) != 1 || a[0].echoed != "ok" || r.Took > 5*time.Second {
		t.Errorf("another client: %v", r)
	}
	// The broker dies while its client is stopped; continued, the client sees to it.
	killHard(t, w.brokerPID(t))
	p.Signal(t, unix.SIGCONT)
	w.awaitCaptures(t, 1)
	start(t)
	expect(t, p.Wait(t), 0)
	os.Remove(w.Alice.Path("result"))
	w.stopBroker(t, w.Alice)
	w.RequireRestored(t, before, settle)
}

// TestNoBrokerRuns: every command that needs one says so, exits 3 and starts none.
func TestNoBrokerRuns(t *testing.T) {
	w := newWorld(t, netns.SSHDOptions{})
	before := w.Snapshot(t)
	for _, args := range [][]string{
		{w.Ctl, "status"}, {w.Ctl, "status", "-s"}, {w.Ctl, "status", "--pid"}, {w.Ctl, "reload"}, {w.Ctl, "stop"},
		{w.Ctl, "list-connections"}, {w.Ctl, "list-channels"}, {w.Ctl, "-a", "/nowhere/broker", "status"}, {w.Broker, "--exit"}, {w.Broker, "--reconfig"},
	} {
		r := w.Client.Run(t, netns.Cmd{Args: args, User: w.Alice})
		if r.Code != 3 || !strings.Contains(r.Stderr, "no broker is running") || r.Stdout != "" {
			t.Errorf("%v: %v, want code 3 and why", args[1:], r)
		}
	}
	if r := w.ctl(t, "-q", "status"); r.Code != 3 || r.Stdout+r.Stderr != "" {
		t.Errorf("-q status: %v, want code 3 and no word", r)
	}
	// A socket that a dead broker has left is no broker.
	expect(t, w.ctl(t, "start"), 0)
	killHard(t, w.brokerPID(t))
	if r := w.ctl(t, "status"); r.Code != 3 || !strings.Contains(r.Stderr, "no broker is running") {
		t.Errorf("with a dead broker's socket: %v", r)
	}
	expect(t, w.ctl(t, "start"), 0) // cleans up
	w.stopBroker(t, w.Alice)
	w.RequireRestored(t, before, settle)
}

// as runs f as a user on the client, on a thread that ends with it.
func (w *world) as(u *netns.User, f func() error) error {
	return w.Client.As(u, f)
}

// within runs f as a user in the network namespace of a process.
func (w *world) within(pid int, u *netns.User, f func() error) error {
	return w.Client.Do(func() error {
		ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
		if err != nil {
			return err
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		if err := u.Become(); err != nil {
			return err
		}
		return f()
	})
}

// listening reads the sockets that listen in a process's namespace; see proc(5).
func listening(t *testing.T, pid int, table string) []netip.AddrPort {
	t.Helper()
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, table))
	if err != nil {
		t.Fatal(err)
	}
	loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if strings.HasSuffix(table, "6") {
		loopback = netip.IPv6Loopback()
	}
	var list []netip.AddrPort
	for line := range strings.Lines(string(content)) {
		f := strings.Fields(line)
		if len(f) < 4 || f[3] != "0A" {
			continue
		}
		_, text, _ := strings.Cut(f[1], ":")
		port, err := strconv.ParseUint(text, 16, 16)
		if err != nil {
			t.Fatalf("%s: %q", table, line)
		}
		list = append(list, netip.AddrPortFrom(loopback, uint16(port)))
	}
	return list
}

// askTCP sends a query to a listener of a capture and returns what comes back.
func askTCP(w *world, pid int, u *netns.User, to netip.AddrPort, msg []byte) (got []byte, err error) {
	err = w.within(pid, u, func() error {
		c, err := net.Dial("tcp", to.String())
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(settle))
		_, werr := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...)) // a reset may come first
		got = make([]byte, 4096)
		n, err := c.Read(got)
		got = got[:max(n, 0)]
		return errors.Join(werr, err)
	})
	return got, err
}

// exchangeDNS asks the resolver of a capture one thing. Over UDP, where there may be
// no answer, it waits no longer than that takes.
func exchangeDNS(w *world, pid int, transport string, to netip.AddrPort, msg []byte) (answer []byte, err error) {
	if transport == "tcp" {
		answer, err = askTCP(w, pid, w.Alice, to, msg)
		return answer[min(2, len(answer)):], err
	}
	err = w.within(pid, w.Alice, func() error {
		c, err := net.Dial("udp", to.String())
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(500 * time.Millisecond))
		if _, err := c.Write(msg); err != nil {
			return err
		}
		answer = make([]byte, 4096)
		n, err := c.Read(answer)
		answer = answer[:max(n, 0)]
		return err
	})
	return answer, err
}

// rawQuery asks for the A record of a name that is given as it is on the wire.
func rawQuery(name string) []byte {
	return append([]byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00"+name), 0, 1, 0, 1)
}

func query(t *testing.T, id uint16, name string, typ dnsmessage.Type) []byte {
	t.Helper()
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: id, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: typ, Class: dnsmessage.ClassINET}}}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// noise is what a broken or hostile program sends to a resolver.
func noise(to netip.AddrPort, good []byte) error {
	u, err := net.Dial("udp", to.String())
	if err != nil {
		return err
	}
	defer u.Close()
	random := mathrand.New(mathrand.NewPCG(1, 2))
	for i := range 3000 {
		msg := make([]byte, random.IntN(700))
		for j := range msg {
			msg[j] = byte(random.Uint32())
		}
		switch i % 3 {
		case 1: // a broken copy
			msg = bytes.Clone(good)
			msg[random.IntN(len(msg))] ^= 1 << random.IntN(8)
		case 2: // a part of one
			msg = good[:random.IntN(len(good))]
		}
		if _, err := u.Write(msg); err != nil && !errors.Is(err, unix.ECONNREFUSED) {
			return fmt.Errorf("datagram %d: %w", i, err)
		}
	}
	u.Write(make([]byte, 60000))
	var open []net.Conn
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	for i := range 100 { // some of them stay open
		c, err := net.Dial("tcp", to.String())
		if err != nil {
			return fmt.Errorf("connection %d: %w", i, err)
		}
		open = append(open, c)
		c.Write([][]byte{{0}, {0, 0}, {0xff, 0xff, 1, 2, 3}, {0, 5, 1, 2, 3, 4, 5}, append([]byte{0, 200}, good...)}[i%5])
	}
	return nil
}

// withDescriptors sends a message with n descriptors, and does not mind failure.
func withDescriptors(c *net.UnixConn, msg []byte, n int) {
	null, err := os.Open("/dev/null")
	if err != nil {
		return
	}
	defer null.Close()
	c.WriteMsgUnix(msg, unix.UnixRights(slices.Repeat([]int{int(null.Fd())}, n)...), nil)
}

// fingerprint is how people compare a key given as in known_hosts.
func fingerprint(t *testing.T, public string) string {
	t.Helper()
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(public))
	if err != nil {
		t.Fatal(err)
	}
	return ssh.FingerprintSHA256(key)
}

var controlCharacter = regexp.MustCompile(`[\x00-\x1f\x7f]`)

func unprintable(text string) bool { return controlCharacter.MatchString(text) }
