package sut

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"sshbroker/capture/inherit"
)

// Programs are the paths of everything built. All are in Dir.
type Programs struct {
	Dir      string
	Broker   string // ssh-broker; ssh-broker-g3 beside it is a link to it
	Capture  string // ssh-capture
	Ctl      string // ssh-broker-ctl
	Testprog string // see test/programs/testprog
	Captured string // ssh-captured
}

// packages, by program name, relative to the root of the module.
var packages = map[string]string{
	"ssh-broker":     "./cmd/ssh-broker",
	"ssh-capture":    "./cmd/ssh-capture",
	"ssh-broker-ctl": "./cmd/ssh-broker-ctl",
	"ssh-captured":   "./cmd/ssh-captured",
	"ssh-gateway":    "./cmd/ssh-gateway",
	"testprog":       "./test/programs/testprog",
}

// coverEnv names a directory in which the programs leave what of them was run, for
// `make cover`; everybody must be able to write there.
const coverEnv = "SSHBROKER_COVER"

// builder builds each program when it is first asked for.
type builder struct {
	mu    sync.Mutex
	dir   string // "" until Main made it
	built map[string]error
}

// The one builder of the process: what it holds is as long-lived as the process.
var programs builder

// Main runs the tests of a package and ends the process. A package that uses
// this one calls it in TestMain; check, where not nil, runs after the tests and
// says what they left behind.
func Main(m *testing.M, check func() error) {
	os.Exit(run(m, check))
}

func run(m *testing.M, check func() error) (code int) {
	dir, err := os.MkdirTemp("", "sshbroker-sut-")
	if err == nil {
		defer os.RemoveAll(dir)
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "sut:", err)
		return 1
	}
	programs.dir = dir
	if covered := os.Getenv(coverEnv); covered != "" {
		os.Setenv("GOCOVERDIR", covered) // processes without it complain
	}
	code = m.Run()
	if check != nil && code == 0 {
		if err := check(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	return code
}

// Build returns all programs.
func Build(t testing.TB) Programs {
	t.Helper()
	return Programs{
		Broker: Program(t, "ssh-broker"), Capture: Program(t, "ssh-capture"), Ctl: Program(t, "ssh-broker-ctl"),
		Testprog: Program(t, "testprog"), Captured: Program(t, "ssh-captured"), Dir: programs.dir,
	}
}

// Program returns the path of one program.
func Program(t testing.TB, name string) string {
	t.Helper()
	path, err := programs.program(name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func (b *builder) program(name string) (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.dir == "" {
		return "", fmt.Errorf("build %s: TestMain does not call sut.Main", name)
	}
	path := filepath.Join(b.dir, name)
	err, known := b.built[name]
	if !known {
		err = build(name, path)
		if b.built == nil {
			b.built = map[string]error{}
		}
		b.built[name] = err
	}
	return path, err
}

func build(name, path string) error {
	pkg, ok := packages[name]
	if !ok {
		return fmt.Errorf("build %s: no such program", name)
	}
	gomod, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return fmt.Errorf("build %s: go env GOMOD: %w", name, err)
	}
	flags := "-X sshbroker/broker/control.version=test -X main.version=test"
	if name == "ssh-capture" && inherit.Entry != "" {
		flags += " -E " + inherit.Entry // as the Makefile does
	}
	args := []string{"build", "-trimpath", "-buildvcs=false", "-ldflags", flags, "-o", path}
	if os.Getenv(coverEnv) != "" && name != "testprog" {
		args = append(args, "-cover", "-coverpkg=./...")
	}
	cmd := exec.Command("go", append(args, pkg)...)
	cmd.Dir = filepath.Dir(strings.TrimSpace(string(gomod)))
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", name, err, out)
	}
	if name == "ssh-broker" {
		return os.Symlink(name, path+"-g3")
	}
	return nil
}
