package keep

import (
	"os"
	"path/filepath"
	"regexp"
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

// TestUnits holds the units to what the programs expect of them; test/packages has
// systemd read and run them.
func TestUnits(t *testing.T) {
	prefix := regexp.MustCompile(`(?m)^PREFIX\s*\?=\s*(\S+)$`).FindStringSubmatch(readFile(t, "../../Makefile"))
	if prefix == nil {
		t.Fatal("the Makefile has no PREFIX")
	}
	captured := readFile(t, filepath.Join(units, "ssh-captured.service"))
	socket := readFile(t, filepath.Join(units, "ssh-captured.socket"))
	broker := readFile(t, filepath.Join(units, "ssh-broker-system.service"))
	for _, c := range []struct{ unit, key, want string }{
		{captured, "ExecStart", prefix[1] + "/bin/ssh-captured"},
		{captured, "Type", "notify"},
		{captured, "NotifyAccess", "main"},
		{captured, "FileDescriptorStoreMax", "2048"},
		{captured, "FileDescriptorStorePreserve", "yes"},
		{captured, "CapabilityBoundingSet", "CAP_NET_ADMIN CAP_SYS_PTRACE CAP_DAC_OVERRIDE CAP_BPF"},
		{captured, "NoNewPrivileges", "yes"},
		{socket, "ListenSequentialPacket", "/run/ssh-captured/socket"},
		{captured, "Before", "network-pre.target shutdown.target"},
		{broker, "ExecStart", prefix[1] + "/bin/ssh-broker --system --foreground"},
		{broker, "Type", "notify"},
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
