package netns

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

// SSHDOptions say how to run OpenSSH's server. The zero value is a server on
// port 22 that lets Alice and Bob in by their keys and forwards whatever they ask.
type SSHDOptions struct {
	Port       uint16
	Forwarding string  // AllowTcpForwarding; "" for yes
	Users      []*User // whose keys are accepted; nil for both
	Passwords  bool    // also by User.Password
	HostKey    string  // private key file; "" for a new one. SSHD.HostKeyFile of one that ran before, to be it again
	// Config are lines of sshd_config(5), which count before those of this package.
	Config []string
}

// SSHD is a running OpenSSH server. Each of its connections has processes of
// their own, which Machine.KillAll(t, "sshd") finds; SSHD.Kill ends the one that listens.
type SSHD struct {
	*Process
	Machine      *Machine
	Addr4, Addr6 netip.AddrPort
	HostKeyFile  string
	HostKey      string // public half, as in "ssh-ed25519 AAAA..."
}

// StartSSHD starts OpenSSH's sshd and returns once it listens.
func (m *Machine) StartSSHD(t testing.TB, o SSHDOptions) *SSHD {
	t.Helper()
	path := RequireProgram(t, "sshd", "openssh-server")
	if o.Port == 0 {
		o.Port = 22
	}
	if o.Forwarding == "" {
		o.Forwarding = "yes"
	}
	dir, err := os.MkdirTemp(m.dir, "sshd-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	keyFile, public := hostKey(t, dir, o.HostKey)
	lines := append([]string(nil), o.Config...)
	lines = append(lines,
		fmt.Sprintf("Port %d", o.Port),
		"HostKey "+keyFile,
		"AuthorizedKeysFile "+m.authorize(t, dir, o.Users)+"/%u",
		"AllowTcpForwarding "+o.Forwarding,
		"PasswordAuthentication "+yesNo(o.Passwords),
		"KbdInteractiveAuthentication no",
		"UsePAM no",
		"UseDNS no",
		"PermitRootLogin no",
		"StrictModes no", // the keys lie below /tmp
		"PidFile none",
		"PrintMotd no",
		"PrintLastLog no",
		"MaxStartups 1000",
		"MaxAuthTries 20",
		"LogLevel VERBOSE",
	)
	config := filepath.Join(dir, "sshd_config")
	if err := os.WriteFile(config, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	s := &SSHD{
		Process: m.Start(t, Cmd{Args: []string{path, "-D", "-e", "-f", config}, Limit: -1}),
		Machine: m, HostKeyFile: keyFile, HostKey: public,
		Addr4: netip.AddrPortFrom(m.Addr4, o.Port), Addr6: netip.AddrPortFrom(m.Addr6, o.Port),
	}
	// One line for each family; the second is the later one.
	s.WaitFor(t, fmt.Sprintf("Server listening on 0.0.0.0 port %d", o.Port))
	s.WaitFor(t, fmt.Sprintf("Server listening on :: port %d", o.Port))
	return s
}

// authorize writes a file of keys for each user and returns their directory.
func (m *Machine) authorize(t testing.TB, dir string, users []*User) string {
	t.Helper()
	if users == nil {
		users = m.net.users()
	}
	keys := filepath.Join(dir, "keys")
	if err := os.Mkdir(keys, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, u := range users {
		if err := os.WriteFile(filepath.Join(keys, u.Name), []byte(u.AuthorizedKey+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return keys
}

// hostKey returns the file and the public half of a host key, made in dir where
// file is "".
func hostKey(t testing.TB, dir, file string) (path, public string) {
	t.Helper()
	if file == "" {
		_, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		block, err := ssh.MarshalPrivateKey(private, "")
		if err != nil {
			t.Fatal(err)
		}
		file = filepath.Join(dir, "host_key")
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.ParsePrivateKey(content)
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return file, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey())))
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// KnownHosts is a known_hosts file that trusts the server under its addresses
// and the other names given, on its port.
func (s *SSHD) KnownHosts(names ...string) string {
	return knownHosts(s.HostKey, s.Addr4.Port(), append([]string{s.Addr4.Addr().String(), s.Addr6.Addr().String()}, names...))
}

func knownHosts(key string, port uint16, names []string) string {
	var text strings.Builder
	for _, name := range names {
		if port != 22 {
			name = fmt.Sprintf("[%s]:%d", name, port)
		}
		fmt.Fprintf(&text, "%s %s\n", name, key)
	}
	return text.String()
}

// Trust writes the user's ~/.ssh/known_hosts anew, with this server alone, also
// under the name that its machine has on the others.
func (s *SSHD) Trust(t testing.TB, u *User, names ...string) {
	t.Helper()
	u.Write(t, ".ssh/known_hosts", s.KnownHosts(append(names, s.Machine.Name)...), 0o600)
}

// ClientArgs is the beginning of an ssh command line for u, options only, that
// asks nothing and trusts what u's known_hosts has. A host has to follow.
func (s *SSHD) ClientArgs(u *User) []string {
	return clientArgs(u, s.Addr4.Port())
}

func clientArgs(u *User, port uint16) []string {
	return []string{"ssh", "-F", "none", "-l", u.Name, "-p", fmt.Sprint(port), "-i", u.Path(".ssh/id_ed25519"),
		"-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "IdentitiesOnly=yes"}
}

// Forward runs ssh -L as u on a machine, by way of the server, and returns once
// it listens. Both addresses are as -L has them.
func (s *SSHD) Forward(t testing.TB, from *Machine, u *User, listen, target string) *Process {
	t.Helper()
	RequireProgram(t, "ssh", "openssh-client")
	args := append(s.ClientArgs(u), "-N", "-o", "ExitOnForwardFailure=yes",
		// Runs after login, when the forwardings are in place.
		"-o", "PermitLocalCommand=yes", "-o", "LocalCommand=echo forwarding is ready",
		"-L", listen+":"+target, s.Addr4.Addr().String())
	p := from.Start(t, Cmd{Args: args, User: u, Limit: -1})
	p.WaitFor(t, "forwarding is ready")
	return p
}
