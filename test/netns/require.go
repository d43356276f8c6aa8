package netns

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// skip ends a test that cannot run here. Where everything must be there, in CI,
// it fails.
func skip(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s, and CI=true allows no skip", reason)
	}
	t.Skip(reason)
}

// RequireRoot skips a test that is not run by root.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		skip(t, "needs root")
	}
}

// RequireProgram returns the path of a program, or skips the test and names the
// Debian package that has it. The directories of system programs are searched too.
func RequireProgram(t testing.TB, name, debianPackage string) string {
	t.Helper()
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	skip(t, "needs "+name+" (Debian package "+debianPackage+")")
	return ""
}
