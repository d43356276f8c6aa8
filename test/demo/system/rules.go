package main

import (
	"crypto/rand"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"sshbroker/test/host"
	"sshbroker/test/netns"
)

// way is what has to become of a connection.
type way int

const (
	kernelClear   way = iota // DIRECT, by a compiled rule
	kernelRefused            // BLOCK, by a compiled rule
	passed                   // DIRECT, by the system broker
	blocked                  // BLOCK, by the system broker
	tunneled
	unreachable // the tunnel has failed
	fallback    // the same, and the rule lets it go in clear
)

// rule is one rule of the demonstration, and a connection that it decides about.
type rule struct {
	xml     string
	action  string // "" where the default decides
	to      string
	program string // "": the usual one
	want    func(*netns.User) way
}

func (d *demo) rules() []rule {
	always := func(w way) func(*netns.User) way { return func(*netns.User) way { return w } }
	return []rule{
		{`<rule ip-address="10.99.1.0/24" ports="80" action="DIRECT" />`, "DIRECT", "10.99.1.2:80", "", always(kernelClear)},
		{`<rule ports="25" action="BLOCK" />`, "BLOCK", "10.99.1.2:25", "", always(kernelRefused)},
		{`<rule host="(.*\.)?internal" ports="8000" pseudo-ip="yes" action="TUNNEL" profile-id="bastion" />`, "TUNNEL", hidden + ":8000", "", always(tunneled)},
		{`<rule ip-address="10.99.1.2/32" ports="5432" action="TUNNEL" profile-id="bastion" />`, "TUNNEL", "10.99.1.2:5432", "", always(tunneled)},
		{fmt.Sprintf(`<rule users="%s" ports="6379" action="BLOCK" />`, d.Carol.Name), "BLOCK", "10.99.1.2:6379", "", func(u *netns.User) way {
			if u == d.Carol {
				return blocked
			}
			return passed // no other rule matches
		}},
		{`<rule application=".*/backup" ports="873" action="BLOCK" />`, "BLOCK", "10.99.1.2:873", d.backup, always(blocked)},
		{`<rule ports="443" action="TUNNEL" profile-id="dead" />`, "TUNNEL", "10.99.1.2:443", "", always(unreachable)},
		{`<rule ports="23" action="TUNNEL" profile-id="dead" fallback-to-plain="yes" />`, "TUNNEL", "10.99.1.2:23", "", always(fallback)},
	}
}

// marker is a text that nothing else has.
func (d *demo) marker() string { return "words-" + rand.Text() }

// port is the port of an address in text.
func port(to string) string {
	_, port, _ := net.SplitHostPort(to)
	return port
}

// syns counts those seen leaving client for the port of to, whatever the address.
func (d *demo) syns(s *stage, to string) int {
	s.Helper()
	return len(d.wire.Packets(s, func(p netns.Packet) bool {
		return netns.NewConnections(p) && fmt.Sprint(p.Dst.Port()) == port(to)
	}))
}

// connect has a user's program connect, say its words and hear them again, and returns
// what connect() said.
func (d *demo) connect(s *stage, u *netns.User, program, marker, to string) string {
	s.Helper()
	if program == "" {
		program = d.Testprog
	}
	r := d.Run(s, u, program, "connect", "-echo", marker, to)
	f := strings.Fields(r.Stdout)
	if len(f) != 4 {
		s.Fatalf("%s connects to %s: %v", short(u), to, r)
	}
	if f[1] == "ok" && f[3] != "ok" {
		s.Fatalf("%s to %s: connected, and then %s", short(u), to, f[3])
	}
	return f[1]
}

// control shows that the watch sees what goes out in clear.
func (d *demo) control(s *stage) {
	s.Helper()
	for _, to := range []string{"10.99.1.2:5432", "10.99.1.2:25"} {
		marker, sent := d.marker(), d.syns(s, to)
		if got := d.connect(s, d.Alice, "", marker, to); got != "ok" {
			s.Fatalf("%s to %s: %s", short(d.Alice), to, got)
		}
		d.inClear(s, marker, to, sent)
		say("      %s to %s: ok; the SYN and the words were seen in clear", short(d.Alice), to)
	}
}

func (d *demo) inClear(s *stage, marker, to string, sent int) {
	s.Helper()
	if d.syns(s, to) == sent || !d.wire.Contains(s, []byte(marker)) {
		s.Fatalf("%s: the words were to be seen in clear, and were not", to)
	}
}

func (d *demo) nowhere(s *stage, marker, to string, sent int) {
	s.Helper()
	if d.syns(s, to) != sent || d.wire.Contains(s, []byte(marker)) {
		s.Fatalf("%s: a SYN or the words were seen leaving", to)
	}
}

// inTunnel wants the words to have arrived by the SSH server, and not to have been seen.
// It returns who had logged in there.
func (d *demo) inTunnel(s *stage, marker, to string, sent int) (login string) {
	s.Helper()
	d.nowhere(s, marker, to, sent)
	for _, asked := range d.dns.Asked() {
		if strings.HasPrefix(asked, hidden) {
			s.Fatalf("the name server was asked for %s", asked)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.opened.Address() != to {
		s.Fatalf("the SSH server was asked for %s, not %s", d.opened.Address(), to)
	}
	return d.opened.User
}

// try has u connect as rule number says, and proves that it went its way.
func (d *demo) try(s *stage, u *netns.User, number int, r rule) {
	s.Helper()
	want, marker, sent, hits := r.want(u), d.marker(), d.syns(s, r.to), d.hits(s)
	got := d.connect(s, u, r.program, marker, r.to)
	how, result, action, by := "", "ok", r.action, fmt.Sprint(number)
	carrier := "the system broker"
	if u == d.Alice {
		carrier = short(u) + "'s own broker"
	}
	switch want {
	case kernelClear:
		d.inClear(s, marker, r.to, sent)
		d.decidedByKernel(s, hits, fmt.Sprintf("pass %d", number))
		how = "by the kernel; SYN and words in clear"
	case kernelRefused:
		result = "ECONNREFUSED"
		d.nowhere(s, marker, r.to, sent)
		d.decidedByKernel(s, hits, fmt.Sprintf("reset %d", number))
		how = "by the kernel; no SYN was seen"
	case passed:
		action, by = "DIRECT", "-"
		d.inClear(s, marker, r.to, sent)
		d.decidedByBroker(s, u, 0, "passed")
		how = "the system broker lets it go; SYN and words in clear"
	case blocked:
		result = "ECONNREFUSED"
		d.nowhere(s, marker, r.to, sent)
		d.decidedByBroker(s, u, number, "blocked")
		how = "the system broker refuses; no SYN was seen"
	case tunneled:
		login := d.inTunnel(s, marker, r.to, sent)
		reason, wantLogin := "carried", d.Service.Name
		if u == d.Alice {
			reason, wantLogin = "handed-over", u.Name
		}
		if login != wantLogin {
			s.Fatalf("%s to %s: logged in as %s, not %s", short(u), r.to, login, wantLogin)
		}
		d.decidedByBroker(s, u, number, reason)
		how = fmt.Sprintf("%s, as %s; no SYN, words only inside SSH", carrier, strings.TrimRight(login, "0123456789"))
	case unreachable:
		result = "EHOSTUNREACH"
		d.nowhere(s, marker, r.to, sent)
		reason := "server-unreachable"
		if u == d.Alice {
			reason = "refused-by-carrier"
		}
		d.decidedByBroker(s, u, number, reason)
		how = carrier + " finds its server dead; no SYN was seen"
	case fallback:
		d.inClear(s, marker, r.to, sent)
		d.decidedByBroker(s, u, number, "fallback")
		how = carrier + " finds its server dead; falls back: words in clear"
	}
	if got != result {
		s.Fatalf("%s to %s: %s, not %s", short(u), r.to, got, result)
	}
	say("   %-6s %-4s %-8s %-18s %-13s %s", short(u), by, action, r.to, got, how)
}

// hits are the kernel's counts of what it has decided by itself.
func (d *demo) hits(s *stage) map[string]uint64 {
	s.Helper()
	counts := map[string]uint64{}
	for _, c := range d.Status(s).Captures {
		for _, h := range c.Hits {
			counts[fmt.Sprintf("%s %d", h.Outcome, h.Rule)] += h.Count
		}
	}
	return counts
}

// decidedByKernel wants one count more, and no record.
func (d *demo) decidedByKernel(s *stage, before map[string]uint64, rule string) {
	s.Helper()
	before[rule]++
	if got := d.hits(s); !maps.Equal(got, before) {
		s.Fatalf("the kernel counts %v, not %v", got, before)
	}
	if n := len(host.Records(s, d.AuditFile())); n != d.records {
		s.Fatalf("%d records, not %d: this one was for the kernel", n, d.records)
	}
}

// decidedByBroker wants one record more, of that rule and reason.
func (d *demo) decidedByBroker(s *stage, u *netns.User, number int, reason string) {
	s.Helper()
	d.records++
	list := host.AwaitRecords(s, d.AuditFile(), d.records)
	last := list[len(list)-1]
	dst, err := netip.ParseAddrPort(last.Dst)
	if err != nil || len(list) != d.records || last.User != u.Name || last.Rule != number || last.Reason != reason ||
		dst.Addr().Is4() && !slices.Contains([]string{"10.99", "198.1"}, dst.Addr().String()[:5]) {
		s.Fatalf("recorded %+v, not rule %d and %s of %s", last, number, reason, u.Name)
	}
}
