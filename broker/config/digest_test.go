package config

import (
	"os"
	"path/filepath"
	"testing"
)

func TestDigestTellsWhetherFilesHaveChanged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.xml")
	digest := func(text string) [32]byte {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := Load(Options{File: path})
		if err != nil {
			t.Fatal(err)
		}
		return c.Digest
	}
	const one, other = `<secsh-broker><filter-engine/></secsh-broker>`, `<secsh-broker><filter-engine /></secsh-broker>`
	first := digest(one)
	if digest(one) != first {
		t.Error("the same file has another digest")
	}
	if digest(other) == first || first == [32]byte{} {
		t.Error("another file has the same digest, or none has one")
	}
}
