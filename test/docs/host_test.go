package docs

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sshbroker/profiles/tuntest"
	"sshbroker/test/host"
	"sshbroker/test/netns"
	"sshbroker/test/sut"
)

// asRoot marks the blocks that TestHostGuide runs, all of them on one host.
const asRoot = "tested as root"

// guided is the host on which an administrator follows the guide: a machine with
// directories of its own in place of /etc, /run and what is below /var.
type guided struct {
	*host.Host
	path string // the directory of our programs, then the usual ones

	names   *strings.Replacer // of the guide's people, by those of the host's
	back    *strings.Replacer
	bastion *tuntest.Server
	served  chan struct{}
}

const bastionAddr = "10.99.1.2:22"

// TestHostGuide follows what the guide says of rules for a whole host and of captures
// by cgroup, line by line.
func TestHostGuide(t *testing.T) {
	for _, p := range []struct{ program, pkg string }{
		{"curl", "curl"}, {"jq", "jq"}, {"useradd", "passwd"}, {"setpriv", "util-linux"}, {"ssh-keygen", "openssh-client"}, {"nft", "nftables"},
	} {
		netns.RequireRoot(t)
		netns.RequireProgram(t, p.program, p.pkg)
	}
	g := newGuided(t)
	ran := 0
	for _, b := range blocks(t, "docs/guide.md") {
		if b.mark == asRoot {
			ran++
			g.run(t, b)
		}
	}
	if ran < 8 {
		t.Errorf("%d blocks marked %q", ran, asRoot)
	}
}

func newGuided(t *testing.T) *guided {
	t.Helper()
	programs := sut.Build(t)
	g := &guided{Host: host.Bare(t, programs), path: programs.Dir + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	g.names = strings.NewReplacer("alice", g.Alice.Name, "bob", g.Bob.Name)
	g.back = strings.NewReplacer(g.Alice.Name, "alice", g.Bob.Name, "bob", g.Alice.Home, "~")

	// Before the directories change: it is a file of the machine's.
	g.Client.Replace(t, "/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n10.99.1.2 bastion.example.com\n")
	g.prepare(t, g.Client, `cp -a /etc `+g.Net.Dir+`/etc && mount --bind `+g.Net.Dir+`/etc /etc
for dir in /run /var/lib /var/log; do mount -t tmpfs -o mode=755 tmpfs $dir; done
groupadd operators && usermod -aG operators `+g.Alice.Name)
	g.prepare(t, g.Server, "ip addr add 10.20.0.5/32 dev lo && ip addr add 198.51.100.7/32 dev lo")
	g.serve(t, net.JoinHostPort(g.Server.Addr4.String(), "8080"))
	g.serve(t, "10.20.0.5:80")
	mail := g.Server.Listen(t, "tcp", "198.51.100.7:25") // if the rule did not hold
	t.Cleanup(func() { mail.Close() })

	key, err := tuntest.NewKeyPair("")
	if err != nil {
		t.Fatal(err)
	}
	g.startBastion(t, key.Private, g.Alice.AuthorizedKey)
	t.Cleanup(func() { g.stopBastion() })
	known, err := g.bastion.HostKeyLine("bastion.example.com:22")
	if err != nil {
		t.Fatal(err)
	}
	g.Alice.Write(t, ".ssh/known_hosts", known+"\n", 0o600)
	g.Alice.Write(t, ".ssh/config", "Host bastion\n  HostName bastion.example.com\n", 0o600)
	return g
}

// prepare runs a script as root on a machine.
func (g *guided) prepare(t *testing.T, m *netns.Machine, script string) {
	t.Helper()
	if r := m.Run(t, netns.Cmd{Args: []string{"sh", "-ec", script}}); r.Code != 0 {
		t.Fatalf("%s: %s: %v", m.Name, script, r)
	}
}

// serve answers as the wiki on an address of the server.
func (g *guided) serve(t *testing.T, address string) {
	t.Helper()
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "Welcome to the wiki.") })}
	l := g.Server.Listen(t, "tcp", address)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { server.Close() })
}

// startBastion starts the SSH server, which lets in whoever has one of the keys.
func (g *guided) startBastion(t *testing.T, hostKey []byte, authorized ...string) {
	t.Helper()
	g.bastion = &tuntest.Server{HostKey: hostKey, Authorized: authorized, Dial: func(_ context.Context, network, address string) (net.Conn, error) {
		if address == "wiki.corp.example:80" {
			address = net.JoinHostPort(g.Server.Addr4.String(), "8080")
		}
		return g.Server.Dial(network, address)
	}}
	l := g.Server.Listen(t, "tcp", bastionAddr)
	g.served = make(chan struct{})
	go func(s *tuntest.Server, served chan struct{}) {
		defer close(served)
		_ = s.Serve(l)
	}(g.bastion, g.served)
}

func (g *guided) stopBastion() {
	g.bastion.Close()
	<-g.served
}

// authorize lets the system broker's key in once it has been made.
func (g *guided) authorize(t *testing.T) {
	t.Helper()
	if len(g.bastion.Authorized) > 1 {
		return
	}
	r := g.Client.Run(t, netns.Cmd{Args: []string{"cat", "/var/lib/ssh-broker-system/.ssh/id_ed25519.pub"}})
	if line := strings.TrimSpace(r.Stdout); r.Code == 0 {
		g.stopBastion()
		g.startBastion(t, g.bastion.HostKey, g.bastion.Authorized[0], line)
	}
}

// run gives each command of a block, as root or as Alice by its prompt, and expects
// what stands below it.
func (g *guided) run(t *testing.T, b block) {
	t.Helper()
	dir, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	for part := range strings.SplitSeq(strings.ReplaceAll("\n"+b.text, "\n# ", "\n$ # "), "\n$ ") {
		line, want, _ := strings.Cut(strings.TrimPrefix(part, "\n"), "\n")
		line, isRoot := strings.CutPrefix(line, "# ")
		if line == "" {
			continue
		}
		want = strings.TrimSuffix(want, "\n")
		cmd := netns.Cmd{Args: []string{"bash", "-c", g.names.Replace(line)}, Env: []string{"PATH=" + g.path, "LC_ALL=C.UTF-8"}, Dir: dir}
		if !isRoot {
			cmd.User, cmd.Dir = g.Alice, g.Alice.Home
		}
		if background, ok := strings.CutSuffix(line, "&"); ok && isRoot {
			cmd.Args[2], cmd.Limit = "exec "+background, -1
			g.start(t, cmd)
			continue
		}
		// What only looks is done again until it sees what others are about to do.
		looks := strings.Contains(line, "jq ") || strings.Contains(line, " status")
		for end := time.Now().Add(20 * time.Second); ; {
			r := g.Client.Run(t, cmd)
			got := strings.TrimSuffix(g.back.Replace(r.Stdout+r.Stderr), "\n")
			if likeLines(got, want) {
				break
			}
			if !looks || time.Now().After(end) {
				t.Fatalf("docs/guide.md:%d: %s\n--- prints\n%s\n--- the guide says\n%s", b.line, line, got, want)
			}
			<-time.After(20 * time.Millisecond) // neither files nor counts have an event
		}
		g.authorize(t)
	}
}

// start starts a daemon that stays in the foreground.
func (g *guided) start(t *testing.T, cmd netns.Cmd) {
	t.Helper()
	p := g.Client.Start(t, cmd)
	t.Cleanup(func() {
		stop := g.Cmd(nil, "sh", "-c", "ssh-broker-ctl --system stop; ssh-captured --release")
		stop.Env = []string{"PATH=" + g.path}
		g.Client.Run(t, stop)
		p.Signal(t, syscall.SIGTERM)
		if r := p.Wait(t); r.Code != 0 {
			t.Errorf("ssh-captured: %v", r)
		}
	})
}

// likeLines is like, where a line "..." stands for any lines.
func likeLines(got, want string) bool {
	return like(got, want) || strings.Contains("\n"+want+"\n", "\n...\n") && likeParts(got, strings.Split("\n"+want+"\n", "\n...\n"))
}

// likeParts wants each part as whole lines of got, in their order.
func likeParts(got string, parts []string) bool {
	lines := strings.Split(got, "\n")
	for _, part := range parts {
		part = strings.Trim(part, "\n")
		if part == "" {
			continue
		}
		n := strings.Count(part, "\n") + 1
		at := -1
		for i := 0; i+n <= len(lines) && at < 0; i++ {
			if like(strings.Join(lines[i:i+n], "\n"), part) {
				at = i
			}
		}
		if at < 0 {
			return false
		}
		lines = lines[at+n:]
	}
	return true
}
