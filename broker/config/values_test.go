package config_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"sshbroker/broker/config"
	"sshbroker/broker/config/values"
	"sshbroker/profiles"
)

func find(t testing.TB, tree *values.Tree, path string) ([]values.Value, error) {
	t.Helper()
	p, err := values.ParsePath(path)
	if err != nil {
		t.Fatal(err)
	}
	return tree.Find(p)
}

// settings is a random default-settings or profile, and what is inside of both.
func settings(rng *rand.Rand) string {
	var parts []string
	maybe := func(format string, values ...string) {
		if rng.IntN(2) == 0 {
			parts = append(parts, fmt.Sprintf(format, values[rng.IntN(len(values))]))
		}
	}
	maybe("<ciphers>%s</ciphers>", "", `<cipher name="a"/>`, `<cipher name="b"/><cipher name="c"/>`)
	maybe("<macs>%s</macs>", "", `<mac name="a"/>`)
	maybe("<rekey %s/>", "", `bytes="7"`)
	maybe("<authentication-methods>%s</authentication-methods>", "", "<auth-publickey/>", "<auth-publickey/><auth-password/>",
		`<auth-password><password file="/1"/></auth-password>`, `<auth-password><password command="2"/></auth-password><auth-keyboard-interactive/>`)
	maybe("<idle-timeout%s/>", "", ` time="1"`, ` type="connection"`, ` time="2"`)
	maybe("<tcp-connect-timeout%s/>", "", ` time="3"`)
	maybe("<keepalive-interval%s/>", "", ` time="4"`)
	maybe("<server-authentication-methods>%s</server-authentication-methods>", "", "<auth-server-publickey/>", `<auth-server-publickey policy="strict"/>`,
		`<authentication-method name="publickey"/>`, `<auth-server-publickey policy="TOFU"/>`)
	return strings.Join(parts, "")
}

func randomFile(rng *rand.Rand) string {
	var b strings.Builder
	b.WriteString("<secsh-broker><general>")
	for _, name := range []string{"strict-host-key-checking", "host-key-always-ask", "accept-unknown-host-keys"} {
		if rng.IntN(4) == 0 {
			fmt.Fprintf(&b, `<%s enable="%s"/>`, name, []string{"yes", "no"}[rng.IntN(2)])
		}
	}
	user := func() string {
		return []string{"", ` user="u` + strconv.Itoa(rng.IntN(9)) + `"`, ` user=""`, ` user="*"`}[rng.IntN(4)]
	}
	fmt.Fprintf(&b, "</general><default-settings%s>%s</default-settings><profiles>", user(), settings(rng))
	for _, id := range []string{"p", "q", "r"} {
		if rng.IntN(2) == 0 {
			fmt.Fprintf(&b, `<profile id="%s" host="h%d"%s%s>%s</profile>`, id, rng.IntN(9), user(), []string{"", ` port="77"`}[rng.IntN(2)], settings(rng))
		}
	}
	b.WriteString("</profiles>")
	if rng.IntN(2) == 0 {
		fmt.Fprintf(&b, `<filter-engine><rule host="r%d" action="BLOCK"/></filter-engine>`, rng.IntN(99))
	}
	b.WriteString("</secsh-broker>")
	return b.String()
}

// What the tree says is what the broker goes by.
func TestValuesAgreeWithLoad(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	dir, env := t.TempDir(), config.Env{Home: "/home/ann", User: "ann", UID: 1000}
	files := values.Files{Global: filepath.Join(dir, "global.xml"), User: filepath.Join(dir, "user.xml")}
	loaded := 0
	for range 500 {
		global, user := randomFile(rng), randomFile(rng)
		for name, text := range map[string]string{files.Global: global, files.User: user} {
			if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		c, err := config.Load(config.Options{GlobalFile: files.Global, File: files.User, Env: env})
		if err != nil || len(c.Files) != 2 {
			continue
		}
		loaded++
		tree, err := values.Load(files, env)
		if err != nil {
			t.Fatal(err)
		}
		agree(t, tree, "default-settings", c.Defaults)
		for id, p := range c.Profiles {
			path := "profiles/profile[@id='" + id + "']"
			agree(t, tree, path, p)
			equal(t, tree, path+"/@host", p.Host)
			equal(t, tree, path+"/@port", strconv.Itoa(int(p.Port)))
		}
		if list, err := find(t, tree, "filter-engine/rule/@host"); c.Filter != nil && (err != nil || len(list) != 1 || list[0].Text != c.Filter.Rules()[0].Host.String()) {
			t.Errorf("rules: %v, %v", list, err)
		} else if c.Filter == nil && err == nil {
			t.Errorf("rules: %v", list)
		}
		if t.Failed() {
			t.Fatalf("%s\n%s", global, user)
		}
	}
	if loaded < 250 {
		t.Errorf("only %d pairs of files could be loaded", loaded)
	}
}

// agree holds what the tree has at a path to a profile that is made of it.
func agree(t *testing.T, tree *values.Tree, path string, p *profiles.Profile) {
	t.Helper()
	seconds := func(d time.Duration) string { return strconv.Itoa(int(d / time.Second)) }
	if user, _ := find(t, tree, path+"/@user"); len(user) == 1 && user[0].Text != "" && user[0].Text != "*" { // nobody is asked
		equal(t, tree, path+"/@user", p.User)
	}
	equal(t, tree, path+"/idle-timeout/@time", seconds(p.IdleTimeout))
	equal(t, tree, path+"/tcp-connect-timeout/@time", seconds(p.ConnectTimeout))
	equal(t, tree, path+"/keepalive-interval/@time", seconds(p.KeepaliveInterval))
	policy := map[profiles.HostKeyPolicy]string{profiles.Strict: "strict", profiles.Ask: "ask", profiles.TOFU: "tofu", profiles.Advisory: "advisory"}
	equal(t, tree, path+"/server-authentication-methods/auth-server-publickey/@policy", policy[p.HostKeyPolicy])
	equal(t, tree, path+"/ciphers/cipher/@name", p.Ciphers...)
	equal(t, tree, path+"/macs/mac/@name", p.MACs...)
	equal(t, tree, path+"/rekey/@bytes", strconv.FormatUint(p.RekeyBytes, 10))
	var methods []string
	for _, m := range p.AuthMethods {
		methods = append(methods, map[profiles.AuthMethod]string{profiles.PublicKey: "auth-publickey", profiles.Password: "auth-password", profiles.KeyboardInteractive: "auth-keyboard-interactive"}[m])
	}
	var have []string
	list, _ := find(t, tree, path+"/authentication-methods")
	for _, v := range list {
		name, _, _ := strings.Cut(strings.TrimPrefix(v.Path, path+"/authentication-methods/"), "/")
		if strings.HasPrefix(name, "auth-") && !slices.Contains(have, name) {
			have = append(have, name)
		}
	}
	if !slices.Equal(have, methods) {
		t.Errorf("%s: methods %v, the broker has %v", path, have, methods)
	}
	if slices.Contains(p.AuthMethods, profiles.Password) {
		for attr, want := range map[string]string{"file": p.PasswordFile, "command": p.PasswordCmd} {
			if want != "" {
				equal(t, tree, path+"/authentication-methods/auth-password/password/@"+attr, want)
			}
		}
	}
}

func equal(t *testing.T, tree *values.Tree, path string, want ...string) {
	t.Helper()
	list, _ := find(t, tree, path)
	var have []string
	for _, v := range list {
		have = append(have, v.Text)
	}
	if !slices.Equal(have, want) {
		t.Errorf("%s: %q, the broker has %q", path, have, want)
	}
}
