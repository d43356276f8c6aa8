package values

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sshbroker/broker/config"
	"sshbroker/broker/config/schema"
)

func testEnv() config.Env { return config.Env{Home: "/home/ann", User: "ann", UID: 1000} }

func write(t testing.TB, name, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func load(t testing.TB, global, user string) *Tree {
	t.Helper()
	var f Files
	if global != "" {
		f.Global = write(t, "global.xml", global)
	}
	if user != "" {
		f.User = write(t, "user.xml", user)
	}
	tree, err := Load(f, testEnv())
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func find(t testing.TB, tree *Tree, path string) ([]Value, error) {
	t.Helper()
	p, err := ParsePath(path)
	if err != nil {
		t.Fatal(err)
	}
	return tree.Find(p)
}

// said is what is found at a path, in short: the values with their origins.
func saidAt(t testing.TB, tree *Tree, path string) string {
	t.Helper()
	list, err := find(t, tree, path)
	if err != nil {
		text := err.Error()
		if missing, ok := errors.AsType[*NotFoundError](err); ok && missing.Hint != "" {
			text += "; " + missing.Hint
		}
		return text
	}
	var parts []string
	for _, v := range list {
		from := v.Origin.String()
		if v.Origin == File {
			from = fmt.Sprintf("%s:%d:%d", strings.TrimSuffix(filepath.Base(v.Pos.File), ".xml"), v.Pos.Line, v.Pos.Col)
		}
		if v.Effect != schema.General {
			from += " " + v.Effect.String()
		}
		parts = append(parts, v.Path+"="+v.Text+" ("+from+")")
	}
	return strings.Join(parts, "\n")
}

const globalFile = `<secsh-broker>
 <general><user-config-directory path="/srv/ann"/><known-hosts file="/g"/><key-stores><user-keys directory="/g"/></key-stores></general>
 <default-settings user="root"><ciphers><cipher name="a"/><cipher name="b"/></ciphers>
  <authentication-methods><auth-password><password string="hunter2"/></auth-password></authentication-methods>
  <idle-timeout time="60"/></default-settings>
 <profiles><profile id="gw" host="g"/><profile id="rock" host="old"/></profiles>
 <filter-engine><rule host="a" action="block"/><rule action="DIRECT"/></filter-engine>
</secsh-broker>`

const userFile = `<secsh-broker>
 <general><known-hosts file="/u1"/><known-hosts file="/u2"/><key-stores><user-keys directory="/u"/></key-stores></general>
 <default-settings><macs/>
  <authentication-methods><auth-publickey/><auth-password/></authentication-methods>
  <idle-timeout type="connection"/><keepalive-interval time="7"/></default-settings>
 <profiles><profile id="rock" host="$USER.example" user="" port="222"><idle-timeout time="9"/><user-identities><identity data="KEY"/></user-identities></profile>
  <profile id="it's" host="x" user="me"/></profiles>
 <gui tray="no"/>
 <filter-engine><rule action="BLOCK"/></filter-engine>
</secsh-broker>`

// The ruleset of a proxy may have its password.
func TestProxyPasswordIsHidden(t *testing.T) {
	tree := load(t, `<secsh-broker><default-settings><proxy ruleset="socks5://ann:hunter2@proxy:1080/"/></default-settings>
 <profiles><profile id="a" host="h"/><profile id="b" host="h"><proxy ruleset="direct:///"/></profile></profiles></secsh-broker>`, "")
	for path, want := range map[string]string{
		"default-settings/proxy":                                                 "default-settings/proxy/@ruleset=(secret) (global:1:49)",
		"profiles/profile[@id='a']/proxy/@*":                                     "profiles/profile[@id='a']/proxy/@ruleset=(secret) (global:1:49)",
		"profiles/profile[@id='b']/proxy/@ruleset":                               "profiles/profile[@id='b']/proxy/@ruleset=direct:/// (global:2:79)",
		"default-settings/proxy[@ruleset='socks5://ann:hunter2@proxy:1080/']/@*": "there is no default-settings/proxy[@ruleset='socks5://ann:hunter2@proxy:1080/']",
	} {
		if got := saidAt(t, tree, path); got != want {
			t.Errorf("%s:\n%s\nwant\n%s", path, got, want)
		}
	}
}

func TestFind(t *testing.T) {
	tree := load(t, globalFile, userFile)
	for path, want := range map[string]string{
		"default-settings/idle-timeout/@time":                                   "default-settings/idle-timeout/@time=60 (global:5:23)",
		"/secsh-broker/default-settings/idle-timeout/@*":                        "default-settings/idle-timeout/@time=60 (global:5:23)\ndefault-settings/idle-timeout/@type=connection (user:5:23)",
		"default-settings/tcp-connect-timeout/@time":                            "default-settings/tcp-connect-timeout/@time=5 (factory default)",
		"default-settings/tcp-connect-timeout/@type":                            "default-settings/tcp-connect-timeout/@type= (not set)",
		"default-settings/@user":                                                "default-settings/@user=root (global:3:26)",
		"default-settings/@transports":                                          "default-settings/@transports=1 (factory default)",
		"profiles/profile[@id='rock']/@transports":                              "profiles/profile[@id='rock']/@transports=1 (factory default)",
		"default-settings/ciphers":                                              "default-settings/ciphers/cipher[1]/@name=a (global:3:55)\ndefault-settings/ciphers/cipher[2]/@name=b (global:3:73)",
		"default-settings/ciphers/cipher[2]/@name":                              "default-settings/ciphers/cipher[2]/@name=b (global:3:73)",
		"default-settings/server-authentication-methods":                        "default-settings/server-authentication-methods/auth-server-publickey/@policy=ask (factory default)",
		"default-settings/authentication-methods":                               "default-settings/authentication-methods/auth-publickey= (user:4:27)\ndefault-settings/authentication-methods/auth-publickey/key-selection/@policy=automatic (factory default)\ndefault-settings/authentication-methods/auth-password/password/@string=(secret) (global:4:60)",
		"general/known-hosts/@file":                                             "general/known-hosts[1]/@file=/u1 (user:2:30)\ngeneral/known-hosts[2]/@file=/u2 (user:2:55)",
		"general/user-config-directory/@path":                                   "general/user-config-directory/@path=/srv/ann (global:2:40)",
		"general/crypto-lib/@mode":                                              "general/crypto-lib/@mode=standard (factory default)",
		"profiles/profile[@id='rock']/@port":                                    "profiles/profile[@id='rock']/@port=222 (user:6:66)",
		"profiles/profile[@id='rock']/@user":                                    "profiles/profile[@id='rock']/@user=root (global:3:26)",
		"profiles/profile[@id='rock']/@host":                                    "profiles/profile[@id='rock']/@host=.example (user:6:37)",
		"profiles/profile[@id='rock']/idle-timeout/@time":                       "profiles/profile[@id='rock']/idle-timeout/@time=9 (user:6:91)",
		"profiles/profile[@id='rock']/keepalive-interval":                       "profiles/profile[@id='rock']/keepalive-interval/@time=7 (user:5:62)",
		"profiles/profile[@id='rock']/user-identities":                          "profiles/profile[@id='rock']/user-identities/identity[1]/@data=(secret) (user:6:128)",
		"profiles/profile[@id=\"it's\"]/@user":                                  "profiles/profile[@id=\"it's\"]/@user=me (user:7:37)",
		"profiles/profile[1]/@id":                                               "profiles/profile[@id='gw']/@id=gw (global:6:25)",
		"profiles/profile/@id":                                                  "profiles/profile[@id='gw']/@id=gw (global:6:25)\nprofiles/profile[@id='rock']/@id=rock (user:6:25)\nprofiles/profile[@id=\"it's\"]/@id=it's (user:7:16)",
		"profiles/*[@user='me']/@id":                                            "profiles/profile[@id=\"it's\"]/@id=it's (user:7:16)",
		"profiles/profile[@host][2]/@id":                                        "profiles/profile[@id='rock']/@id=rock (user:6:25)",
		"filter-engine/rule/@action":                                            "filter-engine/rule[1]/@action=BLOCK (global:7:40)\nfilter-engine/rule[2]/@action=DIRECT (global:7:62)",
		"filter-engine/rule[2]/@pseudo-ip":                                      "filter-engine/rule[2]/@pseudo-ip=no (factory default)",
		"filter-engine/@default-action":                                         "filter-engine/@default-action=DIRECT (factory default)",
		"filter-engine/@ip6-generate-start":                                     "filter-engine/@ip6-generate-start= (not set)",
		"gui":                                                                   "gui=" + " (user:8:2 not acted on)",
		"*/idle-timeout/@time":                                                  "default-settings/idle-timeout/@time=60 (global:5:23)",
		"default-settings/idle-timeot/@time":                                    "default-settings has no element idle-timeot; did you mean idle-timeout?",
		"default-setings":                                                       "secsh-broker has no element default-setings; did you mean default-settings?",
		"default-settings/idle-timeout/@tim":                                    "idle-timeout has no attribute tim; did you mean time?",
		"profiles/profile[@id='rok']/@port":                                     "there is no profiles/profile[@id='rok']; did you mean rock?",
		"profiles/profile[@id='nothing like it']/@port":                         "there is no profiles/profile[@id='nothing like it']; id is one of: gw, it's, rock",
		"profiles/profile[@di='rock']/@port":                                    "profile has no attribute di; did you mean id?",
		"profiles/profile[4]":                                                   "there is no profiles/profile[4]; they are counted to 3",
		"logging":                                                               "no file has an element logging in secsh-broker",
		"filter-engine/dns/@id":                                                 "no file has an element dns in filter-engine",
		"default-settings/authentication-methods/*/password[@string='hunter2']": "there is no default-settings/authentication-methods/*/password[@string='hunter2']",
		"default-settings/ciphers/@*":                                           "no attribute of ciphers is set",
		"gui/*":                                                                 "there is no element in gui",
	} {
		if got := saidAt(t, tree, path); got != want {
			t.Errorf("%s\ngot  %s\nwant %s", path, got, want)
		}
	}
	if got := saidAt(t, tree, "general/key-stores/user-keys/@directory"); strings.Count(got, "\n") != 1 || !strings.Contains(got, "/g (global") || !strings.Contains(got, "/u (user") {
		t.Errorf("key stores of both files: %s", got)
	}
	if all := saidAt(t, tree, "/"); strings.Contains(all, "hunter2") || strings.Contains(all, "KEY") || strings.Count(all, "\n") < 60 {
		t.Errorf("everything:\n%s", all)
	}
	if _, err := find(t, tree, "x"); !errors.Is(err, ErrNoPath) {
		t.Error(err)
	}
}

func TestFactoryDefaults(t *testing.T) {
	tree := load(t, "", "<secsh-broker/>")
	for path, want := range map[string]string{
		"default-settings/@user":              "ann",
		"general/user-config-directory/@path": "/home/ann/.ssh2",
	} {
		if list, err := find(t, tree, path); err != nil || len(list) != 1 || list[0].Text != want || list[0].Origin != Factory {
			t.Errorf("%s: %+v, %v", path, list, err)
		}
	}
	if got := saidAt(t, tree, "filter-engine"); got != "no file has an element filter-engine in secsh-broker" {
		t.Error(got)
	}
	tree = load(t, "", `<secsh-broker><general><user-config-directory path="%USER_CONFIG_DIRECTORY%"/></general></secsh-broker>`)
	if got := saidAt(t, tree, "general/user-config-directory"); got != "general/user-config-directory/@path=/home/ann/.ssh2 (user:1:53)" {
		t.Error(got)
	}
}

// The old switches are what the policy comes from where none is given.
func TestDeprecatedPolicy(t *testing.T) {
	const policy = "default-settings/server-authentication-methods/auth-server-publickey/@policy"
	strict := `<secsh-broker><general><strict-host-key-checking enable="yes"/></general>%s</secsh-broker>`
	given := `<default-settings><server-authentication-methods><auth-server-publickey policy="tofu"/></server-authentication-methods></default-settings>`
	for _, tt := range []struct{ global, user, want string }{
		{fmt.Sprintf(strict, ""), "<secsh-broker/>", policy + "=strict (global:1:58)"},
		{fmt.Sprintf(strict, given), "<secsh-broker/>", policy + "=tofu (global:1:154)"},
		{fmt.Sprintf(strict, ""), `<secsh-broker><general><strict-host-key-checking enable="no"/></general></secsh-broker>`, policy + "=ask (factory default)"},
	} {
		if got := saidAt(t, load(t, tt.global, tt.user), policy); got != tt.want {
			t.Errorf("%s, %s: %s, want %s", tt.global, tt.user, got, tt.want)
		}
	}
}

func TestBadFiles(t *testing.T) {
	for text, want := range map[string]string{
		"<secsh-broker><a/></secsh-broker>": "cannot hold an element a",
		"<secsh-broker>":                    "the file ends inside",
		"<x/>":                              "not a broker configuration",
	} {
		if _, err := Load(Files{User: write(t, "f.xml", text)}, testEnv()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
	if _, err := Load(Files{Global: "/nonexistent"}, testEnv()); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func TestPathErrors(t *testing.T) {
	for path, want := range map[string]string{
		"a//b":                     `at "/b": the name of an element`,
		"a/":                       `at "": the name of an element`,
		"@a/b":                     `at "/b": nothing follows an attribute`,
		"a b":                      `at " b": a / is missing`,
		"a[0]":                     `at "0]": a number from 1 on`,
		"a[x]":                     `at "x]": a number from 1 on`,
		"a[1":                      `at "": a ] is missing`,
		"a[@]":                     `at "]": the name of an attribute is missing`,
		"a[@b=c]":                  `at "c]": a string in quotes is missing`,
		"a[@b='c]":                 `at "'c]": this string is not closed`,
		"a[99999999999999999999]":  `at "9999`,
		strings.Repeat("a/", 3000): "longer than 4096 bytes",
	} {
		_, err := ParsePath(path)
		if bad, ok := errors.AsType[*PathError](err); !ok || !strings.Contains(bad.Error(), want) {
			t.Errorf("%s: %v, want %s", path, err, want)
		}
	}
}

func FuzzParsePath(f *testing.F) {
	for _, seed := range []string{"/", "a/b[1]/@c", "a[@b='c'][@d][2]/*", `secsh-broker/profiles/profile[@id="it's"]/@*`, "a[", "@"} {
		f.Add(seed)
	}
	tree := load(f, globalFile, userFile)
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParsePath(text)
		if err != nil {
			if _, ok := errors.AsType[*PathError](err); !ok || err.Error() == "" {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		again, err := ParsePath(p.String())
		if err != nil || again.String() != p.String() {
			t.Fatalf("%q is written %q, which is %q, %v", text, p, again, err)
		}
		list, err := tree.Find(p)
		if (err == nil) != (len(list) > 0) || err != nil && err.Error() == "" {
			t.Fatalf("%q: %v, %v", text, list, err)
		}
	})
}

// Each path that is told leads to that value and no other.
func TestPathsLeadBack(t *testing.T) {
	trees := []*Tree{load(t, globalFile, userFile)}
	corpus, err := filepath.Glob("../testdata/*.xml")
	if err != nil || len(corpus) < 5 {
		t.Fatal(corpus, err)
	}
	for _, name := range corpus {
		tree, err := Load(Files{User: name}, testEnv())
		if err != nil {
			t.Fatal(err)
		}
		trees = append(trees, tree)
	}
	for _, tree := range trees {
		all, err := find(t, tree, "/")
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range all {
			if !strings.Contains(v.Path, "/@") {
				continue // elements, which hold more
			}
			if list, err := find(t, tree, v.Path); err != nil || len(list) != 1 || list[0] != v {
				t.Errorf("%+v leads to %+v, %v", v, list, err)
			}
		}
	}
}
