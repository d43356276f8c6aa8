package comparison

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"sshbroker/test/netns"
)

// way is one way into the network behind the bastion.
type way struct {
	name    string
	program string // to be had from the package
	pkg     string
	// start starts what is not a wrapper, and says how the tunnel is killed.
	start func(t *testing.T, w *world) (kill func(t *testing.T))
	// wrap puts the wrapper before a command line; nil where everything is captured.
	wrap func(w *world, args []string) (wrapped, env []string)
}

// dynamicPort is that of ssh -D.
const dynamicPort = 7008

var ways = []way{
	{name: "ssh-capture --via", program: "ssh", pkg: "openssh-client",
		start: func(t *testing.T, w *world) func(*testing.T) {
			t.Cleanup(func() {
				w.Client.Run(t, netns.Cmd{Args: []string{w.Ctl, "stop", "--drain", "0"}, User: w.Alice})
			})
			return func(t *testing.T) {
				if w.Client.SignalAll(t, "ssh-broker", unix.SIGKILL) == 0 {
					t.Error("there was no broker")
				}
			}
		},
		wrap: func(w *world, args []string) (wrapped, env []string) {
			return append([]string{w.Capture, "--via", fmt.Sprintf("%s@%s", w.Alice.Name, w.Server.Addr4)}, args...), nil
		}},
	{name: "sshuttle --dns", program: "sshuttle", pkg: "sshuttle", start: startSshuttle},
	{name: "redsocks", program: "redsocks", pkg: "redsocks", start: startRedsocks},
	{name: "proxychains4", program: "proxychains4", pkg: "proxychains4", start: startDynamic,
		wrap: func(w *world, args []string) (wrapped, env []string) {
			return append([]string{"proxychains4", "-q", "-f", filepath.Join(w.Net.Dir, "proxychains.conf")}, args...), nil
		}},
	{name: "torsocks", program: "torsocks", pkg: "torsocks", start: startDynamic,
		wrap: func(w *world, args []string) (wrapped, env []string) {
			return append([]string{"torsocks", "--address", "127.0.0.1", "--port", fmt.Sprint(dynamicPort)}, args...), nil
		}},
	{name: "tsocks", program: "tsocks", pkg: "tsocks", start: startDynamic,
		wrap: func(w *world, args []string) (wrapped, env []string) {
			return append([]string{"tsocks"}, args...), []string{"TSOCKS_CONF_FILE=" + filepath.Join(w.Net.Dir, "tsocks.conf")}
		}},
}

// startDynamic starts ssh -D, and writes the files of those who use it.
func startDynamic(t *testing.T, w *world) (kill func(*testing.T)) {
	t.Helper()
	ssh := w.Client.Start(t, netns.Cmd{User: w.Alice, Limit: -1, Args: append(w.sshd.ClientArgs(w.Alice), "-N", "-o", "ExitOnForwardFailure=yes",
		"-o", "PermitLocalCommand=yes", "-o", "LocalCommand=echo forwarding is ready",
		"-D", fmt.Sprintf("127.0.0.1:%d", dynamicPort), w.Server.Addr4.String())})
	ssh.WaitFor(t, "forwarding is ready")
	for name, text := range map[string]string{
		"proxychains.conf": fmt.Sprintf("strict_chain\nproxy_dns\ntcp_read_time_out 15000\ntcp_connect_time_out 8000\n[ProxyList]\nsocks5 127.0.0.1 %d\n", dynamicPort),
		"tsocks.conf":      fmt.Sprintf("local = %s/255.255.255.0\nserver = 127.0.0.1\nserver_type = 5\nserver_port = %d\n", "10.99.1.0", dynamicPort),
		"redsocks.conf": fmt.Sprintf(`base { log_info = on; log = stderr; daemon = off; redirector = iptables; }
redsocks { local_ip = 127.0.0.1; local_port = 7007; ip = 127.0.0.1; port = %d; type = socks5; }
`, dynamicPort),
	} {
		if err := os.WriteFile(filepath.Join(w.Net.Dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return func(t *testing.T) { ssh.Kill(t) }
}

// behind are the networks that sshuttle and redsocks are told of.
var behind = []string{"10.99.2.0/24", "10.99.3.0/24"}

func startRedsocks(t *testing.T, w *world) (kill func(*testing.T)) {
	t.Helper()
	killSSH := startDynamic(t, w)
	redsocks := w.Client.Start(t, netns.Cmd{User: w.Alice, Limit: -1, Args: []string{netns.RequireProgram(t, "redsocks", "redsocks"), "-c", filepath.Join(w.Net.Dir, "redsocks.conf")}})
	redsocks.WaitFor(t, "redsocks started")
	table := fmt.Sprintf("table ip redsocks { chain output { type nat hook output priority -100; ip daddr { %s } meta l4proto tcp redirect to :7007; }; }\n", strings.Join(behind, ", "))
	if r := w.Client.Run(t, netns.Cmd{Args: []string{"nft", "-f", "-"}, Stdin: strings.NewReader(table)}); r.Code != 0 {
		t.Fatalf("nft: %v", r)
	}
	return func(t *testing.T) {
		redsocks.Kill(t)
		killSSH(t)
	}
}

func startSshuttle(t *testing.T, w *world) (kill func(*testing.T)) {
	t.Helper()
	ready, notify := netns.ListenReady(t)
	ssh := append(w.sshd.ClientArgs(w.Alice), "-o", "UserKnownHostsFile="+w.Alice.Path(".ssh/known_hosts"))
	args := append([]string{netns.RequireProgram(t, "sshuttle", "sshuttle"), "--method", "nft", "--dns", "-e", strings.Join(ssh, " "),
		"-r", w.Alice.Name + "@" + w.Server.Addr4.String()}, behind...)
	tunnel := w.Client.Start(t, netns.Cmd{Limit: -1, Env: []string{"NOTIFY_SOCKET=" + notify}, Args: append(args, "fd99:2::/64")})
	ready(tunnel) // its table is loaded by then
	return func(t *testing.T) {
		tunnel.Signal(t, syscall.SIGKILL)
		tunnel.Wait(t)
	}
}
