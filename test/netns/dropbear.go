package netns

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
)

// Dropbear is a Dropbear SSH server, which lets both users in by their keys.
type Dropbear struct {
	*Process
	Addr4, Addr6 netip.AddrPort
	HostKey      string // public half, ssh-ed25519
}

// StartDropbear starts Dropbear on a port and returns once it listens. Extra are
// options of dropbear(8).
func (m *Machine) StartDropbear(t testing.TB, port uint16, extra ...string) *Dropbear {
	t.Helper()
	path := RequireProgram(t, "dropbear", "dropbear-bin")
	convert := RequireProgram(t, "dropbearconvert", "dropbear-bin")
	dir, err := os.MkdirTemp(m.dir, "dropbear-")
	if err != nil {
		t.Fatal(err)
	}
	openssh, public := hostKey(t, dir, "")
	own := filepath.Join(dir, "dropbear_key")
	if r := m.Run(t, Cmd{Args: []string{convert, "openssh", "dropbear", openssh, own}}); r.Code != 0 {
		t.Fatalf("dropbearconvert: %s", r)
	}
	args := []string{path, "-F", "-E", "-s", "-p", fmt.Sprint(port), "-r", own, "-P", filepath.Join(dir, "pid")}
	p := m.Start(t, Cmd{Args: append(args, extra...), Limit: -1})
	p.WaitFor(t, "Not backgrounding") // said after it has begun to listen
	return &Dropbear{
		Process: p, HostKey: public,
		Addr4: netip.AddrPortFrom(m.Addr4, port), Addr6: netip.AddrPortFrom(m.Addr6, port),
	}
}

// KnownHosts and ClientArgs are as those of SSHD.
func (d *Dropbear) KnownHosts(names ...string) string {
	return knownHosts(d.HostKey, d.Addr4.Port(), append([]string{d.Addr4.Addr().String(), d.Addr6.Addr().String()}, names...))
}

func (d *Dropbear) ClientArgs(u *User) []string { return clientArgs(u, d.Addr4.Port()) }
