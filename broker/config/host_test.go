package config

import (
	"reflect"
	"strings"
	"testing"
)

func TestHost(t *testing.T) {
	for attrs, want := range map[string]Host{
		"":                        {UserBrokers: true},
		`crash-policy="closed"`:   {UserBrokers: true, CrashPolicy: CrashClosed},
		`crash-policy="Open"`:     {UserBrokers: true, CrashPolicy: CrashOpen},
		`capture-root="yes"`:      {UserBrokers: true, CaptureRoot: true},
		`user-brokers="no"`:       {},
		`user-brokers="YES"`:      {UserBrokers: true},
		`capture-users=""`:        {UserBrokers: true},
		`capture-users="5,7 - 9"`: {UserBrokers: true, CaptureUsers: []IDRange{{5, 5}, {7, 9}}},
	} {
		c := loadText(t, document("<filter-engine "+attrs+">"+block+"</filter-engine>"))
		equal(t, attrs, c.Host, want)
		equal(t, attrs, len(c.Warnings), 0)
	}
	// Of a file without rules.
	equal(t, "no filter-engine", loadText(t, document()).Host, Host{UserBrokers: true})
}

// Names are looked up for numbers only, and the number stays.
func TestAccountsByNumber(t *testing.T) {
	env := testEnv()
	name := func(id string) string { return map[string]string{"1000": "ann", "1001": "1001"}[id] }
	env.UserName = name
	env.GroupName = func(id string) string { return "g" + name(id) }
	file := write(t, "f.xml", document(engine(`<rule users="bob,1000, 1001,7" groups="1000" action="BLOCK"/>`)))
	c, err := Load(Options{File: file, Env: env})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "with a user database", lines(c.Filter), []string{"1 user=bob user=1000 user=1001 user=7 user=ann group=1000 group=gann: BLOCK"})
	c, err = Load(Options{File: file, Env: testEnv()})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "without", lines(c.Filter), []string{"1 user=bob user=1000 user=1001 user=7 group=1000: BLOCK"})
}

// Who has chosen a user name is told from who has none.
func TestLogins(t *testing.T) {
	list := `<profiles><profile id="p" host="h" user="me"/><profile id="q" host="h"/><profile id="r" host="h" user=""/></profiles>`
	c := loadText(t, document(list))
	equal(t, "without a default", c.Logins, map[string]string{"p": "me"})
	c = loadText(t, document(`<default-settings user="all"/>`+list))
	if want := map[string]string{"": "all", "p": "me", "q": "all", "r": "all"}; !reflect.DeepEqual(c.Logins, want) {
		t.Errorf("with one: %v, want %v", c.Logins, want)
	}
}

func FuzzParseIDs(f *testing.F) {
	for _, s := range []string{"1", "1-2", "0", "4294967295", " 1 - 2 ", "2-1", "-", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if ids, ok := parseIDs(text); ok && (ids.Lo > ids.Hi || ids.Hi == 1<<32-1 || strings.Contains(text, "+")) {
			t.Errorf("%q: %v", text, ids)
		}
	})
}
