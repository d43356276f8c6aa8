package bench

import (
	"fmt"
	"strings"
	"testing"

	"sshbroker/capture/service"
	"sshbroker/test/host"
	"sshbroker/test/netns"
)

// situation is what the client's kernel has to do with direct traffic.
type situation struct {
	name string
	than string // the situation that it is compared with

	tables    string   // of others, as nft reads them
	rules     string   // of the system broker; "": nothing of ours runs
	asked     bool     // every SYN goes to the broker
	options   []string // of ssh-captured
	processes int      // that are idle beside

	opensAlone bool // nothing but connecting is measured
}

// Names of situations, put together from these.
const (
	untouched = "nothing loaded"
	tracked   = "firewall"
	byAddress = " + ours, by address"
	byName    = " + ours, a name first"
)

const (
	// What hosts have: a firewall that tells answers from what is new.
	firewall = `table inet firewall {
	chain input {
		type filter hook input priority filter; policy accept;
		iif lo accept
		ct state established,related accept
		tcp dport 22 accept
		ct state new reject
	}
}
`
	// What the simplest of transparent proxies load.
	redirectTable = `table ip proxy {
	chain output {
		type nat hook output priority -100; policy accept;
		ip protocol tcp ip daddr 192.0.2.0/24 redirect to :12345
	}
}
`
	// What a rule set could do that takes the direct flows out of tracking.
	untracking = `table ip untracking {
	chain output {
		type filter hook output priority raw; policy accept;
		ip daddr 10.99.1.2 tcp dport 7001-7003 notrack
	}
	chain prerouting {
		type filter hook prerouting priority raw; policy accept;
		ip saddr 10.99.1.2 tcp sport 7001-7003 notrack
	}
}
`
	// The traffic that is measured matches the last of these, in the kernel.
	addressRules = `
  <rule ip-address="192.0.2.0/24" action="TUNNEL" profile-id="good"/>
  <rule ip-address="198.51.100.0/24" action="BLOCK"/>
  <rule ports="23" action="TUNNEL" profile-id="good"/>
  <rule ip-address="10.0.0.0/8" ports="7000-7999" action="DIRECT"/>`
	nameRule        = `<rule host=".*\.corp\.test" action="TUNNEL" profile-id="good"/>` + addressRules
	applicationRule = `<rule application="/usr/bin/telnet" action="TUNNEL" profile-id="good"/>` + addressRules
)

func (w *directWorld) directSituations() []situation {
	const many = 500
	return []situation{
		{name: untouched},
		{name: "redirect table", than: untouched, tables: redirectTable},
		{name: byAddress, than: untouched, rules: addressRules},
		{name: byAddress + ", notrack by hand", than: untouched, rules: addressRules, tables: untracking},
		{name: byName, than: untouched, rules: nameRule, asked: true},
		{name: tracked, than: untouched, tables: firewall},
		{name: tracked + byAddress, than: tracked, rules: addressRules, tables: firewall},
		{name: tracked + byName, than: tracked, rules: nameRule, tables: firewall, asked: true},
		{name: " + ours, a program first", than: untouched, rules: applicationRule, asked: true, processes: many, opensAlone: true},
		{name: " + ours, a program first, /proc", than: untouched, rules: applicationRule, asked: true,
			options: []string{"--origin", "proc"}, processes: many, opensAlone: true},
	}
}

// enter brings the situation about and returns what ends it.
func (s situation) enter(t testing.TB, w *directWorld) (leave func()) {
	t.Helper()
	nft := netns.RequireProgram(t, "nft", "nftables")
	load := func(script string) {
		if r := w.Client.Run(t, netns.Cmd{Args: []string{nft, "-f", "-"}, Stdin: strings.NewReader(script)}); r.Code != 0 {
			t.Fatalf("nft: %v", r)
		}
	}
	load(s.tables)
	var idle *netns.Process
	if s.processes > 0 {
		idle = w.idle(t, s.processes)
	}
	if s.rules != "" {
		w.StartCaptured(t, s.options...)
		w.StartSystemBroker(t, host.Config("<profiles>"+w.Profile("good", "")+"</profiles>\n<filter-engine>"+s.rules+"\n</filter-engine>"))
		w.Enable(t)
	}
	tables := w.Client.Output(t, nil, nft, "list", "tables")
	if ours := strings.Contains(tables, "ssh_captured"); ours != (s.rules != "") || strings.Count(tables, "table") != strings.Count(s.tables, "table ")+map[bool]int{true: 1}[ours] {
		t.Fatalf("%s: there are %q", s.name, tables)
	}
	return func() {
		t.Helper()
		if s.rules != "" {
			w.requireDecided(t, s)
			if r := w.Run(t, nil, w.Ctl, "connector", "disable"); r.Code != 0 {
				t.Fatalf("connector disable: %v", r)
			}
			w.StopSystemBroker(t)
			w.StopCaptured(t)
		}
		if idle != nil {
			idle.Kill(t)
		}
		load("flush ruleset")
	}
}

// idle has so many processes with twenty descriptors each wait until they are killed.
func (w *directWorld) idle(t testing.TB, n int) *netns.Process {
	t.Helper()
	p := w.Client.Start(t, netns.Cmd{Limit: -1, Args: []string{"bash", "-c", fmt.Sprintf(
		`for fd in {3..19}; do eval "exec $fd</dev/null"; done; for ((i = 0; i < %d; i++)); do sleep 1000 & done; echo sleeping; wait`, n)}})
	p.WaitFor(t, "sleeping")
	return p
}

// requireDecided fails unless the SYNs were decided where the situation says: by the
// kernel, which counts them, or by the broker.
func (w *directWorld) requireDecided(t testing.TB, s situation) {
	t.Helper()
	for _, c := range w.Status(t).Captures {
		if c.ID != service.System {
			continue
		}
		byKernel := uint64(0)
		for _, h := range c.Hits {
			if h.Outcome == "pass" && h.Rule > 0 {
				byKernel += h.Count
			}
		}
		if (byKernel == 0) != s.asked {
			t.Fatalf("%s: %d SYNs were decided by the kernel", s.name, byKernel)
		}
		return
	}
	t.Fatal("the host is not captured")
}
