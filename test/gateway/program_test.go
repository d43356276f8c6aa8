package gateway

import (
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"sshbroker/broker/gateway/gatewaytest"
	"sshbroker/profiles"
	"sshbroker/test/sut"
)

// code is the exit code of a command.
func code(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		return -1
	}
	return 0
}

func TestProgram(t *testing.T) {
	program := sut.Program(t, "ssh-gateway")
	good, err := filepath.Abs("../../etc/ssh-gateway.yaml")
	if err != nil {
		t.Fatal(err)
	}
	bad := gatewaytest.Write(t, t.TempDir(), "bad.yaml", []byte("listen: \":8443\"\nnonsense: 1\n"))
	for _, tc := range []struct {
		args []string
		code int
		said string
	}{
		{[]string{"--version"}, 0, "ssh-gateway test\n"},
		{[]string{"-V"}, 0, "ssh-gateway test\n"},
		{[]string{"--help"}, 0, "--config FILE"},
		{[]string{"check", good}, 0, ""},
		{[]string{"--check", "--config", good}, 0, ""},
		{[]string{"check", bad}, 1, "bad.yaml:2:1: "},
		{[]string{"--check", "-f", bad}, 1, "bad.yaml:2:1: "},
		{[]string{"-f", bad}, 1, "bad.yaml:2:1: "},
		{[]string{"check", "/nonexistent"}, 1, "/nonexistent: no such file"},
		{[]string{"-f", "/nonexistent"}, 1, "/nonexistent: no such file"},
		{[]string{"check"}, 2, "a file is missing; see ssh-gateway check --help"},
		{[]string{"check", good, good}, 2, "one argument too many"},
		{[]string{"serve"}, 2, `"serve" is one argument too many`},
		{[]string{"--no-such-option"}, 2, "unknown flag: --no-such-option; see ssh-gateway --help"},
	} {
		out, err := command(t, "", append([]string{program}, tc.args...)...)
		if code(err) != tc.code || !strings.Contains(out, tc.said) {
			t.Errorf("%q: code %d, want %d with %q:\n%s", tc.args, code(err), tc.code, tc.said, out)
		}
	}
}

// notifications is a service manager's socket.
type notifications struct{ *net.UnixConn }

func (n notifications) next(t *testing.T) string {
	t.Helper()
	n.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, 4096)
	size, err := n.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:size])
}

// The signals, as a service manager sees what they do.
func TestSignals(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	manager := notifications{socket}
	addr := serve(t, func(c *net.TCPConn) { io.Copy(c, c) })
	w := newWorld(t, quiet+", drain_timeout: 10m", collection)
	if got := manager.next(t); got != "READY=1" {
		t.Errorf("told %q", got)
	}
	transport, err := connector(t).Connect(t.Context(), w.profile(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer transport.Close()
	stream, err := transport.Open(t.Context(), profiles.Destination{Host: "127.0.0.1", Port: uint16(addr.(*net.TCPAddr).Port)})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	echo := func() {
		t.Helper()
		b := []byte("hello")
		stream.SetDeadline(time.Now().Add(patience))
		if _, err := stream.Write(b); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(stream, b); err != nil {
			t.Fatal(err)
		}
	}
	echo()

	config, err := os.ReadFile(w.file("gateway.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	gatewaytest.Write(t, w.dir, "gateway.yaml", append(config, "nonsense: 1\n"...))
	w.cmd.Process.Signal(syscall.SIGHUP)
	if got := manager.next(t); !regexp.MustCompile(`^RELOADING=1\nMONOTONIC_USEC=\d+$`).MatchString(got) {
		t.Errorf("told %q", got)
	}
	if got := manager.next(t); got != "READY=1" {
		t.Errorf("told %q", got)
	}
	w.output.waitFor(t, "the old configuration stays in force")
	if !regexp.MustCompile(`gateway\.yaml:\d+:1: `).MatchString(w.output.String()) {
		t.Errorf("it does not say where the file is broken:\n%s", w.output)
	}
	echo()
	gatewaytest.Write(t, w.dir, "gateway.yaml", config)
	w.cmd.Process.Signal(syscall.SIGHUP)
	manager.next(t)
	manager.next(t)
	w.output.waitFor(t, "generation=2")
	echo()

	w.cmd.Process.Signal(syscall.SIGTERM)
	if got := manager.next(t); got != "STOPPING=1" {
		t.Errorf("told %q", got)
	}
	echo() // ten minutes are left
	w.cmd.Process.Signal(syscall.SIGTERM)
	if _, err := io.ReadAll(stream); !errors.Is(err, profiles.ErrReset) {
		t.Errorf("the flow has ended with %v", err)
	}
	if err := w.wait(); err != nil {
		t.Errorf("it ends with %v\n%s", err, w.output)
	}
	if _, err := os.Stat(w.file("metrics.sock")); err == nil {
		t.Error("the socket of the metrics is left behind")
	}
}

// A socket that a killed gateway has left is replaced, anything else in its place is not.
func TestMetricsSocket(t *testing.T) {
	w := newWorld(t, "", collection)
	if info, err := os.Stat(w.file("metrics.sock")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v", info, err)
	}
	if text := w.metrics(); !strings.Contains(text, "\nssh_gateway_build_info{version=\"test\"} 1\n") {
		t.Errorf("metrics:\n%s", text)
	}
	if text, err := command(t, "", "curl", "-sS", "--unix-socket", w.file("metrics.sock"), "http://x/metrics"); err != nil || !strings.Contains(text, "ssh_gateway_flows 0") {
		t.Errorf("curl: %q, %v", text, err)
	}
	w.cmd.Process.Signal(syscall.SIGKILL)
	w.wait()
	w.start()
	w.metrics()
	w.stop()
	gatewaytest.Write(t, w.dir, "metrics.sock", []byte("precious"))
	out, err := command(t, "", sut.Program(t, "ssh-gateway"), "-f", w.file("gateway.yaml"))
	if code(err) != 1 || !strings.Contains(out, "not a socket") {
		t.Errorf("with a file in its place: %v\n%s", err, out)
	}
}

// The unit is good for systemd, and says what the program expects.
func TestUnit(t *testing.T) {
	text, err := os.ReadFile("../../etc/systemd/ssh-gateway.service")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Type=notify", "ExecStart=/usr/local/bin/ssh-gateway", "ExecReload=/bin/kill -HUP $MAINPID", "DynamicUser=yes", "NoNewPrivileges=yes"} {
		if !strings.Contains(string(text), "\n"+want+"\n") {
			t.Errorf("the unit has no line %s", want)
		}
	}
	requireProgram(t, "systemd-analyze", "systemd")
	there := regexp.MustCompile(`(?m)^(ExecStart|ExecStartPre)=\S+`).ReplaceAll(text, []byte("$1=/bin/true"))
	file := gatewaytest.Write(t, t.TempDir(), "ssh-gateway.service", there)
	if out, err := command(t, "", "systemd-analyze", "verify", "--man=no", file); err != nil || out != "" {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}
