package cgroups

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sshbroker/test/host"
	"sshbroker/test/netns"
)

// sudoWithout lets a user run anything as anybody without a password.
func (w *world) sudoWithout(t *testing.T, u *netns.User) {
	t.Helper()
	netns.RequireProgram(t, "sudo", "sudo")
	if _, err := os.Stat("/etc/sudoers"); err != nil {
		t.Fatal(err)
	}
	w.Client.Replace(t, "/etc/sudoers", fmt.Sprintf("Defaults !use_pty, !fqdn\nroot ALL=(ALL:ALL) ALL\n%s ALL=(ALL:ALL) NOPASSWD: ALL\n", u.Name))
}

// TestSudo: what a set-uid program opens as another user is nobody's business here:
// neither its connections nor its name queries reach the captured user's broker.
func TestSudo(t *testing.T) {
	w := newWorld(t)
	w.sudoWithout(t, w.Alice)
	s := w.onServer(t, tunneled)
	dns := w.Client.StartDNS(t, netip.MustParseAddr("127.0.0.1"), map[string][]string{"plain.example": {"10.99.1.2"}})
	w.echoDatagrams(t, w.Server, netip.AddrPortFrom(w.Server.Addr4, direct))
	udp := fmt.Sprintf("/usr/bin/python3 %s udp %v %d", w.Alice.Write(t, "ask.py", ask, 0o644), w.Server.Addr4, direct)
	if err := os.Chmod(w.Alice.Home, 0o755); err != nil { // others run it as well
		t.Fatal(err)
	}
	w.before = w.Snapshot(t)
	w.listeners = nil
	w.StartCaptured(t)
	w.configure(t, w.Alice, `<filter-engine ip-generate-start="198.18.0.0">
  <rule host="(far|plain)\.example" action="TUNNEL" profile-id="p" pseudo-ip="yes"/>
  <rule ip-address=".*" action="TUNNEL" profile-id="p"/>
</filter-engine>`)
	a := w.start(t, w.capture(w.Alice, "bash"))
	id := w.capturesOf(t, w.Alice, 1)[0].ID

	// Alice's own, before and after.
	own := func() {
		t.Helper()
		said, _ := a.do(t, dial(w.Server.Addr4, tunneled))
		s.requireFrom(t, said, w.Server.Addr4)
		if got, _ := a.do(t, "getent ahostsv4 far.example"); !strings.HasPrefix(got, "198.18.") {
			t.Errorf("her names are not her broker's: %q", got)
		}
	}
	own()
	before := len(records(t, w.Alice, 1))
	if slices.Contains(dns.Asked(), "far.example A") {
		t.Error("her names are asked for")
	}
	for _, as := range []*netns.User{nil, w.Bob, w.Carol} {
		name := "root"
		if as != nil {
			name = as.Name
		}
		sudo := func(command string) (string, int) {
			t.Helper()
			return a.do(t, fmt.Sprintf("sudo -n -u %s bash -c '%s'", name, command))
		}
		if got, _ := sudo("id -un; sed -n s/^0:://p /proc/self/cgroup"); got != fmt.Sprintf("%s\n/ssh-capture/%d-%s\n", name, w.Alice.UID, id) {
			t.Fatalf("sudo: %q, %s", got, a.Stderr())
		}
		for i, addr := range both(w.Server) {
			said, _ := sudo(dial(addr, tunneled))
			s.requireFrom(t, said, both(w.Client)[i])
		}
		asked := len(dns.Asked())
		if got, code := sudo("getent ahostsv4 far.example"); got != "" || code == 0 {
			t.Errorf("%s's far.example is %q", name, got)
		}
		if got := dns.Asked()[asked:]; !slices.Contains(got, "far.example A") {
			t.Errorf("the host's name server was asked %q", got)
		}
		if got, _ := sudo("getent ahostsv4 plain.example | head -n1"); !strings.HasPrefix(got, "10.99.1.2 ") {
			t.Errorf("%s's plain.example is %q", name, got)
		}
		// Nor is what is refused to her refused to them.
		if got, _ := sudo(udp); got != "ok\n" {
			t.Errorf("UDP of %s's: %q", name, got)
		}
	}
	if got, _ := a.do(t, udp); got != "refused\n" {
		t.Errorf("UDP of hers: %q", got)
	}
	if got := host.Records(t, host.UserAuditFile(w.Alice)); len(got) != before {
		t.Errorf("her broker has seen %+v", got[before:])
	}
	w.clear(t, s.marker, true) // by the others
	own()
	expect(t, a.end(t), 0)
	w.finish(t)
}

// TestSetUIDCommand: as the command itself it gains its rights, and one is told.
func TestSetUIDCommand(t *testing.T) {
	w := newWorld(t)
	w.sudoWithout(t, w.Alice)
	w.before = w.Snapshot(t)
	w.StartCaptured(t)
	s := w.onServer(t, tunneled)
	w.configureWays(t, w.Alice)
	r := expect(t, w.Client.Run(t, w.capture(w.Alice, "sudo", "-n", "bash", "-c", dial(w.Server.Addr4, tunneled))), 0)
	s.requireFrom(t, r.Stdout, w.Client.Addr4)
	if want := "sudo is set-uid: what it connects to as another user is not captured"; !strings.Contains(r.Stderr, want) {
		t.Errorf("it is not said that %q: %v", want, r)
	}
	w.finish(t)
}

// TestTwoUsers: each by the own rules and broker, at once, and neither sees the other's.
func TestTwoUsers(t *testing.T) {
	w := newCaptured(t)
	s := w.onServer(t, tunneled)
	w.configure(t, w.Alice, `<filter-engine><rule ip-address=".*" ports="7001" action="TUNNEL" profile-id="p"/></filter-engine>`)
	w.configure(t, w.Bob, `<filter-engine><rule ip-address=".*" ports="7001" application=".*/bash" action="DIRECT"/></filter-engine>`)
	w.configure(t, w.Carol, `<filter-engine><rule ip-address=".*" ports="7001" action="BLOCK"/></filter-engine>`)
	a, b, c := w.start(t, w.capture(w.Alice, "bash")), w.start(t, w.capture(w.Bob, "bash")), w.start(t, w.capture(w.Carol, "bash"))
	for range 3 {
		for i, addr := range both(w.Server) {
			said, _ := a.do(t, dial(addr, tunneled))
			s.requireFrom(t, said, addr)
			said, _ = b.do(t, dial(addr, tunneled))
			s.requireFrom(t, said, both(w.Client)[i])
			if said, code := c.do(t, dial(addr, tunneled)); code == 0 {
				t.Errorf("Carol's is not blocked: %q", said)
			}
		}
	}
	for u, want := range map[*netns.User]string{w.Alice: "TUNNEL", w.Bob: "DIRECT"} {
		list := records(t, u, 6)
		for _, r := range list {
			if r.Action != want || r.UID != u.UID || len(list) != 6 {
				t.Errorf("%d records of %s's, one is %+v", len(list), u.Name, r)
			}
		}
		id, others := w.capturesOf(t, u, 1)[0].ID, w.capturesOf(t, w.Carol, 1)[0].ID
		if r := expect(t, w.Run(t, u, w.Ctl, "-s", "connector", "status"), 0); !strings.Contains(r.Stdout, id) || strings.Contains(r.Stdout, others) {
			t.Errorf("%s is told of other captures than %s: %v", u.Name, id, r)
		}
	}
	if l := w.leaves(t); len(l) != 3 {
		t.Errorf("leaves: %v", l)
	}
	// Nobody can move the other's processes, nor leave.
	other := w.Client.CgroupPath(filepath.Join("ssh-capture", fmt.Sprintf("%d-%s", w.Bob.UID, w.capturesOf(t, w.Bob, 1)[0].ID)))
	for _, dir := range []string{other, w.Client.CgroupPath("/")} {
		if _, code := a.do(t, fmt.Sprintf("echo $BASHPID >%s/cgroup.procs", dir)); code == 0 {
			t.Errorf("a captured process moves itself to %s", dir)
		}
	}
	for _, s := range []*shell{a, b, c} {
		expect(t, s.end(t), 0)
	}
	w.finish(t)
}

// TestManyAtOnce: captures of two users come and go together, and each flow is judged,
// whatever rules of others change in that moment.
func TestManyAtOnce(t *testing.T) {
	w := newCaptured(t)
	s := w.onServer(t, tunneled)
	for _, u := range []*netns.User{w.Alice, w.Bob} {
		w.configureWays(t, u)
	}
	for range 3 {
		var running []*netns.Process
		for range 15 {
			for _, u := range []*netns.User{w.Alice, w.Bob} {
				running = append(running, w.Client.Start(t, w.capture(u, "bash", "-c", dial(w.Server.Addr4, tunneled))))
			}
		}
		for _, p := range running {
			s.requireFrom(t, expect(t, p.Wait(t), 0).Stdout, w.Server.Addr4)
		}
	}
	w.clear(t, s.marker, false)
	w.finish(t)
}

// TestTwoCaptures: two of one user's by different rules at once, one broker.
func TestTwoCaptures(t *testing.T) {
	w := newCaptured(t)
	s := w.onServer(t, tunneled)
	w.configure(t, w.Alice, `<filter-engine><rule ip-address=".*" ports="7001" action="TUNNEL" profile-id="p"/></filter-engine>`)
	file := w.Alice.Write(t, "direct.xml", host.Config(`<filter-engine><rule ip-address=".*" action="DIRECT"/></filter-engine>`), 0o600)
	block := w.Alice.Write(t, "block.xml", host.Config(`<filter-engine><rule ip-address=".*" ports="7001" action="BLOCK"/></filter-engine>`), 0o600)
	one, two := w.start(t, w.capture(w.Alice, "bash")), w.start(t, w.capture(w.Alice, "-f", file, "bash"))
	three, four := w.start(t, w.capture(w.Alice, "-f", block, "bash")), w.start(t, w.capture(w.Alice, w.via(w.Alice), "bash"))
	w.capturesOf(t, w.Alice, 4)
	for range 3 {
		for i, addr := range both(w.Server) {
			for in, from := range map[*shell]netip.Addr{one: addr, two: both(w.Client)[i], three: {}, four: addr} {
				said, _ := in.do(t, dial(addr, tunneled))
				s.requireFrom(t, said, from)
			}
		}
	}
	// A reload changes the one that has no rules of its own, and keeps it.
	w.configure(t, w.Alice, `<filter-engine><rule ip-address=".*" ports="7001" action="BLOCK"/></filter-engine>`)
	expect(t, w.Run(t, w.Alice, w.Ctl, "reload"), 0)
	for in, from := range map[*shell]netip.Addr{one: {}, three: {}, four: {}, two: {}} { // a common BLOCK holds for all
		said, _ := in.do(t, dial(w.Server.Addr4, tunneled))
		s.requireFrom(t, said, from)
	}
	w.configure(t, w.Alice, `<filter-engine><rule ip-address=".*" ports="7009" action="BLOCK"/></filter-engine>`)
	expect(t, w.Run(t, w.Alice, w.Ctl, "reload"), 0)
	for in, from := range map[*shell]netip.Addr{one: w.Client.Addr4, two: w.Client.Addr4, three: {}, four: w.Server.Addr4} {
		said, _ := in.do(t, dial(w.Server.Addr4, tunneled))
		s.requireFrom(t, said, from)
	}
	for _, in := range []*shell{one, two, three, four} {
		expect(t, in.end(t), 0)
	}
	w.finish(t)
}
