package interop

// The examples of etc/, as they stand there: each is put in force under the names that
// it has in it and does what docs/guide.md says of it.

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sshbroker/test/netns"
)

// exampleWorld has the bastion and the gateway of the examples, which are the server,
// and a machine behind them.
func exampleWorld(t *testing.T) *world {
	t.Helper()
	w := newBastionWorld(t, netns.SSHDOptions{})
	hosts(t, w.Client, "10.99.1.2 bastion.example.com gateway.example.com")
	for _, u := range []*netns.User{w.Alice, w.Bob} {
		u.Write(t, ".ssh/known_hosts", "bastion.example.com,gateway.example.com "+w.sshd.HostKey+"\n", 0o600)
	}
	return w
}

func example(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "etc", "ssh-broker-config-example-"+name+".xml"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// requireWay fails the test unless the nth record says that a flow went that way.
func (w *world) requireWay(t *testing.T, n int, profile, server, target string, rule int) {
	t.Helper()
	r := w.awaitRecords(t, n)[n-1]
	if r.Reason != "carried" || r.Profile != profile || r.Server != w.Alice.Name+"@"+server || r.Target != target || r.Rule != rule {
		t.Errorf("record %d: %+v, want it carried to %s by rule %d, through %s", n, r, target, rule, server)
	}
}

// requireHidden fails the test unless the text was in clear behind the bastion, which
// shows that it would have been found, and not before it.
func requireHidden(t *testing.T, near, far *netns.Wire, text string) {
	t.Helper()
	if near.Contains(t, []byte(text)) || !far.Contains(t, []byte(text)) {
		t.Errorf("%q is to be in clear behind the bastion and not before it", text)
	}
}

func TestExampleTelnet(t *testing.T) {
	w := exampleWorld(t)
	telnetd := w.Server.StartTelnetd(t, 23)
	hosts(t, w.Server, "10.99.1.2 bastion.example.com")
	before := w.settled(t)
	w.configureFile(t, example(t, "capture"))
	wire := w.Client.Capture(t, "to-server")
	said, _ := w.talk(t, telnetd, w.capture("telnet", "bastion.example.com"))
	requireAbsent(t, wire, said)
	w.requireNoneTo(t, wire, 23)
	w.requireWay(t, 1, "", "bastion.example.com:22", "bastion.example.com:23", 1)
	w.finish(t, before)
}

func TestExampleEmail(t *testing.T) {
	netns.RequireProgram(t, "curl", "curl")
	w := exampleWorld(t)
	hosts(t, w.Server, "10.99.2.2 mail.example.org")
	w.Inner.StartMail(t)
	before := w.settled(t)
	w.configureFile(t, example(t, "email"))
	near, far := w.Client.Capture(t, "to-server"), w.Inner.Capture(t, "to-server")
	letter := w.Alice.Write(t, "letter", "Subject: greetings\n\nLETTER-OF-ALICE\n", 0o600)
	for i, tc := range []struct {
		port uint16
		args []string
	}{
		{25, []string{"smtp://mail.example.org", "--mail-from", "a@example.com", "--mail-rcpt", "b@example.org", "-T", letter}},
		{143, []string{"imap://b:" + netns.MailPassword + "@mail.example.org/INBOX;MAILINDEX=1"}},
		{110, []string{"pop3://b:" + netns.MailPassword + "@mail.example.org/1"}},
	} {
		r := expect(t, w.Client.Run(t, w.capture(append([]string{"curl", "-sS", "--max-time", "10"}, tc.args...)...)), 0)
		if tc.port != 25 {
			requireText(t, r, "LETTER-OF-ALICE")
		}
		w.requireNoneTo(t, near, tc.port)
		w.requireWay(t, i+1, "mail-gateway", "gateway.example.com:22", netJoin("mail.example.org", tc.port), 1)
	}
	requireHidden(t, near, far, "LETTER-OF-ALICE")
	w.finishBeside(t, before, "(uid 65534)") // the mail servers'
}

func TestExampleDatabases(t *testing.T) {
	netns.RequireProgram(t, "curl", "curl")
	netns.RequireProgram(t, "redis-cli", "redis-tools")
	w := exampleWorld(t)
	hosts(t, w.Server, "10.99.2.2 db.internal cache.internal")
	pg := w.newPostgres(t)
	running := pg.start(t, w, w.Inner, "*")
	redis := w.Inner.Start(t, netns.Cmd{Args: []string{netns.RequireProgram(t, "redis-server", "redis-server"), "--port", "6379", "--bind", "0.0.0.0",
		"--protected-mode", "no", "--save", "", "--appendonly", "no"}, User: w.Bob, Limit: -1})
	redis.WaitFor(t, "Ready to accept connections")
	before := w.settled(t)
	w.configureFile(t, example(t, "databases"))
	near, far := w.Client.Capture(t, "to-server"), w.Inner.Capture(t, "to-server")

	for i, host := range []string{"db.internal", "olddb.internal"} {
		r := w.Client.Run(t, w.capture("psql", "-h", host, "-U", "postgres", "-Atc", "select 'SQL-' || current_setting('cluster_name')"))
		requireText(t, r, "SQL-of-inner")
		w.requireWay(t, i+1, "bastion", "bastion.example.com:22", "db.internal:5432", 2-i)
	}
	requireHidden(t, near, far, "SQL-")
	requireText(t, w.Client.Run(t, w.capture("redis-cli", "-h", "cache.internal", "set", "key", "REDIS-VALUE")), "OK")
	w.requireWay(t, 3, "bastion", "bastion.example.com:22", "cache.internal:6379", 2)
	requireHidden(t, near, far, "REDIS-VALUE")
	if r := w.Client.Run(t, w.capture("curl", "-sS", "http://db.internal:5433/")); r.Code != 7 {
		t.Errorf("a port that is to be blocked: %v", r)
	}
	if r := w.awaitRecords(t, 4)[3]; r.Reason != "blocked" || r.Rule != 3 || r.Name != "db.internal" {
		t.Errorf("recorded %+v", r)
	}
	w.requireNoneTo(t, near, 5432)
	w.requireNoneTo(t, near, 6379)
	pg.stop(t, running)
	w.finishBeside(t, before, "postgres")
}

// finishBeside is finish where a server of the test's has other processes and files now,
// with that in their lines, or has stopped.
func (w *world) finishBeside(t *testing.T, before netns.Snapshot, server string) {
	t.Helper()
	w.stopBroker(t, w.Alice)
	var left []string
	for end := time.Now().Add(settle); ; <-time.After(10 * time.Millisecond) {
		left = slices.DeleteFunc(w.Snapshot(t).Diff(before), func(line string) bool {
			return strings.HasPrefix(line, "- ") || strings.Contains(line, server)
		})
		if len(left) == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("left behind:\n%s", strings.Join(left, "\n"))
		}
	}
}

func TestExampleBastion(t *testing.T) {
	netns.RequireProgram(t, "curl", "curl")
	w := exampleWorld(t)
	hosts(t, w.Server, "10.99.2.2 www.example.net")
	startNginx(t, w.Inner, "FAR-PAGE")
	startNginx(t, w.Server, "NEAR-PAGE")
	root(t, w.Server, "ip address add 192.168.7.9/32 dev to-client")
	w.Server.AllowOnly(t, netns.Reset, 22, 80)
	before := w.settled(t)
	w.configureFile(t, example(t, "bastion"))
	near, far := w.Client.Capture(t, "to-server"), w.Inner.Capture(t, "to-server")

	for i, host := range []string{"www.example.net", "10.99.2.2"} { // by name, and by address
		requireText(t, w.Client.Run(t, w.capture("curl", "-sS", "http://"+host+"/")), "FAR-PAGE")
		w.requireWay(t, i+1, "bastion", "bastion.example.com:22", netJoin(host, 80), 2)
	}
	requireHidden(t, near, far, "FAR-PAGE")
	w.requireNoneTo(t, near, 80)
	requireText(t, w.Client.Run(t, w.capture("curl", "-sS", "http://192.168.7.9/")), "NEAR-PAGE")
	if !near.Contains(t, []byte("NEAR-PAGE")) {
		t.Error("the near network was not reached directly")
	}
	w.finish(t, before)
}

func TestExampleGateway(t *testing.T) {
	netns.RequireProgram(t, "curl", "curl")
	w := newGatewayWorld(t, everything+`
  - name: wiki
    backend: {target: {name: wiki.internal, port: 80}}
    policy: staff
`)
	hosts(t, w.Client, "10.99.1.2 gateway.example.com")
	hosts(t, w.Server, "10.99.2.2 wiki.internal")
	startNginx(t, w.Inner, "WIKI-PAGE")
	for name, from := range map[string]string{"office-ca.crt": "gateway-ca.crt", "office.crt": "gateway.crt", "office.key": "gateway.key"} {
		text, err := os.ReadFile(w.Alice.Path(".ssh2/" + from))
		if err != nil {
			t.Fatal(err)
		}
		w.Alice.Write(t, ".ssh2/"+name, string(text), 0o600)
	}
	before := w.settled(t)
	w.configureFile(t, example(t, "gateway"))
	near, far := w.Client.Capture(t, "to-server"), w.Inner.Capture(t, "to-server")
	expect(t, w.ctl(t, "start"), 0)
	curl := netns.Cmd{Args: []string{"curl", "-sS", "--max-time", "20"}, User: w.Alice}
	requireText(t, w.ctl(t, "services"), "127.0.0.1:8081")
	for i, want := range []struct {
		cmd    netns.Cmd
		target string
		rule   int
	}{
		{w.capture("curl", "-sS", "http://wiki.internal/"), "wiki.internal:80", 1},
		{with(curl, "http://127.0.0.1:8081/"), "service wiki", 0},
		{with(curl, "-p", "-x", "http://127.0.0.1:3128", "http://wiki.internal/"), "wiki.internal:80", 0},
	} {
		requireText(t, w.Client.Run(t, want.cmd), "WIKI-PAGE")
		if r := w.awaitRecords(t, i+1)[i]; r.Reason != "carried" || r.Profile != "office" || r.Server != "gateway.example.com:8443" || r.Target != want.target || r.Rule != want.rule {
			t.Errorf("record %d: %+v, want it to %s by rule %d", i, r, want.target, want.rule)
		}
	}
	requireHidden(t, near, far, "WIKI-PAGE")
	w.requireOnlyTLS(t, near)
	w.finish(t, before)
}

// TestExampleUsers has the file where it belongs, below /etc, and two users.
func TestExampleUsers(t *testing.T) {
	for _, p := range []string{"curl", "wget"} {
		netns.RequireProgram(t, p, p)
	}
	netns.RequireProgram(t, "ncat", "ncat")
	w := exampleWorld(t)
	startNginx(t, w.Inner, "PAGE-BY-PROGRAM")
	root(t, w.Inner, "ip address add 10.20.0.5/32 dev lo")
	root(t, w.Server, "ip route add 10.20.0.0/16 via 10.99.2.2")
	managed := w.Inner.Start(t, netns.Cmd{Args: []string{w.Testprog, "serve", "10.20.0.5:8000"}, Limit: -1})
	managed.WaitFor(t, "listening")
	// Whoever has Alice's first group is an operator; Bob is none.
	root(t, w.Client, "cp -a /etc "+w.Net.Dir+"/etc && mount --bind "+w.Net.Dir+"/etc /etc && mkdir -p /etc/ssh2 && groupmod -n operators "+w.Alice.Name)
	w.Client.Replace(t, "/etc/hosts", "127.0.0.1 localhost\n10.99.1.2 bastion.example.com\n")
	file := filepath.Join(w.Net.Dir, "etc/ssh2/ssh-broker-config.xml")
	if err := os.WriteFile(file, []byte(example(t, "users")), 0o644); err != nil {
		t.Fatal(err)
	}
	before := w.settled(t)
	near := w.Client.Capture(t, "to-server")
	as := func(u *netns.User, args ...string) netns.Result {
		c := w.capture(args...)
		c.User = u
		return w.Client.Run(t, c)
	}

	requireText(t, as(w.Alice, "curl", "-sS", "http://10.99.2.2/"), "PAGE-BY-PROGRAM")
	requireText(t, as(w.Alice, "wget", "-q", "-O", "-", "http://10.99.2.2/"), "PAGE-BY-PROGRAM")
	for n := 1; n <= 2; n++ {
		w.requireWay(t, n, "bastion", "bastion.example.com:22", "10.99.2.2:80", 1)
	}
	if r := as(w.Alice, "ncat", "10.99.2.2", "80"); r.Code == 0 || !strings.Contains(r.Stderr, "refused") {
		t.Errorf("a program that is to be blocked: %v", r)
	}
	if r := w.awaitRecords(t, 3)[2]; r.Reason != "blocked" || r.Rule != 2 {
		t.Errorf("recorded %+v", r)
	}
	requireText(t, as(w.Alice, w.Testprog, "connect", "10.20.0.5:8000"), "10.20.0.5:8000 ok")
	w.requireWay(t, 4, "bastion", "bastion.example.com:22", "10.20.0.5:8000", 3)
	requireText(t, as(w.Bob, w.Testprog, "connect", "10.20.0.5:8000"), "10.20.0.5:8000 ECONNREFUSED")
	w.requireOnlySSHTo(t, near, w.sshd)
	for user, want := range map[string]string{"backup": "TUNNEL by rule 4", w.Bob.Name: "BLOCK by rule 5"} {
		r := w.ctl(t, "explain", "-q", "-f", "/etc/ssh2/ssh-broker-config.xml", "-u", user, "10.20.0.5", "22")
		requireText(t, expect(t, r, 0), want)
	}
	w.stopBroker(t, w.Bob)
	w.finish(t, before)
}
