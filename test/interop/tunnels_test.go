package interop

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sshbroker/test/netns"
)

// TestStaticTunnels has programs that nobody captures reach a host behind the server: by a
// port of their own, by SOCKS and CONNECT judged by the rules, and by connect, which is
// ssh's ProxyCommand here. On the wire there is SSH and nothing else.
func TestStaticTunnels(t *testing.T) {
	netns.RequireProgram(t, "curl", "curl")
	w := newBastionWorld(t, netns.SSHDOptions{})
	marker := "MARKER-" + rand.Text()
	startNginx(t, w.Inner, marker)
	inner := w.Inner.StartSSHD(t, netns.SSHDOptions{Users: []*netns.User{w.Alice}})
	w.Alice.Write(t, ".ssh/inner", "db.internal "+inner.HostKey+"\n", 0o600)
	before := w.settled(t)
	w.configure(t, `<profiles>`+w.profile("gw")+`</profiles>
<static-tunnels>
 <tunnel listen-port="8080" dst-host="db.internal" dst-port="80" profile="gw"/>
 <tunnel type="socks" listen-port="1080" profile="gw"/>
 <tunnel type="socks-proxy" listen-port="1081" dst-port="0" profile=""/>
 <tunnel type="http-connect" listen-port="3128"/>
</static-tunnels>
<filter-engine><rule host="db\.internal" ports="22,80" action="TUNNEL" profile-id="gw"/><rule ip-address=".*" action="BLOCK"/></filter-engine>`)
	expect(t, w.ctl(t, "start"), 0)
	wire := w.Client.Capture(t, "to-server")
	run := func(args ...string) netns.Result {
		return w.Client.Run(t, netns.Cmd{Args: args, User: w.Alice, Stdin: strings.NewReader("")})
	}
	curl := func(args ...string) netns.Result {
		return run(append([]string{"curl", "-sS", "--max-time", "20"}, args...)...)
	}
	known := 0 // a program that ends before it was found has no name in its record
	for i, args := range [][]string{
		{"http://127.0.0.1:8080/"},
		{"--socks5-hostname", "127.0.0.1:1080", "http://db.internal/"},
		{"--socks4a", "127.0.0.1:1081", "http://db.internal/"},
		{"--socks5-hostname", "127.0.0.1:1081", "http://db.internal/"},
		{"-p", "-x", "http://127.0.0.1:3128", "http://db.internal/"},
	} {
		requireText(t, curl(args...), marker)
		r := w.awaitRecords(t, i+1)[i]
		if r.Reason != "carried" || r.Target != "db.internal:80" || r.Program != "" && filepath.Base(r.Program) != "curl" {
			t.Errorf("%v: recorded %+v", args, r)
		}
		if r.Program != "" {
			known++
		}
	}
	if known == 0 {
		t.Error("no record says which program it was")
	}
	for i, args := range [][]string{
		{"--socks5-hostname", "127.0.0.1:1081", "http://10.99.2.2/"},
		{"-p", "-x", "http://127.0.0.1:3128", "http://10.99.2.2/"},
	} {
		if r := curl(args...); r.Code == 0 {
			t.Errorf("%v: %v", args, r)
		}
		if r := w.awaitRecords(t, 6+i)[5+i]; r.Reason != "blocked" || r.Rule != 2 {
			t.Errorf("%v: recorded %+v", args, r)
		}
	}

	// Another user's program is reset, the broker's own user's is not.
	if r := w.Client.Run(t, netns.Cmd{Args: []string{"curl", "-sS", "--max-time", "20", "http://127.0.0.1:8080/"}, User: w.Bob}); r.Code == 0 {
		t.Errorf("Bob: %v", r)
	}

	// connect, by itself and as the way of a real ssh.
	r := w.Client.Run(t, netns.Cmd{Args: []string{w.Ctl, "connect", "db.internal", "80"}, User: w.Alice,
		Stdin: strings.NewReader("GET / HTTP/1.0\r\n\r\n")})
	requireText(t, r, marker)
	if r := run(w.Ctl, "connect", "10.99.2.2", "80"); r.Code != 1 || !strings.Contains(r.Stderr, "BLOCK") {
		t.Errorf("blocked: %v", r)
	}
	requireText(t, run("ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "UserKnownHostsFile="+w.Alice.Path(".ssh/inner"),
		"-o", fmt.Sprintf("ProxyCommand=%s connect %%h %%p", w.Ctl), "db.internal", "echo", "over", "ssh"), "over ssh")

	list := expect(t, w.ctl(t, "list-tunnel-listeners"), 0)
	requireText(t, list, "127.0.0.1:3128")
	if wire.Contains(t, []byte(marker)) {
		t.Error("the page went in clear")
	}
	w.requireNoneTo(t, wire, 80)
	w.finish(t, before)
}

// TestCorpusEmailGatewaySOCKS is the mail example where it says that the site reaches the
// world through a SOCKS4 server: the gateway is outside, and only that server gets there.
func TestCorpusEmailGatewaySOCKS(t *testing.T) {
	netns.RequireProgram(t, "curl", "curl")
	danted := netns.RequireProgram(t, "danted", "dante-server")
	w := newBastionWorld(t, netns.SSHDOptions{Port: 2200})
	gateway := w.Server.StartSSHD(t, netns.SSHDOptions{Users: w.account(t, w.Server, "mailuser")})
	const outside = "192.0.2.34" // not of 10.0.0.0/8, which is reached directly
	root(t, w.Server, "ip addr add "+outside+"/32 dev lo")
	conf := filepath.Join(t.TempDir(), "danted.conf")
	if err := os.WriteFile(conf, []byte(`logoutput: stdout
internal: 10.99.1.2 port = 1080
external: lo
clientmethod: none
socksmethod: none
user.privileged: root
user.unprivileged: nobody
client pass {
  from: 10.0.0.0/8 to: 0.0.0.0/0
}
socks pass {
  from: 10.0.0.0/8 to: 192.0.2.0/24
  protocol: tcp
  log: connect
}
`), 0o644); err != nil {
		t.Fatal(err)
	}
	socks := w.Server.Start(t, netns.Cmd{Args: []string{danted, "-f", conf, "-p", filepath.Join(filepath.Dir(conf), "pid")}, Limit: -1})
	socks.WaitFor(t, "running")
	w.Server.AllowOnly(t, netns.Reset, 1080)
	hosts(t, w.Client, outside+" host1234", "10.99.1.2 socks.example.com", "10.99.2.2 mail.example.com")
	hosts(t, w.Server, "10.99.2.2 mail.example.com")
	w.Alice.Write(t, ".ssh/known_hosts", "host1234 "+gateway.HostKey+"\n", 0o600)
	lineServer(t, w.Inner, 143, "* OK", "*CAPABILITY*", "* CAPABILITY IMAP4rev1\n'\"$tag\"' OK", "*LOGIN*", "'\"$tag\"' OK", "*LIST*", "* LIST () \"/\" IMAP-MARKER\n'\"$tag\"' OK", "*LOGOUT*", "'\"$tag\"' OK")
	w.corpusFile(t, "email-gateway.xml")
	near := w.Client.Capture(t, "to-server")

	requireText(t, w.Client.Run(t, w.capture("curl", "-sS", "--max-time", "20", "imap://u:secret@mail.example.com/")), "IMAP-MARKER")
	if rec := w.awaitRecords(t, 1)[0]; rec.Reason != "carried" || rec.Server != "mailuser@host1234:22" || rec.Target != "mail.example.com:143" {
		t.Errorf("recorded %+v", rec)
	}
	socks.WaitFor(t, outside+".22")
	if near.Contains(t, []byte("IMAP-MARKER")) {
		t.Error("the mail went in clear")
	}
	w.requireNoneTo(t, near, 22) // but through the SOCKS server
	w.requireNoneTo(t, near, 143)
	w.stopBroker(t, w.Alice)
}
