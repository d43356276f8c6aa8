package netns

import (
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// ListenReady makes a socket of sd_notify(3), for NOTIFY_SOCKET in a process's
// environment, and a function that waits until the process has said there that it is
// ready.
func ListenReady(t testing.TB) (wait func(*Process), path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return func(p *Process) {
		t.Helper()
		if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		message := make([]byte, 4096)
		for {
			n, err := c.Read(message)
			if err != nil {
				t.Fatalf("%s is not ready: %v; it said:\n%s", p, err, p.Output())
			}
			if strings.Contains(string(message[:n]), "READY=1") {
				return
			}
		}
	}, path
}
