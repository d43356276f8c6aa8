package kubeconfig

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestFiles(t *testing.T) {
	for _, tt := range []struct {
		env  map[string]string
		want []string
	}{
		{map[string]string{"HOME": "/h"}, []string{"/h/.kube/config"}},
		{map[string]string{"HOME": "/h", "KUBECONFIG": "a::b:a:/c"}, []string{"a", "b", "/c"}},
		{map[string]string{"KUBECONFIG": ":"}, nil},
		{nil, nil},
	} {
		if got := Files(func(name string) string { return tt.env[name] }); !slices.Equal(got, tt.want) {
			t.Errorf("%v: %v", tt.env, got)
		}
	}
}

func TestRead(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	if err := errors.Join(os.WriteFile(a, []byte(block), 0o600), os.WriteFile(b, []byte("clusters: x"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if list, err := Read([]string{filepath.Join(dir, "none"), a}); err != nil || len(list) != 1 || list[0].Name() != a {
		t.Errorf("%v, %v", list, err)
	}
	if _, err := Read([]string{a, b}); err == nil || !strings.HasPrefix(err.Error(), b+":1: ") {
		t.Errorf("%v", err)
	}
	if _, err := Read([]string{dir}); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a directory: %v", err)
	}
	if err := os.Truncate(a, Most+1); err != nil {
		t.Fatal(err)
	}
	if _, err := Read([]string{a}); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("a large file: %v", err)
	}
}

// left are the names in a directory.
func left(t *testing.T, dir string) string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

func TestLock(t *testing.T) {
	dir, real := t.TempDir(), t.TempDir()
	name, link := filepath.Join(real, "config"), filepath.Join(dir, "config")
	if err := errors.Join(os.WriteFile(name, []byte(block), 0o640), os.Symlink(name, link)); err != nil {
		t.Fatal(err)
	}
	f, err := Open(link)
	if err != nil {
		t.Fatal(err)
	}
	if left(t, dir) != "config config.lock" || !strings.Contains(left(t, real), "config.lock") {
		t.Errorf("locked: %s and %s", left(t, dir), left(t, real))
	}
	for _, other := range []string{link, name} {
		var e *Error
		if _, err := Open(other); !errors.Is(err, ErrLocked) || !errors.As(err, &e) || e.File != other+".lock" || !strings.Contains(e.Cure, "remove "+other+".lock") {
			t.Errorf("%s: %v", other, err)
		}
	}
	if err := errors.Join(f.Write([]byte("new")), f.Close()); err != nil {
		t.Fatal(err)
	}
	if left(t, dir) != "config" || left(t, real) != "config" {
		t.Errorf("left: %s and %s", left(t, dir), left(t, real))
	}
	if got, err := os.ReadFile(link); err != nil || string(got) != "new" {
		t.Errorf("%q, %v", got, err)
	}
	if info, err := os.Stat(name); err != nil || info.Mode() != 0o640 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	// Where it is the directory that is linked to, there is one lock.
	away := filepath.Join(t.TempDir(), "kube")
	if err := os.Symlink(real, away); err != nil {
		t.Fatal(err)
	}
	if f, err = Open(filepath.Join(away, "config")); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil || left(t, real) != "config" {
		t.Errorf("%v, left %s", err, left(t, real))
	}

	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(link); err == nil || left(t, dir) != "config" || left(t, real) != "" {
		t.Errorf("to nowhere: %v, left %s and %s", err, left(t, dir), left(t, real))
	}
}
