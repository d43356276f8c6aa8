package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sshbroker/broker/config"
	"sshbroker/broker/config/edit"
	"sshbroker/broker/config/schema"
	"sshbroker/broker/control"
)

// world is a home directory with the user's file, and a global file.
type world struct {
	t            *testing.T
	user, global string
	address      string // of the broker
}

func newWorld(t *testing.T, user, global string) *world {
	t.Helper()
	home := t.TempDir()
	t.Setenv("HOME", home)
	w := &world{t: t, user: filepath.Join(home, ".ssh2", "ssh-broker-config.xml"), global: filepath.Join(t.TempDir(), "global.xml"),
		address: filepath.Join(home, "b")}
	for name, text := range map[string]string{w.user: user, w.global: global} {
		if text != "" {
			w.write(name, text)
		}
	}
	return w
}

func (w *world) write(name, text string) {
	w.t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) read(name string) string {
	w.t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		w.t.Fatal(err)
	}
	return string(text)
}

// ctl runs the program with the global file of the test.
func (w *world) ctl(args ...string) (code int, stdout, stderr string) {
	w.t.Helper()
	var out, errs bytes.Buffer
	a := &app{out: &output{w: &out}, err: &errs, getenv: os.Getenv, globalFile: w.global}
	if args[0] != "--system" {
		args = append([]string{"-a", w.address}, args...)
	}
	code = a.run(w.t.Context(), args, strings.NewReader(""))
	return code, out.String(), errs.String()
}

// done runs the program, which has to succeed, and returns what it prints.
func (w *world) done(args ...string) string {
	w.t.Helper()
	code, out, errs := w.ctl(args...)
	if code != exitDone || errs != "" {
		w.t.Errorf("%q: code %d, %s", args, code, errs)
	}
	return out
}

func TestRuleAdd(t *testing.T) {
	w := newWorld(t, goodXML, "")
	out := w.done("rule", "add", "--host", `.*\.corp`, "--ports=80,443", "--profile", "gw", "--action", "TUNNEL", "--pseudo-ip")
	wants(t, out, "rule 3 added: "+w.user+":8\n", "until: ssh-broker-ctl reload\n")
	want := strings.Replace(goodXML, "  </filter", `    <rule host=".*\.corp" pseudo-ip="yes" ports="80,443" action="TUNNEL" profile-id="gw" />`+"\n  </filter", 1)
	if got := w.read(w.user); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	// To where the options say.
	for _, tt := range []struct {
		place []string
		want  string
	}{
		{[]string{"--at", "1"}, "rule 1 added: "},
		{[]string{"--at=3"}, "rule 3 added: "},
		{[]string{"--before", "2"}, "rule 2 added: "},
		{[]string{"--after", "2"}, "rule 3 added: "},
		{nil, "rule 3 added: "},
	} {
		w.write(w.user, goodXML)
		wants(t, w.done(append([]string{"rule", "add", "--users", "me", "--action", "direct"}, tt.place...)...), tt.want)
		number := strings.Fields(tt.want)[1]
		var list map[string]any
		for line := range strings.Lines(w.done("rule", "list", "-s")) {
			if err := json.Unmarshal([]byte(line), &list); err != nil {
				t.Fatal(err)
			}
			if users := list["attributes"].(map[string]any)["users"]; (users == "me") != (strings.Contains(line, `{"rule":`+number+",")) {
				t.Errorf("%v: %s", tt.place, line)
			}
		}
		wants(t, w.done("rule", "remove", number), "rule "+number+" removed: "+w.user+"\n")
		if got := w.read(w.user); got != goodXML {
			t.Errorf("%v: removed again it is\n%s", tt.place, got)
		}
	}
}

// Every attribute of the schema is an option, has a text in the help, and gets into
// the file.
func TestRuleAddHasTheSchema(t *testing.T) {
	for _, attr := range schema.Attributes("rule") {
		if attributeUsage[attr.Name] == "" {
			t.Errorf("the help of rule add says nothing of %s", attr.Name)
		}
		value := "5"
		switch {
		case attr.Values != nil:
			value = attr.Values[0]
		case attr.Name == "profile-id":
			value = "gw"
		}
		w := newWorld(t, goodXML, "")
		args := []string{"rule", "add", "--" + attr.Name, value, "--dry-run"}
		if attr.YesNo {
			args[2], args[3] = "--"+attr.Name+"="+value, "-q"
		}
		if attr.Name != "action" {
			args = append(args, "--action", "BLOCK")
		}
		_, out, errs := w.ctl(args...)
		if !strings.Contains(out, attr.Name+`="`+value+`"`) && !strings.Contains(errs, attr.Name) {
			t.Errorf("%s:\n%s%s", attr.Name, out, errs)
		}
	}
	for name := range attributeUsage {
		if !slices.ContainsFunc(schema.Attributes("rule"), func(a schema.Attribute) bool { return a.Name == name }) {
			t.Errorf("the help of rule add knows %s, which the schema does not", name)
		}
	}
}

func TestRuleIsCheckedFirst(t *testing.T) {
	w := newWorld(t, goodXML, "")
	for _, tt := range []struct {
		args []string
		want []string
	}{
		{[]string{"rule", "add", "--action", "TUNEL"}, []string{"is left as it was; it would then be wrong:", w.user + ":8:", `"TUNEL" is not one of`, "did you mean TUNNEL?"}},
		{[]string{"rule", "add", "--action", "TUNNEL", "--profile", "gv"}, []string{`there is no profile "gv"`, "did you mean gw?"}},
		{[]string{"rule", "add", "--action", "BLOCK", "--host", "a(b"}, []string{"host: "}},
		{[]string{"rule", "add", "--action", "BLOCK", "--ports", "0"}, []string{"ports"}},
		{[]string{"rule", "add", "--action", "BLOCK", "--users", "a\x00b"}, []string{"users: XML cannot hold the character U+0000"}},
		{[]string{"rule", "add", "--action", "BLOCK", "--at", "4"}, []string{"--at 4: the rule behind the last would have the number 3"}},
		{[]string{"rule", "add", "--action", "BLOCK", "--before", "3"}, []string{"no such rule 3: " + w.user + " has 1 to 2"}},
		{[]string{"rule", "remove", "3"}, []string{"no such rule 3"}},
		{[]string{"rule", "move", "1", "--to", "3"}, []string{"no such rule 3"}},
		{[]string{"rule", "list", "-f", "/nonexistent.xml"}, []string{"no such file"}},
		{[]string{"rule", "remove", "1", "-f", "/nonexistent.xml"}, []string{"/nonexistent.xml does not exist", "hint: rule add --create"}},
		{[]string{"rule", "remove", "1", "-n", "-f", "/nonexistent.xml"}, []string{"/nonexistent.xml does not exist"}},
	} {
		code, out, errs := w.ctl(tt.args...)
		if code != exitFailed || out != "" {
			t.Errorf("%q: code %d, %s", tt.args, code, out)
		}
		wants(t, errs, tt.want...)
		if w.read(w.user) != goodXML {
			t.Fatalf("%q has written", tt.args)
		}
	}
	if list, err := os.ReadDir(filepath.Dir(w.user)); err != nil || len(list) != 1 {
		t.Errorf("left behind: %v, %v", list, err)
	}
	// A file that was wrong before may get right by the edit, and one that is not XML
	// says where.
	w.write(w.user, strings.Replace(goodXML, `"block"`, `"blokc"`, 1))
	wants(t, w.done("rule", "list"), "blokc", "1 error; see ssh-broker-ctl check-config "+w.user)
	wants(t, w.done("rule", "remove", "1"), "rule 1 removed")
	w.write(w.user, "<secsh-broker><a>")
	if code, _, errs := w.ctl("rule", "list"); code != exitFailed || !strings.Contains(errs, w.user+":1:18: a: the file ends inside <a>") {
		t.Errorf("%d %s", code, errs)
	}
}

func TestRuleUsage(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"rule"}, "add, remove, move or list is missing"},
		{[]string{"rule", "delete"}, `"delete" is not one of add, remove, move, list`},
		{[]string{"rule", "add"}, "--action is missing: it is one of DIRECT, BLOCK"},
		{[]string{"rule", "add", "--action", "BLOCK", "here"}, `"here" is one argument too many`},
		{[]string{"rule", "add", "--action", "BLOCK", "--at", "1", "--after", "1"}, "--at, --before and --after: use one of them"},
		{[]string{"rule", "add", "--action", "BLOCK", "--at", "0"}, "--at 0: the first rule has the number 1"},
		{[]string{"rule", "add", "--acton", "BLOCK"}, "unknown flag: --acton"},
		{[]string{"rule", "remove"}, "N is missing"},
		{[]string{"rule", "remove", "first"}, `"first" is not the number of a rule`},
		{[]string{"rule", "move", "1"}, "--to M is missing"},
		{[]string{"rule", "move", "0", "--to", "1"}, `"0" is not the number of a rule`},
		{[]string{"rule", "move", "1", "--to", "0"}, "--to 0: the first rule has the number 1"},
		{[]string{"help", "rule", "delete"}, `"delete" is not one of`},
	} {
		var out, errs bytes.Buffer
		if code := run(t.Context(), tc.args, nil, &out, &errs); code != exitUsage || out.Len() > 0 {
			t.Errorf("%v: code %d, %q", tc.args, code, out.String())
		}
		wants(t, errs.String(), "ssh-broker-ctl: ", tc.want)
	}
	for _, command := range []string{"rule", "rule add", "rule remove", "rule move", "rule list"} {
		var out, long, errs bytes.Buffer
		code := run(t.Context(), append(strings.Fields(command), "--help"), nil, &out, &errs)
		again := run(t.Context(), append([]string{"help"}, strings.Fields(command)...), nil, &long, &errs)
		if code != exitDone || again != exitDone || out.String() != long.String() {
			t.Errorf("help of %s: %d, %d, %s", command, code, again, errs.String())
		}
		wants(t, out.String(), "Usage: ssh-broker-ctl "+command, "Examples:", "General options:")
	}
}

func TestRuleDryRun(t *testing.T) {
	crlf := strings.ReplaceAll(goodXML, "\n", "\r\n")
	w := newWorld(t, crlf, "")
	if err := os.Chmod(filepath.Dir(w.user), 0o500); err != nil {
		t.Fatal(err)
	}
	out := w.done("rule", "remove", "1", "--dry-run")
	if err := os.Chmod(filepath.Dir(w.user), 0o700); err != nil {
		t.Fatal(err)
	}
	wants(t, out, "--- "+w.user+"\n", "+++ "+w.user+"\n", "@@ -3,7 +3,6 @@\n", "\n-    <rule host=\"secret.*\" action=\"block\"/>\r\n")
	if w.read(w.user) != crlf {
		t.Error("it has written")
	}
	if program, err := exec.LookPath("patch"); err == nil {
		cmd := exec.Command(program, "--binary", "-s", w.user)
		cmd.Stdin = strings.NewReader(out)
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("patch: %v\n%s\n%q", err, text, out)
		}
		if want := strings.Replace(crlf, "    <rule host=\"secret.*\" action=\"block\"/>\r\n", "", 1); w.read(w.user) != want {
			t.Errorf("patched it is %q", w.read(w.user))
		}
	}
	w.write(w.user, crlf)
	var row ruleRow
	if err := json.Unmarshal([]byte(w.done("rule", "move", "1", "--to", "2", "-n", "-s")), &row); err != nil {
		t.Fatal(err)
	}
	if row.Written || row.Rule != 2 || row.Line != 7 || row.File != w.user || !strings.Contains(row.Diff, "@@") || row.Warnings == nil {
		t.Errorf("%+v", row)
	}
	if err := json.Unmarshal([]byte(w.done("rule", "move", "1", "--to", "2", "-s")), &row); err != nil || !row.Written {
		t.Errorf("%v, %+v", err, row)
	}
	if got := w.read(w.user); strings.Index(got, "secret") < strings.Index(got, "ports") {
		t.Errorf("not moved:\n%s", got)
	}
}

func TestRuleCreate(t *testing.T) {
	w := newWorld(t, "", "")
	if code, _, errs := w.ctl("rule", "add", "--action", "BLOCK"); code != exitFailed || !strings.Contains(errs, w.user+" does not exist") {
		t.Errorf("%d %s", code, errs)
	}
	wants(t, w.done("rule", "add", "--action", "BLOCK", "--create", "-n"), "+    <rule action=\"BLOCK\" />\n")
	if _, err := os.Stat(filepath.Dir(w.user)); err == nil {
		t.Error("the dry run has made a directory")
	}
	w.done("rule", "add", "--action", "BLOCK", "--create")
	if info, err := os.Stat(w.user); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if info, err := os.Stat(filepath.Dir(w.user)); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info, err)
	}
	if problems := config.Check(w.user, config.Options{}); len(problems) > 0 {
		t.Error(problems)
	}
	wants(t, w.done("rule", "list"), "1     5  BLOCK")
	wants(t, w.done("rule", "remove", "1"), "there is no rule any more: all connections go by default-action")
	wants(t, w.done("rule", "list"), "has no rules")
}

func TestRuleWarnings(t *testing.T) {
	w := newWorld(t, goodXML, "")
	w.done("rule", "add", "--host", ".*", "--ip-address=", "--ports=*", "--action", "DIRECT", "-q")
	wants(t, w.done("rule", "add", "--users", "me", "--action", "BLOCK"), w.user+":9:5: warning: rule: it never decides: rule 3, at 8:5, takes every connection that it could take\nhint: move it before that one, or take it out\n")
	if out := w.done("rule", "add", "--users", "me", "--action", "BLOCK", "--before", "3"); strings.Contains(out, "it never decides") {
		t.Error(out)
	}
	// What check-config warns of, about this rule only.
	wants(t, w.done("rule", "add", "--host", "x", "--pseudo-ip", "--action", "DIRECT", "--at", "1"), "warning: rule: pseudo-ip has no effect with DIRECT")
	if out := w.done("rule", "add", "--host", "y", "--action", "DIRECT", "--at", "1"); strings.Contains(out, "pseudo-ip") {
		t.Error(out)
	}
	w.write(w.user, strings.Replace(goodXML, "    <rule host", "    <!-- Secrets stay here. -->\n    <rule host", 1))
	for _, args := range [][]string{{"rule", "remove", "1", "-n"}, {"rule", "move", "1", "--to", "2", "-n"}} {
		wants(t, w.done(args...), w.user+":6: warning: this comment seems to be about the rule; it stays where it is")
	}
	if out := w.done("rule", "remove", "2", "-n"); strings.Contains(out, "comment") {
		t.Error(out)
	}
}

// The numbers are those of explain, the legacy form included.
func TestRuleNumbersAreThoseOfExplain(t *testing.T) {
	w := newWorld(t, `<secsh-broker><filter-engine>
<rule host="a" action="BLOCK"/> <dns id="d" host="b"/>
<filter dns-id="d" action="BLOCK"/>
<rule action="BLOCK"/></filter-engine></secsh-broker>`, "")
	c, err := config.Load(config.Options{File: w.user})
	if err != nil {
		t.Fatal(err)
	}
	text, err := edit.Parse(w.user, []byte(w.read(w.user)))
	if err != nil {
		t.Fatal(err)
	}
	rules := text.Rules()
	for i, r := range c.Filter.Rules() {
		if r.Number != rules[i].Number || r.Source != w.user+":"+strings.Split(rules[i].Pos.String(), ":")[1] {
			t.Errorf("rule %d, %s is listed as %d, %v", r.Number, r.Source, rules[i].Number, rules[i].Pos)
		}
	}
	if len(rules) != 3 {
		t.Errorf("%d rules", len(rules))
	}
	wants(t, w.done("rule", "list"), "2     3  BLOCK   dns-id=\"d\"\n")
}

func TestRuleOfFileNotInForce(t *testing.T) {
	w := newWorld(t, goodXML, "<secsh-broker>\n<filter-engine/>\n</secsh-broker>\n")
	note := "filter-engine: it is ignored, because " + w.global + " has one"
	wants(t, w.done("rule", "list"), note)
	wants(t, w.done("rule", "add", "--action", "BLOCK"), note)
	// The file for all users is that of --system.
	out := w.done("--system", "rule", "add", "--action", "BLOCK")
	wants(t, out, "rule 1 added: "+w.global+":3", "ssh-broker-ctl --system reload")
	if strings.Contains(out, "ignored") {
		t.Error(out)
	}
	wants(t, w.done("--system", "rule", "list"), "1     3  BLOCK")
}

func TestRuleReload(t *testing.T) {
	w := newWorld(t, goodXML, "")
	var files shared[[]string]
	files.set([]string{"/etc/other.xml"})
	address := fakeBroker(t, func(s *control.Server, _ func()) {
		s.Handle(control.OpReload, rows(control.ReloadResult{Generation: 2, Changed: true}))
		s.Handle(control.OpStatus, func(_ context.Context, c *control.Call) error {
			return c.Send(control.StatusRow{ConfigFiles: files.get()})
		})
	})
	code, _, errs := w.ctl("rule", "remove", "1", "--reload")
	if code != exitNoBroker || strings.Contains(w.read(w.user), "secret") {
		t.Errorf("without a broker: %d %s", code, errs)
	}
	w.write(w.user, goodXML)
	w.address = address
	out := w.done("rule", "remove", "1", "--reload")
	wants(t, out, "rule 1 removed", "configuration 2: the new one is in force", "note: the broker that runs does not read "+w.user)
	if strings.Contains(out, "until:") {
		t.Error(out)
	}
	files.set([]string{w.user})
	if out := w.done("rule", "add", "--action", "BLOCK", "--reload"); strings.Contains(out, "does not read") {
		t.Error(out)
	}
	if out := w.done("rule", "add", "--action", "BLOCK", "-n", "--reload"); strings.Contains(out, "in force") {
		t.Error(out)
	}
}

// Two editors of one file: the second gives up.
func TestRuleEditedByTwo(t *testing.T) {
	w := newWorld(t, goodXML, "")
	other, err := edit.Open(w.user, false)
	if err != nil {
		t.Fatal(err)
	}
	code, _, errs := w.ctl("rule", "remove", "1")
	if code != exitFailed {
		t.Errorf("code %d", code)
	}
	wants(t, errs, "another editor has this file open", "hint: try again")
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	w.done("rule", "remove", "1")
}
