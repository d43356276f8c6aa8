package docs

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"sshbroker/test/sut"
)

var update = flag.Bool("update", false, "write the generated completions in etc/completions anew")

const completions = "etc/completions"

// script is the name by which a shell looks for the completion of a program.
func script(shell, program string) string {
	if shell == "zsh" {
		return "_" + program
	}
	return program + "." + shell
}

// The completions of programs whose words are all their own are what they generate.
func TestGeneratedCompletions(t *testing.T) {
	for _, name := range []string{"ssh-broker", "ssh-broker-ctl", "ssh-gateway"} {
		for _, shell := range []string{"bash", "zsh", "fish"} {
			text := output(t, sut.Program(t, name), "completion", shell)
			file := filepath.Join(completions, script(shell, name))
			if *update {
				if err := os.WriteFile(filepath.Join(root, file), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if read(t, file) != text {
				t.Errorf("%s is not what %s completion %s prints; run go generate ./test/docs", file, name, shell)
			}
		}
	}
}

// The scripts ask the program for words; none of them may be hidden.
func TestCompletionsOfferNothingHidden(t *testing.T) {
	for _, name := range []string{"ssh-broker", "ssh-broker-ctl", "ssh-gateway"} {
		options := help(t, name)[""]
		out := output(t, sut.Program(t, name), "__complete", "--")
		for _, m := range regexp.MustCompile(`(?m)^(--[\w-]+)`).FindAllString(out, -1) {
			if !options[m] {
				t.Errorf("%s completes %s, which --help does not show", name, m)
			}
		}
	}
}

// Behind ssh-capture's options stands another program's command line, and ssh-captured
// has no words to be asked for, so their completions are written by hand.
func TestHandwrittenCompletionsHaveEveryOption(t *testing.T) {
	for _, name := range []string{"ssh-capture", "ssh-captured"} {
		options := help(t, name)[""]

		bash := read(t, filepath.Join(completions, script("bash", name)))
		bash, _, _ = strings.Cut(bash, "_ssh_capture_wants")
		if name == "ssh-captured" {
			_, bash, _ = strings.Cut(bash, "*) mapfile")
			_, bash, _ = strings.Cut(bash, "compgen -W ")
			bash, _, _ = strings.Cut(bash, " -- ")
		}
		equal(t, script("bash", name), options, setOf(regexp.MustCompile(`(?:^|[ '\n])(--?[a-zA-Z][\w-]*)`), bash))

		zsh := read(t, filepath.Join(completions, script("zsh", name)))
		found := setOf(regexp.MustCompile(`['{,](--?[a-zA-Z][\w-]*)[}\[,]`), zsh)
		for o := range setOf(regexp.MustCompile(`,(--?[a-zA-Z][\w-]*)\}`), zsh) {
			found[o] = true
		}
		equal(t, script("zsh", name), options, found)

		found = set{}
		fish := read(t, filepath.Join(completions, script("fish", name)))
		for o := range setOf(regexp.MustCompile(` -l ([\w-]+)`), fish) {
			if o != "with_argument" { // a variable that is local
				found["--"+o] = true
			}
		}
		for o := range setOf(regexp.MustCompile(` -s (\w)`), fish) {
			found["-"+o] = true
		}
		equal(t, script("fish", name), options, found)
	}
}

func setOf(re *regexp.Regexp, text string) set {
	s := set{}
	for _, m := range re.FindAllStringSubmatch(text, -1) {
		s[m[1]] = true
	}
	return s
}

// complete has bash complete the last word of a command line, and returns what it
// offers; "OFFSET n WORDS" where another program's completion takes over at word n.
const complete = `
_command_offset() { COMPREPLY=("OFFSET $1 ${COMP_WORDS[*]:$1}"); }
source "$1"
COMP_LINE=$2 COMP_POINT=${#2}
COMP_WORDS=("${@:3}") COMP_CWORD=$(($# - 3))
"_${3//-/_}"
printf '%s\n' "${COMPREPLY[@]}"
`

func TestHandwrittenCompletionsInBash(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		skip(t, "needs bash (Debian package bash)")
	}
	for _, c := range []struct {
		line string
		want string // all of it, or where it begins with ~ one line of it
	}{
		{"ssh-capture ", "OFFSET 1 "},
		{"ssh-capture cur", "OFFSET 1 cur"},
		{"ssh-capture curl -", "OFFSET 1 curl -"},
		{"ssh-capture curl --via x", "OFFSET 1 curl --via x"},
		{"ssh-capture --", "~--via"},
		{"ssh-capture --fall", "--fallback"},
		{"ssh-capture -l --fall", "--fallback"},
		{"ssh-capture --udp ", "refuse\ndirect"},
		{"ssh-capture --udp d", "direct"},
		{"ssh-capture --udp=d", "direct"},
		{"ssh-capture --udp=", "refuse\ndirect"},
		{"ssh-capture --backend n", "namespace"},
		{"ssh-capture --backend c", "cgroup"},
		{"ssh-capture --pid 1 -l psq", "OFFSET 4 psq"},
		{"ssh-capture -lD ", "1\n3\n5\n7"},
		{"ssh-capture -D 5 psq", "OFFSET 3 psq"},
		{"ssh-capture -D5 psq", "OFFSET 2 psq"},
		{"ssh-capture -f rules.xml -l -- -odd", "OFFSET 5 -odd"},
		{"ssh-capture -f -- curl", "OFFSET 3 curl"},
		{"ssh-capture --via me@bastion:22 psql -h d", "OFFSET 7 psql -h d"},
		{"ssh-capture --via=me@bastion psql ", "OFFSET 6 psql "},
		{"ssh-capture --udp=direct curl http://x", "OFFSET 4 curl http : //x"},
		{"ssh-captured --rel", "--release"},
		{"ssh-captured -D --o", "--origin"},
		{"ssh-captured --origin ", "auto\nproc"},
		{"ssh-captured --origin=p", "proc"},
		{"ssh-captured --admin-group roo", "root"},
	} {
		program, _, _ := strings.Cut(c.line, " ")
		file, err := filepath.Abs(filepath.Join(root, completions, script("bash", program)))
		if err != nil {
			t.Fatal(err)
		}
		words := splitLikeBash(c.line)
		cmd := exec.Command(bash, append([]string{"--norc", "-c", complete, "bash", file, c.line}, words...)...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%q: %v\n%s", c.line, err, out)
			continue
		}
		got := strings.TrimSuffix(string(out), "\n")
		if line, ok := strings.CutPrefix(c.want, "~"); ok {
			if !strings.Contains("\n"+got+"\n", "\n"+line+"\n") {
				t.Errorf("%q offers %q, which has no %s", c.line, got, line)
			}
		} else if got != c.want {
			t.Errorf("%q offers %q, want %q", c.line, got, c.want)
		}
	}
}

// splitLikeBash makes COMP_WORDS of a line without quotes: bash cuts at blanks, and
// around the characters =, : and @.
func splitLikeBash(line string) []string {
	var words []string
	for i, field := range strings.Split(line, " ") {
		cut := regexp.MustCompile(`[=:@]|[^=:@]+`).FindAllString(field, -1)
		if len(cut) == 0 && i > 0 {
			cut = []string{""}
		}
		words = append(words, cut...)
	}
	return words
}

func TestCompletionsAreGoodScripts(t *testing.T) {
	checked := 0
	for _, name := range names {
		for shell, check := range map[string][]string{"bash": {"-n"}, "zsh": {"-n"}, "fish": {"--no-execute"}} {
			path, err := exec.LookPath(shell)
			if err != nil {
				t.Logf("%s is not installed, its scripts are not parsed", shell)
				continue
			}
			checked++
			file := filepath.Join(root, completions, script(shell, name))
			if out, err := exec.Command(path, append(check, file)...).CombinedOutput(); err != nil {
				t.Errorf("%s: %v\n%s", file, err, out)
			}
		}
	}
	if checked == 0 {
		skip(t, "needs bash, zsh or fish, has "+strconv.Itoa(checked)+" of them")
	}
}
