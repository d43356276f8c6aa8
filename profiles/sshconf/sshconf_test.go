package sshconf

import (
	"crypto/sha1"
	"encoding/hex"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sshbroker/profiles"
)

func TestParseSpec(t *testing.T) {
	for _, c := range []struct {
		in   string
		want spec
		err  string
	}{
		{"bastion", spec{"", "bastion", 0}, ""},
		{"me@bastion", spec{"me", "bastion", 0}, ""},
		{"me@corp@bastion:2222", spec{"me@corp", "bastion", 2222}, ""},
		{"ssh://me@bastion:22", spec{"me", "bastion", 22}, ""},
		{"[::1]:22", spec{"", "::1", 22}, ""},
		{"me@[fe80::1%eth0]", spec{"me", "fe80::1%eth0", 0}, ""},
		{"2001:db8::1", spec{"", "2001:db8::1", 0}, ""},
		{"", spec{}, "no host"},
		{"@h", spec{}, "no user"},
		{"-oProxyCommand=x", spec{}, "hyphen"},
		{"me@-h", spec{}, "hyphen"},
		{"h:0", spec{}, "port"},
		{"h:99999", spec{}, "port"},
		{"h:", spec{}, "port"},
		{"h h", spec{}, "character"},
		{"h\nx", spec{}, "character"},
		{"[::1", spec{}, "brackets"},
		{"[::1]x", spec{}, "brackets"},
		{"a:b:c", spec{}, "several colons"},
		{"me;rm@h", spec{}, "shell"},
	} {
		got, err := parseSpec(c.in)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%q: error %v, want one about %q", c.in, err, c.err)
			}
			continue
		}
		if err != nil || got != c.want {
			t.Errorf("%q: %+v, %v", c.in, got, err)
		}
	}
}

func load(t *testing.T, config, name string) (*profiles.Profile, []string, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return Load(name, Options{Home: "/home/me", User: "me", UID: 1000, Files: []string{path},
		Getenv: func(n string) string {
			return map[string]string{"SSH_AUTH_SOCK": "/agent", "OTHER": "/other", "https_proxy": "http://p:1", "NO_PROXY": "n"}[n]
		}})
}

// The environment's proxy is for servers of which the configuration says no other way.
func TestProxyOfTheEnvironment(t *testing.T) {
	for config, want := range map[string]string{"": "http://p:1 n", "Host h\n ProxyJump none\n": " ", "Host h\n ProxyCommand none\n": " "} {
		p, _, err := load(t, config, "h")
		if got := p.HTTPSProxy + " " + p.NoProxy; err != nil || got != want {
			t.Errorf("%q: %q, %v", config, got, err)
		}
	}
	p, _, err := load(t, "Host h\n ProxyJump g\n", "h")
	if err != nil || p.HTTPSProxy != "" || p.Gateway.HTTPSProxy != "http://p:1" {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestDefaults(t *testing.T) {
	p, warnings, err := load(t, "", "bastion")
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	if p.Host != "bastion" || p.Port != 22 || p.User != "me" || p.Agent != "/agent" || p.HostKeyPolicy != profiles.Ask ||
		p.IdleTimeout >= 0 || p.KeepaliveInterval == 0 || len(p.Identities) != 0 ||
		p.DefaultKeys[0] != "/home/me/.ssh/id_ed25519" || p.StoreKnownHost != "/home/me/.ssh/known_hosts" ||
		!slices.Contains(p.KnownHosts, "/etc/ssh/ssh_known_hosts") {
		t.Errorf("%+v", p)
	}
}

func TestAlias(t *testing.T) {
	p, warnings, err := load(t, `
Host gw
  HostName gw.example.com
  User "jump"
Host db
  HostName %h.internal
  User dba
  Port 2222
  IdentityFile ~/.ssh/%r_key
  IdentityFile /keys/%u
  IdentitiesOnly yes
  IdentityAgent $OTHER
  ProxyJump gw
  StrictHostKeyChecking accept-new
  UserKnownHostsFile ~/kh /kh2
  HostKeyAlias the-db
  ConnectTimeout 7
  ServerAliveInterval 5
  ServerAliveCountMax 2
  Ciphers aes128-gcm@openssh.com,aes256-ctr
  MACs +hmac-sha1
Match exec "true"
  User evil
Match all
  Port 22
`, "db")
	if err != nil {
		t.Fatal(err)
	}
	g := p.Gateway
	if p.Host != "db.internal" || p.User != "dba" || p.Port != 2222 || p.Agent != "/other" ||
		!slices.Equal(p.Identities, []string{"/home/me/.ssh/dba_key", "/keys/me"}) || p.HostKeyPolicy != profiles.TOFU ||
		p.KnownHosts[0] != "/home/me/kh" || p.KnownHosts[1] != "/kh2" || p.HostKeyAlias != "the-db" ||
		p.ConnectTimeout != 7*time.Second || p.KeepaliveInterval != 5*time.Second || p.KeepaliveMisses != 2 ||
		!slices.Equal(p.Ciphers, []string{"aes128-gcm@openssh.com", "aes256-ctr"}) || len(p.MACs) != 0 {
		t.Errorf("%+v", p)
	}
	if g == nil || g.Host != "gw.example.com" || g.User != "jump" || g.Gateway != nil {
		t.Errorf("gateway %+v", g)
	}
	if len(warnings) != 2 || !strings.Contains(warnings[0], "line 22") || !strings.Contains(warnings[1], "MACs") {
		t.Errorf("warnings %q", warnings)
	}
}

func TestCommandLineWins(t *testing.T) {
	p, _, err := load(t, "Host b\n User x\n Port 1\n", "me@b:22")
	if err != nil || p.User != "me" || p.Port != 22 {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestJumpList(t *testing.T) {
	p, _, err := load(t, "Host t\n ProxyJump u@a:1,b\n", "t")
	if err != nil {
		t.Fatal(err)
	}
	if b := p.Gateway; b == nil || b.Host != "b" || b.Gateway == nil || b.Gateway.Host != "a" || b.Gateway.User != "u" || b.Gateway.Port != 1 {
		t.Errorf("gateways %+v", p.Gateway)
	}
}

func TestRefused(t *testing.T) {
	for _, c := range []struct{ config, err string }{
		{"Host h\n ProxyCommand nc %h %p\n ProxyUseFdpass yes\n", "ProxyUseFdpass"},
		{"Host h\n ProxyJump h\n", "back to itself"},
		{"Host h\n ProxyJump g\nHost g\n ProxyJump h\n", "back to itself"},
		{"Host h\n HostName -x\n", "hyphen"},
		{"Host h\n StrictHostKeyChecking maybe\n", "StrictHostKeyChecking"},
		{"Host h\n Port x\n", "Port"},
		{"Host h\n User a;b\n", "User"},
	} {
		p, _, err := load(t, c.config, "h")
		if p != nil || err == nil || !strings.Contains(err.Error(), c.err) {
			t.Errorf("%q: %v, want an error about %q", c.config, err, c.err)
		}
	}
}

func FuzzLoad(f *testing.F) {
	f.Add("Host *\n ProxyJump a,b\n", "a@b:1")
	f.Fuzz(func(t *testing.T, config, name string) {
		if strings.Contains(strings.ToLower(config), "include") {
			t.Skip("would read files of this machine")
		}
		p, _, err := load(t, config, name)
		if (p == nil) != (err != nil) {
			t.Errorf("profile %v with error %v", p, err)
		}
	})
}

// The command is ssh's own, its tokens filled in; ProxyJump comes before it.
func TestProxyCommand(t *testing.T) {
	p, _, err := load(t, "Host h\n HostName real\n User u\n Port 24\n ProxyCommand nc -x \"a b\" %h %p %r %n 100%%h\n", "h")
	if want := `nc -x "a b" real 24 u h 100%h`; err != nil || p.ProxyCommand != want || p.Gateway != nil || p.HTTPSProxy != "" {
		t.Errorf("%q, %v, want %q", p.ProxyCommand, err, want)
	}
	if p, _, err = load(t, "Host h\n ProxyJump g\n ProxyCommand nc\nHost g\n ProxyCommand gc\n", "h"); err != nil || p.ProxyCommand != "" || p.Gateway.ProxyCommand != "gc" {
		t.Errorf("%+v, %v", p, err)
	}
}

// ControlPath has the tokens of ssh_config(5). The sum is what ssh -G of OpenSSH 9.2 says.
func TestControlPath(t *testing.T) {
	dir := t.TempDir()
	config := filepath.Join(dir, "config")
	if err := os.WriteFile(config, []byte("Host h\n HostName real\n User u\n Port 24\n ControlPath ~/%l-%L-%k-%h-%n-%p-%r-%u-%i-%%C-%C\nHost none\n ControlPath none\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	o := Options{Home: "/home/me", User: "me", UID: 1000, Files: []string{config}, Hostname: "a.b"}
	p, _, err := Load("h", o)
	sum := sha1.Sum([]byte("a.breal24u"))
	if want := "/home/me/a.b-a-h-real-h-24-u-me-1000-%C-" + hex.EncodeToString(sum[:]); err != nil || p.ControlPath != want {
		t.Errorf("%q, %v\nwant %q", p.ControlPath, err, want)
	}
	if p, _, err = Load("none", o); err != nil || p.ControlPath != "" {
		t.Errorf("%q, %v", p.ControlPath, err)
	}
}

// Nobody believes that keys are refused which are not.
func TestRevokedHostKeysAreTold(t *testing.T) {
	for text, told := range map[string]bool{"": false, "RevokedHostKeys none\n": false, "RevokedHostKeys /etc/ssh/revoked\n": true} {
		_, warnings, err := load(t, text, "bastion")
		if err != nil || (len(warnings) == 1 && strings.Contains(warnings[0], "/etc/ssh/revoked")) != told || len(warnings) > 1 {
			t.Errorf("%q: warnings %q, %v", text, warnings, err)
		}
	}
}
