package docs

import (
	"bufio"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sshbroker/broker/config"
	"sshbroker/test/sut"
)

// documents are those whose commands and XML are checked.
var documents = []string{"README.md", "docs/guide.md", "docs/limits.md", "docs/architecture.md", "docs/reliability.md"}

var (
	inlineCode = regexp.MustCompile("`([^`\n]+)`")
	separator  = regexp.MustCompile(`&&|\|\||[|;()]`)
	option     = regexp.MustCompile(`^(--?[A-Za-z][\w-]*)`)
	prompted   = regexp.MustCompile(`^[$#] `) // of a user and of root
)

// takesValue are the options whose value is a word of its own.
var takesValue = map[string]set{
	"ssh-capture": {"--via": true, "-f": true, "-a": true, "-D": true, "--udp": true, "--backend": true, "--pid": true,
		"--config-file": true, "--broker-address": true, "--debug": true},
	"ssh-broker-ctl": {"-a": true, "--broker-address": true, "-D": true, "--debug": true, "-e": true, "--charset": true, "--time-format": true},
	"ssh-captured":   {"-a": true, "--socket": true, "--state-dir": true, "--admin-group": true, "--origin": true},
}

// TestCommandsInDocuments takes every command line of ours out of code blocks and
// inline code, and holds its command and options to what the program has.
func TestCommandsInDocuments(t *testing.T) {
	programs := map[string]commands{}
	for _, name := range names {
		programs[name] = help(t, name)
	}
	programs["ssh-broker-g3"] = programs["ssh-broker"]
	// Which of its commands has an option is for TestGatewayCAPage.
	ca := set{}
	for _, command := range []string{"", "init", "issue", "revoke", "crl", "list"} {
		for o := range optionsOf(output(t, sut.Program(t, "ssh-gateway"), append([]string{"ca"}, append(strings.Fields(command), "--help")...)...)) {
			ca[o] = true
		}
	}
	makefile := read(t, "Makefile")
	found := map[string]int{}
	for _, doc := range documents {
		for _, c := range commandLines(t, doc) {
			for _, part := range separator.Split(c.text, -1) {
				words := strings.Fields(part)
				if len(words) == 0 {
					continue
				}
				name := strings.TrimPrefix(words[0], "bin/")
				switch program := programs[name]; {
				case name == "ssh-gateway" && len(words) > 1 && words[1] == "ca":
					found[name]++
					checkCommand(t, c, "ssh-gateway ca", commands{"": ca}, words[2:])
				case program != nil:
					found[name]++
					checkCommand(t, c, name, program, words[1:])
				case name == "make" && len(words) > 1:
					found[name]++
					if !regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(words[1]) + `:`).MatchString(makefile) {
						t.Errorf("%s:%d: make has no target %s", doc, c.line, words[1])
					}
				}
			}
		}
	}
	for _, name := range []string{"ssh-capture", "ssh-broker-ctl", "ssh-captured", "ssh-gateway", "make"} {
		if found[name] < 3 {
			t.Errorf("only %d commands of %s were found", found[name], name)
		}
	}
}

type commandLine struct {
	doc  string
	line int
	text string
}

// commandLines are the lines of indented and console blocks, and inline code.
func commandLines(t *testing.T, doc string) []commandLine {
	t.Helper()
	var list []commandLine
	fence, number := "", 0
	for lines := bufio.NewScanner(strings.NewReader(read(t, doc))); lines.Scan(); {
		number++
		text := lines.Text()
		switch {
		case strings.HasPrefix(text, "```") && fence == "":
			fence = text
		case strings.HasPrefix(text, "```"):
			fence = ""
		case fence == "```console" && prompted.MatchString(text), fence == "" && strings.HasPrefix(text, "    "):
			text = prompted.ReplaceAllString(strings.TrimSpace(text), "")
			text, _, _ = strings.Cut(text, " #")
			list = append(list, commandLine{doc, number, text})
		case fence == "":
			for _, m := range inlineCode.FindAllStringSubmatch(text, -1) {
				list = append(list, commandLine{doc, number, m[1]})
			}
		}
	}
	return list
}

func checkCommand(t *testing.T, c commandLine, name string, program commands, words []string) {
	t.Helper()
	options := program[""]
	for i := 0; i < len(words); i++ {
		m := option.FindStringSubmatch(words[i])
		switch {
		case m == nil && len(program) > 1 && len(options) == len(program[""]):
			command := strings.TrimRight(words[i], ".,")
			if program[command] == nil {
				t.Errorf("%s:%d: %s has no command %s", c.doc, c.line, name, command)
				return
			}
			if i+1 < len(words) && program.named(command, words[i+1]) != command {
				command += " " + words[i+1]
			}
			options = set{}
			for _, group := range []set{program[""], program[command]} {
				for o := range group {
					options[o] = true
				}
			}
			if len(options) == len(program[""]) {
				options["(of "+command+")"] = true // it has none of its own; the command is known now
			}
		case m == nil && name == "ssh-capture":
			return // the command that is captured
		case m == nil:
		case !options[m[1]]:
			t.Errorf("%s:%d: %s has no option %s", c.doc, c.line, name, m[1])
		case takesValue[name][m[1]] && !strings.Contains(words[i], "="):
			i++
		}
	}
}

// TestXMLInDocuments loads every piece of configuration that a document shows. One
// that shows a mistake is followed by the message in the guide, which TestGuide runs.
func TestXMLInDocuments(t *testing.T) {
	dir := t.TempDir()
	good := 0
	for _, doc := range documents {
		for _, b := range blocks(t, doc) {
			if b.lang != "xml" {
				continue
			}
			file := filepath.Join(dir, "ssh-broker-config.xml")
			if err := os.WriteFile(file, []byte(whole(b.text)), 0o600); err != nil {
				t.Fatal(err)
			}
			problems := config.Check(file, config.Options{Env: config.Env{Home: dir, User: "me"}})
			if strings.Contains(b.text, `acton="`) {
				if len(problems.Errors()) != 1 {
					t.Errorf("%s:%d: the mistake shown makes %d errors: %v", doc, b.line, len(problems.Errors()), problems)
				}
				continue
			}
			good++
			for _, p := range problems {
				if p.Warning && strings.Contains(p.Msg, "no such file or directory") {
					continue // a certificate that readers have yet to get
				}
				t.Errorf("%s:%d: %v", doc, b.line, p)
			}
		}
	}
	if good < 5 {
		t.Errorf("only %d pieces of configuration were found", good)
	}
}

// TestConfigPageExamples loads what ssh-broker-config(5) shows.
func TestConfigPageExamples(t *testing.T) {
	dir := t.TempDir()
	source := read(t, "docs/man/ssh-broker-config.5")
	examples := regexp.MustCompile(`(?s)\.nf\n\.RS\n(<.*?)\.RE\n\.fi`).FindAllStringSubmatch(source, -1)
	if len(examples) < 3 {
		t.Fatalf("%d examples were found", len(examples))
	}
	for _, e := range examples {
		text := strings.NewReplacer(`\-`, "-", `\e`, `\`).Replace(e[1])
		if !strings.Contains(text, "<profiles>") && strings.Contains(text, `"bastion"`) {
			text = strings.Replace(text, "<filter-engine>", `<profiles><profile id="bastion" host="b"/></profiles><filter-engine>`, 1)
		}
		file := filepath.Join(dir, "ssh-broker-config.xml")
		if err := os.WriteFile(file, []byte(whole(text)), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, p := range config.Check(file, config.Options{Env: config.Env{Home: dir, User: "me"}}) {
			t.Errorf("%v\n%s", p, text)
		}
	}
}

// TestLinksInDocuments wants every file that a document links to.
func TestLinksInDocuments(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:]+)\)`)
	for _, doc := range append(documents, "CHANGELOG.md") {
		for _, m := range link.FindAllStringSubmatch(read(t, doc), -1) {
			if _, err := os.Stat(filepath.Join(root, filepath.Dir(doc), m[1])); err != nil {
				t.Errorf("%s: link to %s: %v", doc, m[1], err)
			}
		}
	}
}
