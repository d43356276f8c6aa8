package script

import (
	"os"
	"strings"
	"testing"

	"sshbroker/capture/service"
	"sshbroker/test/host"
	"sshbroker/test/netns"
)

// byCgroup says that the programs capture by cgroups here.
func byCgroup() bool { return os.Getenv(capturedEnv) != "" }

// aboutNamespaces skips a test of what only captures by namespaces have.
func aboutNamespaces(t testing.TB) {
	t.Helper()
	if byCgroup() {
		t.Skip("this is about captures by namespaces")
	}
}

// TestByCgroup runs the tests of this package once more, on a machine where an
// ssh-captured captures by cgroups.
func TestByCgroup(t *testing.T) {
	if byCgroup() {
		t.Skip("this is inside")
	}
	requireRoot(t)
	if testing.Short() {
		t.Skip("everything once more")
	}
	t.Parallel()
	h := host.New(t)
	h.StartCaptured(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	c := netns.Cmd{Args: []string{self, "-test.v", "-test.timeout=5m"}, Dir: dir, Limit: -1,
		Env: append(os.Environ(), capturedEnv+"="+h.Socket)}
	p := h.Client.Start(t, c)
	<-p.Done() // its own time limit ends it
	r := p.Wait(t)
	if passed := strings.Count(r.Stdout, "\n--- PASS:"); r.Code != 0 || passed < 20 {
		t.Errorf("%d tests passed: %v\n%s", passed, r.Code, r.Stdout)
	}
	h.Await(t, "no capture", func(st service.Status) bool { return len(st.Captures) == 0 })
	for line := range strings.Lines(r.Stdout) {
		if strings.HasPrefix(strings.TrimSpace(line), "--- SKIP:") {
			t.Log(strings.TrimSpace(line))
		}
	}
}
