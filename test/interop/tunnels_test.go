package interop

import (
	"crypto/rand"
	"fmt"
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
	for i, args := range [][]string{
		{"http://127.0.0.1:8080/"},
		{"--socks5-hostname", "127.0.0.1:1080", "http://db.internal/"},
		{"--socks4a", "127.0.0.1:1081", "http://db.internal/"},
		{"--socks5-hostname", "127.0.0.1:1081", "http://db.internal/"},
		{"-p", "-x", "http://127.0.0.1:3128", "http://db.internal/"},
	} {
		requireText(t, curl(args...), marker)
		if r := w.awaitRecords(t, i+1)[i]; r.Reason != "carried" || r.Target != "db.internal:80" || r.Program == "" {
			t.Errorf("%v: recorded %+v", args, r)
		}
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
