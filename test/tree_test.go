package test

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// files are those of the tree that git knows, or would know: no builds, nothing ignored.
func files(t *testing.T, root string) []string {
	t.Helper()
	out, err := exec.Command("git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard").Output()
	if err != nil {
		// A tree without git, as from an archive.
		var list []string
		err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() {
				return err
			}
			name, err := filepath.Rel(root, path)
			list = append(list, name)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	return strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
}

// TestEveryScriptIsLinted: what begins with #!/bin/sh or bash is in the Makefile's list.
func TestEveryScriptIsLinted(t *testing.T) {
	root := moduleRoot(t)
	if _, err := exec.LookPath("make"); err != nil && os.Getenv("CI") != "true" {
		t.Skip("needs make (Debian package make)")
	}
	cmd := exec.Command("make", "--no-print-directory", "print-shells")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("make print-shells: %v", err)
	}
	linted := strings.Fields(string(out))
	found := 0
	for _, name := range files(t, root) {
		content, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			continue // deleted, and not committed yet
		}
		first, _, _ := bytes.Cut(content, []byte("\n"))
		if !slices.Contains([]string{"#!/bin/bash", "#!/bin/sh", "#!/bin/bash -e", "#!/bin/sh -e"}, string(first)) {
			continue
		}
		found++
		if !slices.Contains(linted, name) {
			t.Errorf("%s is a script that make lint passes over; SHELLS in the Makefile is the list", name)
		}
	}
	if found < 5 {
		t.Errorf("only %d scripts were found", found)
	}
}

// TestFuzzCorporaHaveTargets: an input that once found a mistake is of use only as long
// as its target has the name of its directory.
func TestFuzzCorporaHaveTargets(t *testing.T) {
	root := moduleRoot(t)
	found := 0
	for _, name := range files(t, root) {
		dir, target, ok := strings.Cut(filepath.Dir(name), "/testdata/fuzz/")
		if !ok {
			continue
		}
		found++
		sources, err := filepath.Glob(filepath.Join(root, dir, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(sources, func(source string) bool {
			content, err := os.ReadFile(source)
			return err == nil && bytes.Contains(content, []byte("func "+target+"("))
		}) {
			t.Errorf("%s: %s has no target %s", name, dir, target)
		}
	}
	if found < 5 {
		t.Errorf("only %d inputs were found", found)
	}
}
