package interop

// Item 2 of the issue: the configurations of the corpus, in the shapes that the Tectia
// documents give them, do what the documents tell; and a reload brings changed rules
// into force without cutting what lives.

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sshbroker/test/netns"
)

// corpusFile puts a file of the corpus in force for Alice, unchanged.
func (w *world) corpusFile(t *testing.T, name string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "broker", "config", "testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	w.configureFile(t, string(b))
	expect(t, w.ctl(t, "check-config", w.Alice.Path(".ssh2/ssh-broker-config.xml")), 0)
}

// root runs a shell script as root on a machine.
func root(t *testing.T, m *netns.Machine, script string) {
	t.Helper()
	m.Output(t, nil, "sh", "-euc", script)
}

// hosts replaces the hosts file of a machine.
func hosts(t *testing.T, m *netns.Machine, lines ...string) {
	t.Helper()
	m.Replace(t, "/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"+strings.Join(lines, "\n")+"\n")
}

// secondHost gives the server machine another address, where another sshd with
// another key answers on port 22: for the client that is another host.
func (w *world) secondHost(t *testing.T, addr string) *netns.SSHD {
	t.Helper()
	s := w.Server.StartSSHD(t, netns.SSHDOptions{Port: 2222})
	root(t, w.Server, `
ip address add `+addr+`/24 dev to-client
nft -f - <<END
table ip second_host {
	chain prerouting {
		type nat hook prerouting priority dstnat
		ip daddr `+addr+` tcp dport 22 redirect to :2222
	}
}
END`)
	w.Server.AllowOnly(t, netns.Reset, 22, 2222)
	return s
}

func accepted(s *netns.SSHD) int { return strings.Count(s.Output(), "Accepted publickey for ") }

// TestCorpusTelnet is the first worked example of the source document, the file as it
// stands there: each telnet connection goes through the SSH server of the very host
// that was asked for, whatever it was called, and none leaves in clear.
func TestCorpusTelnet(t *testing.T) {
	w := newWorld(t, netns.SSHDOptions{})
	second := w.secondHost(t, "10.99.1.3")
	telnetd := w.Server.StartTelnetd(t, 23)
	const byDNS = "some-server.example.com"
	dns := w.Client.StartDNS(t, netip.MustParseAddr("127.0.0.1"), map[string][]string{byDNS: {"10.99.1.3"}})
	hosts(t, w.Client, "10.99.1.2 server", "fd99:1::2 server", "10.99.1.3 other", "10.99.1.4 stranger")
	hosts(t, w.Server, "10.99.1.2 server", "fd99:1::2 server", "10.99.1.3 other "+byDNS)
	root(t, w.Server, "ip address add 10.99.1.4/24 dev to-client")
	w.Alice.Write(t, ".ssh/known_hosts", fmt.Sprintf("server,10.99.1.2,fd99:1::2 %s\nother,10.99.1.3,%s %s\n",
		w.sshd.HostKey, byDNS, second.HostKey), 0o600)
	before := w.settled(t)

	w.corpusFile(t, "telnet.xml")
	wire := w.Client.Capture(t, "to-server")
	for i, tc := range []struct {
		asked  string
		server *netns.SSHD
	}{
		{"10.99.1.2", w.sshd}, {"fd99:1::2", w.sshd}, {"server", w.sshd},
		{"10.99.1.3", second}, {"other", second}, {byDNS, second},
	} {
		first, other := accepted(w.sshd), accepted(second)
		if tc.server == second {
			other++
		} else {
			first++
		}
		said, _ := w.talk(t, telnetd, w.capture("telnet", tc.asked))
		requireAbsent(t, wire, said)
		if accepted(w.sshd) != first || accepted(second) != other {
			t.Errorf("%s: the SSH server was not that of the host asked for", tc.asked)
		}
		r := w.awaitRecords(t, i+1)[i]
		if r.Reason != "carried" || r.Rule != 1 || r.Server != w.Alice.Name+"@"+netJoin(tc.asked, 22) || r.Target != netJoin(tc.asked, 23) {
			t.Errorf("%s: recorded %+v", tc.asked, r)
		}
	}
	if !strings.Contains(strings.Join(dns.Asked(), "\n"), byDNS+" A") {
		t.Errorf("the name server was asked %q", dns.Asked())
	}

	// fallback-to-plain="NO": a host whose key nobody saved is not spoken to in clear.
	r := w.Client.Run(t, w.capture("telnet", "stranger"))
	if r.Code == 0 || !strings.Contains(r.Stdout+r.Stderr, "No route to host") {
		t.Errorf("telnet to a host with an unknown key: %v", r)
	}
	if rec := w.awaitRecords(t, 7)[6]; rec.Reason != "host-key" || !strings.Contains(rec.Error, "stranger") {
		t.Errorf("recorded %+v", rec)
	}
	w.requireNoneTo(t, wire, 23)

	// Any other port goes out as it would without a capture.
	w.Server.AllowOnly(t, netns.Reset, 22, 2222, 2323)
	plain := w.Server.StartTelnetd(t, 2323)
	said, _ := w.talk(t, plain, w.capture("telnet", "other", "2323"))
	if !wire.Contains(t, []byte(said[0])) {
		t.Error("a port that no rule names did not go out directly")
	}
	plain.Stop()
	w.Server.AllowOnly(t, netns.Reset, 22, 2222)
	w.stopBroker(t, w.Alice)
	w.RequireRestored(t, before, settle)
}

// requireNoneTo fails the test if a connection to that port was tried on the wire.
func (w *world) requireNoneTo(t *testing.T, wire *netns.Wire, port uint16) {
	t.Helper()
	for _, p := range wire.Packets(t, netns.NewConnections) {
		if p.Dst.Port() == port {
			t.Errorf("a connection to %v was tried in clear", p.Dst)
		}
	}
}

// TestReloadKeepsLiveConversations changes the rule of telnet.xml under a conversation.
func TestReloadKeepsLiveConversations(t *testing.T) {
	w := newWorld(t, netns.SSHDOptions{})
	telnetd := w.Server.StartTelnetd(t, 23)
	before := w.settled(t)
	w.corpusFile(t, "telnet.xml")
	wire := w.Client.Capture(t, "to-server")

	// One shell for the new connections too: rules change for captures that live.
	shell := w.capture("sh")
	shell.TTY = &terminal
	live, fresh := w.Client.Start(t, telnetTo(w, "server")), w.Client.Start(t, shell)
	live.WaitFor(t, telnetd.Marker)
	lines := 0
	answers := func() {
		t.Helper()
		lines++
		live.Type(t, fmt.Sprintf("line-%d\r", lines))
		live.WaitFor(t, fmt.Sprintf("%s line-%d", telnetd.Answer, lines))
	}
	// connect says how a new connection from the older capture fares.
	tries := 0
	connect := func(want string) {
		t.Helper()
		tries++
		fresh.Type(t, fmt.Sprintf("%s connect 10.99.1.2:23; echo try $((%d))\r", w.Testprog, tries))
		said := fresh.WaitFor(t, fmt.Sprintf("try %d", tries))
		if i := strings.LastIndex(said, "10.99.1.2:23 "); i < 0 || !strings.HasPrefix(said[i:], "10.99.1.2:23 "+want+" ") {
			t.Errorf("connect %d: want %s: %q", tries, want, said)
		}
	}
	reload := func(code int) netns.Result {
		t.Helper()
		return expect(t, w.ctl(t, "reload"), code)
	}
	answers()
	connect("ok")

	w.configure(t, `<filter-engine><rule host=".*" ports="23" action="BLOCK"/></filter-engine>`)
	connect("ok") // nothing changes before the reload
	reload(0)
	connect("ECONNREFUSED")
	answers()

	// A file that cannot be read changes nothing, and every error is told with its place.
	w.configureFile(t, `<?xml version="1.0"?>
<secsh-broker version="1.0">
  <filter-engine>
    <rule host=".*" ports="23" action="DIRECTLY"/>
    <rule hots=".*" action="BLOCK"/>
  </filter-engine>
</secsh-broker>
`)
	r := reload(1)
	for _, place := range []string{"4:40", "5:11"} { // the value, the name
		if !strings.Contains(r.Stderr, w.Alice.Path(".ssh2/ssh-broker-config.xml")+":"+place+":") {
			t.Errorf("the error at %s is not told: %v", place, r)
		}
	}
	connect("ECONNREFUSED")
	answers()
	w.configureFile(t, `<secsh-broker version="1.0"><filter-engine>`)
	if r := reload(1); !regexp.MustCompile(`ssh-broker-config\.xml:1:\d+: `).MatchString(r.Stderr) {
		t.Errorf("a file that ends early: %v", r)
	}
	if err := os.Remove(w.Alice.Path(".ssh2/ssh-broker-config.xml")); err != nil {
		t.Fatal(err)
	}
	// Nor does one that is gone: no rules at all would mean in clear.
	if r := reload(1); !strings.Contains(r.Stderr, "filter-engine") {
		t.Errorf("a file that is gone: %v", r)
	}
	connect("ECONNREFUSED")
	answers()

	w.corpusFile(t, "telnet.xml")
	reload(0)
	connect("ok")
	answers()
	live.Type(t, "bye\r")
	live.Wait(t)
	fresh.Type(t, "exit 0\r")
	fresh.Wait(t)
	w.requireNoneTo(t, wire, 23)

	// What was not reloaded has no generation.
	byGeneration := map[uint64][]string{}
	for _, r := range w.awaitRecords(t, tries+1) {
		byGeneration[r.Generation] = append(byGeneration[r.Generation], r.Reason)
	}
	if got := fmt.Sprint(byGeneration); got != "map[1:[carried carried carried] 2:[blocked blocked blocked] 3:[carried]]" {
		t.Errorf("records by generation of the rules: %s", got)
	}
	w.stopBroker(t, w.Alice)
	w.RequireRestored(t, before, settle)
}

func telnetTo(w *world, args ...string) netns.Cmd {
	c := w.capture(append([]string{"telnet"}, args...)...)
	c.TTY = &terminal
	return c
}

// account adds a user who exists on one machine only and logs in by Alice's key.
func (w *world) account(t *testing.T, m *netns.Machine, names ...string) []*netns.User {
	t.Helper()
	passwd := m.Output(t, nil, "cat", "/etc/passwd") + "\n"
	var users []*netns.User
	for i, name := range names {
		u := &netns.User{Name: name, UID: w.Alice.UID, GID: w.Alice.GID, Home: w.Net.Dir, AuthorizedKey: w.Alice.AuthorizedKey}
		passwd += fmt.Sprintf("%s:x:%d:%d::%s:/bin/sh\n", name, 19000+i, 19000+i, w.Net.Dir)
		users = append(users, u)
	}
	m.Replace(t, "/etc/passwd", passwd)
	return users
}

// lineServer speaks a protocol of lines: it greets, then answers the words that a line
// begins with. The answer to QUIT ends it.
func lineServer(t *testing.T, m *netns.Machine, port uint16, greeting string, answers ...string) {
	t.Helper()
	var cases strings.Builder
	for i := 0; i < len(answers); i += 2 {
		fmt.Fprintf(&cases, "\t%s) printf '%s\\r\\n' ;;\n", answers[i], strings.ReplaceAll(answers[i+1], "\n", "\\r\\n"))
	}
	script := `printf '` + greeting + `\r\n'
while read -r line; do
	line=$(printf %s "$line" | tr -d '\r')
	tag=${line%% *}
	case "$line" in
` + cases.String() + `	esac
	case "$line" in QUIT*|*LOGOUT*) exit 0 ;; esac
done`
	m.Inetd(t, port, netns.Cmd{Args: []string{"sh", "-c", script}, Limit: -1})
}

// TestCorpusEmailGateway is the second worked example: the protocols of mail go to the
// company's network through the gateway called host1234, everything else goes directly.
func TestCorpusEmailGateway(t *testing.T) {
	netns.RequireProgram(t, "curl", "curl")
	w := newBastionWorld(t, netns.SSHDOptions{Port: 2200})
	gateway := w.Server.StartSSHD(t, netns.SSHDOptions{Users: w.account(t, w.Server, "mailuser")})
	w.Server.AllowOnly(t, netns.Reset, 22, 587)
	hosts(t, w.Client, "10.99.1.2 host1234", "10.99.2.2 mail.example.com")
	w.Alice.Write(t, ".ssh/known_hosts", "host1234 "+gateway.HostKey+"\n", 0o600)
	// The name is nothing to the gateway: it is opened as it was asked for.
	hosts(t, w.Server, "10.99.2.2 mail.example.com")

	lineServer(t, w.Inner, 25, "220 mail", "'EHLO'*|'HELO'*", "250 mail", "'MAIL'*|'RCPT'*", "250 ok", "DATA", "354 go on", ".", "250 SMTP-MARKER", "QUIT*", "221 bye")
	lineServer(t, w.Inner, 110, "+OK", "CAPA*", "+OK\nUSER\n.", "USER*|PASS*", "+OK", "'RETR 1'", "+OK\nPOP-MARKER\n.", "QUIT*", "+OK")
	lineServer(t, w.Inner, 143, "* OK", "*CAPABILITY*", "* CAPABILITY IMAP4rev1\n'\"$tag\"' OK", "*LOGIN*", "'\"$tag\"' OK", "*LIST*", "* LIST () \"/\" IMAP-MARKER\n'\"$tag\"' OK", "*LOGOUT*", "'\"$tag\"' OK")
	lineServer(t, w.Server, 587, "220 DIRECT-MARKER", "QUIT*", "221 bye")
	before := w.settled(t)
	w.corpusFile(t, "email-gateway.xml")
	near, far := w.Client.Capture(t, "to-server"), w.Inner.Capture(t, "to-server")

	letter := w.Alice.Write(t, "letter", "Subject: SMTP-LETTER\n\nhello\n", 0o600)
	n := 0
	for _, host := range []string{"10.99.2.2", "mail.example.com"} {
		for _, tc := range []struct {
			port   int
			marker string
			args   []string
		}{
			{25, "SMTP-LETTER", []string{"smtp://" + host, "--mail-from", "a@example.com", "--mail-rcpt", "b@example.com", "-T", letter}},
			{110, "POP-MARKER", []string{"pop3://u:secret@" + host + "/1"}},
			{143, "IMAP-MARKER", []string{"imap://u:secret@" + host + "/"}},
		} {
			r := expect(t, w.Client.Run(t, w.capture(append([]string{"curl", "-sS", "--max-time", "10"}, tc.args...)...)), 0)
			if tc.port != 25 && !strings.Contains(r.Stdout, tc.marker) {
				t.Errorf("%s: %v", tc.args[0], r)
			}
			if near.Contains(t, []byte(tc.marker)) || !far.Contains(t, []byte(tc.marker)) {
				t.Errorf("%s: %s is to be in clear behind the gateway and not before it", tc.args[0], tc.marker)
			}
			n++
			rec := w.awaitRecords(t, n)[n-1]
			if rec.Reason != "carried" || rec.Profile != "paper" || rec.Server != "mailuser@host1234:22" || rec.Target != netJoin(host, uint16(tc.port)) {
				t.Errorf("%s: recorded %+v", tc.args[0], rec)
			}
		}
	}
	if strings.Count(gateway.Output(), "Accepted publickey for mailuser") == 0 {
		t.Error("nobody logged in as mailuser")
	}
	for _, port := range []uint16{25, 110, 143} {
		w.requireNoneTo(t, near, port)
	}

	// Port 587 is no business of the gateway's.
	p := w.Client.Start(t, telnetTo(w, "host1234", "587"))
	p.WaitFor(t, "DIRECT-MARKER")
	p.Type(t, "QUIT\r")
	p.Wait(t)
	if !near.Contains(t, []byte("DIRECT-MARKER")) {
		t.Error("a port that no rule names did not go out directly")
	}
	if rec := w.awaitRecords(t, n+1)[n]; rec.Action != "DIRECT" || rec.Rule != 0 {
		t.Errorf("recorded %+v", rec)
	}
	w.stopBroker(t, w.Alice)
	w.RequireRestored(t, before, settle)
}

// TestCorpusProfileRock has what a profile and a rule may hold: a gateway before the
// server, ciphers, a key of its own, pseudo addresses in both families, another
// destination, and a program that is not to connect at all.
func TestCorpusProfileRock(t *testing.T) {
	netns.RequireProgram(t, "nginx", "nginx-light")
	w := newBastionWorld(t, netns.SSHDOptions{Port: 2200})
	gw := w.Server.StartSSHD(t, netns.SSHDOptions{Users: w.account(t, w.Server, "tunnel")})
	rock := w.Inner.StartSSHD(t, netns.SSHDOptions{Port: 2222, Users: w.account(t, w.Inner, "doctor"),
		Config: []string{"Ciphers aes128-gcm@openssh.com,aes256-ctr", "MACs hmac-sha2-256"}})
	w.Server.AllowOnly(t, netns.Reset, 22)
	hosts(t, w.Client, "10.99.1.2 gw.example.com")
	hosts(t, w.Server, "10.99.2.2 rock.example.com")
	hosts(t, w.Inner, "10.99.2.2 www.corp.example db.corp.example corp.example", "fd99:2::2 www.corp.example")
	key, err := os.ReadFile(w.Alice.Path(".ssh/id_ed25519"))
	if err != nil {
		t.Fatal(err)
	}
	w.Alice.Write(t, ".ssh2/id_rock", string(key), 0o600)
	w.Alice.Write(t, ".ssh/known_hosts", fmt.Sprintf("gw.example.com %s\n[rock.example.com]:2222 %s\n", gw.HostKey, rock.HostKey), 0o600)
	startNginx(t, w.Inner, "WWW-MARKER")
	lineServer(t, w.Inner, 5433, "DB-MARKER", "QUIT*", "bye")
	before := w.settled(t)
	w.corpusFile(t, "profile-rock.xml")
	wire := w.Client.Capture(t, "to-server")

	// A pseudo address in each family that the file has a pool for; the name travels.
	out := w.Client.Run(t, w.capture("sh", "-c", "getent ahostsv4 www.corp.example; getent ahostsv6 www.corp.example"))
	pool4, pool6 := netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("fd12:3456:789a::/48")
	for i, pool := range []netip.Prefix{pool4, pool6} {
		found := false
		for line := range strings.Lines(out.Stdout) {
			a, err := netip.ParseAddr(strings.Fields(line)[0])
			found = found || err == nil && pool.Contains(a)
		}
		if !found {
			t.Errorf("no pseudo address %d in %v: %v", i, pool, out)
		}
	}
	for _, family := range []string{"-4", "-6"} {
		r := expect(t, w.Client.Run(t, w.capture("curl", "-sS", family, "--max-time", "10", "http://www.corp.example/")), 0)
		if !strings.Contains(r.Stdout, "WWW-MARKER") {
			t.Errorf("curl %s: %v", family, r)
		}
	}
	for i, r := range w.awaitRecords(t, 2) {
		if r.Reason != "carried" || r.Rule != 2 || r.Profile != "rock" || r.Server != "doctor@rock.example.com:2222" || r.Target != "www.corp.example:80" {
			t.Errorf("recorded %d %+v", i, r)
		}
	}
	if !strings.Contains(gw.Output(), "Accepted publickey for tunnel") || !strings.Contains(rock.Output(), "Accepted publickey for doctor") {
		t.Error("the way did not lead through the gateway to the server")
	}

	// The third rule sends another address and port to the database.
	p := w.Client.Start(t, telnetTo(w, "10.20.30.40", "5432"))
	p.WaitFor(t, "DB-MARKER")
	p.Type(t, "QUIT\r")
	p.Wait(t)
	if r := w.awaitRecords(t, 3)[2]; r.Reason != "carried" || r.Rule != 3 || r.Dst != "10.20.30.40:5432" || r.Target != "db.corp.example:5433" {
		t.Errorf("recorded %+v", r)
	}

	// The first rule is about a program.
	program, err := os.ReadFile(w.Testprog)
	if err != nil {
		t.Fatal(err)
	}
	agent := filepath.Join(w.Net.Dir, "backup-agent")
	if err := os.WriteFile(agent, bytes.Clone(program), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{"www.corp.example:80", "10.20.30.40:5432", "10.99.1.2:22"} {
		if r := w.Client.Run(t, w.capture(agent, "connect", target)); !strings.Contains(r.Stdout, " ECONNREFUSED ") {
			t.Errorf("the backup agent to %s: %v", target, r)
		}
	}
	for i, r := range w.awaitRecords(t, 6)[3:] {
		if r.Reason != "blocked" || r.Rule != 1 || r.Program != agent {
			t.Errorf("recorded %d %+v", i, r)
		}
	}
	w.requireOnlySSHTo(t, wire, gw)

	// The last rule lets everything else out.
	if r := w.Client.Run(t, w.capture(w.Testprog, "connect", "10.99.1.2:22")); !strings.Contains(r.Stdout, " ok ") {
		t.Errorf("direct: %v", r)
	}
	if r := w.awaitRecords(t, 7)[6]; r.Action != "DIRECT" || r.Rule != 4 {
		t.Errorf("recorded %+v", r)
	}
	w.stopBroker(t, w.Alice)
	w.RequireRestored(t, before, settle)
}

// requireOnlySSHTo is requireOnlySSH for another server.
func (w *world) requireOnlySSHTo(t *testing.T, wire *netns.Wire, s *netns.SSHD) {
	t.Helper()
	other := *w
	other.sshd = s
	other.requireOnlySSH(t, wire)
}
