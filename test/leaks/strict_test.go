package leaks

import (
	"net"
	"os"
	"strings"
	"testing"

	"sshbroker/test/host"
	"sshbroker/test/netns"
)

// Rules by which UDP is refused, and not.
const (
	everything = `<filter-engine><rule action="TUNNEL" profile-id="p"/></filter-engine>`
	something  = `<filter-engine><rule ip-address="10\.99\..*" action="TUNNEL" profile-id="p"/></filter-engine>`
)

func rules(h *host.Host, u *netns.User, t *testing.T, engine string) {
	t.Helper()
	u.Write(t, ".ssh2/ssh-broker-config.xml", host.Config(`<profiles><profile id="p" name="p" host="10.99.1.2" port="22"/></profiles>`+engine), 0o600)
}

// expect fails the test unless it ended like that and said all this on standard error.
func expect(t *testing.T, r netns.Result, code int, stdout string, says ...string) {
	t.Helper()
	if r.Code != code || r.Stdout != stdout {
		t.Errorf("want exit code %d and %q: %v", code, stdout, r)
	}
	for _, text := range says {
		if !strings.Contains(r.Stderr, text) {
			t.Errorf("not said: %q: %v", text, r)
		}
	}
}

// TestStrict: a command starts where nothing leaks, and is itself then.
func TestStrict(t *testing.T) {
	h := bare(t)
	rules(h, h.Alice, t, everything)
	h.StartCaptured(t)
	for _, backend := range []string{"namespace", "cgroup"} {
		t.Run(backend, func(t *testing.T) {
			strict := func(args ...string) netns.Cmd {
				return h.Cmd(h.Alice, append([]string{h.Capture, "--strict", "--backend", backend}, args...)...)
			}
			expect(t, h.Client.Run(t, strict("sh", "-c", `echo "$0 $1 $#"; exit 7`, "a", "b c")), 7, "a b c 1\n")
			expect(t, h.Client.Run(t, strict("sh", "-c", "kill -TERM $$")), 143, "")
			expect(t, h.Client.Run(t, strict("no-such-command")), 127, "", "command not found")
			bad := h.Alice.Write(t, "bad", "#!/no/such/interpreter\n", 0o755)
			expect(t, h.Client.Run(t, strict(bad)), 127, "", "or the interpreter that it names, is missing")

			// In a cgroup a daemon of the host's looks names up in clear.
			r := h.Client.Run(t, amongDaemons(t, h, h.Alice, h.Capture, "--strict", "--backend", backend, "echo", "ran"))
			if backend == "namespace" {
				expect(t, r, 0, "ran\n")
			} else {
				expect(t, r, 125, "", "--strict: the command is not started, as it could send in clear:",
					"names by the socket of nscd: /run/nscd/socket takes questions\n    cure: --backend=namespace covers these sockets")
			}
		})
	}
	// By rules that leave some of it alone, UDP goes out of a cgroup, and of no namespace.
	rules(h, h.Alice, t, something)
	h.StopBroker(t, h.Alice)
	expect(t, h.Run(t, h.Alice, h.Capture, "--strict", "--backend=namespace", "echo", "ran"), 0, "ran\n")
	expect(t, h.Run(t, h.Alice, h.Capture, "--strict", "--backend=cgroup", "echo", "ran"), 125, "", "UDP over IPv4: it came out in clear", "UDP over IPv6: it came out")
	expect(t, h.Run(t, h.Alice, h.Capture, "--backend=cgroup", "echo", "ran"), 0, "ran\n")
	for _, args := range [][]string{{"-F"}, {"--allow-direct"}, {"--udp=direct"}, {"--pid", "1"}} {
		r := h.Run(t, h.Alice, append([]string{h.Capture, "--strict"}, append(args, "true")...)...)
		if r.Code != 125 {
			t.Errorf("%v: %v", args, r)
		}
	}
}

// TestCloseSockets: sockets of before are closed, other descriptors not, and a standard one
// that is a socket of a network is refused.
func TestCloseSockets(t *testing.T) {
	h := bare(t)
	rules(h, h.Alice, t, everything)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dial := func() *os.File {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		f, err := c.(*net.TCPConn).File()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	u, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	udp, err := u.(*net.UDPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, option := range []string{"--close-sockets", "--strict"} {
		c := h.Cmd(h.Alice, h.Capture, option, "--backend=namespace", "sh", "-c", "for fd in 3 4 5; do readlink /proc/$$/fd/$fd || echo closed; done")
		c.Files = []*os.File{dial(), null, udp}
		expect(t, h.Client.Run(t, c), 0, "closed\n/dev/null\nclosed\n",
			"warning: descriptor 3 is closed: a TCP socket connected to "+l.Addr().String(), "warning: descriptor 5 is closed: a UDP socket")
		c = h.Cmd(h.Alice, h.Capture, option, "--backend=namespace", "echo", "ran")
		c.Stdin = dial()
		expect(t, h.Client.Run(t, c), 125, "", "descriptor 0 is a TCP socket connected to "+l.Addr().String())
	}
	// Without, they stay.
	c := h.Cmd(h.Alice, h.Capture, "--backend=namespace", "sh", "-c", "readlink /proc/$$/fd/3")
	c.Files = []*os.File{dial()}
	if r := h.Client.Run(t, c); !strings.HasPrefix(r.Stdout, "socket:") {
		t.Errorf("without: %v", r)
	}
}
