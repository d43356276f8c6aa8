package gateway

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"sshbroker/profiles"
	"sshbroker/test/programs/desktop"
)

// website answers with something of its own, and takes uploads.
func website(t *testing.T) net.Addr {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, "%s %s of %d bytes\n", r.Method, r.Host, n)
	}))
	t.Cleanup(s.Close)
	return s.Listener.Addr()
}

func (w *world) port() string { return w.addr[strings.LastIndexByte(w.addr, ':')+1:] }

// curlTo has curl connect to the gateway by a name.
func (w *world) curlTo(name string, args ...string) (string, error) {
	return command(w.t, "", append([]string{"curl", "-sS", "--max-time", "20", "--connect-to", name + ":" + w.port() + ":127.0.0.1:" + w.port()}, args...)...)
}

// As in the documents: curl with --cacert, --key and --cert straight to a service.
func TestCurlToService(t *testing.T) {
	requireProgram(t, "curl", "curl")
	w := newWorld(t, "", target("web", "web.test", website(t)))
	url := "https://web.test:" + w.port() + "/"
	out, err := w.curlTo("web.test", "--cacert", w.file("ca.pem"), "--key", w.file("anna.key"), "--cert", w.file("anna.pem"), url)
	if want := "GET web.test:" + w.port() + " of 0 bytes\n"; err != nil || out != want {
		t.Errorf("got %q, %v, want %q", out, err, want)
	}
	big := filepath.Join(t.TempDir(), "big")
	if err := os.WriteFile(big, make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err = w.curlTo("web.test", "--cacert", w.file("ca.pem"), "--key", w.file("anna.key"), "--cert", w.file("anna.pem"), "-T", big, url)
	if err != nil || !strings.Contains(out, "of 8388608 bytes") {
		t.Errorf("an upload: %q, %v", out, err)
	}
	out, err = w.curlTo("web.test", "--cacert", w.file("ca.pem"), url)
	if err == nil || !strings.Contains(out, "certificate required") {
		t.Errorf("without a certificate: %q, %v", out, err)
	}
	w.await("the upload", func(r record) bool {
		return r.Event == "close" && r.Carrier == "raw" && r.Service == "web" && r.Reason == "carried" && r.BytesUp > 8<<20
	})
}

// openssl s_client gets bytes as they are, and the end of the other side.
func TestOpenSSL(t *testing.T) {
	requireProgram(t, "openssl", "openssl")
	addr := serve(t, func(c *net.TCPConn) {
		io.WriteString(c, "220 server first\n")
		line := make([]byte, 6)
		if _, err := io.ReadFull(c, line); err == nil {
			fmt.Fprintf(c, "got %q\n", line)
		}
		c.CloseWrite()
		io.Copy(io.Discard, c)
	})
	w := newWorld(t, "", target("echo", "echo.test", addr))
	out, err := command(t, "hello\n", "openssl", "s_client", "-quiet", "-no_ign_eof", "-verify_return_error", "-servername", "echo.test",
		"-CAfile", w.file("ca.pem"), "-cert", w.file("anna.pem"), "-key", w.file("anna.key"), "-connect", w.addr)
	_ = err // the version decides what the end of input means
	ign, err := command(t, "hello\n", "openssl", "s_client", "-quiet", "-ign_eof", "-verify_return_error", "-servername", "echo.test",
		"-CAfile", w.file("ca.pem"), "-cert", w.file("anna.pem"), "-key", w.file("anna.key"), "-connect", w.addr)
	if err != nil || !strings.Contains(ign, "220 server first") || !strings.Contains(ign, `got "hello\n"`) {
		t.Errorf("got %q, %v (%q where it does not wait)", ign, err, out)
	}
	w.await("the flow", func(r record) bool {
		return r.Event == "close" && r.Carrier == "raw" && r.Reason == "carried" && r.BytesUp == 6
	})
}

// curl through the gateway as an HTTPS proxy with mutual TLS; refusals are told in HTTP.
func TestCurlThroughProxy(t *testing.T) {
	requireProgram(t, "curl", "curl")
	site := website(t)
	w := newWorld(t, "", collection)
	through := func(url string, more ...string) (string, error) {
		return command(t, "", append([]string{"curl", "-sS", "--max-time", "20", "-p", "--proxy", "https://" + w.addr,
			"--proxy-cacert", w.file("ca.pem"), "--proxy-cert", w.file("anna.pem"), "--proxy-key", w.file("anna.key"), url}, more...)...)
	}
	if out, err := through("http://" + site.String() + "/x"); err != nil || out != "GET "+site.String()+" of 0 bytes\n" {
		t.Errorf("got %q, %v", out, err)
	}
	out, err := through("http://192.0.2.1/", "-v")
	if err == nil || !strings.Contains(out, "HTTP/1.1 403 Forbidden") || !strings.Contains(out, "Proxy-Status: ssh-gateway; error=destination_ip_prohibited") {
		t.Errorf("refused: %q, %v", out, err)
	}
	out, err = through(fmt.Sprintf("http://127.0.0.1:%d/", freePort(t)), "-v")
	if err == nil || !strings.Contains(out, "HTTP/1.1 502 Bad Gateway") || !strings.Contains(out, "error=connection_refused") {
		t.Errorf("a closed port: %q, %v", out, err)
	}
	w.await("the flow", func(r record) bool { return r.Event == "close" && r.Carrier == "connect" && r.Reason == "carried" })
}

// psql by way of a local port, as the documents have it for clients without TLS of their
// own; a session that is cancelled, and a large answer.
func TestPostgreSQL(t *testing.T) {
	requireProgram(t, "psql", "postgresql-client")
	requireProgram(t, "socat", "socat")
	db := startPostgres(t)
	w := newWorld(t, "", target("db", "db.test", db))
	local := freePort(t)
	forward := exec.CommandContext(t.Context(), "socat", fmt.Sprintf("TCP-LISTEN:%d,bind=127.0.0.1,fork,reuseaddr", local),
		fmt.Sprintf("OPENSSL:%s,snihost=db.test,commonname=db.test,cafile=%s,cert=%s,key=%s", w.addr, w.file("ca.pem"), w.file("anna.pem"), w.file("anna.key")))
	forward.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := forward.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		syscall.Kill(-forward.Process.Pid, syscall.SIGKILL)
		forward.Wait()
	})
	psql := func(sql string) (string, error) {
		return command(t, "", "psql", "-X", "-h", "127.0.0.1", "-p", fmt.Sprint(local), "-U", "postgres", "-Atc", sql)
	}
	var out string
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); <-time.After(20 * time.Millisecond) {
		if out, err = psql("select 6 * 7"); err == nil || !strings.Contains(out, "Connection refused") { // by socat, which comes up
			break
		}
	}
	if err != nil || out != "42\n" {
		t.Fatalf("got %q, %v", out, err)
	}
	out, err = psql("copy (select i, md5(i::text) from generate_series(1, 200000) i) to stdout")
	if err != nil || strings.Count(out, "\n") != 200000 {
		t.Errorf("a large answer: %d lines, %v", strings.Count(out, "\n"), err)
	}
	if out, err := psql("set statement_timeout = 200; select pg_sleep(60)"); err == nil || !strings.Contains(out, "canceling statement") {
		t.Errorf("cancelled: %q, %v", out, err)
	}
}

// startPostgres runs a database on loopback until the test ends, as nobody where we are
// root, which it refuses to be.
func startPostgres(t *testing.T) net.Addr {
	t.Helper()
	bins, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if len(bins) == 0 {
		requireProgram(t, "postgres", "postgresql")
		t.FailNow()
	}
	bin := filepath.Dir(slices.Max(bins))
	dir, err := os.MkdirTemp("", "sshbroker-pg-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	attr := &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() == 0 {
		const nobody = 65534
		attr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
		if err := os.Chown(dir, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	data := filepath.Join(dir, "data")
	initdb := exec.CommandContext(t.Context(), bin+"/initdb", "-D", data, "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C")
	initdb.SysProcAttr, initdb.Dir = attr, dir
	if out, err := initdb.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	port := freePort(t)
	server := exec.Command(bin+"/postgres", "-D", data, "-h", "127.0.0.1", "-p", fmt.Sprint(port), "-k", "", "-F", "-c", "autovacuum=off")
	said := newTranscript()
	server.SysProcAttr, server.Dir, server.Stderr = attr, dir, said
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		server.Process.Signal(syscall.SIGINT) // a fast shutdown
		server.Wait()
	})
	said.waitFor(t, "ready to accept connections")
	return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}
}

// A long-lived flow in the shape of a remote desktop: a negotiation in TPKT, then
// screens down in bursts of every size and small input up between them, for as long as
// there is time, through our own client and as bytes to a service.
func TestRemoteDesktop(t *testing.T) {
	rounds := 400
	if os.Getenv("SSHBROKER_LONG") == "1" {
		rounds = 20_000
	}
	addr := serve(t, func(c *net.TCPConn) { desktop.Serve(c, rounds, 0) })
	w := newWorld(t, "", collection+target("desk", "echo.test", addr))
	transport, err := connector(t).Connect(t.Context(), w.profile(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer transport.Close()
	for name, dial := range map[string]func() (net.Conn, error){
		"our client": func() (net.Conn, error) {
			return transport.Open(t.Context(), profiles.Destination{Host: "127.0.0.1", Port: uint16(addr.(*net.TCPAddr).Port)})
		},
		"raw": func() (net.Conn, error) { return w.dial("echo.test") },
	} {
		t.Run(name, func(t *testing.T) {
			c, err := dial()
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if err := desktop.Client(c); err != nil {
				t.Error(err)
			}
		})
	}
}
