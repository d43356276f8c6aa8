package keep

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const units = "../../etc/systemd"

func readFile(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// setting returns the only value that a unit gives to a key.
func setting(t *testing.T, unit, key string) string {
	t.Helper()
	m := regexp.MustCompile(`(?m)^`+key+`=(.*)$`).FindAllStringSubmatch(unit, -1)
	if len(m) != 1 {
		t.Fatalf("%s is set %d times", key, len(m))
	}
	return m[0][1]
}

// TestUnits holds the units to what the programs expect of them.
func TestUnits(t *testing.T) {
	prefix := regexp.MustCompile(`(?m)^PREFIX\s*\?=\s*(\S+)$`).FindStringSubmatch(readFile(t, "../../Makefile"))
	if prefix == nil {
		t.Fatal("the Makefile has no PREFIX")
	}
	captured := readFile(t, filepath.Join(units, "ssh-captured.service"))
	broker := readFile(t, filepath.Join(units, "ssh-broker-system.service"))
	for _, c := range []struct{ unit, key, want string }{
		{captured, "ExecStart", prefix[1] + "/bin/ssh-captured"},
		{captured, "Type", "notify"},
		{captured, "NotifyAccess", "main"},
		{captured, "FileDescriptorStoreMax", "2048"},
		{captured, "FileDescriptorStorePreserve", "yes"},
		{captured, "CapabilityBoundingSet", "CAP_NET_ADMIN CAP_SYS_PTRACE CAP_DAC_OVERRIDE CAP_BPF"},
		{captured, "NoNewPrivileges", "yes"},
		{captured, "Before", "network-pre.target shutdown.target"},
		{broker, "ExecStart", prefix[1] + "/bin/ssh-broker --system --foreground"},
		{broker, "User", "ssh-broker"},
		{broker, "CapabilityBoundingSet", ""},
		{broker, "NoNewPrivileges", "yes"},
	} {
		if got := setting(t, c.unit, c.key); got != c.want {
			t.Errorf("%s=%s, want %s", c.key, got, c.want)
		}
	}
	if Max != 2048 {
		t.Errorf("Max is %d, and the unit's store another", Max)
	}
}

// TestUnitsVerify has systemd read them.
func TestUnitsVerify(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs systemd-analyze, and CI=true allows no skip")
		}
		t.Skip("needs systemd-analyze (Debian package systemd)")
	}
	dir := t.TempDir()
	files := []string{"verify", "--man=no"}
	for _, name := range []string{"ssh-captured.service", "ssh-broker-system.service"} {
		// Programs are looked for; ours may not be installed.
		text := regexp.MustCompile(`(?m)^ExecStart=\S+`).ReplaceAllString(readFile(t, filepath.Join(units, name)), "ExecStart=/bin/true")
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	out, err := exec.Command(analyze, files...).CombinedOutput()
	for line := range strings.Lines(string(out)) {
		// Before systemd 254.
		if !strings.Contains(line, "Unknown key 'FileDescriptorStorePreserve'") && !strings.Contains(line, "Unknown key name 'FileDescriptorStorePreserve'") {
			t.Error(strings.TrimSpace(line))
		}
	}
	if err != nil {
		t.Errorf("systemd-analyze: %v\n%s", err, out)
	}
}
