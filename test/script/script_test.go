package script

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestScripts runs the scripts of testdata, each in a place of its own. They have one
// command more than testscript has: "code N PROGRAM ARGS..." runs a program as the
// account and wants that exit code.
func TestScripts(t *testing.T) {
	eachAccount(t, func(t *testing.T, p *place) {
		testscript.Run(t, testscript.Params{
			Dir: "testdata",
			Setup: func(e *testscript.Env) error {
				if alone := filepath.Join(e.WorkDir, "alone"); exists(alone) { // a script may have a broker of its own
					if err := placeCapture(p.programs.Capture, alone); err != nil {
						return err
					}
				}
				own := newPlace(e.T().(testing.TB), p.uid, p.gid)
				e.Values["account"] = own
				e.Vars = append(e.Vars, own.env...)
				if err := os.Chown(e.WorkDir, own.uid, own.gid); err != nil {
					return err
				}
				return openUp(e.WorkDir)
			},
			Cmds: map[string]func(*testscript.TestScript, bool, []string){"code": wantCode},
		})
	})
}

// placeCapture puts ssh-capture beside another ssh-broker, which it is to start.
func placeCapture(program, dir string) error {
	content, err := os.ReadFile(program)
	return errors.Join(err, writeFile(filepath.Join(dir, "ssh-capture"), content, 0o755),
		os.Chmod(filepath.Join(dir, "ssh-broker"), 0o755))
}

// openUp lets the account into the directory of its script, below those that
// testscript has made for the test's own.
func openUp(dir string) error {
	for ; dir != filepath.Clean(os.TempDir()) && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			return err
		}
	}
	return nil
}

func wantCode(ts *testscript.TestScript, not bool, args []string) {
	if not || len(args) < 2 {
		ts.Fatalf("usage: code N PROGRAM ARGS...")
	}
	want, err := strconv.Atoi(args[0])
	if err != nil {
		ts.Fatalf("exit code %q", args[0])
	}
	words := args[1:]
	if p := ts.Value("account").(*place); os.Geteuid() == 0 {
		words = append([]string{"setpriv", "--reuid", fmt.Sprint(p.uid), "--regid", fmt.Sprint(p.gid), "--clear-groups", "--"}, words...)
	}
	code := 0
	var exit *exec.ExitError
	if err := ts.Exec(words[0], words[1:]...); errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%q: %v", words, err)
	}
	if code != want {
		ts.Fatalf("%q: exit code %d, want %d", args[1:], code, want)
	}
}
