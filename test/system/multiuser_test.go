package system

import (
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sshbroker/test/host"
	"sshbroker/test/netns"
)

// way is what has to become of one user's flow.
type way struct {
	errno  string // "ok": it is let in
	clear  bool   // it goes out in clear
	kernel string // the outcome of the compiled rule that decides it; then nobody records it
	reason string // of the system broker's record
	own    string // of the record of the user's own broker; "": it has none
	says   string // a part of the system broker's error

	later     int  // how many rules after the one that decides for others
	byDefault bool // none does
}

// The ways that are the same for everybody.
var (
	byKernel = way{errno: "ok", clear: true, kernel: "pass"}
	reset    = way{errno: "ECONNREFUSED", kernel: "reset"}
	passed   = way{errno: "ok", clear: true, reason: "passed"}
	blocked  = way{errno: "ECONNREFUSED", reason: "blocked"}
)

// rulesCase is a destination and the rules that are for it alone.
type rulesCase struct {
	name    string
	rules   []string // for ports="PORT"; @NAME@ stands for users and groups
	decides int      // which of them does; -1: none, the default
	program string   // "": testprog
	host    string
	closed  bool // nobody listens there
	want    func(u *netns.User) way
}

// TestMultiUserHost has every flow of three users take its rule's way: two have brokers
// of their own, which carry what the rules of the host tunnel; one has none. What they
// do is proven on the wire, where it arrives, by connect(), by the records, and for what
// the kernel decides by its counters. The control has the same flows before there are rules.
func TestMultiUserHost(t *testing.T) {
	w := newWorld(t)
	special := filepath.Join(w.Dir, "special")
	program, err := os.ReadFile(w.Testprog)
	if err == nil {
		err = os.WriteFile(special, program, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}

	// Servers that something is wrong with, for all users or for some.
	const deadPort, strangePort, secondPort, closedPort = 2299, 2201, 2202, 2203
	w.Server.StartSSHD(t, netns.SSHDOptions{Port: strangePort})                                           // nobody knows its key
	second := w.Server.StartSSHD(t, netns.SSHDOptions{Port: secondPort})                                  // Alice does not know its key
	closed := w.Server.StartSSHD(t, netns.SSHDOptions{Port: closedPort, Users: []*netns.User{w.Service}}) // lets the service in alone
	for _, u := range []*netns.User{w.Alice, w.Bob, w.Service} {
		known := w.SSHD.KnownHosts() + closed.KnownHosts()
		if u != w.Alice {
			known += second.KnownHosts()
		}
		u.Write(t, ".ssh/known_hosts", known, 0o600)
	}
	w.before = w.Snapshot(t)

	// What a tunneled flow of u's comes to, by who carries it.
	carried := func(u *netns.User) way {
		if w.hasBroker(u) {
			return way{errno: "ok", reason: "handed-over", own: "carried"}
		}
		return way{errno: "ok", reason: "carried"}
	}
	fails := func(errno, reason string) func(*netns.User) way {
		return func(u *netns.User) way {
			if w.hasBroker(u) {
				return way{errno: errno, reason: "refused-by-carrier", own: reason, says: reason}
			}
			return way{errno: errno, reason: reason}
		}
	}
	fallback := func(reason string) func(*netns.User) way {
		return func(u *netns.User) way {
			f := way{errno: "ok", clear: true, reason: "fallback", says: reason}
			if w.hasBroker(u) {
				f.own = reason
			}
			return f
		}
	}
	always := func(v way) func(*netns.User) way { return func(*netns.User) way { return v } }
	only := func(who *netns.User, is, others func(*netns.User) way) func(*netns.User) way {
		return func(u *netns.User) way {
			if u == who {
				return is(u)
			}
			return others(u)
		}
	}
	const (
		v4, v6 = "10.99.1.2", "fd99:1::2"
		to4    = `ip-address="10.99.1.2/32" `
		to6    = `ip-address="fd99:1::/64" `
	)
	cases := []rulesCase{
		{name: "DIRECT by address", rules: []string{to4 + `action="DIRECT"`}, host: v4, want: always(byKernel)},
		{name: "DIRECT by address, IPv6", rules: []string{to6 + `action="DIRECT"`}, host: v6, want: always(byKernel)},
		{name: "DIRECT by default", decides: -1, host: v4, want: always(byKernel)},
		{name: "BLOCK by address", rules: []string{to4 + `action="BLOCK"`}, host: v4, want: always(reset)},
		{name: "BLOCK by address, IPv6", rules: []string{to6 + `action="BLOCK"`}, host: v6, want: always(reset)},
		{name: "BLOCK by port", rules: []string{`action="BLOCK"`}, host: v6, want: always(reset)},
		{name: "TUNNEL by address", rules: []string{to4 + `action="TUNNEL" profile-id="good"`}, host: v4, want: carried},
		{name: "TUNNEL by address, IPv6", rules: []string{to6 + `action="TUNNEL" profile-id="good"`}, host: v6, want: carried},
		{name: "TUNNEL by a pattern of addresses", rules: []string{`ip-address="10\.99\.1\.[0-9]+" action="TUNNEL" profile-id="good"`}, host: v4, want: carried},
		{name: "TUNNEL by port", rules: []string{`action="TUNNEL" profile-id="good" fallback-to-plain="YES"`}, host: v6, want: carried},
		{name: "DIRECT before BLOCK", rules: []string{to4 + `action="DIRECT"`, `action="BLOCK"`}, host: v4, want: always(byKernel)},
		{name: "BLOCK after what does not match", rules: []string{to6 + `action="DIRECT"`, `action="BLOCK"`}, decides: 1, host: v4, want: always(reset)},

		{name: "TUNNEL by name", rules: []string{`host="tunnel\.test" action="TUNNEL" profile-id="good"`, `action="BLOCK"`}, host: "tunnel.test", want: carried},
		{name: "TUNNEL by name, IPv6", rules: []string{`host="six\.test" action="TUNNEL" profile-id="good"`, `action="BLOCK"`}, host: "six.test", want: carried},
		{name: "DIRECT by name", rules: []string{`host="direct\.test" action="DIRECT"`, `action="BLOCK"`}, host: "direct.test", want: always(passed)},
		{name: "BLOCK by name", rules: []string{`host="block\.test" action="BLOCK"`, `action="DIRECT"`}, host: "block.test", want: always(blocked)},
		{name: "TUNNEL by pseudo name", rules: []string{`host=".*\.corp\.test" pseudo-ip="YES" action="TUNNEL" profile-id="good"`}, host: pseudoNames[0], want: carried},

		{name: "TUNNEL by program", rules: []string{`application="` + special + `" action="TUNNEL" profile-id="good"`, `action="BLOCK"`},
			program: special, host: v4, want: carried},
		{name: "BLOCK for other programs", rules: []string{`application="special" action="TUNNEL" profile-id="good"`, `action="BLOCK"`},
			decides: 1, host: v4, want: always(blocked)},
		{name: "DIRECT by program", rules: []string{`application=".*/special" action="DIRECT"`, `action="BLOCK"`}, program: special, host: v6, want: always(passed)},

		{name: "TUNNEL by user", rules: []string{`users="@ALICE@" action="TUNNEL" profile-id="good"`, `users="@CAROL@" action="BLOCK"`}, host: v4,
			want: only(w.Alice, carried, only(w.Carol, always(way{errno: "ECONNREFUSED", reason: "blocked", later: 1}), always(way{errno: "ok", clear: true, reason: "passed", byDefault: true})))},
		{name: "BLOCK by group", rules: []string{`groups="@PROJECTS@" action="BLOCK"`, `action="TUNNEL" profile-id="good"`}, host: v4,
			want: only(w.Carol, always(way{errno: "ok", reason: "carried", later: 1}), always(blocked))},

		{name: "refused by the destination", rules: []string{to4 + `action="TUNNEL" profile-id="good"`}, host: v4, closed: true,
			want: fails("ECONNREFUSED", "refused-by-destination")},
		{name: "refused by the destination, with fallback", rules: []string{to6 + `action="TUNNEL" profile-id="good" fallback-to-plain="YES"`}, host: v6, closed: true,
			want: fails("ECONNREFUSED", "refused-by-destination")},
		{name: "dead server", rules: []string{to4 + `action="TUNNEL" profile-id="dead"`}, host: v4, want: fails("EHOSTUNREACH", "server-unreachable")},
		{name: "dead server, IPv6", rules: []string{to6 + `action="TUNNEL" profile-id="dead"`}, host: v6, want: fails("EHOSTUNREACH", "server-unreachable")},
		{name: "dead server, with fallback", rules: []string{to4 + `action="TUNNEL" profile-id="dead" fallback-to-plain="YES"`}, host: v4, want: fallback("server-unreachable")},
		{name: "unknown host key", rules: []string{to4 + `action="TUNNEL" profile-id="strange"`}, host: v4, want: fails("EHOSTUNREACH", "host-key")},
		{name: "unknown host key, with fallback", rules: []string{to4 + `action="TUNNEL" profile-id="strange" fallback-to-plain="YES"`}, host: v4,
			want: fails("EHOSTUNREACH", "host-key")},
		{name: "host key that Alice does not know, with fallback", rules: []string{to4 + `action="TUNNEL" profile-id="second" fallback-to-plain="YES"`}, host: v4,
			want: only(w.Alice, fails("EHOSTUNREACH", "host-key"), carried)},
		{name: "login refused to users", rules: []string{to4 + `action="TUNNEL" profile-id="closed"`}, host: v4,
			want: only(w.Carol, carried, fails("EHOSTUNREACH", "auth-failed"))},
		{name: "login refused to users, with fallback", rules: []string{to4 + `action="TUNNEL" profile-id="closed" fallback-to-plain="YES"`}, host: v4,
			want: only(w.Carol, carried, fallback("auth-failed"))},
	}

	const firstPort = 7001
	var rules strings.Builder
	first := make([]int, len(cases)) // number of the first rule of each
	number := 1
	stand := strings.NewReplacer("@ALICE@", w.Alice.Name, "@CAROL@", w.Carol.Name, "@PROJECTS@", fmt.Sprintf("projects%d", w.Alice.Groups[0]))
	for i, c := range cases {
		first[i] = number
		for _, r := range c.rules {
			fmt.Fprintf(&rules, "  <rule ports=\"%d\" %s/>\n", firstPort+i, stand.Replace(r))
			number++
		}
		if !c.closed {
			w.came.listen(t, uint16(firstPort+i))
		}
	}
	config := func(engine string) string {
		return host.Config("<profiles>" + w.profile("good", w.SSHD.Addr4.Port()) + w.profile("dead", deadPort) +
			w.profile("strange", strangePort) + w.profile("second", secondPort) + w.profile("closed", closedPort) +
			"</profiles>\n<filter-engine " + engine + ">\n" + rules.String() + "</filter-engine>")
	}
	users := []*netns.User{w.Alice, w.Bob, w.Carol}
	target := func(i int) string { return net.JoinHostPort(cases[i].host, fmt.Sprint(firstPort+i)) }

	// Without rules everything goes out in clear, and the wire shows it.
	for i, c := range cases {
		if !c.closed && c.host != pseudoNames[0] {
			w.inClear(t, w.try(t, users[i%len(users)], c.program, target(i)))
		}
	}
	if t.Failed() {
		t.Fatal("the control shows nothing")
	}

	w.StartCaptured(t)
	w.StartSystemBroker(t, config(""))
	w.Enable(t)
	w.startOwnBroker(t, w.Alice, "") // as it comes, without any configuration
	w.startOwnBroker(t, w.Bob, host.Config("<profiles>"+w.profile("good", w.SSHD.Addr4.Port())+"</profiles>"))

	records := 0
	own := map[*netns.User]int{}
	for i, c := range cases {
		for _, u := range users {
			t.Run(c.name+"/"+u.Name[:strings.IndexAny(u.Name, "0123456789")], func(t *testing.T) {
				want := c.want(u)
				hits := w.hits(t)
				o := w.try(t, u, c.program, target(i))
				switch {
				case want.clear:
					w.inClear(t, o)
				case want.errno != "ok":
					w.nowhere(t, o, want.errno)
				case w.hasBroker(u):
					w.throughTunnel(t, o, u)
				default:
					w.throughTunnel(t, o, w.Service)
				}
				rule := first[i] + c.decides + want.later
				if c.decides < 0 || want.byDefault {
					rule = 0
				}
				if want.kernel != "" {
					hits[fmt.Sprintf("%s %d", want.kernel, rule)]++
					if got := w.hits(t); !maps.Equal(got, hits) {
						t.Errorf("the kernel counts %v, want %v", got, hits)
					}
					return
				}
				if got := w.hits(t); !maps.Equal(got, hits) {
					t.Errorf("decided by the kernel: %v, before %v", got, hits)
				}
				records++
				list := host.AwaitRecords(t, w.AuditFile(), records)
				r := list[len(list)-1]
				if len(list) != records || r.UID != u.UID || r.User != u.Name || r.Rule != rule || r.Reason != want.reason ||
					r.Capture != "system" || !strings.HasSuffix(r.Dst, target(i)[strings.LastIndex(target(i), ":"):]) || !strings.Contains(r.Error, want.says) {
					t.Errorf("%d records, want %d; the last one is %+v, want rule %d and %+v", len(list), records, r, rule, want)
				}
				if wantProgram := c.program; wantProgram != "" && r.Program != wantProgram {
					t.Errorf("recorded program %q, want %q", r.Program, wantProgram)
				}
				if want.own == "" {
					return
				}
				own[u]++
				list = host.AwaitRecords(t, host.UserAuditFile(u), own[u])
				mine := list[len(list)-1]
				if len(list) != own[u] || mine.UID != u.UID || mine.Rule != rule || mine.Reason != want.own || mine.Capture != "system" || mine.Src != r.Src {
					t.Errorf("%d records of the user's own broker, want %d; the last one is %+v, want rule %d and %+v", len(list), own[u], mine, rule, want)
				}
			})
		}
	}
	t.Run("accounts that are not captured", func(t *testing.T) { testSystemAccounts(t, w, cases, target) })

	w.finish(t)
	if got := len(host.Records(t, w.AuditFile())); got != records {
		t.Errorf("%d records of the system broker in the end, want %d", got, records)
	}
	for _, u := range users {
		if got := len(host.Records(t, host.UserAuditFile(u))); got != own[u] {
			t.Errorf("%d records of %s's own broker in the end, want %d", got, u.Name, own[u])
		}
	}
}

// testSystemAccounts: root, the accounts of services and those that nobody has are not
// captured, whatever the rules say.
func testSystemAccounts(t *testing.T, w *world, cases []rulesCase, target func(i int) string) {
	account := func(name string, id uint32) *netns.User { return &netns.User{Name: name, UID: id, GID: id, Home: "/"} }
	hits := w.hits(t)
	for _, u := range []*netns.User{nil, account("www-data", 33), account("min", 999), account("max", 60001), account("dynamic", 61500), account("nobody", 65534), w.Service} {
		for i, c := range cases {
			if !c.closed && c.host == "10.99.1.2" {
				w.inClear(t, w.try(t, u, c.program, target(i)))
			}
		}
	}
	if got := w.hits(t); !maps.Equal(got, hits) {
		t.Errorf("the kernel counts %v, before %v", got, hits)
	}
}

// TestCaptureRoot: capture-root="yes" adds root and nobody else, when it is loaded, and
// takes it out again.
func TestCaptureRoot(t *testing.T) {
	w := newWorld(t)
	w.came.listen(t, 7001)
	w.came.listen(t, 7002)
	config := func(engine string) string {
		return host.Config("<profiles>" + w.profile("good", w.SSHD.Addr4.Port()) + `</profiles>
<filter-engine ` + engine + `>
  <rule ports="7001" action="TUNNEL" profile-id="good"/>
  <rule ports="7002" action="BLOCK"/>
</filter-engine>`)
	}
	reload := func(engine string) {
		t.Helper()
		w.WriteConfig(t, config(engine))
		if r := w.Run(t, nil, w.Ctl, "-a", w.Address(), "reload"); r.Code != 0 {
			t.Fatalf("reload: %v", r)
		}
	}
	daemon := &netns.User{Name: "www-data", UID: 33, GID: 33, Home: "/"}
	w.StartCaptured(t)
	w.StartSystemBroker(t, config(""))
	w.Enable(t)
	w.inClear(t, w.try(t, nil, "", "10.99.1.2:7001"))
	reload(`capture-root="yes"`)
	w.throughTunnel(t, w.try(t, nil, "", "10.99.1.2:7001"), w.Service)
	w.nowhere(t, w.try(t, nil, "", "10.99.1.2:7002"), "ECONNREFUSED")
	w.inClear(t, w.try(t, daemon, "", "10.99.1.2:7002"))
	w.throughTunnel(t, w.try(t, w.Carol, "", "10.99.1.2:7001"), w.Service)
	if r := host.AwaitRecords(t, w.AuditFile(), 2); r[0].UID != 0 || r[0].User != "root" || r[0].Reason != "carried" {
		t.Errorf("recorded %+v", r)
	}
	reload(`capture-root="no"`)
	w.inClear(t, w.try(t, nil, "", "10.99.1.2:7002"))
	w.finish(t)
}

// TestUsersCapturesLiftNothing: what a user's own capture lets through is judged by the
// rules of the host all the same, in either backend; what it blocks or tunnels, it does.
func TestUsersCapturesLiftNothing(t *testing.T) {
	w := newWorld(t)
	const byKernel, byBroker, tunneled, open, hers, through = 7001, 7002, 7003, 7004, 7005, 7006
	for port := uint16(byKernel); port <= through; port++ {
		w.came.listen(t, port)
	}
	w.StartCaptured(t)
	w.StartSystemBroker(t, host.Config("<profiles>"+w.profile("good", w.SSHD.Addr4.Port())+fmt.Sprintf(`</profiles>
<filter-engine>
  <rule ports="%d" action="BLOCK"/>
  <rule ports="%d" application=".*/testprog" action="BLOCK"/>
  <rule ports="%d" action="TUNNEL" profile-id="good"/>
</filter-engine>`, byKernel, byBroker, tunneled)))
	w.Enable(t)
	w.startOwnBroker(t, w.Alice, "")
	for _, how := range []string{`ip-address=".*"`, `application=".*/testprog"`} { // compiled, and not
		file := w.Alice.Write(t, "own.xml", host.Config("<profiles>"+w.profile("good", w.SSHD.Addr4.Port())+fmt.Sprintf(`</profiles>
<filter-engine>
  <rule %s ports="%d" action="BLOCK"/>
  <rule %s ports="%d" action="TUNNEL" profile-id="good"/>
  <rule %s action="DIRECT"/>
</filter-engine>`, how, hers, how, through, how)), 0o600)
		for _, backend := range []string{"cgroup", "namespace"} {
			t.Run(how[:strings.Index(how, "=")]+" "+backend, func(t *testing.T) {
				try := func(port int) outcome {
					t.Helper()
					return w.tryBy(t, w.Alice, []string{w.Capture, "--backend=" + backend, "-f", file, w.Testprog}, fmt.Sprintf("10.99.1.2:%d", port))
				}
				w.nowhere(t, try(byKernel), "ECONNREFUSED")
				if backend == "cgroup" { // in a namespace it is her broker that connects
					w.nowhere(t, try(byBroker), "ECONNREFUSED")
				}
				w.throughTunnel(t, try(tunneled), w.Alice)
				w.inClear(t, try(open))
				w.nowhere(t, try(hers), "ECONNREFUSED")
				w.throughTunnel(t, try(through), w.Alice)
			})
		}
	}
	w.finish(t)
}
