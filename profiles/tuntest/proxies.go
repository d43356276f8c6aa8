package tuntest

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"sshbroker/profiles"
)

// StartMicrosocks runs a SOCKS5 server on loopback until the test ends and returns its
// address. user "" lets everybody in.
func StartMicrosocks(t testing.TB, user, password string) string {
	t.Helper()
	program := proxyProgram(t, "microsocks", "microsocks")
	address := freeAddress(t)
	host, port, _ := net.SplitHostPort(address)
	args := []string{program, "-i", host, "-p", port}
	if user != "" {
		args = append(args, "-u", user, "-P", password)
	}
	newPeer(t).start(t, address, args, accepts)
	return address
}

// StartDante runs a SOCKS4 and SOCKS5 server on loopback, which reaches loopback alone.
func StartDante(t testing.TB) string {
	t.Helper()
	program := proxyProgram(t, "danted", "dante-server")
	Need(t, os.Geteuid() == 0, "danted changes its user, which takes root")
	address := freeAddress(t)
	host, port, _ := net.SplitHostPort(address)
	p := newPeer(t)
	p.write(t, "danted.conf", fmt.Sprintf(`logoutput: stderr
internal: %s port = %s
external: lo
clientmethod: none
socksmethod: none
user.privileged: root
user.unprivileged: nobody
client pass {
  from: 127.0.0.0/8 to: 0.0.0.0/0
}
socks pass {
  from: 127.0.0.0/8 to: 0.0.0.0/0
  protocol: tcp
}
`, host, port))
	p.start(t, address, []string{program, "-f", p.file("danted.conf"), "-p", p.file("pid")}, accepts)
	t.Cleanup(func() { // told to end it waits for its many children; killed it leaves them behind
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		for range 300 {
			if syscall.Kill(p.cmd.Process.Pid, 0) != nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	})
	return address
}

// StartTinyproxy runs an HTTP proxy on loopback that connects to every port. user ""
// lets everybody in.
func StartTinyproxy(t testing.TB, user, password string) string {
	t.Helper()
	program := proxyProgram(t, "tinyproxy", "tinyproxy")
	address := freeAddress(t)
	host, port, _ := net.SplitHostPort(address)
	p := newPeer(t)
	config := fmt.Sprintf("Listen %s\nPort %s\nMaxClients 1000\nLogLevel Connect\n", host, port)
	if user != "" {
		config += fmt.Sprintf("BasicAuth %s %s\n", user, password)
	}
	p.write(t, "tinyproxy.conf", config)
	p.start(t, address, []string{program, "-d", "-c", p.file("tinyproxy.conf")}, accepts)
	return address
}

// StartTLSProxy runs a proxy of CONNECT over mutual TLS on loopback, which is stunnel with
// tinyproxy behind it, and returns the profile that reaches it.
func StartTLSProxy(t testing.TB, authority *Authority, user, password string) *profiles.Profile {
	t.Helper()
	program := proxyProgram(t, "stunnel4", "stunnel4")
	behind := StartTinyproxy(t, user, password)
	address := freeAddress(t)
	certificate, key := authority.Issue(t, "proxy", nil)
	p := newPeer(t)
	p.write(t, "stunnel.conf", fmt.Sprintf(`foreground = yes
pid =
debug = warning
[connect]
accept = %s
connect = %s
cert = %s
key = %s
CAfile = %s
verifyChain = yes
requireCert = yes
sslVersionMin = TLSv1.3
`, address, behind, certificate, key, authority.File))
	p.start(t, address, []string{program, p.file("stunnel.conf")}, accepts)
	profile := TLSProfile(t, authority, address)
	profile.TLS.Proxy = true
	profile.User, profile.PasswordText = user, password
	return profile
}

// StartDynamic runs the system's ssh -D on loopback, a server of SOCKS4, SOCKS4A and
// SOCKS5, with an sshd behind it.
func StartDynamic(t testing.TB) string {
	t.Helper()
	program := proxyProgram(t, "ssh", "openssh-client")
	sshd := StartOpenSSH(t).Profile
	address := freeAddress(t)
	newPeer(t).start(t, address, []string{program, "-N", "-F", "none", "-D", address, "-p", fmt.Sprint(sshd.Port), "-i", sshd.Identities[0],
		"-o", "IdentitiesOnly=yes", "-o", "UserKnownHostsFile=" + sshd.KnownHosts[0], "-l", sshd.User, sshd.Host}, accepts)
	return address
}

// proxyProgram finds a server, which Debian keeps out of a user's PATH.
func proxyProgram(t testing.TB, name, debian string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		path = filepath.Join("/usr/sbin", name)
		_, err = os.Stat(path)
	}
	Need(t, err == nil, "needs %s (Debian package %s)", name, debian)
	return path
}

func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// accepts tells whether somebody listens at address.
func accepts(ctx context.Context, address string) bool {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return false
	}
	c.Close()
	return true
}
