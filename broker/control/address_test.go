package control

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func tempPlaces(t *testing.T) places {
	t.Helper()
	root := t.TempDir()
	p := places{run: filepath.Join(root, "run"), tmp: filepath.Join(root, "tmp"), uid: os.Geteuid(), login: "ann"}
	for _, dir := range []string{p.run, p.tmp} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func noEnv(string) string { return "" }

func mkdir(t *testing.T, dir string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, mode); err != nil {
		t.Fatal(err)
	}
}

func TestAddressOrder(t *testing.T) {
	p := tempPlaces(t)
	env := func(string) string { return "/env/socket" }
	get := func(option string, env func(string) string) string {
		t.Helper()
		a, err := p.address(option, env)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	if got := get("/opt/socket", env); got != "/opt/socket" {
		t.Errorf("with -a: %s", got)
	}
	if got := get("", env); got != "/env/socket" {
		t.Errorf("with %s: %s", EnvAddress, got)
	}
	if got, want := get("", noEnv), filepath.Join(p.tmpDir(), "ssh-broker"); got != want {
		t.Errorf("without /run/user/UID: %s, want %s", got, want)
	}
	if _, err := os.Stat(p.tmpDir()); err == nil {
		t.Error("asking for the address made the directory")
	}
	own := filepath.Dir(p.runDir())
	mkdir(t, own, 0o755)
	if got, want := get("", noEnv), filepath.Join(p.tmpDir(), "ssh-broker"); got != want {
		t.Errorf("with /run/user/UID open to others: %s, want %s", got, want)
	}
	mkdir(t, own, 0o700)
	if got, want := get("", noEnv), filepath.Join(p.runDir(), "broker"); got != want {
		t.Errorf("with /run/user/UID: %s, want %s", got, want)
	}
	wd, _ := os.Getwd()
	if got, want := get("here", noEnv), filepath.Join(wd, "here"); got != want {
		t.Errorf("relative: %s, want %s", got, want)
	}
}

func TestAddressRefused(t *testing.T) {
	p := tempPlaces(t)
	for given, want := range map[string]string{
		"@abstract":                      "abstract",
		"/a\x00b":                        "not a path",
		"/a\nb":                          "not a path",
		"/" + strings.Repeat("long", 40): "at most 107",
	} {
		if a, err := p.address(given, noEnv); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %q, %v; want an error with %q", given, a, err, want)
		}
	}
}

// Whoever made the default directory first must not become our broker, or see it.
func TestDefaultDirectoryRefused(t *testing.T) {
	for _, tc := range []struct {
		name string
		make func(t *testing.T, p places)
		want string
	}{
		{"wide", func(t *testing.T, p places) { mkdir(t, p.tmpDir(), 0o755) }, "must be 0700"},
		{"group", func(t *testing.T, p places) { mkdir(t, p.tmpDir(), 0o770) }, "must be 0700"},
		{"symlink", func(t *testing.T, p places) {
			mkdir(t, filepath.Join(p.tmp, "elsewhere"), 0o700)
			if err := os.Symlink("elsewhere", p.tmpDir()); err != nil {
				t.Fatal(err)
			}
		}, "symbolic link"},
		{"dangling symlink", func(t *testing.T, p places) {
			if err := os.Symlink("nowhere", p.tmpDir()); err != nil {
				t.Fatal(err)
			}
		}, "symbolic link"},
		{"file", func(t *testing.T, p places) {
			if err := os.WriteFile(p.tmpDir(), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "not a directory"},
		{"foreign", func(t *testing.T, p places) {
			needRoot(t)
			mkdir(t, p.tmpDir(), 0o700)
			if err := os.Chown(p.tmpDir(), foreignUID, foreignUID); err != nil {
				t.Fatal(err)
			}
		}, "belongs to uid 54321, not to us"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := tempPlaces(t)
			tc.make(t, p)
			if a, err := p.address("", noEnv); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("address: %q, %v; want an error with %q", a, err, tc.want)
			}
			l, err := p.listen(filepath.Join(p.tmpDir(), "ssh-broker"))
			if err == nil {
				l.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("listen: %v; want an error with %q", err, tc.want)
			}
		})
	}
}

func TestChosenDirectoryRefused(t *testing.T) {
	p := tempPlaces(t)
	wide := filepath.Join(p.tmp, "wide")
	mkdir(t, wide, 0o777)
	if l, err := p.listen(filepath.Join(wide, "b")); err == nil || !strings.Contains(err.Error(), "could replace") {
		if err == nil {
			l.Close()
		}
		t.Errorf("a directory that all may write: %v", err)
	}
	mkdir(t, wide, 0o777|os.ModeSticky)
	l, err := p.listen(filepath.Join(wide, "b"))
	if err != nil {
		t.Fatalf("a sticky directory: %v", err)
	}
	l.Close()
	if _, err := p.listen(filepath.Join(p.tmp, "missing", "b")); err == nil {
		t.Error("a missing directory was made")
	}
	t.Run("foreign", func(t *testing.T) {
		needRoot(t)
		mkdir(t, wide, 0o755)
		if err := os.Chown(wide, foreignUID, foreignUID); err != nil {
			t.Fatal(err)
		}
		if _, err := p.listen(filepath.Join(wide, "b")); err == nil || !strings.Contains(err.Error(), "uid 54321") {
			t.Errorf("a directory of another user: %v", err)
		}
	})
}
