package docs

import (
	"bytes"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sshbroker/test/sut"
)

const root = "../.."

func TestMain(m *testing.M) { sut.Main(m, nil) }

// names of the programs that are documented.
var names = []string{"ssh-capture", "ssh-broker", "ssh-broker-ctl", "ssh-captured", "ssh-gateway"}

// manual is the file of a program's page.
func manual(name string) string {
	if name == "ssh-captured" || name == "ssh-gateway" {
		return name + ".8"
	}
	return name + ".1"
}

// skip ends a test that cannot run here. Where everything must be there, in CI, it
// fails.
func skip(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s, and CI=true allows no skip", reason)
	}
	t.Skip(reason)
}

func read(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// output runs a program and fails the test unless it succeeds.
func output(t testing.TB, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, stderr.String())
	}
	return string(out)
}

// set is a set of options, elements or the like.
type set map[string]bool

func (s set) sorted() []string { return slices.Sorted(maps.Keys(s)) }

// equal reports what is in one set and not in the other.
func equal(t testing.TB, what string, inProgram, inPage set) {
	t.Helper()
	for _, x := range inProgram.sorted() {
		if !inPage[x] {
			t.Errorf("%s: %s is not documented", what, x)
		}
	}
	for _, x := range inPage.sorted() {
		if !inProgram[x] {
			t.Errorf("%s: %s is documented and does not exist", what, x)
		}
	}
}

// interface of a program: its options, and for each of its commands theirs. The
// options that every command takes are those of the command "". A command of a command
// has both names: "rule add".
type commands map[string]set

var (
	helpOption  = regexp.MustCompile(`(?m)^ +(?:(-\w), )?(--[\w-]+)`)
	helpCommand = regexp.MustCompile(`(?m)^  ([a-z][a-z-]+) +[A-Z]`)
)

// help reads the interface off the program's --help.
func help(t testing.TB, name string) commands {
	t.Helper()
	program := sut.Program(t, name)
	text := output(t, program, "--help")
	c := commands{"": optionsOf(text)}
	if len(c[""]) < 4 {
		t.Fatalf("%s --help has too few options to be read right:\n%s", name, text)
	}
	usage, _, _ := strings.Cut(text, "\nOptions:")
	if name != "ssh-broker-ctl" {
		return c
	}
	for _, m := range helpCommand.FindAllStringSubmatch(usage, -1) {
		c.add(t, program, m[1])
	}
	if len(c) < 5 {
		t.Fatalf("%s --help has too few commands to be read right:\n%s", name, text)
	}
	return c
}

// add reads the interface of one command, and of those below it.
func (c commands) add(t testing.TB, program, command string) {
	t.Helper()
	text := output(t, program, append(strings.Fields(command), "--help")...)
	c[command] = optionsOf(text)
	for general := range c[""] {
		delete(c[command], general)
	}
	_, below, _ := strings.Cut(text, "\nCommands:\n")
	below, _, _ = strings.Cut(below, "\n\n")
	for _, m := range helpCommand.FindAllStringSubmatch(below, -1) {
		c.add(t, program, command+" "+m[1])
	}
}

// named returns the command that words begin with, the longest there is; "" for none.
func (c commands) named(words ...string) string {
	for n := len(words); n > 0; n-- {
		if name := strings.Join(words[:n], " "); c[name] != nil {
			return name
		}
	}
	return ""
}

func optionsOf(text string) set {
	_, text, _ = strings.Cut(text, "Usage:")
	text, _, _ = strings.Cut(text, "\nExamples:\n  ssh-broker-ctl")
	options := set{}
	for _, m := range helpOption.FindAllStringSubmatch(text, -1) {
		options[m[2]] = true
		if m[1] != "" {
			options[m[1]] = true
		}
	}
	return options
}
