// Command system shows rules for a whole host in one go: two hosts in network
// namespaces, three users on one of them, ssh-captured, a system broker and one user's
// own broker, all of them the real programs, and an SSH server of its own on the other
// host. What becomes of each connection is read off the wire between the two. It needs
// root, and leaves the machine as it was.
package main

import (
	"context"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"sshbroker/capture/service"
	"sshbroker/profiles/tuntest"
	"sshbroker/test/host"
	"sshbroker/test/netns"
	"sshbroker/test/sut"
)

const (
	hidden   = "app.internal" // a name that the SSH server alone knows
	deadPort = 2299           // of the server: no SSH server there
	// within is how long things may take that happen by themselves.
	within = 20 * time.Second
)

func main() {
	dir := flag.String("dir", "", "where the programs are, testprog too; users must be able to reach it")
	remove := flag.Bool("remove", false, "remove that directory at the end")
	flag.Parse()
	code := run(*dir)
	if *remove {
		os.RemoveAll(*dir)
	}
	os.Exit(code)
}

func run(dir string) int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "demo-system: needs root, for network namespaces and ssh-captured: sudo make demo-system\n"+
			"demo-system: make demo needs none")
		return 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	programs := sut.Programs{Dir: dir, Broker: filepath.Join(dir, "ssh-broker"), Capture: filepath.Join(dir, "ssh-capture"),
		Ctl: filepath.Join(dir, "ssh-broker-ctl"), Captured: filepath.Join(dir, "ssh-captured"), Testprog: filepath.Join(dir, "testprog")}
	before, err := machine()
	if err != nil {
		fmt.Fprintf(os.Stderr, "demo-system: %v: it needs nft, of the package nftables\n", err)
		return 1
	}
	well := play(ctx, func(s *stage) { show(s, programs) })
	after, err := machine()
	if diff := differences(before, after); err != nil || len(diff) > 0 {
		fmt.Fprintf(os.Stderr, "demo-system: this machine is not as it was: %v\n%s\n", err, strings.Join(diff, "\n"))
		return 1
	}
	if !well {
		return 1
	}
	say("   The two hosts are gone. nftables, mounts and cgroups of this machine are as they were.")
	return 0
}

// demo is what stands on the stage.
type demo struct {
	*host.Host
	wire    *netns.Wire
	dns     *netns.DNS
	backup  string // a program that a rule is about
	records int    // of the system broker so far

	mu     sync.Mutex
	opened tuntest.Open // by the SSH server, the last one
}

func show(s *stage, programs sut.Programs) {
	d := &demo{Host: host.Bare(s, programs)}
	d.furnish(s)
	say("1. Two hosts in network namespaces, client and server. The one wire between them is watched.")
	say("   client has the users %s, %s and %s.", d.Alice.Name, d.Bob.Name, d.Carol.Name)
	say("   server has services at %v, one at a name that only it knows, %s, and an SSH server.", d.Server.Addr4, hidden)
	say("   Without any of our programs, so that the watch is known to see what there is to see:")
	d.control(s)
	before := d.Snapshot(s)

	say("\n2. The rules of client, for all its users:")
	rules := d.rules()
	for i, r := range rules {
		say("   %2d  %s", i+1, r.xml)
	}
	say("       where no rule matches: DIRECT")

	say("\n3. ssh-captured, ssh-broker --system as an account of its own, %s's own ssh-broker, and:", short(d.Alice))
	d.StartCaptured(s)
	d.StartSystemBroker(s, d.config(rules))
	d.StartBroker(s, d.Alice, "")
	d.command(s, "connector", "enable")

	say("\n4. Every rule, for every user. What is said of the wire was seen, or looked for, on the wire.")
	say("\n   %-6s %-4s %-8s %-18s %-13s %s", "user", "rule", "action", "to", "connect()", "how, and what was on the wire")
	for i, r := range rules {
		for _, u := range []*netns.User{d.Alice, d.Bob, d.Carol} {
			d.try(s, u, i+1, r)
		}
	}

	say("\n5. %s connects by rule 4, and meanwhile both daemons are killed with SIGKILL:", short(d.Carol))
	d.crash(s)

	say("\n6. What an administrator sees:")
	d.command(s, "connector", "status", "-v")

	say("\n7. ssh-broker-ctl connector disable, and everything is stopped.")
	if r := d.Run(s, nil, d.Ctl, "connector", "disable"); r.Code != 0 {
		s.Fatalf("connector disable: %v", r)
	}
	d.StopBroker(s, d.Alice)
	d.StopSystemBroker(s)
	d.StopCaptured(s)
	d.restored(s, before)
}

func say(format string, args ...any) { fmt.Printf(format+"\n", args...) }

// short is a user's name without the figures that keep it apart from others on this
// machine.
func short(u *netns.User) string { return strings.TrimRight(u.Name, "0123456789") }

// furnish starts the services, the SSH server and a name server.
func (d *demo) furnish(s *stage) {
	d.wire = d.Client.Capture(s, "to-server")
	d.dns = d.Server.StartDNS(s, d.Server.Addr4, map[string][]string{"www.example": {d.Server.Addr4.String()}})
	d.Client.Replace(s, "/etc/resolv.conf", fmt.Sprintf("nameserver %v\noptions timeout:5 attempts:1\n", d.Server.Addr4))
	serve := []string{d.Testprog, "serve", "127.0.0.1:8000"} // of the hidden one
	for _, r := range d.rules() {
		if h, port, _ := net.SplitHostPort(r.to); h != hidden {
			serve = append(serve, net.JoinHostPort(d.Server.Addr4.String(), port))
		}
	}
	services := d.Server.Start(s, netns.Cmd{Args: serve, Limit: -1})
	for _, address := range serve[2:] {
		services.WaitFor(s, "listening "+address)
	}
	d.backup = filepath.Join(d.Net.Dir, "backup")
	program, err := os.ReadFile(d.Testprog)
	if err == nil {
		err = os.WriteFile(d.backup, program, 0o755)
	}
	if err == nil {
		err = d.startSSH(s)
	}
	if err != nil {
		s.Fatal(err)
	}
}

// startSSH starts the SSH server, on which everybody logs in with an own key.
func (d *demo) startSSH(s *stage) error {
	key, err := tuntest.NewKeyPair("")
	if err != nil {
		return err
	}
	users := []*netns.User{d.Alice, d.Bob, d.Carol, d.Service}
	server := &tuntest.Server{HostKey: key.Private, Dial: d.open, Decide: func(_ context.Context, o tuntest.Open) error {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.opened = o
		return nil
	}}
	address := net.JoinHostPort(d.Server.Addr4.String(), "22")
	known, err := server.HostKeyLine(address)
	if err != nil {
		return err
	}
	for _, u := range users {
		server.Authorized = append(server.Authorized, u.AuthorizedKey)
		u.Write(s, ".ssh/known_hosts", known+"\n", 0o600)
	}
	l := d.Server.Listen(s, "tcp", address)
	s.Cleanup(func() { server.Close() })
	go func() { _ = server.Serve(l) }()
	return nil
}

// open is what the SSH server does for a channel: it knows one name more than others.
func (d *demo) open(_ context.Context, network, address string) (net.Conn, error) {
	if h, port, _ := net.SplitHostPort(address); h == hidden {
		address = net.JoinHostPort("127.0.0.1", port)
	}
	return d.Server.Dial(network, address)
}

// config is the whole file.
func (d *demo) config(rules []rule) string {
	profile := func(id string, port int) string {
		return fmt.Sprintf(`<profile id="%s" host="%v" port="%d">
  <server-authentication-methods><auth-server-publickey policy="strict" /></server-authentication-methods></profile>`, id, d.Server.Addr4, port)
	}
	text := "<profiles>\n" + profile("bastion", 22) + "\n" + profile("dead", deadPort) + "\n</profiles>\n<filter-engine>\n"
	for _, r := range rules {
		text += r.xml + "\n"
	}
	return host.Config(text + "</filter-engine>")
}

// command runs ssh-broker-ctl as root and shows what it says.
func (d *demo) command(s *stage, args ...string) {
	s.Helper()
	say("   # ssh-broker-ctl %s", strings.Join(args, " "))
	r := d.Run(s, nil, append([]string{d.Ctl}, args...)...)
	for line := range strings.Lines(strings.ReplaceAll(r.Stdout, d.Net.Dir, "...")) {
		say("   %s", strings.TrimRight(line, "\n"))
	}
	if r.Code != 0 {
		s.Fatalf("ssh-broker-ctl %s: %v", strings.Join(args, " "), r)
	}
}

// crash kills the daemons under a program that connects.
func (d *demo) crash(s *stage) {
	s.Helper()
	d.KillSystemBroker(s)
	marker, to := d.marker(), "10.99.1.2:5432"
	sent := d.syns(s, to)
	p := d.Client.Start(s, d.Cmd(d.Carol, d.Testprog, "connect", "-echo", marker, to))
	waiting := func(st service.Status) bool { return st.Waiting > 0 }
	d.Await(s, "a connection that waits", waiting)
	pid := d.Status(s).PID
	d.KillCaptured(s, false)
	d.Await(s, "ssh-captured, started again by its keeper", func(st service.Status) bool { return st.PID != pid && st.Waiting > 0 })
	if d.syns(s, to) != sent {
		s.Fatalf("a SYN to %s left while nobody decided", to)
	}
	say("   her connect() waits in the kernel; no SYN was seen leaving")
	d.StartSystemBroker(s, "")
	r := p.Wait(s)
	if f := strings.Fields(r.Stdout); len(f) != 4 || f[1] != "ok" || f[3] != "ok" {
		s.Fatalf("it should have connected: %v", r)
	}
	d.records++
	d.inTunnel(s, marker, to, sent)
	say("   ssh-captured is back by its keeper, ssh-broker --system was started again: ok, her words only inside SSH")
}

// restored compares what is there with what was there before our programs were.
func (d *demo) restored(s *stage, before netns.Snapshot) {
	s.Helper()
	d.RequireRestored(s, before, within)
	say("   nftables, cgroups, sockets, interfaces, routes, policy rules, kernel parameters, mounts, processes and files")
	say("   of both hosts: %d things, all of them as before ssh-captured was started.", strings.Count(before.String(), "\n")+1)
}

// machine lists what is not in the namespaces and could be left behind.
func machine() (map[string]bool, error) {
	items := map[string]bool{}
	out, err := exec.Command("nft", "-s", "list", "ruleset").Output()
	if err != nil {
		return nil, fmt.Errorf("nft list ruleset: %w", err)
	}
	for line := range strings.Lines(string(out)) {
		items["nftables: "+strings.TrimSpace(line)] = true
	}
	for _, file := range []string{"/proc/self/mountinfo", "/proc/sys/net/ipv4/icmp_ratemask"} {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(b)) {
			items[file+": "+strings.TrimSpace(line)] = true
		}
	}
	err = filepath.WalkDir("/sys/fs/cgroup", func(path string, _ fs.DirEntry, err error) error {
		if strings.Contains(path, fmt.Sprintf("%s%d-", netns.CgroupPrefix, os.Getpid())) {
			items["cgroup "+path] = true
		}
		return nil // what cannot be read is gone, or there is none
	})
	return items, err
}

// differences lists what came and went.
func differences(before, after map[string]bool) (list []string) {
	for item := range after {
		if !before[item] {
			list = append(list, "+ "+item)
		}
	}
	for item := range before {
		if !after[item] {
			list = append(list, "- "+item)
		}
	}
	slices.Sort(list)
	return list
}
