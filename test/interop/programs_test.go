package interop

// Item 6 of the issue: real programs against their real servers behind a bastion. Their
// outputs and exit codes are those of an uncaptured run.

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"net/http/cgi"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"sshbroker/test/netns"
)

// timing is what differs between two runs of the same failure.
var timing = regexp.MustCompile(`after \d+ ms`)

// date is the header of an HTTP answer: the two runs may be a second apart.
var date = regexp.MustCompile(`(?m)^Date: .*$`)

// same runs a command as Alice twice: captured on the client, and uncaptured on the
// server, which reaches the inner network by itself. Exit code and output have to be
// equal. What it returns is the captured run.
func (w *world) same(t *testing.T, args ...string) netns.Result {
	t.Helper()
	return w.sameWith(t, "", args...)
}

func (w *world) sameWith(t *testing.T, stdin string, args ...string) netns.Result {
	t.Helper()
	c := w.capture(append([]string{"--via", w.via(w.Alice)}, args...)...)
	c.Stdin = strings.NewReader(stdin)
	got := w.Client.Run(t, c)
	want := w.Server.Run(t, netns.Cmd{Args: args, User: w.Alice, Stdin: strings.NewReader(stdin)})
	text := func(r netns.Result) string {
		all := fmt.Sprintf("exit %d %v\nstdout: %s\nstderr: %s", r.Code, r.Signal, r.Stdout, r.Stderr)
		return date.ReplaceAllString(timing.ReplaceAllString(all, "after N ms"), "Date: now")
	}
	if text(got) != text(want) {
		t.Errorf("%s\ncaptured:   %s\nuncaptured: %s", strings.Join(args, " "), text(got), text(want))
	}
	return got
}

// requireText fails the test unless a program that ended well has said text.
func requireText(t *testing.T, r netns.Result, text string) {
	t.Helper()
	if r.Code != 0 || !strings.Contains(r.Stdout, text) {
		t.Errorf("want %q: %v", text, r)
	}
}

// finish stops the broker and requires that nothing is left.
func (w *world) finish(t *testing.T, before netns.Snapshot) {
	t.Helper()
	w.stopBroker(t, w.Alice)
	w.RequireRestored(t, before, settle)
}

// startNginx serves pages on port 80 of both families; each has the marker in it.
func startNginx(t *testing.T, m *netns.Machine, marker string) (root string) {
	t.Helper()
	path := netns.RequireProgram(t, "nginx", "nginx-light")
	dir := t.TempDir()
	for d := dir; d != "/tmp" && d != "/"; d = filepath.Dir(d) { // its workers are not root
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	root = filepath.Join(dir, "www")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "index.html"), []byte(marker+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(dir, "nginx.conf")
	text := strings.ReplaceAll(`daemon off; pid @/pid; error_log stderr notice; worker_processes 1;
events { worker_connections 512; }
http {
	access_log off; client_body_temp_path @/body; proxy_temp_path @/proxy; fastcgi_temp_path @/fastcgi;
	uwsgi_temp_path @/uwsgi; scgi_temp_path @/scgi;
	server { listen 80; listen [::]:80 ipv6only=on; root @/www; location /echo { return 200 "$request_uri\n"; } }
}
`, "@", dir)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	p := m.Start(t, netns.Cmd{Args: []string{path, "-e", "stderr", "-c", conf}, Limit: -1})
	p.WaitFor(t, "start worker process ")
	return root
}

// TestHTTPPrograms has every program that speaks HTTP here against nginx.
func TestHTTPPrograms(t *testing.T) {
	w := newBastionWorld(t, netns.SSHDOptions{})
	marker := "MARKER-" + rand.Text()
	www := startNginx(t, w.Inner, marker)
	big := strings.Repeat(rand.Text()+"\n", 200_000)
	if err := os.WriteFile(filepath.Join(www, "big"), []byte(big), 0o644); err != nil {
		t.Fatal(err)
	}
	root(t, w.Server, "ip route add unreachable 10.99.3.0/24")
	before := w.settled(t)
	urls := []string{"http://db.internal/", "http://10.99.2.2/", "http://[fd99:2::2]/"}

	t.Run("curl", func(t *testing.T) {
		netns.RequireProgram(t, "curl", "curl")
		for _, url := range urls {
			requireText(t, w.same(t, "curl", "-sS", "-w", "%{http_code} %{num_connects}", url), marker)
		}
		// Two connections race; the loser is cancelled while it is held, or later.
		for range 5 {
			requireText(t, w.same(t, "curl", "-sS", "--happy-eyeballs-timeout-ms", "1",
				"--resolve", "both.test:80:10.99.2.2,[fd99:2::2]", "http://both.test/"), marker)
		}
		// The first address refuses, the second answers.
		requireText(t, w.same(t, "curl", "-sS", "--resolve", "both.test:80:[fd99:2::1],10.99.2.2", "http://both.test/"), marker)
		if r := w.same(t, "curl", "-sS", "http://10.99.2.2:81/"); r.Code != 7 {
			t.Errorf("a closed port: %v", r)
		}
		if r := w.same(t, "curl", "-sSf", "http://10.99.2.2/missing"); r.Code != 22 {
			t.Errorf("a page that is missing: %v", r)
		}
		requireText(t, w.same(t, "sh", "-c", "curl -sS http://db.internal/big | sha256sum"), " -")
		requireText(t, w.same(t, "curl", "-sS", "http://db.internal/echo?[1-40]"), "/echo?40")
		r := w.Client.Run(t, w.capture("--via", w.via(w.Alice), "curl", "-sS", "--parallel", "--parallel-max", "40", "http://db.internal/echo?[1-40]"))
		if lines := slices.Compact(slices.Sorted(strings.Lines(r.Stdout))); r.Code != 0 || len(lines) != 40 {
			t.Errorf("40 at once: %d different answers: %v", len(lines), r)
		}
	})
	t.Run("wget", func(t *testing.T) {
		netns.RequireProgram(t, "wget", "wget")
		for _, url := range urls {
			requireText(t, w.same(t, "wget", "-qO-", url), marker)
		}
		if r := w.same(t, "wget", "-qO-", "--tries=1", "http://10.99.2.2:81/"); r.Code != 4 {
			t.Errorf("a closed port: %v", r)
		}
	})
	t.Run("python", func(t *testing.T) {
		netns.RequireProgram(t, "python3", "python3")
		requireText(t, w.same(t, "python3", "-c", `
import http.client, socket, urllib.request
for host in 'db.internal', '10.99.2.2', '[fd99:2::2]':
    c = http.client.HTTPConnection(host, timeout=10)
    for path in '/', '/echo?1', '/missing':
        c.request('GET', path)
        r = c.getresponse()
        print(host, r.status, r.read())
    c.close()
print(len(urllib.request.urlopen('http://db.internal/big').read()))
for address in ('10.99.2.2', 80), ('fd99:2::2', 80):
    s = socket.create_connection(address, 10)
    print(s.getpeername())
    s.sendall(b'GET / HTTP/1.0\r\n\r\n')
    s.shutdown(socket.SHUT_WR)
    print(s.makefile('rb').read().split(b'\r\n\r\n')[1])
    s.close()
for address in ('10.99.2.2', 81), ('fd99:2::2', 81), ('10.99.3.1', 80):
    try:
        socket.create_connection(address, 10)
    except OSError as e:
        print(address, e.errno, type(e).__name__)
`), marker)
	})
	t.Run("node", func(t *testing.T) {
		netns.RequireProgram(t, "node", "nodejs")
		requireText(t, w.same(t, "node", "-e", `
const http = require('http');
const get = url => new Promise(done => http.get(url, r => {
	let body = ''; r.on('data', d => body += d); r.on('end', () => done(url + ' ' + r.statusCode + ' ' + body));
}).on('error', e => done(url + ' ' + e.code + ' ' + e.syscall)));
(async () => {
	for (const url of ['`+strings.Join(urls, "', '")+`', 'http://10.99.2.2:81/', 'http://[fd99:2::2]:81/']) console.log(await get(url));
	console.log((await Promise.all([...Array(30).keys()].map(i => get('http://10.99.2.2/echo?' + i)))).join(''));
})();
`), marker)
	})
	t.Run("nc", func(t *testing.T) {
		netns.RequireProgram(t, "nc", "ncat")
		for _, host := range []string{"10.99.2.2", "fd99:2::2", "db.internal"} {
			requireText(t, w.sameWith(t, "GET / HTTP/1.0\r\n\r\n", "nc", host, "80"), marker)
		}
		if r := w.same(t, "nc", "10.99.2.2", "81"); r.Code == 0 {
			t.Errorf("a closed port: %v", r)
		}
	})
	t.Run("bash", func(t *testing.T) {
		requireText(t, w.same(t, "bash", "-c", `exec 3<>/dev/tcp/db.internal/80; printf 'GET / HTTP/1.0\r\n\r\n' >&3; sed 1,/^.$/d <&3`), marker)
	})
	w.finish(t, before)
}

// TestStaticGoProgram: nothing can be preloaded into it, and it resolves by itself.
func TestStaticGoProgram(t *testing.T) {
	w := newBastionWorld(t, netns.SSHDOptions{})
	server := w.Inner.Start(t, netns.Cmd{Args: []string{w.Testprog, "serve", ":7001"}, Limit: -1})
	server.WaitFor(t, "listening ")
	before := w.settled(t)
	for _, address := range []string{"db.internal:7001", "10.99.2.2:7001", "[fd99:2::2]:7001"} {
		for _, mode := range []string{"echo", "sink", "source", "late", "early"} {
			r := w.Client.Run(t, w.capture("--via", w.via(w.Alice), w.Testprog, "exchange", "-n", "1000000", mode, address))
			requireText(t, r, "ok "+mode)
		}
	}
	for _, nonblock := range []string{"-nonblock=false", "-nonblock=true"} {
		r := w.Client.Run(t, w.capture("--via", w.via(w.Alice), w.Testprog, "connect", nonblock, "-n", "20", "10.99.2.2:7001", "[fd99:2::2]:7002"))
		if strings.Count(r.Stdout, "10.99.2.2:7001 ok ") != 20 || strings.Count(r.Stdout, "[fd99:2::2]:7002 ECONNREFUSED ") != 20 {
			t.Errorf("connect %s: %v", nonblock, r)
		}
	}
	w.finish(t, before)
}

// TestGitOverHTTP clones and pushes by the smart protocol of git-http-backend, and
// clones by the dumb one from a plain web server.
func TestGitOverHTTP(t *testing.T) {
	netns.RequireProgram(t, "git", "git")
	w := newBastionWorld(t, netns.SSHDOptions{})
	www := startNginx(t, w.Inner, "index")
	root(t, w.Inner, `
cd '`+www+`'
export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.com GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@example.com
git init -q --bare -b main repo.git
git init -q -b main work && cd work
for i in $(seq 50); do head -c 20000 /dev/urandom >file$i; git add file$i; git commit -q -m "commit $i"; done
git push -q ../repo.git main
cd ../repo.git && git config http.receivepack true && git update-server-info
`)
	backend := filepath.Join(w.Inner.Output(t, nil, "git", "--exec-path"), "git-http-backend")
	if _, err := os.Stat(backend); err != nil {
		t.Fatal(err)
	}
	l := w.Inner.Listen(t, "tcp", ":8080")
	git := &cgi.Handler{Path: backend, Env: []string{"GIT_PROJECT_ROOT=" + www, "GIT_HTTP_EXPORT_ALL=1",
		"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"}}
	go http.Serve(l, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		// CGI wants the length of what git sends in chunks.
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(rw, err.Error(), http.StatusBadRequest)
			return
		}
		r.Body, r.ContentLength, r.TransferEncoding = io.NopCloser(bytes.NewReader(body)), int64(len(body)), nil
		git.ServeHTTP(rw, r)
	}))
	head := w.Inner.Output(t, nil, "git", "-c", "safe.directory=*", "-C", www+"/repo.git", "rev-parse", "main")
	before := w.settled(t)

	for i, url := range []string{"http://db.internal:8080/repo.git", "http://[fd99:2::2]:8080/repo.git", "http://db.internal/repo.git"} {
		requireText(t, w.same(t, "git", "ls-remote", url), head+"\trefs/heads/main")
		dir := w.Alice.Path(fmt.Sprintf("clone%d", i))
		requireText(t, w.same(t, "sh", "-c", `rm -rf "$1" && git clone -q "$2" "$1" && git -C "$1" rev-parse HEAD && git -C "$1" fsck --full`, "sh", dir, url), head)
	}
	r := w.Client.Run(t, w.capture("--via", w.via(w.Alice), "sh", "-ec", `
cd "$1"; git config user.name a; git config user.email a@example.com
head -c 3000000 /dev/urandom >more; git add more; git commit -q -m more; git push -q origin main; git rev-parse HEAD`, "sh", w.Alice.Path("clone0")))
	pushed := w.Inner.Output(t, nil, "git", "-c", "safe.directory=*", "-C", www+"/repo.git", "rev-parse", "main")
	if r.Code != 0 || strings.TrimSpace(r.Stdout) != pushed || pushed == head {
		t.Errorf("push: the server has %s: %v", pushed, r)
	}
	if r := w.same(t, "git", "clone", "-q", "http://10.99.2.2:81/none.git", w.Alice.Path("none")); r.Code != 128 {
		t.Errorf("a closed port: %v", r)
	}
	w.finish(t, before)
}

// postgres is a PostgreSQL server of a test's own.
type postgres struct{ bin, data string }

// newPostgres makes the files of a database cluster. Bob's, as it refuses to be root's.
func (w *world) newPostgres(t *testing.T) *postgres {
	t.Helper()
	netns.RequireProgram(t, "psql", "postgresql-client")
	bins, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if len(bins) == 0 {
		netns.RequireProgram(t, "postgres", "postgresql")
		t.FailNow()
	}
	p := &postgres{filepath.Dir(slices.Max(bins)), w.Bob.Path("pg")}
	w.Inner.Output(t, w.Bob, p.bin+"/initdb", "-D", p.data, "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C")
	w.Bob.Write(t, "pg/pg_hba.conf", "host all all all trust\n", 0o600)
	return p
}

func (p *postgres) start(t *testing.T, w *world, m *netns.Machine, addresses string) *netns.Process {
	t.Helper()
	s := m.Start(t, netns.Cmd{Args: []string{p.bin + "/postgres", "-D", p.data, "-h", addresses, "-k", "", "-F",
		"-c", "cluster_name=of-" + m.Name, "-c", "autovacuum=off"}, User: w.Bob, Limit: -1})
	s.WaitFor(t, "database system is ready to accept connections")
	return s
}

// stop is a fast shutdown.
func (p *postgres) stop(t *testing.T, s *netns.Process) {
	t.Helper()
	s.Signal(t, 2)
	s.Wait(t)
}

// TestPostgreSQL: behind the bastion, and on the client's own loopback.
func TestPostgreSQL(t *testing.T) {
	w := newBastionWorld(t, netns.SSHDOptions{})
	pg := w.newPostgres(t)
	far := pg.start(t, w, w.Inner, "*")
	before := w.settled(t)
	for _, host := range []string{"db.internal", "10.99.2.2", "fd99:2::2"} {
		requireText(t, w.same(t, "psql", "-h", host, "-U", "postgres", "-Atc", "select current_setting('cluster_name'), 6 * 7"), "of-inner|42")
	}
	if r := w.same(t, "psql", "-h", "db.internal", "-U", "postgres", "-v", "ON_ERROR_STOP=1", "-c", "select nonsense"); r.Code != 1 {
		t.Errorf("an error of SQL: %v", r)
	}
	if r := w.same(t, "psql", "-h", "10.99.2.2", "-p", "5433", "-U", "postgres", "-c", "select 1"); r.Code != 2 || !strings.Contains(r.Stderr, "Connection refused") {
		t.Errorf("a closed port: %v", r)
	}
	requireText(t, w.same(t, "sh", "-c", `psql -h db.internal -U postgres -Atc "copy (select i, md5(i::text) from generate_series(1, 200000) i) to stdout" | sha256sum`), " -")
	if r := w.same(t, "pg_isready", "-h", "db.internal"); r.Code != 0 {
		t.Errorf("pg_isready: %v", r)
	}

	// Ctrl-C has psql open a second connection to cancel the query of the first.
	c := w.capture("--via", w.via(w.Alice), "psql", "-h", "db.internal", "-U", "postgres", "-X", "-P", "pager=off")
	c.TTY = &terminal
	p := w.Client.Start(t, c)
	p.WaitFor(t, "postgres=#")
	p.Type(t, "select pg_sleep(100);\r")
	w.until(t, "the query runs", func() bool {
		return w.Server.Output(t, w.Alice, "psql", "-h", "10.99.2.2", "-U", "postgres", "-Atc",
			"select count(*) from pg_stat_activity where state = 'active' and query like 'select pg_sleep%'") == "1"
	})
	p.Type(t, "\x03")
	p.WaitFor(t, "canceling statement due to user request")
	p.Type(t, "\\q\r")
	if r := p.Wait(t); r.Code != 0 {
		t.Errorf("psql after Ctrl-C: %v", r)
	}
	pg.stop(t, far)

	// The client's own: what a capture calls localhost is the host's.
	near := pg.start(t, w, w.Client, "127.0.0.1,::1")
	w.configure(t, w.telnetRule())
	expect(t, w.ctl(t, "reload"), 0)
	for _, args := range [][]string{{"--via", w.via(w.Alice)}, {}} {
		for _, host := range []string{"localhost", "127.0.0.1", "::1"} {
			r := w.Client.Run(t, w.capture(append(args, "psql", "-h", host, "-U", "postgres", "-Atc", "select current_setting('cluster_name')")...))
			requireText(t, r, "of-client")
		}
	}
	pg.stop(t, near)
	w.stopBroker(t, w.Alice)
	// The server behind the bastion is gone since; nothing may have come.
	w.until(t, "nothing is left behind", func() bool {
		left := slices.DeleteFunc(w.Snapshot(t).Diff(before), func(line string) bool { return strings.HasPrefix(line, "- ") })
		return len(left) == 0
	})
}

// until waits for what has no event.
func (w *world) until(t *testing.T, what string, happens func() bool) {
	t.Helper()
	for end := time.Now().Add(settle); !happens(); {
		if time.Now().After(end) {
			t.Fatalf("waited in vain: %s", what)
		}
		<-time.After(10 * time.Millisecond)
	}
}

// TestRedis has its own client, one command and many at once.
func TestRedis(t *testing.T) {
	w := newBastionWorld(t, netns.SSHDOptions{})
	netns.RequireProgram(t, "redis-cli", "redis-tools")
	path := netns.RequireProgram(t, "redis-server", "redis-server")
	server := w.Inner.Start(t, netns.Cmd{Args: []string{path, "--port", "6379", "--bind", "0.0.0.0", "::", "--protected-mode", "no",
		"--save", "", "--appendonly", "no"}, User: w.Bob, Limit: -1})
	server.WaitFor(t, "Ready to accept connections")
	before := w.settled(t)
	for _, host := range []string{"db.internal", "10.99.2.2", "fd99:2::2"} {
		requireText(t, w.same(t, "redis-cli", "-h", host, "set", "key", "value of "+host), "OK")
		requireText(t, w.same(t, "redis-cli", "-h", host, "get", "key"), "value of "+host)
	}
	var many strings.Builder
	for i := range 20_000 {
		fmt.Fprintf(&many, "SET key:%d %d\r\n", i, i*i)
	}
	requireText(t, w.sameWith(t, many.String(), "redis-cli", "-h", "db.internal", "--pipe"), "errors: 0, replies: 20000")
	requireText(t, w.same(t, "redis-cli", "-h", "db.internal", "get", "key:1234"), "1522756")
	if r := w.same(t, "redis-cli", "-h", "10.99.2.2", "-p", "6380", "ping"); r.Code != 1 {
		t.Errorf("a closed port: %v", r)
	}
	w.finish(t, before)
}

// TestSSHItself goes inside the capture to the inner host. It reads the system's
// configuration, which is root's and shows as nobody's.
func TestSSHItself(t *testing.T) {
	netns.RequireProgram(t, "scp", "openssh-client")
	w := newBastionWorld(t, netns.SSHDOptions{})
	inner := w.Inner.StartSSHD(t, netns.SSHDOptions{})
	known := w.sshd.KnownHosts("server") + "alias-of-the-system " + inner.HostKey + "\n"
	w.Alice.Write(t, ".ssh/known_hosts", known, 0o600)
	for _, m := range []*netns.Machine{w.Client, w.Server} {
		root(t, m, `mount -t tmpfs -o mode=755 tmpfs /etc/ssh/ssh_config.d
cat >/etc/ssh/ssh_config.d/50-test.conf <<END
Host db.internal 10.99.2.2 fd99:2::2
	HostKeyAlias alias-of-the-system
	BatchMode yes
END
chmod 644 /etc/ssh/ssh_config.d/50-test.conf`)
	}
	before := w.settled(t)
	for _, host := range []string{"db.internal", "10.99.2.2", "fd99:2::2"} {
		r := w.same(t, "ssh", host, "hostname; whoami; exit 7")
		if r.Code != 7 || r.Stdout != "inner\n"+w.Alice.Name+"\n" {
			t.Errorf("ssh %s: %v", host, r)
		}
	}
	w.Alice.Write(t, "file", strings.Repeat(rand.Text(), 100_000), 0o600)
	requireText(t, w.same(t, "sh", "-c", `ssh db.internal cat file | cmp - file && scp -O -q db.internal:file copy && cmp file copy && echo equal`), "equal")
	if r := w.same(t, "ssh", "-p", "2222", "10.99.2.2", "true"); r.Code != 255 || !strings.Contains(r.Stderr, "Connection refused") {
		t.Errorf("a closed port: %v", r)
	}
	// A login with a terminal of its own, three deep: the test's, the capture's, the far one.
	c := w.capture("--via", w.via(w.Alice), "ssh", "-tt", "db.internal", "stty size; read -r line; echo got $line; exit 3")
	c.TTY = &terminal
	p := w.Client.Start(t, c)
	p.WaitFor(t, "24 80")
	p.Type(t, "words\r")
	p.WaitFor(t, "got words")
	if r := p.Wait(t); r.Code != 3 {
		t.Errorf("ssh -tt: %v", r)
	}
	w.finish(t, before)
}

// TestShellInATerminal is `ssh-capture bash`, with several programs one after the other
// and the keys that people press.
func TestShellInATerminal(t *testing.T) {
	w := newBastionWorld(t, netns.SSHDOptions{})
	marker := "MARKER-" + rand.Text()
	startNginx(t, w.Inner, marker)
	inner := w.Inner.StartSSHD(t, netns.SSHDOptions{})
	w.Alice.Write(t, ".ssh/known_hosts", w.sshd.KnownHosts("server")+"db.internal "+inner.HostKey+"\n", 0o600)
	before := w.settled(t)
	c := w.capture("--via", w.via(w.Alice), "bash", "--norc", "-i")
	c.TTY, c.Env = &terminal, []string{"PS1=at-your-service> "}
	p := w.Client.Start(t, c)
	step := 0
	// What is typed before the shell reads may be lost: after Ctrl-C it is.
	prompt := func() {
		t.Helper()
		w.until(t, "a prompt", func() bool { return strings.HasSuffix(p.Output(), "at-your-service> ") })
	}
	run := func(command, want string) {
		t.Helper()
		prompt()
		step++
		p.Type(t, fmt.Sprintf("%s; echo step-$?-$((%d))\r", command, step))
		said := p.WaitFor(t, fmt.Sprintf("-%d\r\n", step))
		if i := strings.LastIndex(said, "echo step-"); i < 0 || !strings.Contains(said[i:], want) {
			t.Errorf("%s: want %q in %q", command, want, said[max(i, 0):])
		}
	}
	run("curl -sS http://db.internal/", marker)
	run(`python3 -c 'import urllib.request as u; print(u.urlopen("http://10.99.2.2/").read())'`, marker)
	run(w.Testprog+" connect 10.99.2.2:80 10.99.2.2:81", "10.99.2.2:81 ECONNREFUSED")
	run("ssh db.internal hostname", "inner")
	run("(curl -sS http://db.internal/ | cat) & wait", marker)
	run("curl -sS http://10.99.2.2:81/", "step-7-6")
	run("stty size", "24 80")
	run("echo ${#SSH_CAPTURE}", "\r10\r\n")

	// Ctrl-C ends the program in front, not the shell and not the capture.
	prompt()
	p.Type(t, "sh -c 'echo reads-$((1)); exec cat'\r")
	p.WaitFor(t, "reads-1")
	p.Type(t, "hello there\r")
	p.WaitFor(t, "hello there\r\nhello there")
	p.Type(t, "\x03")
	p.WaitFor(t, "^C\r\n")
	run("true", "step-0-9")
	// Ctrl-Z stops it, fg continues it, Ctrl-D ends its input.
	prompt()
	p.Type(t, "sh -c 'echo reads-$((2)); exec cat'\r")
	p.WaitFor(t, "reads-2")
	p.Type(t, "once\r")
	p.WaitFor(t, "once\r\nonce")
	p.Type(t, "\x1a")
	p.WaitFor(t, "Stopped")
	run("jobs", "Stopped")
	prompt()
	told := len(p.Output())
	p.Type(t, "fg\r")
	// The shell tells the command line of what is in front again; it loses, captured or
	// not, what is typed before.
	w.until(t, "cat is in front", func() bool { return strings.Contains(p.Output()[told:], "exec cat'\r\n") })
	p.Type(t, "again\r")
	p.WaitFor(t, "again\r\nagain")
	p.Type(t, "\x04")
	run("curl -sS http://db.internal/", marker)
	prompt()
	p.Type(t, "exit 42\r")
	if r := p.Wait(t); r.Code != 42 {
		t.Errorf("the shell ended with %d, want 42", r.Code)
	}
	w.finish(t, before)
}

// TestLoopback: a listener inside comes first, then the host's own loopback; with -l
// the rules decide.
func TestLoopback(t *testing.T) {
	w := newWorld(t, netns.SSHDOptions{})
	lineServer(t, w.Client, 9001, "the client itself")
	lineServer(t, w.Server, 9001, "the server itself")
	before := w.settled(t)
	w.configure(t, "<profiles>"+w.profile("srv")+`</profiles>
<filter-engine><rule ip-address="127\.0\.0\.1" ports="9001" action="TUNNEL" profile-id="srv"/>
<rule ip-address="127\..*|::1" action="BLOCK"/><rule ip-address=".*" action="DIRECT"/></filter-engine>`)
	const script = `
import errno, socket, sys
def who(host, port):
    try:
        with socket.create_connection((host, port), 10) as s:
            return s.makefile('r').readline().strip()
    except OSError as e:
        return errno.errorcode[e.errno]
`
	ask := func(want string, args []string, body string) {
		t.Helper()
		r := w.python(t, args, script+body)
		if r.Code != 0 || strings.TrimSpace(r.Stdout) != want {
			t.Errorf("%v%s\nwant %s: %v", args, body, want, r)
		}
	}
	const hosts = "print(' | '.join(who(h, 9001) for h in ('localhost', '127.0.0.1', '::1', '127.0.0.2')))"
	ask("the client itself | the client itself | the client itself | the client itself", nil, hosts) // uncaptured
	ask("the client itself | the client itself | the client itself | the client itself", []string{}, hosts)
	ask("the client itself | the client itself | the client itself | the client itself", []string{"--via", w.via(w.Alice)}, hosts)
	ask("ECONNREFUSED ECONNREFUSED", []string{}, "print(who('localhost', 9002), who('::1', 9002))")
	for _, r := range w.flows(t, 10)[:4] {
		if r.Action != "DIRECT" || r.Rule != 0 || r.Reason != "direct" {
			t.Errorf("recorded %+v", r)
		}
	}
	// -l: 127.0.0.1 is tunneled, which ends at the server's own loopback, ::1 is blocked.
	ask("the server itself ECONNREFUSED", []string{"-l"}, "print(who('127.0.0.1', 9001), who('::1', 9001))")
	// A listener inside, also on a port that the host has.
	const inside = `
import threading
def serve(port):
    l = socket.create_server(('127.0.0.1', port))
    def run():
        while True:
            c, _ = l.accept()
            c.sendall(b'inside\n'); c.close()
    threading.Thread(target=run, daemon=True).start()
serve(9001); serve(9003)
print(who('127.0.0.1', 9001), who('127.0.0.1', 9003), who('localhost', 9003))
`
	ask("inside inside inside", []string{}, inside)
	ask("inside inside inside", []string{"--via", w.via(w.Alice)}, inside)
	ask("ECONNREFUSED", nil, "print(who('127.0.0.1', 9003))") // nothing of it outside
	w.finish(t, before)
}
