package policy

import (
	"net/netip"
	"strings"
	"testing"
)

var (
	staff  = &Role{Name: "employee", EmailDomains: []string{"example.com"}}
	ops    = &Role{Name: "operator", EmailDomains: []string{"example.com"}, Groups: []string{"ops"}}
	others = &Role{Name: "contractor", EmailDomains: []string{"example.net"}}
)

func TestRoles(t *testing.T) {
	for _, c := range []struct {
		name string
		role Role
		want bool
	}{
		{"e-mail", Role{Emails: []string{"bob@example.com", "alice@example.com"}}, true},
		{"another e-mail", Role{Emails: []string{"bob@example.com"}}, false},
		{"case of the local part", Role{Emails: []string{"Alice@example.com"}}, false},
		{"domain", *staff, true},
		{"domain that ends alike", Role{EmailDomains: []string{"ample.com"}}, false},
		{"parent domain", Role{EmailDomains: []string{"com"}}, false},
		{"URI", Role{URIs: []URIPattern{must(ParseURIPattern("spiffe://example.com/team/a"))}}, true},
		{"beginning of a URI", Role{URIs: []URIPattern{must(ParseURIPattern("spiffe://example.com/team/*"))}}, true},
		{"beginning without star", Role{URIs: []URIPattern{must(ParseURIPattern("spiffe://example.com/team/"))}}, false},
		{"zero URI pattern", Role{URIs: []URIPattern{{}}}, false},
		{"group of O", Role{Groups: []string{"Example Ltd"}}, true},
		{"group of OU", Role{Groups: []string{"ops"}}, true},
		{"case of a group", Role{Groups: []string{"Ops"}}, false},
		{"issuer", Role{Issuers: []string{"CN=Client CA"}}, true},
		{"another issuer", Role{Issuers: []string{"CN=Client CA 2"}}, false},
		{"all parts", Role{EmailDomains: []string{"example.com"}, Groups: []string{"ops"}, Issuers: []string{"CN=Client CA"}}, true},
		{"all parts but one", Role{EmailDomains: []string{"example.com"}, Groups: []string{"dev"}}, false},
		{"empty", Role{}, false},
	} {
		if got := c.role.match(&alice); got != c.want {
			t.Errorf("%s: %t", c.name, got)
		}
	}
	if staff.match(&Identity{Emails: []string{"example.com"}}) {
		t.Error("what has no @ counts as an address of its domain")
	}
}

func TestAdmit(t *testing.T) {
	anywhere := func(name string, roles ...*Role) *Policy { return &Policy{Name: name, Roles: roles, Anywhere: true} }
	service := func(change func(*Spec)) *Service {
		spec := collection(Pattern{Hostnames: hostnames("*")})
		spec.AnyCertificate = false
		change(&spec)
		return must(New(spec))
	}
	for _, c := range []struct {
		name    string
		service *Service
		id      *Identity
		want    string
		allowed bool
	}{
		{"any certificate", must(New(collection(Pattern{Ports: ports(1)}))), &alice, "permitted, any_certificate", true},
		{"any certificate, nobody", must(New(collection(Pattern{Ports: ports(1)}))), &Identity{Subject: "CN=alice"}, "no-identity: no certificate that identifies somebody", false},
		{"nil", must(New(collection(Pattern{Ports: ports(1)}))), nil, "no-identity: no certificate that identifies somebody", false},
		{"zero service", new(Service), &alice, "no-policy: the service is not set up", false},
		{"spec without New", &Service{Spec: collection(Pattern{Ports: ports(1)})}, &alice, "no-policy: the service is not set up", false},
		{"no service", nil, &alice, "no-policy: the service is not set up", false},
		{"a role", service(func(s *Spec) { s.Policies = []*Policy{anywhere("p", others, ops)} }), &alice, "permitted, policy p: role operator", true},
		{"a later policy", service(func(s *Spec) { s.Policies = []*Policy{anywhere("p", others), anywhere("q", staff)} }), &alice, "permitted, policy q: role employee", true},
		{"no role", service(func(s *Spec) { s.Policies = []*Policy{anywhere("p", others)} }), &alice, "no-role: alice@example.com has no role that the service collection is for", false},
		{"no role, permissive", service(func(s *Spec) { s.Policies, s.Permissive = []*Policy{anywhere("p", others)}, true }), &alice, "no-role (permissive): alice@example.com has no role that the service collection is for", true},
		{"a role, permissive", service(func(s *Spec) { s.Policies, s.Permissive = []*Policy{anywhere("p", staff)}, true }), &alice, "permitted, policy p: role employee", true},
		{"nobody, permissive", service(func(s *Spec) { s.Policies, s.Permissive = []*Policy{anywhere("p", staff)}, true }), nil, "no-identity: no certificate that identifies somebody", false},
	} {
		v := c.service.Admit(c.id)
		if v.String() != c.want || v.Allowed() != c.allowed {
			t.Errorf("%s: %s, allowed %t", c.name, v, v.Allowed())
		}
		// Who is not admitted gets nowhere.
		route, d := c.service.Decide(t.Context(), c.id, "a.example", 1, &answers{addrs: map[string][]string{"a.example": {"192.0.2.1"}}})
		if !c.allowed && (d != v || route.Addrs != nil) {
			t.Errorf("%s: Decide says %s", c.name, d)
		}
		if c.allowed && !d.Allowed() {
			t.Errorf("%s: admitted, and Decide says %s", c.name, d)
		}
	}
}

// What policies say of destinations. The service itself allows *.example; each row has its
// policies, all for alice.
func TestPolicies(t *testing.T) {
	names := map[string][]string{"a.example": {"10.0.0.1", "192.0.2.1"}, "b.example": {"10.0.0.2"}, "other.test": {"192.0.2.9"}}
	web := Pattern{Ports: ports(443)}
	for _, c := range []struct {
		name       string
		policies   []*Policy
		permissive bool
		host       string
		port       uint16
		want       string // the verdict, without its words
		addrs      string
	}{
		{"anywhere", []*Policy{{Name: "p", Roles: []*Role{staff}, Anywhere: true}}, false, "a.example", 22, "permitted, policy p", "10.0.0.1:22 192.0.2.1:22"},
		{"anywhere is within the service", []*Policy{{Name: "p", Roles: []*Role{staff}, Anywhere: true}}, false, "other.test", 22, "host-not-allowed", ""},
		{"an allow rule", []*Policy{{Name: "p", Roles: []*Role{staff}, Allow: []Pattern{{Ports: ports(22)}, web}}}, false, "a.example", 443, "permitted, policy p: allow[1]", "10.0.0.1:443 192.0.2.1:443"},
		{"no allow rule", []*Policy{{Name: "p", Roles: []*Role{staff}, Allow: []Pattern{web}}}, false, "a.example", 22, "policy-not-allowed, policy p", ""},
		{"no allow rule, permissive", []*Policy{{Name: "p", Roles: []*Role{staff}, Allow: []Pattern{web}}}, true, "a.example", 22, "policy-not-allowed (permissive), policy p", "10.0.0.1:22 192.0.2.1:22"},
		{"permissive is not for patterns", []*Policy{{Name: "p", Roles: []*Role{staff}, Anywhere: true}}, true, "other.test", 22, "host-not-allowed", ""},
		{"an allow rule by network", []*Policy{{Name: "p", Roles: []*Role{staff}, Allow: []Pattern{{CIDRs: cidrs("192.0.2.0/24")}}}}, false, "a.example", 22, "permitted, policy p: allow[0]", "192.0.2.1:22"},
		{"an allow rule by network, none", []*Policy{{Name: "p", Roles: []*Role{staff}, Allow: []Pattern{{CIDRs: cidrs("192.0.2.0/24")}}}}, false, "b.example", 22, "policy-not-allowed, policy p", ""},
		{"the same, permissive", []*Policy{{Name: "p", Roles: []*Role{staff}, Allow: []Pattern{{CIDRs: cidrs("192.0.2.0/24")}}}}, true, "b.example", 22, "policy-not-allowed (permissive), policy p", "10.0.0.2:22"},
		{"permissive dials what is allowed", []*Policy{{Name: "p", Roles: []*Role{staff}, Allow: []Pattern{{CIDRs: cidrs("192.0.2.0/24")}}}}, true, "a.example", 22, "permitted, policy p: allow[0]", "192.0.2.1:22"},
		{"a deny rule", []*Policy{{Name: "p", Roles: []*Role{staff}, Anywhere: true, Deny: []Pattern{{Hostnames: hostnames("b.*")}}}}, false, "b.example", 22, "policy-denied, policy p: deny[0]", ""},
		{"a deny rule, permissive", []*Policy{{Name: "p", Roles: []*Role{staff}, Anywhere: true, Deny: []Pattern{{Hostnames: hostnames("b.*")}}}}, true, "b.example", 22, "policy-denied (permissive), policy p: deny[0]", "10.0.0.2:22"},
		{"a deny rule by network", []*Policy{{Name: "p", Roles: []*Role{staff}, Anywhere: true, Deny: []Pattern{{CIDRs: cidrs("10.0.0.0/8")}}}}, false, "a.example", 22, "permitted, policy p", "192.0.2.1:22"},
		{"a deny rule by network, all", []*Policy{{Name: "p", Roles: []*Role{staff}, Anywhere: true, Deny: []Pattern{{CIDRs: cidrs("10.0.0.0/8")}}}}, false, "b.example", 22, "policy-denied, policy p: deny[0]", ""},
		{"deny wins over another policy", []*Policy{{Name: "p", Roles: []*Role{ops}, Anywhere: true}, {Name: "q", Roles: []*Role{staff}, Allow: []Pattern{web}, Deny: []Pattern{{Ports: ports(22)}}}}, false, "a.example", 22, "policy-denied, policy q: deny[0]", ""},
		{"one policy is enough", []*Policy{{Name: "p", Roles: []*Role{staff}, Allow: []Pattern{web}}, {Name: "q", Roles: []*Role{ops}, Anywhere: true}}, false, "a.example", 22, "permitted, policy q", "10.0.0.1:22 192.0.2.1:22"},
		{"policies for others count for nothing", []*Policy{{Name: "p", Roles: []*Role{others}, Anywhere: true, Deny: []Pattern{web}}, {Name: "q", Roles: []*Role{staff}, Allow: []Pattern{web}}}, false, "a.example", 443, "permitted, policy q: allow[0]", "10.0.0.1:443 192.0.2.1:443"},
	} {
		spec := collection(Pattern{Hostnames: hostnames("*.example")})
		spec.AnyCertificate, spec.Policies, spec.Permissive = false, c.policies, c.permissive
		r := &answers{addrs: names}
		route, v := decide(t, spec, c.host, c.port, r)
		v.Detail = ""
		if v.String() != c.want {
			t.Errorf("%s: %s, want %s", c.name, v, c.want)
		}
		if strings.Join(dialled(route), " ") != c.addrs || v.Allowed() != (c.addrs != "") {
			t.Errorf("%s: %q, want %q", c.name, dialled(route), c.addrs)
		}
	}
}

// The rule of a route is that of the first address that is dialled, not of one that a policy
// took out.
func TestRuleOfTheRoute(t *testing.T) {
	spec := collection(Pattern{CIDRs: cidrs("10.0.0.0/8")}, Pattern{CIDRs: cidrs("192.0.2.0/24")})
	spec.AnyCertificate, spec.Policies = false, []*Policy{{Name: "p", Roles: []*Role{staff}, Anywhere: true, Deny: []Pattern{{CIDRs: cidrs("10.0.0.0/8")}}}}
	route, v := decide(t, spec, "a.example", 1, &answers{addrs: map[string][]string{"a.example": {"10.0.0.1", "192.0.2.1"}}})
	if !v.Allowed() || route.Rule != "allow_patterns[1]" {
		t.Errorf("%v, by %q", v, route.Rule)
	}
	equal(t, "addresses", dialled(route), []string{"192.0.2.1:1"})
}

// New refuses what contradicts itself and what lets nobody use the service: the empty list
// is never everybody.
func TestNewRefuses(t *testing.T) {
	good := func() Spec { return collection(Pattern{Ports: ports(1)}) }
	for _, c := range []struct {
		name, want string
		change     func(*Spec)
	}{
		{"no name", "it has no name", func(s *Spec) { s.Name = "" }},
		{"no patterns", "it allows no destination", func(s *Spec) { s.Backend.AllowPatterns = nil }},
		{"all and some", "it allows all destinations, and some", func(s *Spec) { s.Backend.AllowAll = true }},
		{"all and a whitelist", "it allows all destinations, and some", func(s *Spec) {
			s.Backend = Backend{HTTPConnect: true, AllowAll: true, Whitelist: hostnames("a")}
		}},
		{"target and CONNECT", "it has a target, and lets", func(s *Spec) { s.Backend.Target.Port = 1 }},
		{"neither", "it has no target", func(s *Spec) { s.Backend.HTTPConnect = false }},
		{"target without port", "it has no target", func(s *Spec) { s.Backend = Backend{Target: Target{Host: must(ParseHost("a"))}} }},
		{"no policy", "it has no policy", func(s *Spec) { s.AnyCertificate = false }},
		{"policy and any certificate", "it has a policy, and", func(s *Spec) { s.Policies = []*Policy{{}} }},
		{"empty pattern", "the pattern is empty", func(s *Spec) { s.Backend.AllowPatterns = []Pattern{{}} }},
		{"empty exclusion", "the pattern is empty", func(s *Spec) { s.Backend.ExcludePatterns = []Pattern{{}} }},
		{"port 0", "begins with 0", func(s *Spec) { s.Backend.AllowPatterns = []Pattern{{Ports: []PortRange{{0, 5}}}} }},
		{"inverted range", "range of ports that is empty", func(s *Spec) { s.Backend.AllowPatterns = []Pattern{{Ports: []PortRange{{6, 5}}}} }},
		{"zero CIDR", "invalid CIDR", func(s *Spec) { s.Backend.AllowPatterns = []Pattern{{CIDRs: make([]netip.Prefix, 1)}} }},
		{"mapped CIDR", "IPv4 addresses in IPv6", func(s *Spec) { s.Backend.AllowPatterns = []Pattern{{CIDRs: cidrs("::ffff:10.0.0.0/104")}} }},
		{"override of a name in another case", "is not from a name in its one spelling", func(s *Spec) { s.Backend.DNSOverrides = map[string]Host{"A": must(ParseHost("b"))} }},
		{"override of an address", "is not from a name", func(s *Spec) { s.Backend.DNSOverrides = map[string]Host{"10.0.0.1": must(ParseHost("b"))} }},
		{"override to nothing", "is not from a name", func(s *Spec) { s.Backend.DNSOverrides = map[string]Host{"a": {}} }},
		{"nil policy", "a policy that is nil", func(s *Spec) { s.AnyCertificate, s.Policies = false, []*Policy{nil} }},
		{"policy without role", "names no role", func(s *Spec) { s.AnyCertificate, s.Policies = false, []*Policy{{Name: "p", Anywhere: true}} }},
		{"policy that allows nothing", "allows nothing", func(s *Spec) { s.AnyCertificate, s.Policies = false, []*Policy{{Name: "p", Roles: []*Role{staff}}} }},
		{"policy with both", "allows everything, and some", func(s *Spec) {
			s.AnyCertificate, s.Policies = false, []*Policy{{Name: "p", Roles: []*Role{staff}, Anywhere: true, Allow: []Pattern{{Ports: ports(1)}}}}
		}},
		{"policy with an empty rule", "the pattern is empty", func(s *Spec) {
			s.AnyCertificate, s.Policies = false, []*Policy{{Name: "p", Roles: []*Role{staff}, Anywhere: true, Deny: []Pattern{{}}}}
		}},
		{"policy with an empty role", "says nothing of whom it is for", func(s *Spec) {
			s.AnyCertificate, s.Policies = false, []*Policy{{Name: "p", Roles: []*Role{{Name: "r"}}, Anywhere: true}}
		}},
		{"policy with a nil role", "a role that is nil", func(s *Spec) {
			s.AnyCertificate, s.Policies = false, []*Policy{{Name: "p", Roles: []*Role{nil}, Anywhere: true}}
		}},
	} {
		spec := good()
		c.change(&spec)
		if s, err := New(spec); s != nil || err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if _, err := New(good()); err != nil {
		t.Error(err)
	}
}
