package cgroups

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"sshbroker/test/host"
	"sshbroker/test/netns"
)

// TestNames: a name that only the server knows, one that is the server's own, and one
// by which a rule decides; all by getaddrinfo.
func TestNames(t *testing.T) {
	w := newWorld(t)
	s := w.onServer(t, tunneled)
	other := w.onServer(t, direct)
	dns := w.Client.StartDNS(t, netip.MustParseAddr("127.0.0.1"), map[string][]string{
		"plain.example": {"10.99.1.2", "fd99:1::2"},
		"named.example": {"192.0.2.9"}, // where nobody is
		"shell.example": {"10.99.1.2"},
	})
	w.Server.Replace(t, "/etc/hosts", "127.0.0.1 localhost\n10.99.1.2 far.example named.example shell.example\nfd99:1::2 far6.example\n")
	w.before = w.Snapshot(t)
	w.listeners = nil // they are there before
	w.StartCaptured(t)
	w.SSHD.Trust(t, w.Alice, "shell.example")
	w.configure(t, w.Alice, `<filter-engine ip-generate-start="198.18.0.0" ip6-generate-start="fd00:5::">
  <rule host="far6?\.example" action="TUNNEL" profile-id="p" pseudo-ip="yes"/>
  <rule host="shell\.example" action="TUNNEL" hostname-from-app="yes"/>
  <rule host="named\.example" ports="7001" action="TUNNEL" profile-id="p"/>
  <rule host="named\.example" action="BLOCK"/>
</filter-engine>`)
	for _, c := range []struct {
		name   string
		port   uint16
		from   netip.Addr // the zero one: refused
		rule   int
		target string
	}{
		{"far.example", tunneled, w.Server.Addr4, 1, "far.example:7001"},
		{"far6.example", tunneled, w.Server.Addr6, 1, "far6.example:7001"},
		{"shell.example", tunneled, w.Server.Addr4, 2, "shell.example:7001"},
		{"named.example", tunneled, w.Server.Addr4, 3, "named.example:7001"},
		{"named.example", direct, netip.Addr{}, 4, ""},
		{"plain.example", direct, w.Client.Addr4, 0, ""}, // which its address would not be under rule 4
	} {
		before := len(host.Records(t, host.UserAuditFile(w.Alice)))
		r := w.Client.Run(t, w.capture(w.Alice, "bash", "-c", dial(c.name, c.port)))
		service := s
		if c.port == direct {
			service = other
		}
		got := service.caller(r.Stdout).Addr()
		if c.name == "plain.example" && got == w.Client.Addr6 {
			got = w.Client.Addr4 // getaddrinfo has both
		}
		if got != c.from || (r.Code == 0) != c.from.IsValid() {
			t.Errorf("%s port %d: called from %v, want %v: %v", c.name, c.port, got, c.from, r)
		}
		if rec := records(t, w.Alice, before+1)[before]; rec.Rule != c.rule || rec.Name != c.name || c.target != "" && rec.Target != c.target {
			t.Errorf("%s: recorded %+v, want rule %d and target %q", c.name, rec, c.rule, c.target)
		}
	}
	w.clear(t, s.marker, false)
	w.clear(t, other.marker, true)
	if asked := dns.Asked(); slices.ContainsFunc(asked, func(q string) bool { return strings.HasPrefix(q, "far") }) || !slices.Contains(asked, "named.example A") {
		t.Errorf("the host's name server was asked %q", asked)
	}
	w.finish(t)
}

// TestNamesByUser: each user's names are the own ones, whatever server is asked, by UDP
// and TCP; the host's own resolver is not disturbed.
func TestNamesByUser(t *testing.T) {
	netns.RequireProgram(t, "dig", "bind9-dnsutils")
	w := newWorld(t)
	dns := w.Client.StartDNS(t, netip.MustParseAddr("127.0.0.1"), map[string][]string{"plain.example": {"10.99.1.2"}})
	w.before = w.Snapshot(t)
	w.StartCaptured(t)
	w.configure(t, w.Alice, `<filter-engine ip-generate-start="198.18.4.0"><rule host="far\.example" action="TUNNEL" profile-id="p" pseudo-ip="yes"/></filter-engine>`)
	w.configure(t, w.Bob, `<filter-engine ip-generate-start="198.19.4.0"><rule host="far\.example" action="TUNNEL" profile-id="p" pseudo-ip="yes"/></filter-engine>`)
	alice, bob := w.start(t, w.capture(w.Alice, "bash")), w.start(t, w.capture(w.Bob, "bash"))
	for _, server := range []string{"127.0.0.1", "127.0.0.53", "192.0.2.1", "::1", "fd99:1::2"} {
		for _, how := range []string{"+notcp", "+tcp"} {
			dig := func(name string) string {
				return fmt.Sprintf("dig +short +tries=1 +timeout=60 %s @%s %s", how, server, name)
			}
			for user, pool := range map[*shell]string{alice: "198.18.4.", bob: "198.19.4."} {
				if got, code := user.do(t, dig("far.example")); code != 0 || !strings.HasPrefix(got, pool) {
					t.Errorf("%s by %s: %s, exit code %d: %s", how, server, got, code, user.Stderr())
				}
				if got, _ := user.do(t, dig("plain.example")); got != "10.99.1.2\n" {
					t.Errorf("%s by %s: plain.example is %q", how, server, got)
				}
			}
		}
	}
	if slices.Contains(dns.Asked(), "far.example A") {
		t.Errorf("a made-up name was asked for: %q", dns.Asked())
	}
	// Nobody else's are taken.
	for _, u := range []*netns.User{w.Alice, w.Carol, nil} {
		if r := w.Run(t, u, "dig", "+short", "+tries=1", "@127.0.0.1", "far.example"); r.Code != 0 || r.Stdout != "" {
			t.Errorf("not captured: %v", r)
		}
	}
	if n := len(dns.Asked()); !slices.Contains(dns.Asked(), "far.example A") {
		t.Errorf("the host's name server was not asked: %d queries", n)
	}
	expect(t, alice.end(t), 0)
	expect(t, bob.end(t), 0)
	w.finish(t)
}
