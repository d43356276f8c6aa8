package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sshbroker/filter/egrep"
)

// lints are what check-config says of a file beyond what a broker says that loads it.
func lints(t *testing.T, name string, o Options) []string {
	t.Helper()
	known := make(map[string]bool)
	o.File = name
	c, err := Load(o)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range c.Warnings {
		known[p.String()] = true
	}
	var list []string
	for _, p := range Check(name, o) {
		if !p.Warning || p.Pos.File != name {
			t.Errorf("%v", p)
		}
		if !known[p.String()] {
			list = append(list, short(Problems{p})[0]+" ["+p.Hint+"]")
		}
	}
	return list
}

func TestLints(t *testing.T) {
	const never = "it never decides: rule 1, at 2:16, takes every connection that it could take [move it before that one, or take it out]"
	const dot = `"." matches any character, not only a dot [write `
	rules := func(list ...string) string { return document(engine(strings.Join(list, "\n"))) }
	host := func(pattern string) string { return rules(`<rule host="` + pattern + `" action="BLOCK"/>`) }
	addr := func(pattern string) string { return rules(`<rule ip-address="` + pattern + `" action="BLOCK"/>`) }
	profiles := func(list string, rest ...string) string {
		return document(append([]string{"<profiles>" + list + "</profiles>"}, rest...)...)
	}
	for _, tt := range []struct {
		name, in string
		want     []string
	}{
		{"equal rules", rules(`<rule host="a\.b" ports="80" action="BLOCK"/>`, `<rule host="A\.B" ports="80" action="DIRECT"/>`), []string{"3:1: warning: rule: " + never}},
		{"everything before", rules(`<rule host=".*" action="DIRECT"/>`, block, `<rule users="ann" action="BLOCK"/>`), []string{"3:1: warning: rule: " + never, "4:1: warning: rule: " + never}},
		{"suffix and ports before", rules(`<rule host=".*\.corp" ports="1-1023" action="DIRECT"/>`, `<rule host="db\.corp" ports="22,80" action="BLOCK"/>`), []string{"3:1: warning: rule: " + never}},
		{"prefix before", rules(`<rule ip-address="10.0.0.0/8" action="DIRECT"/>`, `<rule ip-address="10.1.0.0/16" action="BLOCK"/>`), []string{"3:1: warning: rule: " + never}},
		{"users before", rules(`<rule users="ann,bob" action="DIRECT"/>`, `<rule users="bob" ports="1" action="BLOCK"/>`), []string{"3:1: warning: rule: " + never}},
		{"pseudo-ip of a rule that never decides", rules(`<rule host=".*\.corp" ports="22" action="TUNNEL" hostname-from-app="yes"/>`, `<rule host="db\.corp" ports="22" action="TUNNEL" hostname-from-app="yes" pseudo-ip="yes"/>`),
			[]string{"3:1: warning: rule: it never decides: rule 1, at 2:16, takes every connection that it could take [move it before that one; its pseudo-ip may count for names all the same]"}},
		{"domain before its hosts", rules(`<rule host="(.*\.)?corp\.example" action="DIRECT"/>`, `<rule host="(.*\.)?db\.corp\.example" action="BLOCK"/>`, `<rule host=".*\.corp\.example" action="BLOCK"/>`), []string{"3:1: warning: rule: " + never, "4:1: warning: rule: " + never}},
		{"older pair", rules(`<dns id="a" host=".*"/><dns id="b" host="x"/><filter dns-id="a" action="DIRECT"/>`, `<filter dns-id="b" action="BLOCK"/>`),
			[]string{"3:1: warning: filter: it never decides: rule 1, at 2:61, takes every connection that it could take [move it before that one, or take it out]"}},
		{"narrow before wide", rules(`<rule host="db\.corp" action="DIRECT"/>`, `<rule host=".*\.corp" action="BLOCK"/>`, direct), nil},

		{"unescaped name", host("example.com"), []string{`2:35: warning: rule: host: ` + dot + `example\.com]`}},
		{"unescaped name with a wildcard", host(`.*\.example.co.uk`), []string{`2:39: warning: rule: host: ` + dot + `.*\.example\.co\.uk]`}},
		{"wildcard and a dot", host(`.*.example\.com`), []string{`2:30: warning: rule: host: ` + dot + `.*\.example\.com]`}},
		{"suffix without a wildcard", host(`.example.com`), []string{`2:28: warning: rule: host: ` + dot + `.*\.example\.com]`}},
		{"dot before a set", host(`www.[ab]\.c`), []string{`2:31: warning: rule: host: ` + dot + `www\.[ab]\.c]`}},
		{"position after a reference", host(`&#97;b.c`), []string{`2:34: warning: rule: host: ` + dot + `ab\.c]`}},
		{"unescaped address", addr("10.1.2.3"), []string{`2:36: warning: rule: ip-address: ` + dot + `10\.1\.2\.3 or 10.1.2.3/32]`}},
		{"part of an address", addr("10.1.*"), []string{`2:36: warning: rule: ip-address: ` + dot + `10\.1\..*]`}},
		{"network with a wildcard", addr("10.*"), []string{`2:36: warning: rule: ip-address: ` + dot + `10\..*]`}},
		{"beginning of an address", addr("192.168."), []string{`2:37: warning: rule: ip-address: ` + dot + `192\.168\..*]`}},
		{"unescaped in a dns", rules(`<dns id="d" ip-address="10.0.0.1"/><filter dns-id="d" action="BLOCK"/>`), []string{`2:42: warning: dns: ip-address: ` + dot + `10\.0\.0\.1 or 10.0.0.1/32]`}},
		{"escaped", rules(`<rule host="(.*\.)?corp\.example" action="BLOCK"/>`, `<rule host="[a.b]c[.]d" action="BLOCK"/>`, `<rule host="a..b" action="BLOCK"/>`, `<rule host="a.?b.+" action="BLOCK"/>`,
			`<rule host="(.|b)c" action="BLOCK"/>`, `<rule host="x\\" action="BLOCK"/>`, `<rule ip-address="10\.1\..*" action="BLOCK"/>`, `<rule ip-address="10.2.0.0/16" action="BLOCK"/>`,
			`<rule ip-address=".*:.*" action="BLOCK"/>`, `<rule application="/usr/bin/python3.11" action="BLOCK"/>`), nil},

		{"unused profile", profiles(profileElement("p", "h")+profileElement("q", "h"), engine(viaP)), []string{`2:50: warning: profile: nothing uses the profile "q" [name it in a rule, profile-id="q", or take it out]`}},
		{"profile of a gateway", profiles(profileElement("q", "h")+`<profile id="p" host="h" gateway-profile="q"/>`, engine(viaP)), nil},
		{"profiles without rules", profiles(profileElement("p", "h")), nil},
		{"profile of a dns", profiles(profileElement("p", "h"), engine(`<dns id="d"/><filter dns-id="d" action="TUNNEL" profile-id="p"/>`)), nil},

		{"empty", document(), nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			equal(t, "lints", lints(t, write(t, "f.xml", tt.in), Options{Env: testEnv()}), tt.want)
		})
	}
}

// A profile may be used by the other file, and by what is no rule.
func TestUnusedProfilesOfTwoFiles(t *testing.T) {
	tunnel := `<static-tunnels><tunnel type="socks" listen-port="1" profile="%s"/></static-tunnels>`
	global := write(t, "global.xml", document("<profiles>"+profileElement("g", "h")+profileElement("g2", "h")+"</profiles>", engine(`<rule action="TUNNEL" profile-id="g"/><rule action="BLOCK" ports="1" profile-id="g"/>`)))
	user := write(t, "user.xml", document("<profiles>"+profileElement("g", "h")+profileElement("t", "h")+profileElement("u", "h")+
		`<profile id="s" host="h" user="x" connect-on-startup="yes"/></profiles>`, fmt.Sprintf(tunnel, "t")))
	equal(t, "of the user", lints(t, user, Options{GlobalFile: global, Env: testEnv()}), []string{`2:76: warning: profile: nothing uses the profile "u" [name it in a rule, profile-id="u", or take it out]`})
	found := Check(global, Options{GlobalFile: global, Env: testEnv()})
	if len(found) != 2 || !strings.Contains(found[0].Msg, `nothing uses the profile "g2"`) || !strings.Contains(found[1].Msg, "it never decides") {
		t.Errorf("of the global file: %v", found)
	}
}

// Passwords that others can read, in the file and in one that it names.
func TestSecrets(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	name := filepath.Join(dir, "f.xml")
	text := document(`<profiles><profile id="a" host="h"><password string="hunter2"/></profile>`,
		`<profile id="b" host="h"><password file="`+secret+`"/></profile>`,
		`<profile id="c" host="h"><password file="secret"/></profile><profile id="d" host="h"><password file="nothing"/></profile>`,
		`<profile id="e" host="h"><authentication-methods><auth-password><password file="`+secret+`"/></auth-password></authentication-methods></profile>`,
		`<profile id="f" host="h"><proxy ruleset="socks5://me:hunter2@p/"/></profile><profile id="g" host="h"><proxy ruleset="socks5://p/"/></profile></profiles>`)
	for file, text := range map[string]string{secret: "x\n", name: text} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	env := testEnv()
	env.Home = dir // where no .ssh2/secret is
	equal(t, "for their owner alone", lints(t, name, Options{Env: env}), []string(nil))
	chmod(t, name, 0o640)
	chmod(t, secret, 0o604)
	inSecret := "others can read the password in " + secret + ": it has the mode 0604 [chmod 600 " + secret + "]"
	equal(t, "for others", lints(t, name, Options{Env: env}), []string{
		"2:54: warning: password: others can read this password: the file has the mode 0640 [chmod 600 " + name + ", or give the password by file or command]",
		"3:42: warning: password: " + inSecret,
		"5:81: warning: password: " + inSecret,
		"6:42: warning: proxy: others can read this account: the file has the mode 0640 [chmod 600 " + name + "]",
	})
	for _, p := range Check(name, Options{Env: env}) {
		if strings.Contains(p.String(), "hunter2") {
			t.Errorf("the password is shown: %v", p)
		}
	}
}

// A file with errors is not judged by rules of which half is not known.
func TestNoShadowsOfFlawedRules(t *testing.T) {
	name := write(t, "f.xml", document(engine(`<rule action="BLOCK" host="("/>`+block+block)))
	if found := Check(name, Options{Env: testEnv()}); len(found) != 1 {
		t.Errorf("%v", found)
	}
}

// FuzzBareDot holds for any pattern: its cure is a pattern where it was one, and needs
// no cure.
func FuzzBareDot(f *testing.F) {
	for _, s := range []string{"10.1.2.3", "example.com", ".example.com", "10.1.*", "a.[b.c]d.e", "[]a.b].c", "[[:alpha:].]x.y", "a\\", "[", "1.", "."} {
		f.Add(s, true)
		f.Add(s, false)
	}
	f.Fuzz(func(t *testing.T, pattern string, address bool) {
		off, cure := bareDot(pattern, address)
		if off < 0 {
			if cure != pattern {
				t.Fatalf("%q became %q", pattern, cure)
			}
			return
		}
		if pattern[off] != '.' {
			t.Fatalf("%q: no dot at %d", pattern, off)
		}
		cure, _, _ = strings.Cut(cure, " or ")
		if _, err := egrep.Compile(pattern, egrep.Options{}); err != nil {
			return
		}
		if _, err := egrep.Compile(cure, egrep.Options{}); err != nil && len(cure) < 4000 {
			t.Fatalf("%q: %q: %v", pattern, cure, err)
		}
		if again, more := bareDot(cure, address); again >= 0 {
			t.Fatalf("%q: %q needs a cure too: %q", pattern, cure, more)
		}
	})
}

// manyRules are 10,000 rules as a large site has them.
func manyRules() string {
	var b strings.Builder
	for i := range 10_000 {
		condition := fmt.Sprintf(`host="host%d\.example\.com"`, i)
		switch i % 5 {
		case 1:
			condition = fmt.Sprintf(`host=".*\.department%d\.example\.com"`, i)
		case 2:
			condition = fmt.Sprintf(`ip-address="10.%d.%d.0/24"`, i>>8, i&255)
		case 3:
			condition = fmt.Sprintf(`host="(.*\.)?zone%d\.example" users="ann,bob"`, i)
		case 4:
			condition = fmt.Sprintf(`host=".*node%d-[0-9]+.*" application="/opt/.*"`, i)
		}
		fmt.Fprintf(&b, "<rule %s ports=\"22,80-90\" action=\"TUNNEL\" profile-id=\"p\" />\n", condition)
	}
	return document(`<profiles><profile id="p" host="h"/></profiles>`, engine(b.String()))
}

func TestCheckOfManyRules(t *testing.T) {
	name := write(t, "f.xml", manyRules())
	begin := time.Now()
	found := Check(name, Options{Env: testEnv()})
	t.Logf("%v", time.Since(begin))
	if len(found) > 0 {
		t.Errorf("%d findings, the first: %v", len(found), found[0])
	}
}

func BenchmarkCheck(b *testing.B) {
	name := filepath.Join(b.TempDir(), "f.xml")
	if err := os.WriteFile(name, []byte(manyRules()), 0o600); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		Check(name, Options{Env: testEnv()})
	}
}
