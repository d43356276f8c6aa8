package bench

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"sshbroker/test/netns"
	"sshbroker/test/sut"
)

// The names of the ways. A second ssh-capture is called after its directory.
const (
	plain  = "no tunnel"
	sshL   = "ssh -L"
	ours   = "ssh-capture"
	byTLS  = "ssh-capture (TLS)"
	cipher = "aes128-gcm@openssh.com"
)

// Ports of the target on the server, and one more each where it speaks first. The
// firewall lets nobody but the server itself to the first pair.
const (
	closedPort = 7001
	openPort   = 7003
	localPort  = 7005 // of ssh -L, on the client
)

// world is a client, and a server whose target only the server reaches. The ways
// from the one to the other are all there at once, and all but one idle.
type world struct {
	*netns.Net
	sshd        *netns.SSHD
	testprog    string
	Carol, Dave *netns.User // of the neighbours
	ways        []*way
}

// way is one way to the target.
type way struct {
	name string
	run  func(t testing.TB, w *world) *session
	*session
}

func newWorld(t testing.TB, against string) *world {
	t.Helper()
	netns.RequireRoot(t)
	allowFiles(t, 32768) // before anything is started
	w := &world{Net: netns.New(t)}
	w.Carol, w.Dave = w.AddUser(t, "carol"), w.AddUser(t, "dave")
	w.testprog = sut.Program(t, "testprog")
	// Both clients speak the one cipher that the server offers.
	w.sshd = w.Server.StartSSHD(t, netns.SSHDOptions{Config: []string{"Ciphers " + cipher}})
	for _, u := range []*netns.User{w.Alice, w.Bob, w.Carol, w.Dave} {
		w.sshd.Trust(t, u)
	}
	w.Server.AllowOnly(t, netns.Reset, w.sshd.Addr4.Port(), netns.GatewayPort, openPort, openPort+1)
	for _, port := range []uint16{closedPort, openPort} {
		w.startTarget(t, w.Server.Addr4, port)
	}

	programs := sut.Build(t)
	w.ways = []*way{
		{name: plain, run: func(t testing.TB, w *world) *session {
			return startSession(t, w.Client, w.Alice, w.load(w.Server.Addr4, openPort), nil)
		}},
		{name: sshL, run: runForward},
		{name: ours, run: runCapture(w.Alice, programs.Dir, w.via(w.Alice)...)},
	}
	if against != "" {
		w.ways = append(w.ways, &way{name: filepath.Base(against), run: runCapture(w.Bob, w.copyOf(t, against), w.via(w.Bob)...)})
	}
	t.Cleanup(func() { // after a failure; before the network goes
		for _, u := range []*netns.User{w.Alice, w.Bob} {
			w.Client.Run(t, netns.Cmd{Args: []string{programs.Ctl, "stop", "--drain", "0"}, User: u})
		}
	})
	return w
}

// load is the load generator's command line for the target at an address.
func (w *world) load(at netip.Addr, port uint16) []string {
	return []string{w.testprog, "load", netip.AddrPortFrom(at, port).String(), netip.AddrPortFrom(at, port+1).String()}
}

// startTarget has a target listen on the server, and at the port after it one that
// speaks first.
func (w *world) startTarget(t testing.TB, at netip.Addr, port uint16) {
	t.Helper()
	plain, greeting := netip.AddrPortFrom(at, port).String(), netip.AddrPortFrom(at, port+1).String()
	target := w.Server.Start(t, netns.Cmd{Limit: -1, Args: []string{w.testprog, "target", "-greet", greeting, plain}})
	target.WaitFor(t, "listening "+plain)
}

func (w *world) target(port uint16) string {
	return netip.AddrPortFrom(w.Server.Addr4, port).String()
}

// copyOf puts the programs of another build where everybody can run them.
func (w *world) copyOf(t testing.TB, dir string) string {
	t.Helper()
	to := filepath.Join(w.Dir, filepath.Base(dir))
	if err := os.MkdirAll(to, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ssh-broker", "ssh-capture", "ssh-broker-ctl"} {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(to, name), content, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return to
}

// runForward is the load beside an ssh -L.
func runForward(t testing.TB, w *world) *session {
	local := netip.MustParseAddr("127.0.0.1")
	args := append(w.sshd.ClientArgs(w.Alice), "-N", "-o", "ExitOnForwardFailure=yes",
		// Runs after login, when the forwardings are in place.
		"-o", "PermitLocalCommand=yes", "-o", "LocalCommand=echo forwarding is ready")
	for i := range uint16(2) {
		args = append(args, "-L", fmt.Sprintf("%s:%s", netip.AddrPortFrom(local, localPort+i), w.target(closedPort+i)))
	}
	forward := w.Client.Start(t, netns.Cmd{Args: append(args, w.Server.Addr4.String()), User: w.Alice, Limit: -1})
	forward.WaitFor(t, "forwarding is ready")
	s := startSession(t, w.Client, w.Alice, w.load(local, localPort), func(t testing.TB) { forward.Kill(t) })
	s.carriers = []int{forward.Pid()}
	return s
}

// via are the options of ssh-capture that send everything through the server.
func (w *world) via(u *netns.User) []string {
	return []string{"--via", fmt.Sprintf("%s@%s", u.Name, w.sshd.Addr4)}
}

// runCapture is the load in a capture, whose broker has nothing else to do.
func runCapture(u *netns.User, dir string, options ...string) func(t testing.TB, w *world) *session {
	return func(t testing.TB, w *world) *session {
		ctl := filepath.Join(dir, "ssh-broker-ctl")
		args := append([]string{filepath.Join(dir, "ssh-capture")}, options...)
		s := startSession(t, w.Client, u, append(args, w.load(w.Server.Addr4, closedPort)...), func(t testing.TB) {
			if r := w.Client.Run(t, netns.Cmd{Args: []string{ctl, "stop", "--drain", "0"}, User: u}); r.Code != 0 {
				t.Fatalf("stop the broker: %v", r)
			}
		})
		s.do(t, "hold 0") // it answers: the broker runs
		pid, err := strconv.Atoi(w.Client.Output(t, u, ctl, "status", "--pid"))
		if err != nil {
			t.Fatalf("process id of the broker: %v", err)
		}
		s.carriers = []int{pid}
		return s
	}
}

// start starts every way anew.
func (w *world) start(t testing.TB) {
	t.Helper()
	for _, way := range w.ways {
		way.session = way.run(t, w)
	}
}

func (w *world) stop(t testing.TB) {
	t.Helper()
	for _, way := range w.ways {
		way.end(t)
	}
}

func (w *world) names() (names []string) {
	for _, way := range w.ways {
		names = append(names, way.name)
	}
	return names
}

// allowFiles makes what is started from now on able to hold n descriptors. Go
// programs have that anyway; ssh and sshd have what they are given.
func allowFiles(t testing.TB, n uint64) {
	t.Helper()
	var limit syscall.Rlimit
	err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit)
	if err == nil {
		limit.Cur = min(n, limit.Max)
		err = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
	}
	if err != nil {
		t.Fatalf("limit of descriptors: %v", err)
	}
}
