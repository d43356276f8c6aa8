package config

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"sshbroker/filter"
	"sshbroker/profiles"
)

func write(t *testing.T, name, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func loadText(t *testing.T, text string) *Config {
	t.Helper()
	c, err := Load(Options{File: write(t, "f.xml", text), Env: testEnv()})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func engine(rules string) string { return "<filter-engine>" + rules + "</filter-engine>" }

func profileElement(id, host string) string {
	return fmt.Sprintf(`<profile id="%s" host="%s"/>`, id, host)
}

func document(parts ...string) string {
	return "<secsh-broker>\n" + strings.Join(parts, "\n") + "\n</secsh-broker>"
}

const (
	block  = `<rule action="BLOCK"/>`
	direct = `<rule action="DIRECT"/>`
	viaP   = `<rule action="TUNNEL" profile-id="p"/>`
	broken = `<secsh-broker><filter-engine><rule/></filter-engine></secsh-broker>`
)

// One row is one pair of files; "-" stands for a file that is not there.
func TestMerge(t *testing.T) {
	policy := func(name string) string {
		return `<default-settings><server-authentication-methods><auth-server-publickey policy="` + name + `"/></server-authentication-methods></default-settings>`
	}
	general := func(inner string) string { return "<general>" + inner + "</general>" }
	profileList := func(inner ...string) string { return "<profiles>" + strings.Join(inner, "") + "</profiles>" }
	rules := func(c *Config) string { return strings.Join(lines(c.Filter), "; ") }
	hosts := func(c *Config) string {
		var list []string
		for _, id := range []string{"p", "q"} {
			if p := c.Profiles[id]; p != nil {
				list = append(list, id+"="+p.Host)
			}
		}
		return strings.Join(list, " ")
	}
	trust := func(c *Config) string { return fmt.Sprint(c.Defaults.HostKeyPolicy) }
	known := func(c *Config) string { return strings.Join(c.Defaults.KnownHosts, " ") }
	idle := func(c *Config) string { return c.Defaults.IdleTimeout.String() }

	tests := []struct {
		name         string
		global, user string
		system       bool
		named        bool // the user's file is named, in a home that is not there
		look         func(*Config) string
		want         string
		errors       string // what the error holds; "": none
		warning      string // what the warnings hold; "": there is none
	}{
		{name: "nothing at all", global: "-", user: "-", look: func(c *Config) string { return fmt.Sprint(c.Filter == nil, c.FilterPresent, len(c.Files)) }, want: "true false 0"},
		{name: "no filter-engine", global: document(), user: document(), look: func(c *Config) string { return fmt.Sprint(c.Filter == nil, c.FilterPresent, len(c.Files)) }, want: "true false 2"},
		{name: "filter-engine of the user", global: document(), user: document(engine(block)), look: rules, want: "1: BLOCK"},
		{name: "filter-engine of the global file", global: document(engine(direct)), user: "-", look: rules, want: "1: DIRECT"},
		{name: "global filter-engine wins", global: document(engine(direct)), user: document(engine(block)), look: rules, want: "1: DIRECT", warning: "filter-engine: it is ignored"},
		{name: "empty global filter-engine wins", global: document(engine("")), user: document(engine(block)), look: func(c *Config) string { return fmt.Sprint(c.FilterPresent, len(c.Filter.Rules())) }, want: "true 0", warning: "filter-engine: it is ignored"},
		{name: "rules that lose are checked too", global: document(engine(direct)), user: document(engine(viaP)), errors: `there is no profile "p"`},

		{name: "profiles are combined", global: document(profileList(profileElement("p", "g"))), user: document(profileList(profileElement("q", "u"))), look: hosts, want: "p=g q=u"},
		{name: "profile of the user wins", global: document(profileList(profileElement("p", "g"), profileElement("q", "g"))), user: document(profileList(profileElement("p", "u"))), look: hosts, want: "p=u q=g"},
		{name: "rule of the user, profile of the global file", global: document(profileList(profileElement("p", "g"))), user: document(engine(viaP)), look: rules, want: "1: TUNNEL profile=p"},
		{name: "rule of the global file, profile of the user", global: document(engine(viaP)), user: document(profileList(profileElement("p", "u"))), look: rules, want: "1: TUNNEL profile=p"},
		{name: "rule of the global file, no profile", global: document(engine(viaP)), user: document(), errors: `there is no profile "p"`},
		{name: "gateway in the other file", global: document(profileList(profileElement("q", "g"))), user: document(profileList(`<profile id="p" host="u" gateway-profile="q"/>`)),
			look: func(c *Config) string { return c.Profiles["p"].Gateway.Host }, want: "g"},
		{name: "circle through both files", global: document(profileList(`<profile id="q" host="g" gateway-profile="p"/>`)), user: document(profileList(`<profile id="p" host="u" gateway-profile="q"/>`)),
			errors: "lead in a circle: q -> p -> q"},
		{name: "profiles of the global file follow the user's defaults", global: document(profileList(profileElement("p", "g"))), user: document(`<default-settings><idle-timeout time="9"/></default-settings>`),
			look: func(c *Config) string { return c.Profiles["p"].IdleTimeout.String() }, want: "9s"},

		{name: "default of the global file", global: document(`<default-settings><idle-timeout time="8"/></default-settings>`), user: document("<default-settings/>"), look: idle, want: "8s"},
		{name: "default of the user wins", global: document(`<default-settings><idle-timeout time="8"/></default-settings>`), user: document(`<default-settings><idle-timeout time="0"/></default-settings>`), look: idle, want: "0s"},

		{name: "no policy", global: document(), user: document(), look: trust, want: fmt.Sprint(profiles.Ask)},
		{name: "policy of the global file", global: document(policy("strict")), user: document(), look: trust, want: fmt.Sprint(profiles.Strict)},
		{name: "policy of the user wins", global: document(policy("strict")), user: document(policy("tofu")), look: trust, want: fmt.Sprint(profiles.TOFU)},
		{name: "long name of a policy", global: "-", user: document(policy("Trust-On-First-Use")), look: trust, want: fmt.Sprint(profiles.TOFU)},
		{name: "policy beats old switches", global: document(policy("strict")), user: document(general(`<accept-unknown-host-keys enable="yes"/>`)), look: trust, want: fmt.Sprint(profiles.Strict), warning: "deprecated"},
		{name: "old switches are combined", global: document(general(`<strict-host-key-checking enable="yes"/>`)), user: document(general(`<host-key-always-ask enable="yes"/>`)), look: trust, want: fmt.Sprint(profiles.Ask), warning: "deprecated"},
		{name: "old switch of the user wins", global: document(general(`<strict-host-key-checking enable="yes"/>`)), user: document(general(`<strict-host-key-checking enable="no"/>`)), look: trust, want: fmt.Sprint(profiles.Ask), warning: "deprecated"},

		{name: "known hosts of the global file", global: document(general(`<known-hosts path="/g"/>`)), user: document(), look: known, want: "/g HOME/.ssh2/hostkeys/ /etc/ssh2/hostkeys/"},
		{name: "known hosts of the user win", global: document(general(`<known-hosts path="/g"/>`)), user: document(general(`<known-hosts file="/u"/><known-hosts path="%D/v"/>`)), named: true, look: known, want: "/u /home/ann/v /home/ann/.ssh2/hostkeys/ /etc/ssh2/hostkeys/"},
		{name: "known hosts off", global: "-", user: document(general(`<known-hosts path=""/>`)), look: known, want: "HOME/.ssh2/hostkeys/ /etc/ssh2/hostkeys/"},
		{name: "only the format", global: "-", user: document(general(`<known-hosts filename-format="plain"/>`)), named: true, look: known, want: "/home/ann/.ssh2/hostkeys/ /etc/ssh2/hostkeys/ /home/ann/.ssh/known_hosts /etc/ssh/ssh_known_hosts"},

		{name: "malformed global file", global: broken, user: document(engine(block)), look: rules, want: "1: BLOCK", warning: "the global configuration is ignored as a whole: 1 errors"},
		{name: "malformed global file, system", global: broken, user: "-", system: true, errors: "attribute action is missing"},
		{name: "malformed file of the user", global: document(engine(block)), user: broken, errors: "attribute action is missing"},
		{name: "system has no user's file", global: document(engine(direct)), user: broken, system: true, look: rules, want: "1: DIRECT"},
		{name: "system without files", global: "-", user: "-", system: true, look: func(c *Config) string { return fmt.Sprint(c.Filter == nil) }, want: "true"},

		{name: "directory moved by the user", global: "-", user: document(general(`<user-config-directory path="/elsewhere"/>`)), look: func(c *Config) string { return c.Defaults.StoreKnownHost }, want: "HOME/.ssh2/hostkeys/", warning: "it counts only in the global file"},
		{name: "fips of the user", global: document(), user: document(general(`<crypto-lib mode="fips"/>`)), errors: "FIPS mode is asked for"},
		{name: "fips of the global file is not ignored", global: document(general(`<crypto-lib mode="fips"/>`)), user: document(general(`<crypto-lib mode="standard"/>`)), errors: "FIPS mode is asked for"},
		{name: "fips for a system", global: document(general(`<crypto-lib mode="FIPS"/>`)), user: document(), system: true, errors: "FIPS mode is asked for"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			home := t.TempDir()
			o := Options{GlobalFile: filepath.Join(home, "global.xml"), System: tt.system, Env: testEnv()}
			put := func(name, text string) {
				if text == "-" {
					return
				}
				if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			put(o.GlobalFile, tt.global)
			if tt.named {
				o.File = filepath.Join(home, "user.xml")
				put(o.File, tt.user)
			} else {
				o.Env.Home = home
				if err := os.Mkdir(o.Env.UserDir(), 0o700); err != nil {
					t.Fatal(err)
				}
				put(filepath.Join(o.Env.UserDir(), FileName), tt.user)
			}
			c, err := Load(o)
			if tt.errors != "" {
				if c != nil || err == nil || !strings.Contains(err.Error(), tt.errors) {
					t.Fatalf("config %v, error %v; want %q", c, err, tt.errors)
				}
				if _, ok := errors.AsType[Problems](err); !ok {
					t.Errorf("the error is a %T", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.ReplaceAll(tt.look(c), home, "HOME"); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			warnings := c.Warnings.Error()
			if tt.warning == "" && warnings != "" || !strings.Contains(warnings, tt.warning) {
				t.Errorf("warnings are %q, want %q", warnings, tt.warning)
			}
		})
	}
}

// The global file may move the user's directory, and with it the user's file.
func TestUserConfigDirectory(t *testing.T) {
	dir := t.TempDir()
	moved := filepath.Join(dir, "of-ann")
	if err := os.Mkdir(moved, 0o700); err != nil {
		t.Fatal(err)
	}
	global := write(t, "global.xml", document(`<general><user-config-directory path="`+dir+`/of-%U"/></general>`))
	user := filepath.Join(moved, FileName)
	text := document(`<profiles><profile id="p" host="h"><password file="pw"/></profile></profiles>`, engine(block))
	if err := os.WriteFile(user, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(Options{GlobalFile: global, Env: testEnv()})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "files", c.Files, []string{global, user})
	equal(t, "store", c.Defaults.StoreKnownHost, filepath.Join(moved, "hostkeys")+"/")
	equal(t, "password file", c.Profiles["p"].PasswordFile, filepath.Join(moved, "pw"))
}

// A file that is named has to be there and to be a file; reading never waits.
func TestUnreadableFiles(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(dir, "missing.xml")
	large := write(t, "large.xml", "<secsh-broker>"+strings.Repeat(" ", 4<<20)+"</secsh-broker>")
	for name, want := range map[string]string{missing: "no such file", dir: "not a regular file", pipe: "not a regular file", large: "larger than 4194304 bytes"} {
		c, err := Load(Options{File: name, Env: testEnv()})
		if c != nil || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("load %s: %v", name, err)
		}
		found := Check(name, Options{Env: testEnv()})
		if len(found) != 1 || found[0].Warning || found[0].Pos.File != name || !strings.Contains(found[0].String(), want) {
			t.Errorf("check %s: %v", name, found)
		}
		c, err = Load(Options{GlobalFile: name, System: true, Env: testEnv()})
		if ok := name == missing; ok != (err == nil) || ok != (c != nil) {
			t.Errorf("load %s for a system: %v", name, err)
		}
		c, err = Load(Options{GlobalFile: name, Env: testEnv()})
		if err != nil || (len(c.Warnings) > 0) == (name == missing) {
			t.Errorf("load global %s: %v, warnings %v", name, err, c)
		}
	}
	if _, err := Load(Options{File: missing, Env: testEnv()}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v is not fs.ErrNotExist", err)
	}
}

func TestNoHome(t *testing.T) {
	c, err := Load(Options{Env: Env{User: "x"}})
	if err != nil {
		t.Fatal(err)
	}
	if c.Defaults.StoreKnownHost != "" || len(c.Defaults.DefaultKeys) != 0 || c.Defaults.Agent != "" || len(c.Files) != 0 {
		t.Errorf("%+v", c.Defaults)
	}
	equal(t, "known hosts", c.Defaults.KnownHosts, []string{"/etc/ssh2/hostkeys/", "/etc/ssh/ssh_known_hosts"})
}

// check-config judges a file as the user's: the profiles of the global file count,
// and what is wrong with the global file is not this file's fault.
func TestCheckBesideGlobal(t *testing.T) {
	user := write(t, "user.xml", document(engine(viaP)))
	good := write(t, "good.xml", document("<profiles>"+profileElement("p", "h")+"</profiles>", engine(`<rule action="DIRECT" profile-id="p"/>`)))
	bad := write(t, "bad.xml", broken)
	for _, tt := range []struct{ name, file, global, want string }{
		{"alone", user, "", `2:50: rule: there is no profile "p"`},
		{"beside a good one", user, good, `2:1: warning: filter-engine: it is ignored, because ` + good + ` has one`},
		{"beside a bad one", user, bad, `2:50: rule: there is no profile "p"`},
		{"the global one itself", good, good, ""},
		{"the bad one itself", bad, bad, "1:30: rule: attribute action is missing"},
	} {
		if got := strings.Join(short(Check(tt.file, Options{GlobalFile: tt.global, Env: testEnv()})), "; "); got != tt.want {
			t.Errorf("%s:\n got %s\nwant %s", tt.name, got, tt.want)
		}
	}
}

func TestDefaultAction(t *testing.T) {
	for text, want := range map[string]filter.Action{"": filter.Direct, ` default-action="block"`: filter.Block, ` default-action="DIRECT"`: filter.Direct} {
		c := loadText(t, document("<filter-engine"+text+"/>"))
		if got := c.Filter.Default(); got != want {
			t.Errorf("%s: %v, want %v", text, got, want)
		}
	}
}

func TestDeprecatedPolicy(t *testing.T) {
	for _, tt := range []struct {
		strict, accept, ask bool
		want                profiles.HostKeyPolicy
	}{ // the table of ssh-broker-config(5)
		{false, false, false, profiles.Ask},
		{true, false, false, profiles.Strict},
		{true, true, false, profiles.Strict},
		{true, true, true, profiles.Ask},
		{true, false, true, profiles.Ask},
		{false, true, false, profiles.TOFU},
		{false, true, true, profiles.Ask},
		{false, false, true, profiles.Ask},
	} {
		if got := deprecatedPolicy(tt.strict, tt.ask, tt.accept); got != tt.want {
			t.Errorf("%+v: %v", tt, got)
		}
		// As elements; off is the same as not there, in either spelling.
		for _, off := range []string{"", "no", "NO"} {
			text := ""
			for element, on := range map[string]bool{"strict-host-key-checking": tt.strict, "host-key-always-ask": tt.ask, "accept-unknown-host-keys": tt.accept} {
				switch {
				case on:
					text += "<" + element + ` enable="YES"/>`
				case off != "":
					text += "<" + element + ` enable="` + off + `"/>`
				}
			}
			if got := loadText(t, document("<general>"+text+"</general>")).Defaults.HostKeyPolicy; got != tt.want {
				t.Errorf("%s: %v, want %v", text, got, tt.want)
			}
		}
	}
}

// The global file may put it beside the usual directory, by the variable for that.
func TestUserConfigDirectoryVariable(t *testing.T) {
	home := t.TempDir()
	for path, want := range map[string]string{
		"": ".ssh2", "%USER_CONFIG_DIRECTORY%": ".ssh2", "%user_config_directory%/tectia": ".ssh2/tectia",
		"${USER_CONFIG_DIRECTORY}-%U": ".ssh2-ann", "$USER_CONFIG_DIRECTORY": ".ssh2", "%D/.tectia": ".tectia",
	} {
		env := testEnv()
		env.Home = home
		global := write(t, "global.xml", document(`<general><user-config-directory path="`+path+`"/></general>`))
		c, err := Load(Options{GlobalFile: global, Env: env})
		if err != nil {
			t.Fatal(err)
		}
		equal(t, path, filepath.Dir(filepath.Clean(c.Defaults.StoreKnownHost)), filepath.Join(home, want))
	}
}

// Files of 1.0 to 6.6 are known; what another one says of itself is remarked on.
func TestVersion(t *testing.T) {
	for version, known := range map[string]bool{
		"": true, "1.0": true, "1": true, "5.3": true, "6": true, "6.1": true, "6.4.13": true, "6.6": true, "6.6.9": true,
		"6.7": false, "7.0": false, "0.9": false, "65536.1": false, "-1": false, "six": false, "6.x": false, "1.0 beta": false,
	} {
		want := ""
		if !known {
			want = fmt.Sprintf("1:24: warning: secsh-broker: the file has the version %q; those from 1.0 to 6.6 are known, and it is read as one of them", version)
		}
		c := loadText(t, `<secsh-broker version="`+version+`"/>`)
		if got := strings.Join(short(c.Warnings), "; "); got != want {
			t.Errorf("%q:\n got %s\nwant %s", version, got, want)
		}
	}
}

// A path in place of the name is for the broker to read; ~/ is the home directory.
func TestUsernamePath(t *testing.T) {
	for value, want := range map[string]string{"bob": "username=bob", "a/b": "username=a/b", "/etc/%U": "username-file=/etc/ann",
		"~/name": "username-file=/home/ann/name", "$lower/x": "username=l/x"} {
		c := loadText(t, document(engine(`<rule action="TUNNEL" hostname-from-app="yes" username="`+value+`"/>`)))
		equal(t, value, lines(c.Filter), []string{"1: TUNNEL " + want + " hostname-from-app"})
	}
	file := write(t, "f.xml", document(engine(`<rule action="TUNNEL" hostname-from-app="yes" username="~/x"/>`)))
	if _, err := Load(Options{File: file}); err == nil || !strings.Contains(err.Error(), "there is no home directory for ~/x") {
		t.Errorf("without a home: %v", err)
	}
}

// The environment's proxy counts where no ruleset is given, and never for a system broker.
func TestProxyOfTheEnvironment(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "c.xml")
	write := func(settings string) {
		text := `<secsh-broker>` + settings + `<profiles><profile id="a" host="h"/><profile id="b" host="h"><proxy ruleset=""/></profile>
			<profile id="c" host="h"><proxy ruleset="socks5://p/"/></profile><profile id="g" host="h" gateway-profile="a"/></profiles></secsh-broker>`
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	o := Options{File: file, Env: Env{Home: dir, User: "ann", Environ: []string{"HTTPS_PROXY=", "https_proxy=http://e:1", "NO_PROXY=n"}}}
	is := func(want string) {
		t.Helper()
		c, err := Load(o)
		if err != nil {
			t.Fatal(err)
		}
		got := c.Defaults.Proxy + "," + c.Defaults.HTTPSProxy
		for _, id := range []string{"a", "b", "c", "g"} {
			p := c.Profiles[id]
			got += " " + id + ":" + p.Proxy + "," + p.HTTPSProxy + "," + p.NoProxy
		}
		if got != want {
			t.Errorf("\n got %s\nwant %s", got, want)
		}
	}
	write("")
	is(",http://e:1 a:,http://e:1,n b:,, c:socks5://p/,, g:,,")
	o.System = true
	is(", a:,, b:,, c:socks5://p/,, g:,,")
	o.System = false
	write(`<default-settings><proxy ruleset="socks://d/"/></default-settings>`)
	is("socks://d/, a:socks://d/,, b:,, c:socks5://p/,, g:,,")
}

// The servers of a profile, what is opened when the broker starts, and connections that
// are shared with nobody.
func TestWays(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.xml")
	text := `<secsh-broker><default-settings transports="3"><exclusive-connection enable="yes"/></default-settings><profiles>
		<profile id="a" host="h1,h2:2222, [fd00::1]" port="22" connect-on-startup="yes"/>
		<profile id="b" host="h3:24,h4" port="23" transports="5"><exclusive-connection enable="no"/></profile></profiles></secsh-broker>`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(Options{File: file})
	if err != nil {
		t.Fatal(err)
	}
	a, b := c.Profiles["a"], c.Profiles["b"]
	equal(t, "a", []any{a.Host, a.Port, a.More, a.Exclusive}, []any{"h1", uint16(22), []profiles.Server{{Host: "h2", Port: 2222}, {Host: "fd00::1", Port: 22}}, true})
	equal(t, "b", []any{b.Host, b.Port, b.More, b.Exclusive}, []any{"h3", uint16(24), []profiles.Server{{Host: "h4", Port: 23}}, false})
	equal(t, "transports", []int{a.Transports, b.Transports, c.Defaults.Transports}, []int{3, 5, 3})
	equal(t, "startup", c.Startup, []string{"a"})
}

// Tunnels of both files count; at one port the user's takes the place of the global one.
func TestTunnels(t *testing.T) {
	dir := t.TempDir()
	global, user := filepath.Join(dir, "g.xml"), filepath.Join(dir, "u.xml")
	for name, text := range map[string]string{
		global: `<secsh-broker><profiles><profile id="g" host="h"/></profiles><static-tunnels><tunnel listen-port="1" dst-host="a" dst-port="10" profile="g"/>
<tunnel type="socks-proxy" listen-port="2"/></static-tunnels></secsh-broker>`,
		user: `<secsh-broker><profiles><profile id="u" host="h"><tunnels><local-tunnel listen-port="9" dst-host="c" dst-port="30"/></tunnels></profile><profile id="t" protocol="tls" host="g"><tls system-ca="yes" certificate="c" key="k"/></profile></profiles>
<static-tunnels><tunnel listen-port="1" dst-host="b" dst-port="20" profile="g"/><tunnel type="socks" listen-port="3" allow-relay="yes" profile="u"/>
<tunnel listen-port="4" service="db" profile="t"/><tunnel type="http-connect-chain" listen-port="5" profile="t"/></static-tunnels></secsh-broker>`,
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := Load(Options{GlobalFile: global, File: user})
	if err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddrPort
	equal(t, "static", c.StaticTunnels, []Tunnel{
		{Type: "tcp", Listen: at("127.0.0.1:1"), Host: "b", Port: 20, Profile: "g", Source: user + ":2"},
		{Type: "socks-proxy", Listen: at("127.0.0.1:2"), Source: global + ":2"},
		{Type: "socks", Listen: at("[::]:3"), Profile: "u", AllowRelay: true, Source: user + ":2"},
		{Type: "tcp", Listen: at("127.0.0.1:4"), Service: "db", Profile: "t", Source: user + ":3"},
		{Type: "http-connect-chain", Listen: at("127.0.0.1:5"), Profile: "t", Source: user + ":3"}})
	equal(t, "local", c.LocalTunnels, []Tunnel{{Type: "tcp", Listen: at("127.0.0.1:9"), Host: "c", Port: 30, Profile: "u", Source: user + ":1"}})
}
