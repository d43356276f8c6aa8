package tuntest

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sshbroker/profiles"
)

// Need skips a test for want of something, and fails it where CI=true says that all
// is there.
func Need(t testing.TB, ok bool, format string, args ...any) {
	t.Helper()
	if ok {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("CI: "+format, args...)
	}
	t.Skipf(format, args...)
}

// Peer is a running server and the profile that reaches it.
type Peer struct {
	Profile *profiles.Profile
	Dir     string
	Log     func() string
	cmd     *exec.Cmd
}

// Kill ends the server at once. Its processes that serve a connection end with it.
func (p *Peer) Kill() { syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) }

// StartOpenSSH starts the system's sshd on loopback for this user with a key of its
// own, and stops it with the test. Lines are added to its configuration, first, as
// the first value counts there.
func StartOpenSSH(t testing.TB, lines ...string) *Peer {
	t.Helper()
	return startOpenSSH(t, "", lines)
}

// Password is root's at the servers that StartOpenSSHWithPassword and
// StartDropbearWithPassword start; passwordHash is it in the form of crypt(5).
const (
	Password     = "open sesame"
	passwordHash = "$6$tuntest$cOM0Jvl6UaMitwTm0HtxIGREuyav5iPnSd9aQDmnhwNEOKWfxQRc4ZEII4yxa0bdtYeJixddML7Ck4e8b7IJ20"
)

// StartOpenSSHWithPassword is StartOpenSSH where root has Password, which the server
// asks for by the methods that lines turn on, in a mount namespace where /etc/shadow
// says so. It needs root.
func StartOpenSSHWithPassword(t testing.TB, lines ...string) *Peer {
	t.Helper()
	return startOpenSSH(t, shadowWithPassword(t), lines)
}

// StartDropbearWithPassword is StartDropbear where root has Password. It needs root.
func StartDropbearWithPassword(t testing.TB) *Peer {
	t.Helper()
	return startDropbear(t, shadowWithPassword(t), nil, nil)
}

// shadowWithPassword writes a shadow(5) where root has Password.
func shadowWithPassword(t testing.TB) string {
	t.Helper()
	Need(t, os.Geteuid() == 0, "needs root, to give root a password")
	text, err := os.ReadFile("/etc/shadow")
	if err != nil {
		t.Fatal(err)
	}
	lines := []string{"root:" + passwordHash + ":20000:0:99999:7:::"}
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "root:") {
			lines = append(lines, strings.TrimSuffix(line, "\n"))
		}
	}
	file := filepath.Join(t.TempDir(), "shadow")
	if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// startOpenSSH is StartOpenSSH with a file in place of /etc/shadow, "" for the host's.
func startOpenSSH(t testing.TB, shadow string, lines []string) *Peer {
	t.Helper()
	const sshd = "/usr/sbin/sshd"
	_, err := os.Stat(sshd)
	Need(t, err == nil, "needs %s (Debian package openssh-server)", sshd)
	p := newPeer(t)
	address := p.writeKeys(t, "root")
	config := append(lines,
		"ListenAddress "+address,
		"HostKey "+p.file("host_key"),
		"AuthorizedKeysFile "+p.file("authorized_keys"),
		"PidFile none",
		"StrictModes no",
		"UsePAM no",
		"PasswordAuthentication no",
		"KbdInteractiveAuthentication no",
		"PermitRootLogin yes",
		"AllowTcpForwarding yes",
		"MaxStartups 1000",
		"MaxSessions 1000",
		"UseDNS no",
		"LogLevel VERBOSE",
	)
	p.write(t, "sshd_config", strings.Join(config, "\n")+"\n")
	args := []string{sshd, "-D", "-e", "-f", p.file("sshd_config")}
	if _, err := os.Stat("/run/sshd"); os.Geteuid() == 0 && (err != nil || shadow != "") {
		// Privilege separation wants its directory; give it one that only it sees.
		args = append([]string{"unshare", "--mount", "/bin/sh", "-c", bindShadow +
			`mount -t tmpfs -o mode=755 tmpfs /run && mkdir -m 755 /run/sshd && exec "$@"`, "sh", shadow}, args...)
	}
	p.start(t, address, args, greets)
	return p
}

// StartDropbear starts the system's Dropbear on loopback, in a mount namespace where
// the home directory holds the key of the test, as it has no option for that.
func StartDropbear(t testing.TB, options ...string) *Peer {
	t.Helper()
	return StartDropbearWith(t, nil, options...)
}

// StartDropbearWith is StartDropbear with further keys that may log in, lines of
// authorized_keys.
func StartDropbearWith(t testing.TB, authorized []string, options ...string) *Peer {
	t.Helper()
	return startDropbear(t, "", authorized, append([]string{"-s"}, options...))
}

// bindShadow begins a script in a mount namespace whose first argument is a file in
// place of /etc/shadow, or empty.
const bindShadow = `shadow=$1 && shift && { [ -z "$shadow" ] || mount --bind "$shadow" /etc/shadow; } && `

func startDropbear(t testing.TB, shadow string, authorized, options []string) *Peer {
	t.Helper()
	dropbear, err := exec.LookPath("dropbear")
	if err != nil {
		dropbear = "/usr/sbin/dropbear"
		_, err = os.Stat(dropbear)
	}
	Need(t, err == nil, "needs dropbear (Debian package dropbear-bin)")
	convert, err := exec.LookPath("dropbearconvert")
	Need(t, err == nil, "needs dropbearconvert (Debian package dropbear-bin)")
	p := newPeer(t)
	address := p.writeKeys(t, "root")
	if len(authorized) > 0 {
		p.write(t, "authorized_keys", strings.Join(authorized, ""))
	}
	out, err := exec.Command(convert, "openssh", "dropbear", p.file("host_key"), p.file("dropbear_key")).CombinedOutput()
	if err != nil {
		t.Fatalf("dropbearconvert: %v\n%s", err, out)
	}
	home := "/root"
	space := []string{"unshare", "--mount"}
	if os.Geteuid() != 0 {
		space = []string{"unshare", "--mount", "--user", "--map-root-user"}
	}
	out, err = exec.Command(space[0], append(space[1:], "mount", "-t", "tmpfs", "tmpfs", home)...).CombinedOutput()
	Need(t, err == nil, "needs a mount namespace: %s", bytes.TrimSpace(out))
	p.Profile.User = "root"
	args := append(space, "/bin/sh", "-c", bindShadow+
		`mount -t tmpfs -o mode=700 tmpfs `+home+` && mkdir -m 700 `+home+`/.ssh && cp "$1" `+home+`/.ssh/authorized_keys &&
		chmod 600 `+home+`/.ssh/authorized_keys && shift && exec "$@"`, "sh", shadow, p.file("authorized_keys"),
		dropbear, "-F", "-E", "-m", "-p", address, "-r", p.file("dropbear_key"), "-P", p.file("pid"))
	p.start(t, address, append(args, options...), greets)
	return p
}

func newPeer(t testing.TB) *Peer {
	t.Helper()
	return &Peer{Dir: t.TempDir()}
}

func (p *Peer) file(name string) string { return filepath.Join(p.Dir, name) }

func (p *Peer) write(t testing.TB, name, text string) {
	t.Helper()
	if err := os.WriteFile(p.file(name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// writeKeys makes the files of both sides and the profile, and picks the address.
func (p *Peer) writeKeys(t testing.TB, fallbackUser string) string {
	t.Helper()
	host, err := NewKeyPair("")
	if err != nil {
		t.Fatal(err)
	}
	mine, err := NewKeyPair("")
	if err != nil {
		t.Fatal(err)
	}
	address := freeAddress(t)
	line, err := (&Server{HostKey: host.Private}).HostKeyLine(address)
	if err != nil {
		t.Fatal(err)
	}
	p.write(t, "host_key", string(host.Private))
	p.write(t, "id", string(mine.Private))
	p.write(t, "authorized_keys", mine.Public+"\n")
	p.write(t, "known_hosts", line+"\n")
	name := fallbackUser
	if me, err := user.Current(); err == nil {
		name = me.Username
	}
	p.Profile = ProfileFor(address, name, p.file("id"), p.file("known_hosts"))
	return address
}

// ProfileFor returns a strict profile with one key and one file of known hosts.
func ProfileFor(address, user, identity, knownHosts string) *profiles.Profile {
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		panic(err)
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		panic(err)
	}
	return &profiles.Profile{
		ID: "test", Host: host, Port: uint16(port), User: user,
		Identities: []string{identity}, KnownHosts: []string{knownHosts},
		ConnectTimeout: 20 * time.Second, OpenTimeout: 20 * time.Second, IdleTimeout: -1,
	}
}

// start runs the server in a process group of its own and waits until it answers.
func (p *Peer) start(t testing.TB, address string, args []string, answers func(ctx context.Context, address string) bool) {
	t.Helper()
	log := &lockedBuffer{}
	p.Log = log.String
	p.cmd = exec.Command(args[0], args[1:]...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.WaitDelay = 5 * time.Second
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("%s: %v", args[0], err)
	}
	gone := make(chan error, 1)
	go func() { gone <- p.cmd.Wait() }()
	t.Cleanup(func() {
		p.Kill()
		<-gone
		if t.Failed() {
			t.Logf("server's log:\n%s", log.String())
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	for {
		if answers(ctx, address) {
			return
		}
		select {
		case err := <-gone:
			gone <- err
			t.Fatalf("%s ended: %v\n%s", args[0], err, log.String())
		case <-ctx.Done():
			t.Fatalf("%s does not answer at %s\n%s", args[0], address, log.String())
		case <-time.After(20 * time.Millisecond): // no event tells of a foreign listener
		}
	}
}

// greets tells whether a server at address says SSH.
func greets(ctx context.Context, address string) bool {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return false
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(2 * time.Second))
	hello := make([]byte, 4)
	n, _ := c.Read(hello)
	return string(hello[:n]) == "SSH-"
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// StartServer runs the server of this package on loopback and returns the profile
// that reaches it. s may be nil; keys that are missing are made.
func StartServer(t testing.TB, s *Server) (*Server, *profiles.Profile) {
	t.Helper()
	if s == nil {
		s = &Server{}
	}
	dir := t.TempDir()
	mine, err := NewKeyPair("")
	if err != nil {
		t.Fatal(err)
	}
	if s.HostKey == nil {
		host, err := NewKeyPair("")
		if err != nil {
			t.Fatal(err)
		}
		s.HostKey = host.Private
	}
	if s.Authorized == nil && s.Password == "" && s.Challenge == nil {
		s.Authorized = []string{mine.Public}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	line, err := s.HostKeyLine(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	id, known := filepath.Join(dir, "id"), filepath.Join(dir, "known_hosts")
	for name, text := range map[string]string{id: string(mine.Private), id + ".pub": mine.Public + "\n", known: line + "\n"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-served; err != nil {
			t.Errorf("server: %v", err)
		}
	})
	return s, ProfileFor(l.Addr().String(), "tester", id, known)
}
