package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sshbroker/test/netns"
	"sshbroker/test/sut"
)

func TestMain(m *testing.M) { sut.Main(m, nil) }

// TestDemo runs both as `make demo` and `make demo-gateway` do, and looks for what they
// leave behind. The program itself fails where it did not come as it says.
func TestDemo(t *testing.T) {
	programs := sut.Build(t)
	sut.Program(t, "ssh-gateway") // beside them
	demo := filepath.Join(t.TempDir(), "demo")
	if out, err := exec.Command("go", "build", "-o", demo, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, tc := range []struct {
		name string
		args []string
		says []string
	}{
		{"ssh", nil, []string{answer + "good morning", "reason      carried"}},
		{"gateway", []string{"-gateway"}, []string{page, "broker   payroll.demo:", "is excluded (rule exclude_patterns[0])", "Websites of the demonstration"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			netns.RequireProgram(t, "curl", "curl")
			tmp := t.TempDir()
			cmd := exec.CommandContext(t.Context(), demo, append([]string{"-bin", programs.Dir}, tc.args...)...)
			cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
			out, err := cmd.CombinedOutput()
			if strings.Contains(string(out), "namespaces are forbidden") && os.Getenv("CI") != "true" {
				t.Skipf("%s", out)
			}
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			for _, want := range tc.says {
				if !strings.Contains(string(out), want) {
					t.Errorf("it does not say %q:\n%s", want, out)
				}
			}
			if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}
