package gwconfig

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden messages in testdata anew")

// golden compares text with a file, which -update writes.
func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s:\n got %s\nwant %s", file, got, want)
	}
}

// brokenFiles are those of testdata/broken, without the messages beside them.
func brokenFiles(t testing.TB) []string {
	files, err := filepath.Glob("testdata/broken/*")
	files = slices.DeleteFunc(files, func(name string) bool { return filepath.Ext(name) == ".want" })
	if err != nil || len(files) < 50 {
		t.Fatalf("%d files (%v)", len(files), err)
	}
	return files
}

// Each file of testdata/broken is refused with the messages beside it, whole; -update writes
// them anew, to be read before they are committed.
func TestBroken(t *testing.T) {
	for _, name := range brokenFiles(t) {
		t.Run(filepath.Base(name), func(t *testing.T) {
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			c, err := Parse(filepath.Base(name), data)
			problems, ok := errors.AsType[Problems](err)
			if c != nil || !ok || len(problems) == 0 {
				t.Fatalf("%v, %v", c, err)
			}
			golden(t, name+".want", problems.Error()+"\n")
			for _, p := range problems {
				if p.Warning || p.Msg == "" || !strings.HasPrefix(p.Pos.File, filepath.Base(name)) {
					t.Errorf("%+v", p)
				}
			}
		})
	}
}
