package config

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

	"sshbroker/profiles/tuntest"
)

var update = flag.Bool("update", false, "write etc/ssh-broker-ng-config-1.dtd and testdata/broken/*.want anew")

const etc = "../../etc"

// Every configuration that is shipped loads, with nothing to be said about it.
func TestShippedFiles(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(etc, "*.xml"))
	if err != nil || len(files) < 2 {
		t.Fatalf("found %d files in %s (%v)", len(files), etc, err)
	}
	certificates := homeWithCertificates(t)
	for _, f := range files {
		t.Run(filepath.Base(f), func(t *testing.T) {
			env := testEnv()
			env.Home = certificates
			for _, p := range Check(f, Options{Env: env}) {
				t.Error(p)
			}
			c, err := Load(Options{File: f, Env: env})
			if err != nil {
				t.Fatal(err)
			}
			if c.Filter == nil || len(c.Filter.Rules()) == 0 {
				t.Error("it has no rules")
			}
		})
	}
}

// homeWithCertificates has those that the example for a gateway names.
func homeWithCertificates(t *testing.T) string {
	t.Helper()
	home := t.TempDir()
	authority := tuntest.NewAuthority(t, "office")
	certificate, key := authority.Issue(t, "ann", nil)
	if err := os.Mkdir(filepath.Join(home, ".ssh2"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, from := range map[string]string{"office-ca.crt": authority.File, "office.crt": certificate, "office.key": key} {
		text, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(filepath.Join(home, ".ssh2", name), text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return home
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
