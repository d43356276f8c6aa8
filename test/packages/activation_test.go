package packages

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sshbroker/capture/service"
	"sshbroker/test/netns"
	"sshbroker/test/sut"
)

// TestActivation has systemd's own tool make the socket: ssh-captured is started by the
// first who connects, answers him, knows who he is, and leaves the socket where it is.
func TestActivation(t *testing.T) {
	netns.RequireRoot(t)
	activate := netns.RequireProgram(t, "systemd-socket-activate", "systemd")
	p := sut.Build(t)
	n := netns.New(t)
	n.Client.OwnCgroup(t)
	dir := filepath.Join(n.Dir, "captured")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "socket")
	serve := n.Client.Start(t, netns.Cmd{Limit: -1, Args: []string{activate, "--seqpacket", "--listen=" + socket, "--fdname=ssh-captured.socket",
		p.Captured, "--no-keeper", "--socket", socket, "--state-dir", filepath.Join(dir, "state")}})
	serve.WaitFor(t, "Listening on")
	if err := os.Chmod(socket, 0o666); err != nil { // SocketMode= of the unit
		t.Fatal(err)
	}
	ask := func(u *netns.User, args ...string) netns.Result {
		return n.Client.Run(t, netns.Cmd{User: u, Args: append([]string{p.Ctl, "connector"}, args...), Env: []string{service.EnvSocket + "=" + socket}})
	}
	if r := ask(nil, "status"); r.Code != 0 || !strings.Contains(r.Stdout, "ssh-captured   running") {
		t.Fatalf("the first who asks: %v", r)
	}
	// Who asks is told by the connection, not by who has made the socket.
	if r := ask(n.Alice, "disable"); r.Code != 1 || !strings.Contains(r.Stderr, "only root and the administrators group") {
		t.Errorf("a user disables: %v", r)
	}
	if r := ask(nil, "disable"); r.Code != 0 {
		t.Errorf("root disables: %v", r)
	}
	serve.Signal(t, syscall.SIGTERM)
	if r := serve.Wait(t); r.Code != 0 {
		t.Errorf("ssh-captured: %v", r)
	}
	if _, err := os.Stat(socket); err != nil {
		t.Errorf("the service manager's socket: %v", err)
	}
}

// TestReadiness has ssh-broker tell a service manager that it serves, and not before.
func TestReadiness(t *testing.T) {
	netns.RequireRoot(t)
	p := sut.Build(t)
	n := netns.New(t)
	n.Alice.Write(t, ".ssh2/ssh-broker-config.xml", "<secsh-broker><filter-engine /></secsh-broker>", 0o600)
	dir := n.Alice.RuntimeDir(t)
	notify := n.Alice.Path("notify")
	told := make(chan string, 8)
	listen(t, notify, int(n.Alice.UID), told)
	broker := n.Client.Start(t, netns.Cmd{User: n.Alice, Limit: -1, Args: []string{p.Broker, "--foreground"},
		Env: []string{"NOTIFY_SOCKET=" + notify, "XDG_RUNTIME_DIR=" + dir}})
	select {
	case got := <-told:
		if got != "READY=1" {
			t.Errorf("it says %q", got)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("it does not say that it serves: %s", broker.Output())
	}
	if r := n.Client.Run(t, netns.Cmd{User: n.Alice, Args: []string{p.Ctl, "-q", "status"}}); r.Code != 0 {
		t.Errorf("it is ready, and: %v", r)
	}
	broker.Signal(t, syscall.SIGTERM)
	if r := broker.Wait(t); r.Code != 0 {
		t.Errorf("ssh-broker: %v", r)
	}
	n.Alice.Write(t, ".ssh2/ssh-broker-config.xml", "<secsh-broker>", 0o600)
	r := n.Client.Run(t, netns.Cmd{User: n.Alice, Args: []string{p.Broker, "--foreground"}, Env: []string{"NOTIFY_SOCKET=" + notify}})
	if r.Code == 0 || len(told) != 0 {
		t.Errorf("with a broken configuration: %v, %d messages", r, len(told))
	}
}

// listen is a service manager's socket, which hears what its service says.
func listen(t *testing.T, path string, owner int, told chan<- string) {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(path, owner, owner); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b := make([]byte, 4<<10)
		for {
			n, err := c.Read(b)
			if err != nil {
				return
			}
			told <- string(b[:n])
		}
	}()
	t.Cleanup(func() { c.Close(); <-ended })
}
