package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Each file of testdata/broken is refused with the messages beside it, whole, as
// check-config prints them; -update writes them anew, to be read before they are
// committed.
func TestBroken(t *testing.T) {
	files, err := filepath.Glob("testdata/broken/*.xml")
	if err != nil || len(files) < 40 {
		t.Fatalf("%d files (%v)", len(files), err)
	}
	for _, name := range files {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".xml"), func(t *testing.T) {
			golden := strings.TrimSuffix(name, ".xml") + ".want"
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			file := write(t, filepath.Base(name), string(data))
			found := Check(file, Options{Env: testEnv()})
			got := strings.ReplaceAll(found.Error(), filepath.Dir(file)+"/", "") + "\n"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("\n got %s\nwant %s", got, want)
			}
			c, err := Load(Options{File: file, Env: testEnv()})
			refused, ok := errors.AsType[Problems](err)
			if c != nil || !ok {
				t.Fatalf("Load: %v, %v", c, err)
			}
			equal(t, "Load refuses for", refused, found.Errors())
		})
	}
}
