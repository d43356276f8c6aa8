package bench

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"sshbroker/test/netns"
)

// The names of the neighbours' ways: what people take for this today.
const (
	redsocks = "redsocks + ssh -D"
	sshuttle = "sshuttle"
)

// Ports that the neighbours listen at on the client.
const (
	redsocksPort = 7007
	dynamicPort  = 7008 // of ssh -D
)

// beyond is a second address of the server, which sshuttle captures: it takes
// connections of all users, and the other ways must not be among them.
var beyond = netip.MustParseAddr("10.99.7.7")

// addPeers adds the neighbours to the ways, each with a user of its own.
func (w *world) addPeers(t testing.TB) {
	t.Helper()
	netns.RequireProgram(t, "redsocks", "redsocks")
	netns.RequireProgram(t, "sshuttle", "sshuttle")
	netns.RequireProgram(t, "python3", "python3")
	w.Server.Output(t, nil, "ip", "address", "add", beyond.String()+"/32", "dev", "lo")
	w.Client.Output(t, nil, "ip", "route", "replace", beyond.String()+"/32", "via", w.Server.Addr4.String())
	w.startTarget(t, beyond, closedPort)
	w.ways = append(w.ways,
		&way{name: redsocks, run: runRedsocks(w.Carol)},
		&way{name: sshuttle, run: runSshuttle(w.Dave)})
}

// runRedsocks is the load behind a redirect rule for its user, redsocks and ssh -D.
func runRedsocks(u *netns.User) func(t testing.TB, w *world) *session {
	return func(t testing.TB, w *world) *session {
		dynamic := w.Client.Start(t, netns.Cmd{User: u, Limit: -1, Args: append(w.sshd.ClientArgs(u), "-N", "-o", "ExitOnForwardFailure=yes",
			"-o", "PermitLocalCommand=yes", "-o", "LocalCommand=echo forwarding is ready",
			"-D", fmt.Sprintf("127.0.0.1:%d", dynamicPort), w.Server.Addr4.String())})
		dynamic.WaitFor(t, "forwarding is ready")
		config := filepath.Join(w.Dir, "redsocks.conf")
		if err := os.WriteFile(config, fmt.Appendf(nil, `base { log_info = on; log = stderr; daemon = off; redirector = iptables; redsocks_conn_max = 4000; rlimit_nofile = 8192; }
redsocks { local_ip = 127.0.0.1; local_port = %d; ip = 127.0.0.1; port = %d; type = socks5; listenq = 1024; }
`, redsocksPort, dynamicPort), 0o644); err != nil {
			t.Fatal(err)
		}
		proxy := w.Client.Start(t, netns.Cmd{User: u, Limit: -1, Args: []string{netns.RequireProgram(t, "redsocks", "redsocks"), "-c", config}})
		proxy.WaitFor(t, "redsocks started")
		load := func(script string) {
			if r := w.Client.Run(t, netns.Cmd{Args: []string{"nft", "-f", "-"}, Stdin: strings.NewReader(script)}); r.Code != 0 {
				t.Fatalf("nft: %v", r)
			}
		}
		load(fmt.Sprintf(`table ip redsocks {
	chain output {
		type nat hook output priority -100; policy accept;
		meta skuid %d ip daddr %s tcp dport %d-%d redirect to :%d
	}
}
`, u.UID, w.Server.Addr4, closedPort, closedPort+1, redsocksPort))
		s := startSession(t, w.Client, u, w.load(w.Server.Addr4, closedPort), func(t testing.TB) {
			load("delete table ip redsocks\n")
			proxy.Kill(t)
			dynamic.Kill(t)
		})
		s.carriers = []int{proxy.Pid(), dynamic.Pid()}
		return s
	}
}

// runSshuttle is the load beside an sshuttle, which runs as root as it has to.
func runSshuttle(u *netns.User) func(t testing.TB, w *world) *session {
	return func(t testing.TB, w *world) *session {
		ssh := append(w.sshd.ClientArgs(u), "-o", "UserKnownHostsFile="+u.Path(".ssh/known_hosts"))
		ready, notify := netns.ListenReady(t)
		tunnel := w.Client.Start(t, netns.Cmd{Limit: -1, Env: []string{"NOTIFY_SOCKET=" + notify}, Args: []string{netns.RequireProgram(t, "sshuttle", "sshuttle"), "--method", "nft",
			"-e", strings.Join(ssh, " "), "-r", u.Name + "@" + w.Server.Addr4.String(), beyond.String() + "/32"}})
		ready(tunnel) // its table is loaded after the connection is made
		s := startSession(t, w.Client, u, w.load(beyond, closedPort), func(t testing.TB) {
			tunnel.Signal(t, syscall.SIGINT) // it takes its table away
			tunnel.Wait(t)
		})
		s.carriers = family(t, tunnel.Pid())
		return s
	}
}
