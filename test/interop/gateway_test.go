package interop

// What issue 6 wants shown of the client's side: real programs through an ssh-gateway by
// each way there is, of which the wire shows TLS; what a program sees where the gateway
// does not take its user's certificate; and records that join.

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"sshbroker/broker/control"
	"sshbroker/broker/gateway/gatewaytest"
	"sshbroker/test/netns"
	"sshbroker/test/programs/desktop"
	"sshbroker/test/sut"
)

// gatewayWorld has an ssh-gateway on the server in place of sshd. Bob runs it.
type gatewayWorld struct {
	*world
	gateway *netns.Gateway
}

// everything is a collection of all that is behind the gateway.
const everything = `
  - name: everything
    description: What the client names
    backend:
      http_connect: true
      allow_patterns:
        - {hostnames: ["*.internal"], cidrs: [10.99.2.0/24]}
        - {cidrs: [10.99.2.0/24, "fd99:2::/64"]}
      exclude_patterns: [{hostnames: [payroll.internal]}]
    client: {port: 8081}
    policy: staff
`

// newGatewayWorld has a machine behind the gateway, which offers these services.
func newGatewayWorld(t *testing.T, services string) *gatewayWorld {
	t.Helper()
	w := &gatewayWorld{world: equip(t, netns.NewBastion(t))}
	w.gateway = w.Server.StartGateway(t, sut.Program(t, "ssh-gateway"), w.Bob, services, "limits: {drain_timeout: 1s}")
	w.gateway.Trust(t, w.Alice)
	w.Server.AllowOnly(t, netns.Reset, netns.GatewayPort)
	return w
}

// gatewayRecord is a line of the gateway's audit file.
type gatewayRecord struct {
	Event   string   `json:"event"`
	FlowID  string   `json:"flow_id"`
	Carrier string   `json:"carrier"`
	Emails  []string `json:"emails"`
	Program string   `json:"program"`
	Host    string   `json:"host"`
	Port    uint16   `json:"port"`
	Service string   `json:"service"`
	Reason  string   `json:"reason"`
	Error   string   `json:"error"`
	Down    int64    `json:"bytes_down"`
	Up      int64    `json:"bytes_up"`
}

func (w *gatewayWorld) gatewayRecords(t *testing.T) (list []gatewayRecord) {
	t.Helper()
	text, err := os.ReadFile(w.Bob.Path("audit.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(text) {
		if !bytes.HasSuffix(line, []byte("\n")) {
			break // it is being written
		}
		var r gatewayRecord
		if err := json.Unmarshal(line, &r); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		list = append(list, r)
	}
	return list
}

// joined is the gateway's last record of a flow.
func (w *gatewayWorld) joined(t *testing.T, r record) (found gatewayRecord) {
	t.Helper()
	eventually(t, "the gateway's record of flow "+r.FlowID, func() bool {
		for _, g := range w.gatewayRecords(t) {
			if r.FlowID != "" && g.FlowID == r.FlowID && g.Event != "open" {
				found = g
				return true
			}
		}
		return false
	})
	return found
}

// requireJoined fails the test unless the gateway has a record for each of the broker's,
// that tells the same of it, and no other.
func (w *gatewayWorld) requireJoined(t *testing.T) {
	t.Helper()
	w.awaitStatus(t, "the end of all flows, and their records", func(s control.StatusRow) bool { return s.FlowsLive == 0 && s.Audit.Pending == 0 })
	ids := map[string]bool{}
	for _, r := range w.records(t) {
		g := w.joined(t, r)
		ids[r.FlowID] = true
		if target := netJoin(g.Host, g.Port); g.Reason != "carried" || r.Reason != "carried" || g.Carrier != "mux" || !slices.Equal(g.Emails, []string{"ann@example.com"}) ||
			g.Up != r.BytesUp || g.Down != r.BytesDown || r.Target != target && r.Target != "service "+g.Service || r.Server != w.gateway.Addr.String() {
			t.Errorf("recorded here  %+v\nrecorded there %+v", r, g)
		}
		if g.Program != "" && g.Program != r.Program {
			t.Errorf("flow %s is of %s here and of %s there", r.FlowID, r.Program, g.Program)
		}
	}
	if len(ids) == 0 {
		t.Error("there is no record")
	}
	for _, g := range w.gatewayRecords(t) {
		if g.FlowID != "" && !ids[g.FlowID] {
			t.Errorf("nothing of it here: %+v", g)
		}
	}
}

// requireOnlyTLS fails the test if anything was on the wire but TLS with the gateway.
func (w *gatewayWorld) requireOnlyTLS(t *testing.T, wire *netns.Wire) {
	t.Helper()
	requireOnly(t, wire, w.gateway.Addr)
	for _, s := range wire.Streams(t) {
		for at := 0; at < len(s.Bytes); { // record after record, RFC 8446 section 5.1
			b := s.Bytes[at:]
			if len(b) < 5 || b[0] < 20 || b[0] > 23 || b[1] != 3 {
				if len(b) >= 5 {
					t.Errorf("%v to %v is no record of TLS: %x", s.Src, s.Dst, b[:5])
				}
				break
			}
			at += 5 + int(b[3])<<8 + int(b[4])
		}
	}
}

// TestGatewayPrograms has captured programs reach what only the gateway does. Behind it
// their words are found on the wire, before it there is TLS alone.
func TestGatewayPrograms(t *testing.T) {
	for _, p := range []string{"curl", "git"} {
		netns.RequireProgram(t, p, p)
	}
	w := newGatewayWorld(t, everything+`
  - name: db
    backend: {target: {name: db.internal, port: 5432}}
    client: {port: 15432, allow_override: false}
    policy: staff
`)
	marker := "MARKER-" + rand.Text()
	www := startNginx(t, w.Inner, marker)
	root(t, w.Inner, `
cd '`+www+`'
export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.com GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@example.com
git init -q -b main work && cd work && head -c 2000000 /dev/urandom >file && git add file && git commit -q -m '`+marker+`'
git clone -q --bare . ../repo.git && git -C ../repo.git update-server-info
`)
	telnetd := w.Inner.StartTelnetd(t, 23)
	pg := w.newPostgres(t)
	pg.start(t, w.world, w.Inner, "*")
	before := w.settled(t)
	w.configure(t, `<profiles>`+w.gateway.Profile("gw", "")+`</profiles>
<static-tunnels>
 <tunnel listen-port="15432" profile="gw" service="db"/>
 <tunnel listen-port="15433" profile="gw" dst-host="db.internal" dst-port="5432"/>
 <tunnel type="http-connect-chain" listen-port="8081" profile="gw"/>
 <tunnel type="http-connect" listen-port="8082"/>
 <tunnel type="socks-proxy" listen-port="1080"/>
</static-tunnels>
<filter-engine><rule host=".*\.internal" pseudo-ip="yes" action="TUNNEL" profile-id="gw"/><rule ip-address="10.99.2.0/24" action="TUNNEL" profile-id="gw"/></filter-engine>`)
	expect(t, w.ctl(t, "start"), 0)
	near, far := w.Client.Capture(t, "to-server"), w.Inner.Capture(t, "to-server")
	run := func(args ...string) netns.Result {
		return w.Client.Run(t, netns.Cmd{Args: args, User: w.Alice, Stdin: strings.NewReader("")})
	}

	t.Run("curl", func(t *testing.T) {
		for _, host := range []string{"db.internal", "10.99.2.2"} {
			requireText(t, w.Client.Run(t, w.capture("curl", "-sS", "--max-time", "20", "http://"+host+"/")), marker)
		}
	})
	t.Run("telnet", func(t *testing.T) {
		said, _ := w.talk(t, telnetd, w.capture("telnet", "db.internal"))
		requireAbsent(t, near, said)
		for _, text := range said {
			if !far.Contains(t, []byte(text)) {
				t.Errorf("%q is not on the wire behind the gateway", text)
			}
		}
	})
	t.Run("git", func(t *testing.T) {
		r := w.Client.Run(t, w.capture("sh", "-c", `git clone -q http://db.internal/repo.git "$0" && git -C "$0" log --format=%s && git -C "$0" fsck --full`, w.Alice.Path("clone")))
		requireText(t, r, marker)
	})
	const sql = "select 'SQL-' || current_setting('cluster_name')"
	t.Run("psql", func(t *testing.T) {
		requireText(t, w.Client.Run(t, w.capture("psql", "-X", "-h", "db.internal", "-U", "postgres", "-Atc", sql)), "SQL-of-inner")
		for _, port := range []string{"15432", "15433"} {
			requireText(t, run("psql", "-X", "-h", "127.0.0.1", "-p", port, "-U", "postgres", "-Atc", sql), "SQL-of-inner")
		}
		r := w.Client.Run(t, w.capture("psql", "-X", "-h", "db.internal", "-U", "postgres", "-Atc", "copy (select i, md5(i::text) from generate_series(1, 100000) i) to stdout"))
		if lines := strings.Count(r.Stdout, "\n"); r.Code != 0 || lines != 100_000 {
			t.Errorf("%d lines: %v", lines, r.Stderr)
		}
	})
	t.Run("proxies", func(t *testing.T) {
		for _, args := range [][]string{
			{"-p", "-x", "http://127.0.0.1:8081"}, {"-p", "-x", "http://127.0.0.1:8082"}, {"--socks5-hostname", "127.0.0.1:1080"},
		} {
			requireText(t, run(append([]string{"curl", "-sS", "--max-time", "20", "http://db.internal/"}, args...)...), marker)
		}
		r := w.Client.Run(t, netns.Cmd{Args: []string{w.Ctl, "connect", "db.internal", "80"}, User: w.Alice, Stdin: strings.NewReader("GET / HTTP/1.0\r\n\r\n")})
		requireText(t, r, marker)
		if r := w.Client.Run(t, netns.Cmd{Args: []string{"curl", "-sS", "--max-time", "20", "-p", "-x", "http://127.0.0.1:8081", "http://db.internal/"}, User: w.Bob}); r.Code == 0 {
			t.Errorf("another user's program was let in: %v", r)
		}
	})
	t.Run("services", func(t *testing.T) {
		r := expect(t, w.ctl(t, "services", "--wide", "-v"), 0)
		for _, want := range []string{"db.internal:5432", "127.0.0.1:15432", "8081 or another", "*.internal", "open-tunnel-listener 15432 gw --type tcp --service db"} {
			requireText(t, r, want)
		}
	})
	requireText(t, w.ctl(t, "list-connections", "-v"), "cipher TLS_")
	for _, text := range []string{marker, "SQL-of-inner"} {
		requireHidden(t, near, far, text)
	}
	w.requireOnlyTLS(t, near)
	w.requireJoined(t)
	w.finishBeside(t, before, "postgres")
}

// TestGatewayDesktop is a long-lived binary flow in the shape of RDP, captured: bursts in
// both directions, and silence in which keepalives alone are on the wire.
func TestGatewayDesktop(t *testing.T) {
	w := newGatewayWorld(t, everything)
	rounds, idle := 400, 2500*time.Millisecond
	if long() {
		rounds, idle = 20_000, 70*time.Second
	}
	l := w.Inner.Listen(t, "tcp", "10.99.2.2:3389")
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				desktop.Serve(c, rounds, idle)
			}()
		}
	}()
	before := w.settled(t)
	w.configure(t, `<profiles>`+w.gateway.Profile("gw", `<keepalive-interval time="1"/><idle-timeout time="1"/>`)+`</profiles>
<filter-engine><rule ip-address=".*" action="TUNNEL" profile-id="gw"/></filter-engine>`)
	near := w.Client.Capture(t, "to-server")
	requireText(t, w.Client.Run(t, w.capture(w.Testprog, "desktop", "10.99.2.2:3389")), "ok desktop")
	w.awaitRecords(t, 1)
	w.requireJoined(t)
	w.requireOnlyTLS(t, near)
	w.finish(t, before)
}

// TestGatewayKubectl is TestKubectl through a gateway, where https_proxy and proxy-url
// lead to a chain, and no rule has to say anything.
func TestGatewayKubectl(t *testing.T) {
	kubectl := netns.RequireProgram(t, "kubectl", "kubernetes-client")
	w := newGatewayWorld(t, `
  - name: cluster
    kind: kubernetes
    backend:
      http_connect: true
      dns_overrides: {api.internal: 10.99.2.2}
      allow_patterns: [{hostnames: [api.internal], ports: {port_list: [6443]}}]
    client: {port: 8082}
    policy: staff
`)
	marker := "MARKER-" + rand.Text()
	api := startKubeAPI(t, w.Inner, marker)
	before := w.settled(t)
	w.configure(t, `<profiles>`+w.gateway.Profile("gw", "")+`</profiles>
<static-tunnels><tunnel type="http-connect-chain" listen-port="8082" profile="gw" service="cluster"/></static-tunnels>
<filter-engine><rule host="api\.internal" pseudo-ip="yes" action="TUNNEL" profile-id="gw"/></filter-engine>`)
	w.Alice.Write(t, ".kube/config", api.config(), 0o600)
	expect(t, w.ctl(t, "start"), 0)
	near := w.Client.Capture(t, "to-server")
	plain := netns.Cmd{Args: []string{kubectl, "--request-timeout=10s"}, User: w.Alice}
	if r := w.Client.Run(t, with(plain, "--request-timeout=3s", "get", "--raw", "/marker")); r.Code == 0 {
		t.Fatalf("the API is reached without a tunnel: %v", r)
	}
	proxied, captured := plain, plain
	proxied.Env = []string{"https_proxy=http://127.0.0.1:8082"}
	captured.Args = append([]string{w.Capture}, plain.Args...)
	t.Run("https_proxy", func(t *testing.T) { w.useKubectl(t, api, proxied, marker) })
	t.Run("ssh-capture", func(t *testing.T) { w.useKubectl(t, api, captured, marker) })
	t.Run("proxy-url", func(t *testing.T) {
		requireText(t, w.ctl(t, "kubeconfig", "set", "prod", "--profile", "gw"), "goes through profile gw, by http://127.0.0.1:8082\n")
		w.useKubectl(t, api, plain, marker)
		expect(t, w.ctl(t, "kubeconfig", "unset", "prod"), 0)
		if text, err := os.ReadFile(w.Alice.Path(".kube/config")); err != nil || string(text) != api.config() {
			t.Errorf("undone it is %s, %v", text, err)
		}
	})
	w.requireJoined(t)
	w.requireOnlyTLS(t, near)
	w.finish(t, before)
}

// TestGatewayRefusals has a captured program see a failed connect() where the gateway
// does not take the certificate, or does not let the flow through, and both ends say why.
func TestGatewayRefusals(t *testing.T) {
	w := newGatewayWorld(t, everything)
	served := w.serveInside(t, w.Inner, 8000)
	defer served.Kill(t)
	stranger := gatewaytest.NewAuthority(t, "another authority", nil)
	template := func(change func(*x509.Certificate)) tls.Certificate {
		c := gatewaytest.ClientTemplate("ann@example.com")
		change(c)
		return w.gateway.CA.Sign(c)
	}
	revoked := w.gateway.CA.Client("ann@example.com")
	w.configure(t, `<profiles>`+w.gateway.Profile("gw", "")+`</profiles>
<filter-engine><rule host=".*\.internal" pseudo-ip="yes" action="TUNNEL" profile-id="gw"/><rule ip-address=".*" action="TUNNEL" profile-id="gw"/></filter-engine>`)
	// The gateway's own list; it is read again by itself.
	w.gateway.Configure(t, everything, "crl: crl.pem")
	w.Bob.Write(t, "crl.pem", string(w.gateway.CA.List(nil)), 0o600)
	w.gateway.Process.Signal(t, syscall.SIGHUP)
	w.gateway.Process.WaitFor(t, "generation=2")

	near := w.Client.Capture(t, "to-server")
	connect := func(t *testing.T, target string) (string, record) {
		t.Helper()
		n := len(w.records(t))
		r := w.Client.Run(t, w.capture(w.Testprog, "connect", target))
		return r.Stdout, w.awaitRecords(t, n+1)[n]
	}
	fresh := func(t *testing.T, pair tls.Certificate) {
		t.Helper()
		w.stopBroker(t, w.Alice)
		w.gateway.WritePair(t, w.Alice, ".ssh2/gateway", pair)
	}
	for _, tc := range []struct {
		name         string
		pair         tls.Certificate
		reason, says string
		there        string // in the gateway's log; "": we do not show such a certificate
	}{
		{"expired", template(func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
		}), "profile-error", "expired", ""},
		{"of another authority", stranger.Client("ann@example.com"), "auth-failed", "unknown", "outcome=unknown-authority"},
		{"without the usage", template(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), "profile-error", "it lacks the extended key usage clientAuth", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			fresh(t, tc.pair)
			out, r := connect(t, "10.99.2.2:8000")
			if !strings.Contains(out, "EHOSTUNREACH") || r.Reason != tc.reason || !strings.Contains(r.Error, tc.says) {
				t.Errorf("the program: %s\nrecorded %+v", out, r)
			}
			if tc.there != "" {
				w.gateway.Process.WaitFor(t, tc.there)
			}
		})
	}
	t.Run("revoked", func(t *testing.T) {
		fresh(t, revoked)
		// It is good, and there is a session that could be resumed.
		if out, r := connect(t, "10.99.2.2:8000"); !strings.Contains(out, " ok") || r.Reason != "carried" {
			t.Fatalf("before it is revoked: %s, %+v", out, r)
		}
		w.Bob.Write(t, "crl.pem", string(w.gateway.CA.List(nil, revoked.Leaf)), 0o600)
		w.gateway.Process.Signal(t, syscall.SIGHUP)
		w.gateway.Process.WaitFor(t, "generation=3")
		// The gateway has ended the connection. The way rests, then it is tried anew, with
		// what the broker kept of the session.
		eventually(t, "the refusal", func() bool {
			out, r := connect(t, "10.99.2.2:8000")
			if !strings.Contains(out, "EHOSTUNREACH") {
				t.Fatalf("the program: %s\nrecorded %+v", out, r)
			}
			return r.Reason == "auth-failed" && strings.Contains(r.Error, "revoked")
		})
		requireText(t, w.ctl(t, "list-connections"), "revoked")
		w.gateway.Process.WaitFor(t, "outcome=revoked")
	})
	t.Run("excluded", func(t *testing.T) {
		fresh(t, w.gateway.CA.Client("ann@example.com"))
		out, r := connect(t, "payroll.internal:8000")
		if !strings.Contains(out, "EHOSTUNREACH") || r.Reason != "prohibited" || !strings.Contains(r.Error, "is excluded") {
			t.Errorf("the program: %s\nrecorded %+v", out, r)
		}
		if g := w.joined(t, r); g.Reason != "excluded" || g.Event != "refused" {
			t.Errorf("recorded there %+v", g)
		}
		out, r = connect(t, "10.99.2.2:8001")
		if !strings.Contains(out, "ECONNREFUSED") || r.Reason != "refused-by-destination" {
			t.Errorf("a closed port: %s\nrecorded %+v", out, r)
		}
	})
	w.requireOnlyTLS(t, near)
}

// TestGatewayKilled kills the gateway under a captured load, and starts it again: what
// was open is reset, what comes later is carried, and the broker has one record of each.
func TestGatewayKilled(t *testing.T) {
	w := newGatewayWorld(t, everything)
	w.serveInside(t, w.Inner, echoPort)
	w.configure(t, `<profiles>`+w.gateway.Profile("gw", "")+`</profiles>
<filter-engine><rule ip-address=".*" action="TUNNEL" profile-id="gw"/></filter-engine>`)
	target := netJoin("10.99.2.2", echoPort)
	const live = 50
	script := fmt.Sprintf(`for i in $(seq %d); do %s exchange -timeout 50s await %s & done; wait`, live, w.Testprog, target)
	p := w.Client.Start(t, w.capture("bash", "-c", script))
	w.awaitFlows(t, live)
	eventually(t, "all to be established", func() bool { return strings.Count(p.Stdout(), "established") == live })
	w.gateway.Process.Kill(t)
	p.Wait(t)
	if n := strings.Count(p.Stdout(), "ECONNRESET"); n != live {
		t.Errorf("%d of %d programs saw a reset:\n%s", n, live, p.Stdout())
	}
	lost := w.awaitRecords(t, live)
	for _, r := range lost {
		if r.Reason != "carried" || r.DownEnd != "reset-by-far" || !strings.Contains(r.Error, "transport lost") {
			t.Errorf("recorded %+v", r)
		}
	}
	r := w.Client.Run(t, w.capture(w.Testprog, "connect", target))
	if !strings.Contains(r.Stdout, "EHOSTUNREACH") {
		t.Errorf("while there is no gateway: %v", r)
	}
	w.gateway.Start(t)
	eventually(t, "the gateway to be used again", func() bool {
		r := w.Client.Run(t, w.capture(w.Testprog, "exchange", "echo", target))
		return r.Code == 0
	})
	opens, ids := map[string]bool{}, map[string]bool{}
	for _, g := range w.gatewayRecords(t) {
		if g.Event == "open" {
			opens[g.FlowID] = true
		}
	}
	for _, r := range w.records(t) {
		if r.FlowID == "" || ids[r.FlowID] {
			t.Errorf("flow id %q: %+v", r.FlowID, r)
		}
		ids[r.FlowID] = true
		if carried := r.BytesDown > 0; carried && !opens[r.FlowID] {
			t.Errorf("the gateway did not record flow %s before it began", r.FlowID)
		}
	}
	for id := range opens {
		if !ids[id] {
			t.Errorf("the broker knows nothing of flow %s", id)
		}
	}
}
