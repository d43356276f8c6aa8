package packages

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sshbroker/test/netns"
)

// exposure is what systemd-analyze security (252) gives each unit, at most: 0 is the
// best, 10 the worst. ssh-captured has the host's network, its cgroups and other users'
// processes as its work; the user's unit can have only what needs no privileges.
var exposure = map[string]float64{
	"ssh-captured.service":      3.4,
	"ssh-broker-system.service": 1.7,
	"ssh-gateway.service":       1.7,
	"user/ssh-broker.service":   9.1,
}

var program = regexp.MustCompile(`(?m)^(Exec\w+)=/usr/local/bin/\S+`)

// units writes the units with a program that is installed in the place of ours, and
// returns their paths, by their names below etc/systemd.
func units(t *testing.T) map[string]string {
	t.Helper()
	list := map[string]string{}
	dir := t.TempDir()
	for _, pattern := range []string{"*.*", "user/*"} {
		found, err := filepath.Glob(filepath.Join(root, "etc/systemd", pattern))
		if err != nil || len(found) == 0 {
			t.Fatalf("no unit is %s: %v", pattern, err)
		}
		for _, path := range found {
			name, err := filepath.Rel(filepath.Join(root, "etc/systemd"), path)
			if err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			list[name] = filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(list[name]), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(list[name], program.ReplaceAll(b, []byte("$1=/bin/true")), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	return list
}

// TestUnitsVerify has systemd read them.
func TestUnitsVerify(t *testing.T) {
	analyze := netns.RequireProgram(t, "systemd-analyze", "systemd")
	system, user := []string{"verify", "--man=no"}, []string{"verify", "--man=no", "--user"}
	for name, path := range units(t) {
		if strings.HasPrefix(name, "user/") {
			user = append(user, path)
		} else {
			system = append(system, path)
		}
	}
	for _, args := range [][]string{system, user} {
		cmd := exec.Command(analyze, args...)
		cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+t.TempDir())
		out, err := cmd.CombinedOutput()
		for line := range strings.Lines(string(out)) {
			// Before systemd 254.
			if !strings.Contains(line, "'FileDescriptorStorePreserve'") {
				t.Error(strings.TrimSpace(line))
			}
		}
		if err != nil {
			t.Errorf("systemd-analyze %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// TestUnitsExposure holds the units to how little they may do.
func TestUnitsExposure(t *testing.T) {
	analyze := netns.RequireProgram(t, "systemd-analyze", "systemd")
	level := regexp.MustCompile(`Overall exposure level for \S+: (\d+\.\d)`)
	checked := 0
	for name, path := range units(t) {
		if filepath.Ext(name) != ".service" {
			continue
		}
		checked++
		out, err := exec.Command(analyze, "security", "--offline=true", "--no-pager", path).CombinedOutput()
		m := level.FindSubmatch(out)
		if err != nil || m == nil {
			t.Errorf("%s: %v\n%s", name, err, out)
			continue
		}
		var got float64
		if _, err := fmt.Sscan(string(m[1]), &got); err != nil {
			t.Fatal(err)
		}
		most, ok := exposure[name]
		if !ok || got > most {
			t.Errorf("%s: exposure %.1f, at most %.1f", name, got, most)
		}
		t.Logf("%s: %.1f", name, got)
	}
	guide, err := os.ReadFile(filepath.Join(root, "docs/guide.md"))
	if err != nil {
		t.Fatal(err)
	}
	for name, most := range exposure {
		if !regexp.MustCompile(fmt.Sprintf("(?m)^\\| `%s`( of a user)? \\| %.1f", regexp.QuoteMeta(filepath.Base(name)), most)).Match(guide) {
			t.Errorf("docs/guide.md does not say that %s has %.1f", name, most)
		}
	}
	if checked != len(exposure) {
		t.Errorf("%d services, %d have a bound", checked, len(exposure))
	}
}

// TestSystemdFiles has sysusers and tmpfiles carry out their files in a directory.
func TestSystemdFiles(t *testing.T) {
	sysusers, tmpfiles := netns.RequireProgram(t, "systemd-sysusers", "systemd"), netns.RequireProgram(t, "systemd-tmpfiles", "systemd")
	netns.RequireRoot(t) // it gives directories to the account
	dir := t.TempDir()
	for _, name := range []string{"etc", "var/lib", "var/log"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	place, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // again does no harm
		run(t, dir, nil, sysusers, "--root="+dir, filepath.Join(place, "etc/sysusers.d/ssh-broker.conf"))
		run(t, dir, nil, tmpfiles, "--root="+dir, "--create", filepath.Join(place, "etc/tmpfiles.d/ssh-broker.conf"))
	}
	passwd, err := os.ReadFile(filepath.Join(dir, "etc/passwd"))
	if err != nil || !regexp.MustCompile(`(?m)^ssh-broker:[x!*]+:\d+:\d+:[^:]+:/var/lib/ssh-broker-system:/usr/sbin/nologin$`).Match(passwd) {
		t.Errorf("etc/passwd: %v\n%s", err, passwd)
	}
	for name, mode := range map[string]os.FileMode{"etc/ssh2": 0o755, "var/lib/ssh-broker-system": 0o700, "var/lib/ssh-broker-system/.ssh": 0o700, "var/log/ssh-broker-system": 0o700} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != mode || !info.IsDir() {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
}

// TestAppArmorProfile has the parser read the profile. One before 4.0 knows neither user
// namespaces nor that version's abi, and reads the rest; the test with Debian 13 has one
// that reads all of it.
func TestAppArmorProfile(t *testing.T) {
	parser := netns.RequireProgram(t, "apparmor_parser", "apparmor")
	path, err := filepath.Abs(filepath.Join(root, "etc/apparmor.d/ssh-capture"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b), "\n  userns,\n") || !strings.Contains(string(b), "\nabi <abi/4.0>,\n") {
		t.Fatalf("the profile gives no user namespaces:\n%s", b)
	}
	if _, err := os.Stat("/etc/apparmor.d/abi/4.0"); err != nil {
		path = filepath.Join(t.TempDir(), "ssh-capture")
		if err := os.WriteFile(path, []byte(strings.NewReplacer("abi <abi/4.0>,", "", "  userns,\n", "").Replace(string(b))), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	run(t, t.TempDir(), nil, parser, "--skip-kernel-load", "--skip-cache", path)
}
