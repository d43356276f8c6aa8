package config

import (
	"flag"
	"os"
	"path/filepath"
	"testing"
)

var update = flag.Bool("update", false, "write etc/ssh-broker-ng-config-1.dtd and testdata/broken/*.want anew")

const etc = "../../etc"

// Every configuration that is shipped loads, with nothing to be said about it.
func TestShippedFiles(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(etc, "*.xml"))
	if err != nil || len(files) < 2 {
		t.Fatalf("found %d files in %s (%v)", len(files), etc, err)
	}
	for _, f := range files {
		t.Run(filepath.Base(f), func(t *testing.T) {
			for _, p := range Check(f, Options{Env: testEnv()}) {
				t.Error(p)
			}
			c, err := Load(Options{File: f, Env: testEnv()})
			if err != nil {
				t.Fatal(err)
			}
			if c.Filter == nil || len(c.Filter.Rules()) == 0 {
				t.Error("it has no rules")
			}
		})
	}
}

// The installed DTD is the schema.
func TestDTD(t *testing.T) {
	file := filepath.Join(etc, "ssh-broker-ng-config-1.dtd")
	if *update {
		if err := os.WriteFile(file, []byte(DTD()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != DTD() {
		t.Errorf("%s is not what the schema table says; run go test ./broker/config -run TestDTD -update", file)
	}
}
