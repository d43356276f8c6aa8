package packages

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sshbroker/test/netns"
)

// epoch stands for the time of the last commit, which a copy of the sources has not got.
const epoch = 1_700_000_000

// buildDeb builds the packages of a version from a copy of the sources in a directory
// and returns their paths, by the packages' names.
func buildDeb(t *testing.T, dir, version string, env ...string) map[string]string {
	t.Helper()
	netns.RequireProgram(t, "dpkg-deb", "dpkg")
	copySources(t, dir)
	run(t, dir, append(env, fmt.Sprintf("SOURCE_DATE_EPOCH=%d", epoch)), "make", "deb", "VERSION="+version)
	found, err := filepath.Glob(filepath.Join(dir, "bin/*.deb"))
	if err != nil {
		t.Fatal(err)
	}
	list := map[string]string{}
	for _, path := range found {
		name, _, _ := strings.Cut(filepath.Base(path), "_")
		list[name] = path
	}
	return list
}

// TestPackages builds the Debian packages twice, in different directories, under
// another name for the time and with other permissions for what is made. The bytes are
// the same; the contents are what they have to be; lintian has nothing to say. The long
// form compiles everything a second time as well.
func TestPackages(t *testing.T) {
	dir := t.TempDir()
	first := buildDeb(t, filepath.Join(dir, "first"), "v1.2.3-4-gabcdef")
	env := []string{"TZ=Pacific/Auckland", "LC_ALL=C.UTF-8"}
	if os.Getenv("SSHBROKER_LONG") == "1" {
		env = append(env, "GOCACHE="+t.TempDir())
	}
	second := filepath.Join(dir, "a/longer path to/the second")
	if err := os.MkdirAll(second, 0o700); err != nil {
		t.Fatal(err)
	}
	again := buildDeb(t, second, "v1.2.3-4-gabcdef", env...)
	want := []string{"ssh-broker"}
	if slices.Contains(programs(t), "ssh-gateway") {
		want = append(want, "ssh-gateway")
	}
	if len(first) != len(want) || len(again) != len(want) {
		t.Fatalf("%v and %v, want %v", first, again, want)
	}
	for _, name := range want {
		a, aerr := os.ReadFile(first[name])
		b, berr := os.ReadFile(again[name])
		if aerr != nil || berr != nil || !bytes.Equal(a, b) {
			t.Errorf("%s: %d and %d bytes, which are not equal: %v, %v", name, len(a), len(b), aerr, berr)
		}
		if base := filepath.Base(first[name]); !strings.HasPrefix(base, name+"_1.2.3+4+gabcdef_") {
			t.Errorf("it is named %s", base)
		}
		t.Run(name, func(t *testing.T) {
			checkContents(t, name, first[name])
			lintian := netns.RequireProgram(t, "lintian", "lintian")
			if out, err := exec.Command(lintian, "--allow-root", "--fail-on", "error,warning", first[name]).CombinedOutput(); err != nil {
				t.Errorf("lintian: %v\n%s", err, out)
			}
		})
	}
}

// checkContents unpacks a package and looks for what has to be in it.
func checkContents(t *testing.T, name, deb string) {
	t.Helper()
	dir := t.TempDir()
	run(t, dir, nil, "dpkg-deb", "--raw-extract", deb, dir)
	want := []string{
		"usr/share/doc/" + name + "/copyright", "usr/share/doc/" + name + "/changelog.gz", "usr/share/doc/" + name + "/third-party-licences.gz",
		"DEBIAN/postinst", "DEBIAN/prerm", "DEBIAN/postrm",
	}
	for _, p := range programs(t) {
		if strings.HasPrefix(p, "ssh-gateway") == (name == "ssh-gateway") {
			want = append(want, "usr/bin/"+p, "usr/share/zsh/vendor-completions/_"+p, "usr/share/bash-completion/completions/"+p)
		}
	}
	switch name {
	case "ssh-broker":
		want = append(want, "usr/bin/ssh-broker-g3", "usr/share/man/man1/ssh-broker-g3.1.gz", "usr/share/man/man5/ssh-broker-config.5.gz",
			"usr/lib/systemd/system/ssh-captured.socket", "usr/lib/systemd/system/ssh-captured.service",
			"usr/lib/systemd/system/ssh-broker-system.service", "usr/lib/systemd/user/ssh-broker.service",
			"usr/lib/sysusers.d/ssh-broker.conf", "usr/lib/tmpfiles.d/ssh-broker.conf",
			"usr/share/doc/ssh-broker/examples/ssh-broker-ng-config-1.dtd", "usr/share/doc/ssh-broker/examples/ssh-broker-config-example-system.xml")
	case "ssh-gateway":
		want = append(want, "usr/lib/systemd/system/ssh-gateway.service", "usr/share/man/man8/ssh-gateway.8.gz",
			"usr/share/man/man5/ssh-gateway.yaml.5.gz", "usr/share/doc/ssh-gateway/examples/ssh-gateway.yaml")
	}
	for _, file := range want {
		if _, err := os.Stat(filepath.Join(dir, file)); err != nil {
			t.Error(err)
		}
	}
	for _, file := range files(t, dir) {
		if strings.Contains(file, "ssh-gateway") != (name == "ssh-gateway") && strings.Contains(file, "ssh-gateway") {
			t.Errorf("%s belongs into the other package", file)
		}
		if strings.HasPrefix(file, "etc/") || strings.Contains(file, "local/") {
			t.Errorf("%s is no place for a package's files", file)
		}
	}
}
