package packages

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sshbroker/test/sut"
)

const root = "../.."

func TestMain(m *testing.M) { sut.Main(m, nil) }

// needLong skips what takes minutes.
func needLong(t *testing.T) {
	t.Helper()
	if os.Getenv("SSHBROKER_LONG") != "1" {
		t.Skip("takes minutes and a Debian mirror: make test-long")
	}
}

// run runs a program in a directory, with more in its environment, and returns what it
// says, on both streams.
func run(t *testing.T, dir string, env []string, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// programs are those that the Makefile builds.
func programs(t *testing.T) []string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^PROGRAMS := (.*)$`).FindSubmatch(b)
	if m == nil {
		t.Fatal("the Makefile has no PROGRAMS")
	}
	return strings.Fields(string(m[1]))
}

// files are the paths of all that is below a directory, directories with a slash at
// their end.
func files(t *testing.T, dir string) []string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if d.IsDir() {
			name += "/"
		}
		list = append(list, name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// copySources copies the tree without what git and make have in it.
func copySources(t *testing.T, to string) {
	t.Helper()
	if err := os.MkdirAll(to, 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, root, nil, "sh", "-c", `tar --exclude=./.git --exclude=./bin -cf - . | tar -xf - --no-same-owner -C "$1"`, "sh", to)
}
