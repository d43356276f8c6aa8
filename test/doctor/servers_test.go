package doctor

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"sshbroker/broker/doctor"
	"sshbroker/test/host"
	"sshbroker/test/netns"
)

// TestServers: servers are contacted where that is asked for alone, and those that show
// certificates are judged by them.
func TestServers(t *testing.T) {
	netns.RequireRoot(t)
	keygen := netns.RequireProgram(t, "ssh-keygen", "openssh-client")
	dir := t.TempDir()
	sign := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(keygen, append([]string{"-q"}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	ca, key := filepath.Join(dir, "ca"), filepath.Join(dir, "key")
	sign("-t", "ed25519", "-N", "", "-f", ca)
	sign("-t", "ed25519", "-N", "", "-f", key)
	h := bare(t)
	wire := h.Client.Capture(t, "to-server")
	start := func(port uint16, valid string) *netns.SSHD {
		t.Helper()
		cert := fmt.Sprintf("%s-%d", key, port)
		b, err := os.ReadFile(key + ".pub")
		if err == nil {
			err = os.WriteFile(cert+".pub", b, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
		sign("-s", ca, "-h", "-I", "server", "-V", valid, cert+".pub")
		return h.Server.StartSSHD(t, netns.SSHDOptions{Port: port, HostKey: key, Config: []string{"HostCertificate " + cert + "-cert.pub"}})
	}
	profiles := func(ports ...uint16) string {
		text := "<profiles>"
		for _, p := range ports {
			text += fmt.Sprintf(`<profile id="p%d" name="p%d" host="%s" port="%d"/>`, p, p, h.Server.Addr4, p)
		}
		return host.Config(text + `<profile id="any" name="any" host="*"/></profiles><filter-engine><rule ip-address="10.99.9.9" action="TUNNEL" profile-id="any"/></filter-engine>`)
	}
	h.Server.StartSSHD(t, netns.SSHDOptions{Port: 2201})
	start(2202, "-1d:+90d")
	start(2203, "-1d:+2d")
	start(2204, "-2d:-1d")
	start(2205, "+1d:+2d")
	dropbear := h.Server.StartDropbear(t, 2206)
	file := h.Alice.Write(t, "profiles.xml", profiles(2201, 2202, dropbear.Addr4.Port()), 0o600)
	before := len(wire.Packets(t, netns.NewConnections))
	examine(t, h, h.Alice, "servers", "-f", file).says(t, "servers", doctor.Skipped, "without --servers")
	if after := len(wire.Packets(t, netns.NewConnections)); after != before {
		t.Errorf("%d connections", after-before)
	}
	f := examine(t, h, h.Alice, "servers", "-f", file, "--servers")
	f.well(t)
	f.says(t, "servers", doctor.OK, "3 answer")

	h.Alice.Write(t, "profiles.xml", profiles(2202, 2203, 2204, 2205, 2299), 0o600)
	f = examine(t, h, h.Alice, "servers", "-f", file, "--servers")
	f.says(t, "servers", doctor.Warning, `certificate "server" of the host key of 10.99.1.2:2203 expires at `, "ssh-keygen -h -s")
	f.says(t, "servers", doctor.Failed, "10.99.1.2:2204 has expired at ")
	f.says(t, "servers", doctor.Failed, "10.99.1.2:2205 is not valid before ", "see the check clock")
	f.says(t, "servers", doctor.Failed, "profile p2299: ", "connection refused")
	if len(f.list) != 4 {
		t.Errorf("%v", f.Result)
	}
}
