package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"sshbroker/filter"
	"sshbroker/profiles"
)

// line writes a rule as one line, its conditions first.
func line(r filter.Rule) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d", r.Number)
	if r.Network != "" {
		fmt.Fprintf(&b, " network=%s", r.Network)
	}
	pattern := func(name string, p fmt.Stringer) {
		if !reflect.ValueOf(p).IsNil() {
			fmt.Fprintf(&b, " %s=%s", name, p)
		}
	}
	pattern("application", r.Application)
	pattern("host", r.Host)
	pattern("address", r.Address)
	if r.Prefix.IsValid() {
		fmt.Fprintf(&b, " prefix=%s", r.Prefix)
	}
	for _, p := range r.Ports {
		fmt.Fprintf(&b, " port=%s", p)
	}
	for _, u := range r.Users {
		fmt.Fprintf(&b, " user=%s", u)
	}
	for _, g := range r.Groups {
		fmt.Fprintf(&b, " group=%s", g)
	}
	fmt.Fprintf(&b, ": %s", r.Action)
	word := func(name, v string) {
		if v != "" {
			fmt.Fprintf(&b, " %s=%s", name, v)
		}
	}
	word("profile", r.Profile)
	word("destination", r.Destination)
	if r.DestinationPort != 0 {
		fmt.Fprintf(&b, " destination-port=%d", r.DestinationPort)
	}
	word("username", r.Username)
	word("username-file", r.UsernameFile)
	for _, f := range []struct {
		name string
		set  bool
	}{{"pseudo-ip", r.PseudoIP}, {"hostname-from-app", r.HostnameFromApp}, {"username-from-app", r.UsernameFromApp},
		{"fallback", r.FallbackToPlain}, {"banner", r.ShowServerBanner}} {
		if f.set {
			b.WriteString(" " + f.name)
		}
	}
	return b.String()
}

func lines(s *filter.Set) []string {
	if s == nil {
		return nil
	}
	var list []string
	for _, r := range s.Rules() {
		list = append(list, line(r))
	}
	return list
}

// short lists problems without their hints and without the name of the file.
func short(ps Problems) []string {
	var list []string
	for _, p := range ps {
		p.Pos.File, p.Hint = "", ""
		list = append(list, p.String())
	}
	return list
}

func equal(t *testing.T, what string, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s\n got %v\nwant %v", what, got, want)
	}
}

// factoryProfile is what testEnv's user has without any file.
func factoryProfile() profiles.Profile {
	return profiles.Profile{
		Port: 22, User: "ann", HostKeyPolicy: profiles.Ask,
		DefaultKeys: []string{"/home/ann/.ssh/id_ed25519", "/home/ann/.ssh/id_ecdsa", "/home/ann/.ssh/id_rsa"},
		Agent:       "/run/agent",
		KeyStores: []profiles.KeyStore{
			{Index: "/home/ann/.ssh2/identification", Base: "/home/ann/.ssh2"},
			{Dir: "/home/ann/.ssh2", Unless: "/home/ann/.ssh2/identification"},
		},
		KnownHosts:     []string{"/home/ann/.ssh2/hostkeys/", "/etc/ssh2/hostkeys/", "/home/ann/.ssh/known_hosts", "/etc/ssh/ssh_known_hosts"},
		StoreKnownHost: "/home/ann/.ssh2/hostkeys/",
		RekeyBytes:     1_000_000_000,
		ConnectTimeout: 5 * time.Second, IdleTimeout: 5 * time.Second, OpenTimeout: 15 * time.Second,
		KeepaliveMisses: 3, Transports: 1,
	}
}

func with(change func(*profiles.Profile)) *profiles.Profile {
	p := factoryProfile()
	change(&p)
	return &p
}

func TestCorpus(t *testing.T) {
	rockGeneral := func(p *profiles.Profile) {
		p.KnownHosts = []string{"/home/ann/.ssh/known_hosts", "/home/ann/.ssh2/hostkeys/"}
		p.PlainKeyNames = true
		p.Remember = profiles.Remember{For: time.Hour, Idle: 10 * time.Minute}
		p.KeyStores = []profiles.KeyStore{{Dir: "/home/ann/.ssh2", Remember: p.Remember}, {Dir: "/home/ann/.ssh", Remember: p.Remember},
			{Index: "/home/ann/.ssh2/identification", Base: "/home/ann/.ssh2"}}
	}
	const mailProxy = "direct:///10.0.0.0/8,localhost; socks4://socks.example.com:1080/"
	gw := with(func(p *profiles.Profile) {
		rockGeneral(p)
		p.ID, p.Name, p.Host, p.User = "gw", "gateway", "gw.example.com", "tunnel"
	})
	tests := []struct {
		file     string
		rules    []string
		profiles map[string]*profiles.Profile
		defaults *profiles.Profile // nil: the factory's
		pool4    string
		pool6    string
		warnings []string
	}{
		{
			file:     "telnet.xml",
			rules:    []string{"1 host=.* port=23: TUNNEL hostname-from-app"},
			profiles: map[string]*profiles.Profile{},
			pool4:    "198.18.0.0/15",
		},
		{
			file: "email-gateway.xml",
			rules: []string{"1 address=.* port=143: TUNNEL profile=paper", "2 address=.* port=110: TUNNEL profile=paper",
				"3 address=.* port=25: TUNNEL profile=paper"},
			profiles: map[string]*profiles.Profile{"paper": with(func(p *profiles.Profile) {
				p.ID, p.Name, p.Host, p.User = "paper", "paper", "host1234", "mailuser"
				p.AuthMethods = []profiles.AuthMethod{profiles.PublicKey, profiles.KeyboardInteractive, profiles.Password}
				p.HostKeyPolicy, p.ServerProof = profiles.Strict, profiles.KeyProof
				p.Proxy = mailProxy
			})},
			defaults: with(func(p *profiles.Profile) { p.Proxy = mailProxy }),
			pool4:    "198.18.0.0/15",
		},
		{
			file:     "empty.xml",
			profiles: map[string]*profiles.Profile{},
			pool4:    "198.18.0.0/15",
		},
		{
			file:  "ftp-socks.xml",
			rules: []string{"1 address=.* port=21: FTP-TUNNEL profile=id1 hostname-from-app username-from-app"},
			profiles: map[string]*profiles.Profile{"id1": with(func(p *profiles.Profile) {
				p.ID, p.Name = "id1", "any"
				p.AuthMethods = []profiles.AuthMethod{profiles.Password, profiles.KeyboardInteractive}
			})},
			defaults: with(func(p *profiles.Profile) {
				p.AuthMethods = []profiles.AuthMethod{profiles.Password, profiles.KeyboardInteractive}
			}),
			pool4: "198.18.0.0/15",
			warnings: []string{
				"16:46: warning: rule: FTP-TUNNEL is not built yet: flows decided by this rule are refused",
			},
		},
		{
			file: "legacy.xml",
			rules: []string{`1 network=office application=telnet host=.*\.office\.example port=23: TUNNEL profile=p1 pseudo-ip`,
				"2 address=.*: DIRECT"},
			profiles: map[string]*profiles.Profile{"p1": with(func(p *profiles.Profile) {
				p.ID, p.Name, p.Host, p.User = "p1", "p1", "gw.example.com", "u"
			})},
			pool4: "198.18.0.0/15",
		},
		{
			file: "profile-rock.xml",
			rules: []string{
				"1 application=.*/backup-agent address=.*: BLOCK",
				`2 host=(.*\.)?corp\.example port=1-1023: TUNNEL profile=rock pseudo-ip`,
				`3 address=10\.[0-9]+\..* port=5432: TUNNEL profile=rock destination=db.corp.example destination-port=5433`,
				"4 address=.*: DIRECT",
			},
			profiles: map[string]*profiles.Profile{
				"gw": gw,
				"rock": with(func(p *profiles.Profile) {
					p.ID, p.Name, p.Host, p.Port, p.User, p.Gateway = "rock", "rock", "rock.example.com", 2222, "doctor", gw
					rockGeneral(p)
					p.Ciphers = []string{"aes128-gcm@openssh.com", "aes256-ctr"}
					p.MACs = []string{"hmac-sha2-256"}
					p.RekeyBytes = 1000000000
					p.AuthMethods = []profiles.AuthMethod{profiles.PublicKey, profiles.Password}
					p.Identities = []string{"/home/ann/.ssh2/id_rock"}
					p.IdleTimeout, p.ConnectTimeout, p.KeepaliveInterval = time.Minute, 10*time.Second, 15*time.Second
					p.HostKeyPolicy, p.ServerProof = profiles.TOFU, profiles.KeyProof
					p.PasswordCmd = "/usr/bin/pass show rock"
				}),
			},
			defaults: with(rockGeneral),
			pool4:    "198.18.0.0/15",
			pool6:    "fd12:3456:789a::/64",
			warnings: []string{
				"25:39: warning: forward: state: read, but not acted on",
				"29:27: warning: environment: read, but not acted on",
			},
		},
	}
	seen := make(map[string]bool)
	for _, tt := range tests {
		seen[tt.file] = true
		t.Run(tt.file, func(t *testing.T) {
			name := filepath.Join("testdata", tt.file)
			c, err := Load(Options{File: name, Env: testEnv()})
			if err != nil {
				t.Fatal(err)
			}
			equal(t, "rules", lines(c.Filter), tt.rules)
			equal(t, "profiles", c.Profiles, tt.profiles)
			if tt.defaults == nil {
				tt.defaults = with(func(*profiles.Profile) {})
			}
			equal(t, "defaults", c.Defaults, tt.defaults)
			equal(t, "pool", c.Pool4.String(), tt.pool4)
			if c.Pool6.IsValid() || tt.pool6 != "" {
				equal(t, "IPv6 pool", c.Pool6.String(), tt.pool6)
			}
			equal(t, "warnings", short(c.Warnings), tt.warnings)
			equal(t, "files", c.Files, []string{name})
			if !c.FilterPresent || c.FilterSource != name || c.Filter.Default() != filter.Direct {
				t.Errorf("filter-engine: present %v, from %q, default %v", c.FilterPresent, c.FilterSource, c.Filter.Default())
			}
			equal(t, "check", short(Check(name, Options{Env: testEnv()})), tt.warnings)
			for _, r := range c.Filter.Rules() {
				if !strings.HasPrefix(r.Source, name+":") {
					t.Errorf("rule %d has the source %q", r.Number, r.Source)
				}
			}
		})
	}
	files, _ := filepath.Glob("testdata/*.xml")
	for _, f := range files {
		if !seen[filepath.Base(f)] {
			t.Errorf("%s is in no test", f)
		}
	}
}

func TestBadCorpus(t *testing.T) {
	tests := map[string]struct{ want, hint string }{
		"bad-action.xml":          {`6:29: rule: action: "TUNEL" is not one of DIRECT, BLOCK, TUNNEL, FTP-TUNNEL, FTP-PROXY`, "did you mean TUNNEL?"},
		"bad-ports.xml":           {`6:28: rule: wrong ports: 90-80 runs backwards; did you mean 80-90?`, ""},
		"bad-regex.xml":           {`6:17: rule: host: "(" opens a group that no ")" closes; write \( for the character`, ""},
		"duplicate-attribute.xml": {`6:36: rule: attribute action stands twice, first at 6:21`, "keep one of them"},
		"entities.xml":            {`3:24: declarations inside the DOCTYPE are refused: entities could make the file say what nobody reads in it`, "take out everything from [ to ]"},
		"misspelt-attribute.xml":  {`6:21: rule: acton is not an attribute of rule`, "did you mean action?"},
		"misspelt-element.xml":    {`6:5: rul: filter-engine cannot hold an element rul`, "did you mean rule?"},
		"no-server.xml":           {`6:29: rule: TUNNEL has no server to go to: there is neither a profile nor the host that the program asked for`, `add profile-id="..." or hostname-from-app="yes"`},
		"truncated.xml":           {`5:20: rule: the file ends inside the tag <rule>, which starts at 5:5`, "close it with > or />"},
		"unknown-profile.xml":     {`6:49: rule: there is no profile "nope"`, "profiles: p"},
		"wrong-order.xml":         {`5:3: profiles: profiles must stand before filter-engine`, "the order is: general, default-settings, profiles, static-tunnels, gui, filter-engine, logging"},
	}
	files, err := filepath.Glob("testdata/bad/*.xml")
	if err != nil || len(files) != len(tests) {
		t.Fatalf("%d files and %d tests (%v)", len(files), len(tests), err)
	}
	for _, f := range files {
		t.Run(filepath.Base(f), func(t *testing.T) {
			want, ok := tests[filepath.Base(f)]
			if !ok {
				t.Fatal("it is in no test")
			}
			c, err := Load(Options{File: f, Env: testEnv()})
			if c != nil {
				t.Error("there is a configuration beside the error")
			}
			found, ok := errors.AsType[Problems](err)
			if !ok {
				t.Fatalf("the error is %v", err)
			}
			equal(t, "problems", short(found), []string{want.want})
			if found[0].Pos.File != f || found[0].Hint != want.hint {
				t.Errorf("in %q with the hint %q, want %q", found[0].Pos.File, found[0].Hint, want.hint)
			}
			equal(t, "check", Check(f, Options{Env: testEnv()}).Errors(), found)
		})
	}
}

// A profile overrides each default setting, and only what it names.
func TestProfileOverDefaults(t *testing.T) {
	c := loadText(t, `<secsh-broker>
<default-settings user="defuser">
 <ciphers><cipher name="c0"/></ciphers><macs><mac name="m0"/></macs><kexs><kex name="k0"/></kexs>
 <hostkey-algorithms><hostkey-algorithm name="h0"/></hostkey-algorithms>
 <rekey bytes="0"/>
 <authentication-methods><auth-password><password file="pw"/></auth-password></authentication-methods>
 <proxy ruleset="socks5://p0/"/>
 <idle-timeout time="0"/><tcp-connect-timeout time="0"/><keepalive-interval time="1"/>
 <server-authentication-methods><auth-server-publickey policy="advisory"/></server-authentication-methods>
 <address-family type="INET6"/>
</default-settings>
<profiles>
 <profile id="same" host="h"/>
 <profile id="other" name="Other" host="10.0.0.1" port="2022" user="u2">
  <password string="p$U%U"/>
  <hostkey file="~/hk.pub"/>
  <user-identities><identity file="keys/id.pub"/><identity identity-file="/k/id2"/><identity hash="#00112233445566778899aabbccddeeff00112233"/><identity file="keys/id-cert.pub"/></user-identities>
  <ciphers><cipher name="c1"/></ciphers><macs><mac name="m1"/></macs><kexs><kex name="k1"/></kexs>
  <hostkey-algorithms><hostkey-algorithm name="h1"/></hostkey-algorithms>
  <rekey bytes="5000"/>
  <authentication-methods><authentication-method name="PublicKey"/><auth-hostbased/></authentication-methods>
  <proxy ruleset=""/>
  <idle-timeout time="7"/><tcp-connect-timeout time="8" type="connection"/><keepalive-interval time="9"/>
  <server-authentication-methods><authentication-method name="publickey"/><auth-server-publickey policy="strict"/></server-authentication-methods>
 </profile>
 <profile id="through" host="h2" user="" gateway-profile="same"><proxy ruleset="socks4://p1/"/></profile>
</profiles></secsh-broker>`)

	defaults := with(func(p *profiles.Profile) {
		p.User = "defuser"
		p.Ciphers, p.MACs, p.KEXs, p.HostKeyAlgorithms = []string{"c0"}, []string{"m0"}, []string{"k0"}, []string{"h0"}
		p.RekeyBytes = 0
		p.AuthMethods, p.PasswordFile = []profiles.AuthMethod{profiles.Password}, "/home/ann/.ssh2/pw"
		p.IdleTimeout, p.ConnectTimeout, p.KeepaliveInterval = 0, 0, time.Second
		p.HostKeyPolicy, p.ServerProof = profiles.Advisory, profiles.KeyProof
		p.Proxy, p.AddressFamily = "socks5://p0/", profiles.OnlyIPv6
	})
	equal(t, "defaults", c.Defaults, defaults)

	same := *defaults
	same.ID, same.Host = "same", "h"
	equal(t, "same", c.Profiles["same"], &same)

	other := factoryProfile()
	other.ID, other.Name, other.Host, other.Port, other.User = "other", "Other", "10.0.0.1", 2022, "u2"
	other.Ciphers, other.MACs, other.KEXs, other.HostKeyAlgorithms = []string{"c1"}, []string{"m1"}, []string{"k1"}, []string{"h1"}
	other.RekeyBytes = 5000
	other.AuthMethods = []profiles.AuthMethod{profiles.PublicKey}
	other.PasswordText = "p$U%U" // taken as it stands
	other.HostKeyFile = "/home/ann/hk.pub"
	other.Identities = []string{"/home/ann/.ssh2/keys/id", "/k/id2", "#00112233445566778899aabbccddeeff00112233", "/home/ann/.ssh2/keys/id-cert.pub"}
	other.IdleTimeout, other.ConnectTimeout, other.KeepaliveInterval = 7*time.Second, 8*time.Second, 9*time.Second
	other.HostKeyPolicy, other.ServerProof = profiles.Strict, profiles.KeyProof
	other.AddressFamily = profiles.OnlyIPv6
	equal(t, "other", c.Profiles["other"], &other)

	through := c.Profiles["through"]
	if through.Gateway != c.Profiles["same"] || through.User != "defuser" {
		t.Errorf("through: gateway %+v, user %q", through.Gateway, through.User)
	}
	if through.Proxy != "" {
		t.Errorf("through: proxy %q beside a gateway", through.Proxy)
	}
}

// No secret is in what is printed about a file.
func TestPasswordsAreNotShown(t *testing.T) {
	text := `<secsh-broker><profiles><profile id="p" host="h" pasword="x"><password string="hunter2" file="y"/></profile></profiles></secsh-broker>`
	name := write(t, "f.xml", text)
	_, err := Load(Options{File: name, Env: testEnv()})
	if err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("error: %v", err)
	}
}

// seeds are the files of the corpus, good and bad.
func seeds(f *testing.F) [][]byte {
	var all [][]byte
	for _, pattern := range []string{"testdata/*.xml", "testdata/bad/*.xml", "testdata/broken/*.xml", etc + "/*.xml"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			f.Fatalf("%s: %d files (%v)", pattern, len(files), err)
		}
		for _, name := range files {
			data, err := os.ReadFile(name)
			if err != nil {
				f.Fatal(err)
			}
			all = append(all, data)
		}
	}
	return all
}
