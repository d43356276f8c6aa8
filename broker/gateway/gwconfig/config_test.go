package gwconfig

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"sshbroker/broker/gateway/policy"
)

const head = `listen: ":8443"
certificates: [{certificate: server.pem, key: server.key}]
client_ca: ca.pem
`

// parse reads a file that has to be good.
func parse(t *testing.T, text string) *Config {
	t.Helper()
	c, err := Parse("/etc/ssh-gateway/f.yaml", []byte(text))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return c
}

// one is a configuration with one service of a backend, for any certificate.
func one(backend string) string {
	return head + "services: [{name: s, any_certificate: true, backend: " + backend + "}]\n"
}

var alice = policy.Identity{Emails: []string{"alice@example.com"}, Groups: []string{"operations"}}

// decide says what becomes of a flow of alice: a reason and addresses.
func decide(s *policy.Service, host string, port uint16) string {
	route, v := s.Decide(context.Background(), &alice, host, port, resolver{})
	return fmt.Sprintf("%v%v", v.Reason, route.Addrs)
}

type resolver struct{}

func (resolver) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	return map[string][]netip.Addr{
		"myvncservice.com":                  {netip.MustParseAddr("10.10.34.7")},
		"myvncservice.internal.example.com": {netip.MustParseAddr("10.10.34.8")},
		"payroll.example.com":               {netip.MustParseAddr("10.10.34.9")},
		"desk1.example.com":                 {netip.MustParseAddr("10.10.34.10"), netip.MustParseAddr("10.10.34.1")},
		"rebound.example.com":               {netip.MustParseAddr("10.10.35.1"), netip.MustParseAddr("127.0.0.1")},
		"anything.example":                  {netip.MustParseAddr("192.0.2.1")},
	}[strings.TrimSuffix(host, ".")], nil
}

// The backend of banyan-http-connect-collections.txt, as it stands there, in a service with
// a word on who may use it.
func TestBanyanBackend(t *testing.T) {
	const backend = `{
  "target": {},
  "dns_overrides": {
    "vnc1.com": "myvncservice.com"
  },
  "allow_patterns": [
    {
      "hostnames": [
        "vnc1.com"
      ],
      "cidrs": [
        "10.10.34.0/24"
      ],      
      "ports": {
        "port_ranges": [
          {
            "Min": 5901,
            "Max": 5999
          }
        ]
      }
    }
  ]
}`
	text := `{"listen": ":8443", "certificates": [{"certificate": "c", "key": "k"}], "client_ca": "ca", "services": [{"name": "s", "any_certificate": true, "backend": ` + backend + `}]}`
	c, err := Parse("banyan.json", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	s := c.Services[0]
	for _, f := range []struct {
		host string
		port uint16
		want string
	}{
		{"vnc1.com", 5901, "permitted[10.10.34.7:5901]"},
		{"vnc1.com", 5999, "permitted[10.10.34.7:5999]"},
		{"vnc1.com", 6000, "port-not-allowed[]"},
		{"myvncservice.com", 5901, "host-not-allowed[]"},
	} {
		if got := decide(s, f.host, f.port); got != f.want {
			t.Errorf("%s port %d: %s, want %s", f.host, f.port, got, f.want)
		}
	}
	if !s.Backend.HTTPConnect {
		t.Error("without a target the client does not name the destination")
	}
}

// A backend as Banyan's console exports it: all keys there, ports as text, lists empty.
// Empty lists are everybody's there, and nobody's here without a word.
func TestBanyanExport(t *testing.T) {
	const exported = `{"target": {"name": "%s", "port": "%s", "tls": false, "tls_insecure": false, "client_certificate": false}, "dns_overrides": {}, "whitelist": [], "allow_patterns": [], "http_connect": %t`
	if got := decide(parse(t, one(fmt.Sprintf(exported, "10.0.0.5", "5432", false)+"}")).Services[0], "", 0); got != "permitted[10.0.0.5:5432]" {
		t.Errorf("target: %s", got)
	}
	collection := fmt.Sprintf(exported, "", "", true)
	_, err := Parse("f.yaml", []byte(one(collection+"}")))
	if err == nil || !strings.Contains(err.Error(), "no destination is allowed") || !strings.Contains(err.Error(), "allow_all: true") {
		t.Errorf("an empty list without the word: %v", err)
	}
	if got := decide(parse(t, one(collection+`, "allow_all": true}`)).Services[0], "anything.example", 25); got != "permitted[192.0.2.1:25]" {
		t.Errorf("with the word: %s", got)
	}
}

func TestExample(t *testing.T) {
	c, err := Load("../../../etc/ssh-gateway.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Warnings) > 0 {
		t.Errorf("warnings:\n%v", c.Warnings)
	}
	services := map[string]*policy.Service{}
	for _, s := range c.Services {
		services[s.Name] = s
	}
	for _, f := range []struct {
		service, host string
		port          uint16
		want          string
	}{
		{"db", "", 0, "permitted[10.10.20.5:5432]"},
		{"db", "10.10.20.5", 22, "not-target[]"},
		{"desktops", "vnc1.example.com", 5901, "permitted[10.10.34.8:5901]"},
		{"desktops", "desk1.example.com", 3389, "permitted[10.10.34.10:3389]"},
		{"desktops", "desk1.example.com", 22, "port-not-allowed[]"},
		{"desktops", "payroll.example.com", 3389, "excluded[]"},
		{"desktops", "rebound.example.com", 3389, "address-not-allowed[]"},
		{"cluster-a", "api.cluster-a.example.com", 6443, "permitted[10.20.0.10:6443]"},
	} {
		if got := decide(services[f.service], f.host, f.port); got != f.want {
			t.Errorf("%s, %s port %d: %s, want %s", f.service, f.host, f.port, got, f.want)
		}
	}
	employee := policy.Identity{Emails: []string{"bob@example.com"}}
	for name, want := range map[string]policy.Reason{"db": policy.NoRole, "desktops": policy.Permitted, "cluster-a": policy.NoRole} {
		if v := services[name].Admit(&employee); v.Reason != want {
			t.Errorf("an employee at %s: %v", name, v)
		}
	}
}

// Everything in a file is where the gateway looks for it.
func TestWholeFile(t *testing.T) {
	c := parse(t, `
listen: ["127.0.0.1:8443", "[::1]:8443"]
certificates:
  - {certificate: a.pem, key: /keys/a.key}
  - {certificate: ../b.pem, key: b.key}
client_ca: [ca1.pem, ca2.pem]
crl: ca1.crl
metrics: 127.0.0.1:9464
audit: {file: audit.jsonl, required: true}
limits: {connections: 1, handshakes: 2, flows: 3, flows_per_identity: 4, connects_per_second: 5, reserve: 6, handshake_timeout: 7s, dial_timeout: 8s, idle_timeout: 1h30m, drain_timeout: 0s}
services:
  - name: a
    description: "An ä service"
    kind: rdp
    tls_sni: [A.example., b.example]
    port: 9000
    policy: [p, q]
    client: {port: 8081, allow_override: false}
    enforcement: permissive
    backend: {target: {name: 127.0.0.1, port: 3389}}
roles: [{name: r, emails: [A@Example.com], email_domains: [example.com, Example.NET], uris: ["urn:x:*"], groups: [g], issuers: ["CN=x"]}]
policies: [{name: p, roles: [r]}, {name: q, roles: [r], allow: [{ports: {port_list: ["22", 23], port_ranges: [{min: 80, Max: 90}]}}], deny: [{cidrs: [10.0.0.0/8]}]}]
`)
	equal(t, "listen", fmt.Sprint(c.Listen), "[127.0.0.1:8443 [::1]:8443]")
	equal(t, "certificates", fmt.Sprint(c.Certificates), "[{/etc/ssh-gateway/a.pem /keys/a.key} {/etc/b.pem /etc/ssh-gateway/b.key}]")
	equal(t, "CAs", fmt.Sprint(c.ClientCAs, c.CRLs), "[/etc/ssh-gateway/ca1.pem /etc/ssh-gateway/ca2.pem] [/etc/ssh-gateway/ca1.crl]")
	equal(t, "metrics", fmt.Sprint(c.Metrics), "{tcp 127.0.0.1:9464}")
	equal(t, "audit", fmt.Sprint(c.Audit), "{/etc/ssh-gateway/audit.jsonl true}")
	equal(t, "limits", fmt.Sprint(c.Limits), "{1 2 3 4 5 6 7s 8s 1h30m0s 0s}")
	s := c.Services[0].Spec
	equal(t, "service", fmt.Sprint(s.Name, s.Description, s.Kind, s.ServerNames, s.Port, s.Client, s.Permissive, s.AnyCertificate), "aAn ä servicerdp[a.example b.example] 9000 {8081 false} true false")
	equal(t, "listeners", fmt.Sprint(s.Self.Listeners), "[127.0.0.1:8443 [::1]:8443 127.0.0.1:9000 [::1]:9000 127.0.0.1:9464]")
	r := s.Policies[0].Roles[0]
	equal(t, "role", fmt.Sprint(*r), "{r [A@example.com] [example.com example.net] [urn:x:*] [g] [CN=x]}")
	equal(t, "policies", fmt.Sprintf("%+v %+v", s.Policies[0].Anywhere, *s.Policies[1]),
		fmt.Sprintf("true {Name:q Roles:[%p] Anywhere:false Allow:[{Hostnames:[] CIDRs:[] Ports:[{Min:22 Max:22} {Min:23 Max:23} {Min:80 Max:90}]}] Deny:[{Hostnames:[] CIDRs:[10.0.0.0/8] Ports:[]}]}", r))

	c = parse(t, strings.Replace(one("{target: {name: a, port: 1}}"), "client_ca: ca.pem", "client_ca: ca.pem\nmetrics: unix:m.sock", 1))
	equal(t, "metrics", fmt.Sprint(c.Metrics), "{unix /etc/ssh-gateway/m.sock}")
	equal(t, "all addresses", fmt.Sprint(c.Listen), "[[::]:8443]")
}

// A gateway that listens on all addresses is on those of its machine, and on no others.
func TestSelf(t *testing.T) {
	c := parse(t, one("{allow_patterns: [{cidrs: [192.0.2.0/24]}, {cidrs: [127.0.0.0/8], ports: {port_list: [22]}}]}"))
	for addr, want := range map[string]bool{"127.0.0.1": true, "192.0.2.77": false} {
		if c.Services[0].Self.Local(netip.MustParseAddr(addr)) != want {
			t.Errorf("%s is of this machine: %t", addr, !want)
		}
	}
	equal(t, "another host at the same port", decide(c.Services[0], "192.0.2.77", 8443), "permitted[192.0.2.77:8443]")
	c = parse(t, one("{allow_patterns: [{cidrs: [127.0.0.0/8]}]}"))
	equal(t, "the gateway", decide(c.Services[0], "127.0.0.1", 8443), "address-reserved[]")
	equal(t, "beside it", decide(c.Services[0], "127.0.0.1", 22), "permitted[127.0.0.1:22]")
}

func equal(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s:\n got %s\nwant %s", what, got, want)
	}
}

// Each default of the table is in force where nothing is said: a file that says it means
// the same as one that does not.
func TestSayingTheDefaultChangesNothing(t *testing.T) {
	base := one("{target: {name: a.example, port: 1}}")
	meant := func(text string) Config {
		c := *parse(t, text)
		c.Warnings, c.certificates, c.clientCAs, c.crls, c.names = nil, nil, nil, nil, nil
		for _, s := range c.Services {
			s.Self.Local = nil // functions are never equal
		}
		return c
	}
	without := meant(base)
	said := 0
	for _, k := range Keys() {
		if k.Default == "" {
			continue
		}
		said++
		var root yaml.Node
		if err := yaml.Unmarshal([]byte(base), &root); err != nil {
			t.Fatal(err)
		}
		set(root.Content[0], strings.Split(strings.ReplaceAll(k.Path, "[]", ".0"), "."), k.Default)
		text, err := yaml.Marshal(&root)
		if err != nil {
			t.Fatal(err)
		}
		if k.Path == "services[].any_certificate" {
			text = []byte(strings.Replace(string(text), "any_certificate: false", "any_certificate: true", 1)) // which the base needs
		}
		if !strings.Contains(string(text), k.Name()+": "+k.Default) && k.Path != "services[].any_certificate" {
			t.Errorf("%s was not set:\n%s", k.Path, text)
		}
		if with := meant(string(text)); !reflect.DeepEqual(with, without) {
			t.Errorf("%s: %s\n with %+v\nwithout %+v", k.Path, k.Default, with, without)
		}
	}
	if said < 15 {
		t.Errorf("only %d defaults", said)
	}
	// The one that the base does not show.
	if _, err := Parse("f.yaml", []byte(strings.Replace(base, "any_certificate: true, ", "", 1))); err == nil {
		t.Error("a service without any_certificate and policy is let through")
	}
}

// set puts a value at a path into a tree; numbers are positions in lists.
func set(n *yaml.Node, path []string, text string) {
	if len(path) == 0 {
		*n = yaml.Node{Kind: yaml.ScalarNode, Value: text}
		return
	}
	if n.Kind == yaml.SequenceNode {
		set(n.Content[0], path[1:], text)
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == path[0] {
			set(n.Content[i+1], path[1:], text)
			return
		}
	}
	child := &yaml.Node{Kind: yaml.MappingNode}
	n.Kind = yaml.MappingNode
	n.Content = append(n.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: path[0]}, child)
	set(child, path[1:], text)
}

func TestWarnings(t *testing.T) {
	c, err := Load("testdata/warnings.yaml")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/warnings.want", c.Warnings.Error()+"\n")
	for _, p := range c.Warnings {
		if !p.Warning || p.Pos.Line == 0 {
			t.Errorf("%+v", p)
		}
	}
	problems, err := Check("testdata/warnings.yaml", time.Now())
	if err != nil || len(problems) <= len(c.Warnings) {
		t.Errorf("Check says %d things, Load %d (%v)", len(problems), len(c.Warnings), err)
	}
}

// What is said to never match never does.
func TestNeverMatches(t *testing.T) {
	c, err := Load("testdata/warnings.yaml")
	if err != nil {
		t.Fatal(err)
	}
	never := slices.IndexFunc(c.Services, func(s *policy.Service) bool { return s.Name == "never" })
	for _, p := range c.Services[never].Backend.AllowPatterns[:2] {
		spec := policy.Spec{Name: "s", AnyCertificate: true, Backend: policy.Backend{HTTPConnect: true, AllowPatterns: []policy.Pattern{p}}}
		s, err := policy.New(spec)
		if err != nil {
			t.Fatal(err)
		}
		for _, host := range []string{"10.1.2.3", "10.1.2.5", "127.0.0.1", "192.0.2.1", "2001:db8::1", "anything.example", "0.0.0.5", "x.5", "x.0x7f"} {
			if got := decide(s, host, 80); strings.HasPrefix(got, "permitted") {
				t.Errorf("%v: %s is %s", p, host, got)
			}
		}
	}
}

func TestBounds(t *testing.T) {
	good := one("{target: {name: a, port: 1}}")
	bomb := head + "services: &s [{name: s, any_certificate: true, backend: {target: {name: a, port: 1}}}]\nroles:\n  - {name: r, groups: &g [" + strings.Repeat("g, ", 999) + "g]}\n"
	for i := range 300 {
		bomb += fmt.Sprintf("  - {name: r%d, groups: *g}\n", i)
	}
	deep := good + "crl: " + strings.Repeat("[", 5000) + strings.Repeat("]", 5000)
	for _, c := range []struct{ name, text, want string }{
		{"size", good + "#" + strings.Repeat("x", maxSize), "more than 1048576 bytes"},
		{"aliases", bomb, "more than 200000 values"},
		{"depth", deep, "this is a list, and has to be text"},
		{"cycle", head + "services: [{name: s, any_certificate: true, backend: &b {target: *b}}]\n", "there is no key target"},
		{"cycle of lists", head + "services: [{name: s, any_certificate: true, backend: {allow_patterns: &p [{hostnames: *p}]}}]\n", "has to be text"},
		{"key that is a list", good + "? [a]\n: b\n", "a key is a list"},
		{"JSON that is too deep", strings.Repeat("[", 20000), "exceeded max depth"},
	} {
		name := "f.yaml"
		if strings.HasPrefix(c.name, "JSON") {
			name = "f.json"
		}
		_, err := Parse(name, []byte(c.text))
		problems, ok := errors.AsType[Problems](err)
		if !ok || !strings.Contains(err.Error(), c.want) || len(problems) > 1001 {
			t.Errorf("%s: %.300v", c.name, err)
		}
	}
	if parse(t, strings.Replace(good, "client_ca: ca.pem", "client_ca: &ca ca.pem\ncrl: *ca", 1)).CRLs[0] != "/etc/ssh-gateway/ca.pem" {
		t.Error("an alias is not read")
	}
}

// A thousand errors are enough for anybody.
func TestManyErrors(t *testing.T) {
	text := head + "services:\n" + strings.Repeat("  - {}\n", 3000)
	_, err := Parse("f.yaml", []byte(text))
	problems, _ := errors.AsType[Problems](err)
	if len(problems) != 1001 {
		t.Errorf("%d errors", len(problems))
	}
}

func TestLoadRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "f.yaml")
	if _, err := Load(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if _, err := Load(dir); err == nil {
		t.Error("a directory is read")
	}
	if _, err := Check(file, time.Now()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Check of no file: %v", err)
	}
	if err := os.WriteFile(file, []byte(one("{target: {name: a, port: 1}}")), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := Load(file); err != nil || c.ClientCAs[0] != filepath.Join(dir, "ca.pem") {
		t.Errorf("%v, %v", c, err)
	}
	if err := os.Chmod(file, 0o602); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(file); err == nil || !strings.Contains(err.Error(), "everybody may write it") {
		t.Errorf("a file that everybody may write: %v", err)
	}
}
