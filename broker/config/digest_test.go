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
		if now, err := Digest(c.Files...); err != nil || now != c.Digest {
			t.Errorf("Digest: %x, %v; the configuration's is %x", now, err, c.Digest)
		}
		return c.Digest
	}
	const one, other = `<secsh-broker><filter-engine/></secsh-broker>`, `<secsh-broker><filter-engine /></secsh-broker>`
	first := digest(one)
	if digest(one) != first {
		t.Error("the same file has another digest")
	}
	if _, err := Digest(path, path+"x"); err == nil {
		t.Error("a file that is not there has a digest")
	}
	if digest(other) == first || first == [32]byte{} {
		t.Error("another file has the same digest, or none has one")
	}
}
