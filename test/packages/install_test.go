package packages

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sshbroker/test/sut"
)

// TestInstall installs into a directory as a packager does, and removes it again.
func TestInstall(t *testing.T) {
	tree := t.TempDir()
	copySources(t, tree)
	if err := os.Mkdir(filepath.Join(tree, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, p := range programs(t) { // what make build would make
		if err := os.Symlink(sut.Program(t, p), filepath.Join(tree, "bin", p)); err != nil {
			t.Fatal(err)
		}
	}
	for _, prefix := range []string{"/usr/local", "/usr", "/opt/ssh broker"} {
		t.Run(prefix, func(t *testing.T) {
			dest := filepath.Join(t.TempDir(), "dest dir")
			install := func(verb string) {
				t.Helper()
				run(t, tree, []string{"PROGRAMS=" + strings.Join(programs(t), " "), "PREFIX=" + prefix, "DESTDIR=" + dest}, "etc/install.sh", verb)
			}
			install("install")
			check(t, filepath.Join(dest, prefix), prefix)
			first := files(t, dest)
			install("install") // over itself
			if again := files(t, dest); !slices.Equal(first, again) {
				t.Errorf("installed again, there are %q, before %q", again, first)
			}
			mine := filepath.Join(dest, prefix, "share/doc/ssh-broker/mine")
			if err := os.WriteFile(mine, nil, 0o644); err != nil {
				t.Fatal(err)
			}
			install("uninstall")
			if _, err := os.Stat(mine); err != nil {
				t.Errorf("somebody else's file is gone: %v", err)
			}
			os.Remove(mine)
			install("uninstall") // what is gone already is no error
			standard := regexp.MustCompile(`^(bin|lib|share)?/$`)
			for _, name := range files(t, filepath.Join(dest, prefix)) {
				if name != "./" && !standard.MatchString(name) {
					t.Errorf("%s is left", name)
				}
			}
		})
	}
}

// check holds an installation to what has to be in it.
func check(t *testing.T, dir, prefix string) {
	t.Helper()
	want := []string{
		"lib/systemd/system/ssh-captured.socket", "lib/systemd/user/ssh-broker.service", "lib/sysusers.d/ssh-broker.conf",
		"lib/tmpfiles.d/ssh-broker.conf", "share/man/man5/ssh-broker-config.5", "share/man/man1/ssh-broker-g3.1",
		"share/doc/ssh-broker/etc/ssh-broker-ng-config-1.dtd", "share/doc/ssh-broker/guide.md", "share/ssh-broker/apparmor.d/ssh-capture",
	}
	for _, p := range programs(t) {
		page := "share/man/man1/" + p + ".1"
		if _, err := os.Stat(filepath.Join(root, "docs/man", p+".8")); err == nil {
			page = "share/man/man8/" + p + ".8"
		}
		want = append(want, "bin/"+p, page, "share/bash-completion/completions/"+p, "share/zsh/site-functions/_"+p, "share/fish/vendor_completions.d/"+p+".fish")
	}
	for _, name := range want {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	if to, err := os.Readlink(filepath.Join(dir, "bin/ssh-broker-g3")); to != "ssh-broker" {
		t.Errorf("ssh-broker-g3 is a link to %q, %v", to, err)
	}
	for _, name := range []string{"system/ssh-captured.service", "user/ssh-broker.service"} {
		b, err := os.ReadFile(filepath.Join(dir, "lib/systemd", name))
		if err != nil || !strings.Contains(string(b), "\nExecStart="+prefix+"/bin/ssh-") {
			t.Errorf("%s: %v\n%s", name, err, b)
		}
	}
}
