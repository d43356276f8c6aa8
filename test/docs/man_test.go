package docs

import (
	"encoding/json"
	"net/netip"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"sshbroker/broker/audit"
	"sshbroker/broker/config"
	"sshbroker/broker/control"
	"sshbroker/broker/doctor"
	"sshbroker/capture/leak"
	"sshbroker/capture/service"
)

// section is what stands below a heading of a manual page. Sections come before their
// subsections.
type section struct {
	heading    string
	subsection bool
	text       string  // before the first tag
	entries    []entry // tagged paragraphs
}

// entry is one tagged paragraph.
type entry struct{ tag, text string }

// page reads a manual page as far as the tests ask: headings, and paragraphs with tags.
func page(t testing.TB, name string) []section {
	t.Helper()
	source := strings.ReplaceAll(read(t, filepath.Join("docs/man", name)), "\\\n", "")
	sections := []section{{}}
	tag, inTag := false, false
	for line := range strings.Lines(source) {
		request, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		s := &sections[len(sections)-1]
		switch {
		case request == ".SH" || request == ".SS":
			sections = append(sections, section{heading: plain(".B " + rest), subsection: request == ".SS"})
			tag, inTag = false, false
		case request == ".TP" || request == ".TQ":
			tag = true
		case request == ".PP" || request == ".IP":
			inTag = false
		case tag:
			s.entries = append(s.entries, entry{tag: plain(line)})
			tag, inTag = false, true
		case inTag:
			s.entries[len(s.entries)-1].text += plain(line) + " "
		case len(s.entries) == 0:
			s.text += plain(line) + " "
		}
	}
	return sections
}

var (
	fontChange = regexp.MustCompile(`\\f[BIRP]`)
	macro      = regexp.MustCompile(`^\.([BIR]+) (.*)`)
	argument   = regexp.MustCompile(`"([^"]*)"|(\S+)`)
)

// plain takes the roff off a line: the macros for fonts, of which those with two
// letters join their arguments without blanks, and escapes.
func plain(line string) string {
	text := strings.TrimSpace(line)
	if m := macro.FindStringSubmatch(text); m != nil {
		var words []string
		for _, a := range argument.FindAllStringSubmatch(m[2], -1) {
			words = append(words, a[1]+a[2])
		}
		blank := " "
		if len(m[1]) == 2 {
			blank = ""
		}
		text = strings.Join(words, blank)
	}
	text = fontChange.ReplaceAllString(text, "")
	return strings.NewReplacer(`\-`, "-", `\e`, `\`, `\(dq`, `"`, `\&`, "").Replace(text)
}

// below returns the sections below a heading, itself first.
func below(t testing.TB, sections []section, heading string) []section {
	t.Helper()
	for i, s := range sections {
		if s.heading != heading {
			continue
		}
		end := i + 1
		for end < len(sections) && sections[end].subsection && !s.subsection {
			end++
		}
		return sections[i:end]
	}
	t.Fatalf("there is no section %s", heading)
	return nil
}

var pageOption = regexp.MustCompile(`(?:^|[ ,])(--?[A-Za-z][\w-]*)`)

// options are those that the tags of a section name.
func (s section) options() set {
	found := set{}
	for _, e := range s.entries {
		for _, m := range pageOption.FindAllStringSubmatch(e.tag, -1) {
			found[m[1]] = true
		}
	}
	return found
}

func TestPagesHaveEveryOption(t *testing.T) {
	for _, name := range names {
		program, file := help(t, name), manual(name)
		sections := page(t, file)
		equal(t, file, program[""], below(t, sections, "OPTIONS")[0].options())
		if len(program) == 1 {
			continue
		}
		inPage := commands{}
		for _, s := range below(t, sections, "COMMANDS")[1:] {
			words := strings.Fields(s.heading)
			command := program.named(words...)
			if command == "" {
				command = words[0]
			}
			inPage[command] = s.options()
		}
		equal(t, file, keys(program, ""), keys(inPage, ""))
		for command, options := range program {
			if command != "" {
				equal(t, file+", "+command, options, inPage[command])
			}
		}
	}
}

func keys(c commands, but string) set {
	s := set{}
	for name := range c {
		if name != but {
			s[name] = true
		}
	}
	return s
}

// attribute is what the DTD says of one.
type attribute struct {
	required bool
	values   []string
	def      string
}

var (
	dtdElement = regexp.MustCompile(`(?m)^<!ELEMENT (\S+) `)
	dtdList    = regexp.MustCompile(`(?s)<!ATTLIST (\S+)(.*?)>`)
	dtdAttr    = regexp.MustCompile(`(?m)^\s+(\S+) (CDATA|\([^)]*\)) #(REQUIRED|IMPLIED)`)
	dtdDefault = regexp.MustCompile(`(?m)^<!-- default of (\S+)/@(\S+): (.*) -->`)
)

// schemaTable reads the elements and attributes off the DTD, which a test of the
// package config holds equal to its table.
func schemaTable(t *testing.T) map[string]map[string]*attribute {
	t.Helper()
	dtd := config.DTD()
	table := map[string]map[string]*attribute{}
	for _, m := range dtdElement.FindAllStringSubmatch(dtd, -1) {
		table[m[1]] = map[string]*attribute{}
	}
	for _, list := range dtdList.FindAllStringSubmatch(dtd, -1) {
		for _, m := range dtdAttr.FindAllStringSubmatch(list[2], -1) {
			a := &attribute{required: m[3] == "REQUIRED"}
			if m[2] != "CDATA" {
				seen := set{}
				for v := range strings.SplitSeq(strings.Trim(m[2], "()"), "|") {
					if !seen[strings.ToLower(v)] {
						seen[strings.ToLower(v)] = true
						a.values = append(a.values, v)
					}
				}
			}
			table[list[1]][m[1]] = a
		}
	}
	for _, m := range dtdDefault.FindAllStringSubmatch(dtd, -1) {
		table[m[1]][m[2]].def = m[3]
	}
	if len(table) < 50 || table["rule"]["action"] == nil {
		t.Fatalf("the DTD was not read right: %v", table)
	}
	return table
}

var pageAttribute = regexp.MustCompile(`^([\w-]+) ?\((.*)\)$`)

func TestConfigPageHasTheSchema(t *testing.T) {
	table := schemaTable(t)
	inProgram, inPage := set{}, set{}
	for name := range table {
		inProgram[name] = true
	}
	for _, s := range below(t, page(t, "ssh-broker-config.5"), "ELEMENTS")[1:] {
		for name := range strings.SplitSeq(s.heading, ", ") {
			if inPage[name] {
				t.Errorf("ssh-broker-config.5: %s has two headings", name)
			}
			inPage[name] = true
			wanted, found := set{}, set{}
			for attr := range table[name] {
				wanted[attr] = true
			}
			for _, e := range s.entries {
				m := pageAttribute.FindStringSubmatch(e.tag)
				if m == nil {
					t.Errorf("ssh-broker-config.5: %s: tag %q is not an attribute with its values in parentheses", name, e.tag)
					continue
				}
				found[m[1]] = true
				if a := table[name][m[1]]; a != nil {
					checkAttribute(t, name+"/@"+m[1], a, m[2])
				}
				if strings.TrimSpace(e.text) == "" {
					t.Errorf("ssh-broker-config.5: %s/@%s: nothing is said of it", name, m[1])
				}
			}
			equal(t, "ssh-broker-config.5, "+name, wanted, found)
		}
	}
	equal(t, "ssh-broker-config.5, ELEMENTS", inProgram, inPage)
}

// checkAttribute compares what the schema says with "VALUES, default D" or
// "VALUES, required".
func checkAttribute(t *testing.T, name string, a *attribute, says string) {
	t.Helper()
	values, rest, _ := strings.Cut(says, ", ")
	want := ""
	switch {
	case a.required:
		want = "required"
	case a.def != "":
		want = "default " + a.def
	}
	if rest != want {
		t.Errorf("ssh-broker-config.5: %s: it says %q, the schema %q", name, rest, want)
	}
	if len(a.values) > 0 && !strings.EqualFold(values, strings.Join(a.values, " | ")) {
		t.Errorf("ssh-broker-config.5: %s: values %q, the schema has %q", name, values, strings.Join(a.values, " | "))
	}
	if len(a.values) == 0 && strings.Contains(values, "|") {
		t.Errorf("ssh-broker-config.5: %s: values %q, the schema has none", name, values)
	}
}

// TestConfigPageSaysWhatHasNoEffect compares the page with what check-config warns of.
func TestConfigPageSaysWhatHasNoEffect(t *testing.T) {
	said := map[string]string{}
	for _, s := range below(t, page(t, "ssh-broker-config.5"), "ELEMENTS")[1:] {
		for name := range strings.SplitSeq(s.heading, ", ") {
			said[name] = s.text
			for _, e := range s.entries {
				attr, _, _ := strings.Cut(e.tag, " ")
				said[name+"/@"+attr] = e.text
			}
		}
	}
	marked := func(text string, kind config.Kind) bool {
		mark := "not built"
		if kind == config.NotActedOn {
			mark = "not acted on"
		}
		return strings.Contains(strings.ToLower(text), mark)
	}
	problems := config.Check("testdata/no-effect.xml", config.Options{Env: config.Env{Home: "/h", User: "u"}})
	warned := 0
	for _, p := range problems {
		if !p.Warning {
			t.Error(p)
		}
		if p.Kind == config.General {
			continue
		}
		warned++
		where := p.Element
		if attr, _, ok := strings.Cut(p.Msg, ": "); ok && said[p.Element+"/@"+attr] != "" {
			where += "/@" + attr
		}
		if !marked(said[where], p.Kind) {
			// An element may say it in each of its attributes instead.
			parts := 0
			for name, text := range said {
				if strings.HasPrefix(name, where+"/@") && marked(text, p.Kind) {
					parts++
				}
			}
			if parts == 0 {
				t.Errorf("ssh-broker-config.5: %s: the program says %q (%v), the page %q", where, p.Msg, p.Kind, said[where])
			}
		}
	}
	if warned < 10 {
		t.Errorf("only %d warnings about what has no effect", warned)
	}
}

func TestAuditRecordIsDocumented(t *testing.T) {
	sections := page(t, "ssh-broker.1")

	reasons, documented := set{}, set{}
	for _, r := range audit.Reasons() {
		reasons[r.String()] = true
	}
	for _, e := range below(t, sections, "Reasons")[0].entries {
		documented[e.tag] = true
	}
	equal(t, "ssh-broker.1, Reasons", reasons, documented)

	addr := netip.MustParseAddrPort("192.0.2.1:1")
	full := audit.Record{Time: time.Unix(1, 0), Flow: 1, FlowID: "f", Capture: "c", Backend: "b", Generation: 1, UID: 1, User: "u", Groups: []string{"g"},
		PID: 1, Program: "p", Src: addr, Dst: addr, Names: []string{"n"}, Name: "n", Rule: 1, RuleSource: "s", Action: "a", Profile: "p",
		Server: "s", Target: "t", Reason: audit.Carried, Error: "e", UpEnd: "e", DownEnd: "e", Decision: 1, Open: 1, Duration: 1, BytesUp: 1, BytesDown: 1}
	for i := range reflect.TypeFor[audit.Record]().NumField() {
		if reflect.ValueOf(full).Field(i).IsZero() {
			t.Errorf("this test does not fill in %s", reflect.TypeFor[audit.Record]().Field(i).Name)
		}
	}
	line, err := full.AppendLine(nil)
	if err != nil {
		t.Fatal(err)
	}
	var object map[string]any
	if err := json.Unmarshal(line, &object); err != nil {
		t.Fatal(err)
	}
	fields, documented := set{}, set{}
	for name := range object {
		fields[name] = true
	}
	for _, e := range below(t, sections, "Fields")[0].entries {
		for tag := range strings.SplitSeq(e.tag, ", ") {
			documented[strings.TrimSpace(tag)] = true
		}
	}
	equal(t, "ssh-broker.1, Fields", fields, documented)
}

// TestJSONOutputIsDocumented holds the list of what -s prints to the rows that travel.
func TestJSONOutputIsDocumented(t *testing.T) {
	said := map[string]string{}
	for _, e := range below(t, page(t, "ssh-broker-ctl.1"), "JSON OUTPUT")[0].entries {
		said[e.tag] = e.text
	}
	for command, rows := range map[string][]any{
		"status":                {control.StatusRow{}, control.AuditStatus{}, control.LogTarget{}, control.CapturedStatus{}},
		"reload":                {control.ReloadResult{}},
		"list-connections":      {control.ConnectionRow{}},
		"list-channels":         {control.ChannelRow{}},
		"list-tunnel-listeners": {control.ListenerRow{}},
		"services":              {control.ServiceRow{}},
		"list-clients":          {control.ClientRow{}},
		"list-profiles":         {control.ProfileRow{}},
		"connector":             {service.Status{}, service.Capture{}, service.Hit{}},
		"explain":               {control.ExplainRow{}, control.ExplainFlow{}, control.ExplainStep{}, control.ExplainResult{}},
		"list-keys":             {control.KeyRow{}, control.CertificateRow{}},
		"probe-key":             {control.HostKeyRow{}},
		"doctor":                {doctor.Result{}},
		"leak-test":             {leak.Finding{}},
	} {
		for _, row := range rows {
			for i := range reflect.TypeOf(row).NumField() {
				field, _, _ := strings.Cut(reflect.TypeOf(row).Field(i).Tag.Get("json"), ",")
				if !regexp.MustCompile(`\b` + field + `\b`).MatchString(said[command]) {
					t.Errorf("ssh-broker-ctl.1: JSON OUTPUT of %s does not have %q", command, field)
				}
			}
		}
	}
}

func TestPagesFormat(t *testing.T) {
	if _, err := exec.LookPath("groff"); err != nil {
		skip(t, "needs groff (Debian package groff-base)")
	}
	pages, err := filepath.Glob(filepath.Join(root, "docs/man/*.[1-8]"))
	if err != nil || len(pages) < 5 {
		t.Fatalf("%d pages: %v", len(pages), err)
	}
	for _, p := range pages {
		if out, err := exec.Command("groff", "-man", "-Tutf8", "-ww", "-rCHECKSTYLE=3", "-z", p).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("groff %s: %v\n%s", filepath.Base(p), err, out)
		}
		for number, line := range strings.Split(read(t, filepath.Join("docs/man", filepath.Base(p))), "\n") {
			if len(line) > 120 {
				t.Errorf("%s:%d: %d characters in a line", filepath.Base(p), number+1, len(line))
			}
		}
	}
	if man, err := exec.LookPath("man"); err == nil {
		for _, p := range pages {
			var stderr strings.Builder
			cmd := exec.Command(man, "--warnings", "-l", p)
			cmd.Stderr = &stderr
			if err := cmd.Run(); err != nil || stderr.Len() > 0 {
				t.Errorf("man %s: %v\n%s", filepath.Base(p), err, stderr.String())
			}
		}
	}
}

// TestPagesLint has mandoc read the pages, which is stricter than groff, and what BSD and
// Alpine show them with.
func TestPagesLint(t *testing.T) {
	mandoc, err := exec.LookPath("mandoc")
	if err != nil {
		skip(t, "needs mandoc (Debian package mandoc)")
	}
	pages, err := filepath.Glob(filepath.Join(root, "docs/man/*.[1-8]"))
	if err != nil || len(pages) < 5 {
		t.Fatalf("%d pages: %v", len(pages), err)
	}
	for _, p := range pages {
		out, _ := exec.Command(mandoc, "-T", "lint", "-W", "warning", p).CombinedOutput() // its code says no more
		for line := range strings.Lines(string(out)) {
			// Pages go with a version, which --version says, and have no date of their own.
			if !strings.Contains(line, "missing date") {
				t.Error(strings.TrimSpace(line))
			}
		}
	}
}

// TestEveryProgramIsDocumented: each has a page and completions for three shells, and
// each page that a page refers to is there.
func TestEveryProgramIsDocumented(t *testing.T) {
	programs, err := filepath.Glob(filepath.Join(root, "cmd/*/main.go"))
	if err != nil || len(programs) < 5 {
		t.Fatalf("%d programs: %v", len(programs), err)
	}
	for _, path := range programs {
		name := filepath.Base(filepath.Dir(path))
		if !slices.Contains(names, name) {
			t.Errorf("%s is not among the programs whose documents are checked", name)
			continue
		}
		read(t, filepath.Join("docs/man", manual(name)))
		for _, shell := range []string{"bash", "zsh", "fish"} {
			read(t, filepath.Join(completions, script(shell, name)))
		}
	}
	pages, err := filepath.Glob(filepath.Join(root, "docs/man/*.[1-8]"))
	if err != nil {
		t.Fatal(err)
	}
	reference := regexp.MustCompile(`(?m)^\.BR (ssh\S*) \((\d)\)`)
	found := 0
	for _, p := range pages {
		for _, m := range reference.FindAllStringSubmatch(read(t, filepath.Join("docs/man", filepath.Base(p))), -1) {
			name := strings.ReplaceAll(m[1], `\-`, "-") + "." + m[2]
			if foreign := []string{"ssh.1", "sshd.8", "ssh-keygen.1", "ssh_config.5", "sshd_config.5", "ssh-agent.1", "ssh-add.1", "ssh-keyscan.1"}; slices.Contains(foreign, name) {
				continue
			}
			found++
			if !slices.Contains(pages, filepath.Join(root, "docs/man", name)) {
				t.Errorf("%s refers to %s, which is not there", filepath.Base(p), name)
			}
		}
	}
	if found < 10 {
		t.Errorf("only %d references were found", found)
	}
}
