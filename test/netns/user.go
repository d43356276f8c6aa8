package netns

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

// User is an ordinary user who exists on the machines of one Net and nowhere
// else, with a home directory they share, an ed25519 key in .ssh/id_ed25519, and
// no directory below /run/user.
type User struct {
	Name     string // unique on the host, as /tmp is everybody's
	UID, GID uint32
	// Groups are the supplementary ones: one, which the test's users share.
	Groups   []uint32
	Home     string
	Password string // for servers with SSHDOptions.Passwords
	// AuthorizedKey is the public half of the key, a line for authorized_keys.
	AuthorizedKey string

	hash        string
	reservation net.Listener // keeps other test processes off UID
}

// Test users live above what useradd gives out and below the dynamic ranges of
// the service manager.
const (
	firstTestUID = 20000
	testUIDs     = 30000

	// Accounts of services live above UID_MAX, so that no capture of the host takes them.
	firstServiceUID = 60200
	serviceUIDs     = 800
)

// AddUser makes one more user of the machines, a stranger to all others.
func (n *Net) AddUser(t testing.TB, name string) *User {
	t.Helper()
	return n.add(t, name, firstTestUID, testUIDs)
}

// AddService makes the account of a service: a user whose flows a capture of the whole
// host does not take.
func (n *Net) AddService(t testing.TB, name string) *User {
	t.Helper()
	return n.add(t, name, firstServiceUID, serviceUIDs)
}

func (n *Net) add(t testing.TB, name string, first, count int) *User {
	t.Helper()
	u, err := newUserIn(n.Dir, name, 0, first, count)
	if err != nil {
		t.Fatal(err)
	}
	n.mu.Lock()
	n.more = append(n.more, u)
	n.mu.Unlock()
	passwd, group, shadow, err := accounts(n.users())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range n.machines() {
		for path, content := range map[string]string{"/etc/passwd": passwd, "/etc/group": group} {
			m.Replace(t, path, content)
		}
		if err := m.replace("/etc/shadow", shadow, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return u
}

// reserveUID finds a uid that neither the host nor another test process uses.
// A socket of the abstract namespace stands for it, which dies with the process.
func reserveUID(first, count int) (uint32, net.Listener, error) {
	start := mathrand.IntN(count)
	for i := range count {
		uid := first + (start+i)%count
		if _, err := user.LookupId(strconv.Itoa(uid)); err == nil {
			continue
		}
		if _, err := os.Lstat(fmt.Sprintf("/run/user/%d", uid)); err == nil {
			continue
		}
		if l, err := net.Listen("unix", fmt.Sprintf("@sshbroker-test-uid-%d", uid)); err == nil {
			return uint32(uid), l, nil
		}
	}
	return 0, nil, fmt.Errorf("no free uid from %d on", first)
}

func newUser(dir, name string, group uint32) (*User, error) {
	return newUserIn(dir, name, group, firstTestUID, testUIDs)
}

func newUserIn(dir, name string, group uint32, first, count int) (*User, error) {
	uid, reservation, err := reserveUID(first, count)
	if err != nil {
		return nil, err
	}
	u := &User{
		Name: fmt.Sprintf("%s%d", name, uid), UID: uid, GID: uid, Groups: []uint32{group},
		Home: filepath.Join(dir, name), Password: rand.Text(), reservation: reservation,
	}
	if group == 0 {
		u.Groups = []uint32{u.GID + testUIDs} // no user's; see reserveUID
	}
	if u.hash, err = hashPassword(u.Password); err != nil {
		return nil, err
	}
	if err := os.Mkdir(u.Home, 0o700); err != nil {
		return nil, err
	}
	if err := os.Chown(u.Home, int(u.UID), int(u.GID)); err != nil {
		return nil, err
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	block, err := ssh.MarshalPrivateKey(private, u.Name)
	if err != nil {
		return nil, err
	}
	sshPublic, err := ssh.NewPublicKey(public)
	if err != nil {
		return nil, err
	}
	u.AuthorizedKey = strings.TrimSpace(string(ssh.MarshalAuthorizedKey(sshPublic)))
	for name, content := range map[string]string{
		".ssh/id_ed25519":      string(pem.EncodeToMemory(block)),
		".ssh/id_ed25519.pub":  u.AuthorizedKey + "\n",
		".ssh/authorized_keys": u.AuthorizedKey + "\n",
	} {
		if err := u.write(name, content, 0o600); err != nil {
			return nil, err
		}
	}
	return u, nil
}

// hashPassword makes a crypt(5) string. Go has no crypt; perl-base is essential
// in Debian and asks the C library.
func hashPassword(password string) (string, error) {
	out, err := exec.Command("perl", "-e", `print crypt($ARGV[0], "\$6\$".$ARGV[1])`, password, rand.Text()).Output()
	if err == nil && !strings.HasPrefix(string(out), "$6$") {
		err = fmt.Errorf("got %q", out)
	}
	if err != nil {
		return "", fmt.Errorf("crypt by perl: %w", err)
	}
	return string(out), nil
}

// Become makes the calling thread alone the user's, for good.
func (u *User) Become() error {
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); errno != 0 {
		return errno
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(u.GID), uintptr(u.GID), uintptr(u.GID)); errno != 0 {
		return errno
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(u.UID), uintptr(u.UID), uintptr(u.UID)); errno != 0 {
		return errno
	}
	return nil
}

// As is Do as an ordinary user: the sockets that f opens are that user's.
func (m *Machine) As(u *User, f func() error) error {
	return m.Do(func() error {
		if err := u.Become(); err != nil {
			return err
		}
		return f()
	})
}

// Path is a file in the user's home directory.
func (u *User) Path(name string) string { return filepath.Join(u.Home, name) }

// Write makes a file in the user's home directory, which is the user's, and the
// directories on the way.
func (u *User) Write(t testing.TB, name, content string, perm os.FileMode) string {
	t.Helper()
	if err := u.write(name, content, perm); err != nil {
		t.Fatal(err)
	}
	return u.Path(name)
}

func (u *User) write(name, content string, perm os.FileMode) error {
	for dir := filepath.Dir(name); dir != "."; dir = filepath.Dir(dir) {
		if err := os.MkdirAll(u.Path(dir), 0o700); err != nil {
			return err
		}
		if err := os.Chown(u.Path(dir), int(u.UID), int(u.GID)); err != nil {
			return err
		}
	}
	if err := os.WriteFile(u.Path(name), []byte(content), perm); err != nil {
		return err
	}
	if err := os.Chmod(u.Path(name), perm); err != nil {
		return err
	}
	return os.Chown(u.Path(name), int(u.UID), int(u.GID))
}

// RuntimeDir makes /run/user/UID, which users do not have otherwise, until the
// test ends.
func (u *User) RuntimeDir(t testing.TB) string {
	t.Helper()
	dir := fmt.Sprintf("/run/user/%d", u.UID)
	_, err := os.Stat(filepath.Dir(dir))
	parentMade := os.IsNotExist(err)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		os.RemoveAll(dir)
		if parentMade {
			os.Remove(filepath.Dir(dir))
		}
	})
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, int(u.UID), int(u.GID)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// accounts returns the user databases of the host with the users added.
func accounts(users []*User) (passwd, group, shadow string, err error) {
	for path, text := range map[string]*string{"/etc/passwd": &passwd, "/etc/group": &group, "/etc/shadow": &shadow} {
		content, err := os.ReadFile(path)
		if err != nil {
			return "", "", "", err
		}
		*text = strings.TrimRight(string(content), "\n") + "\n"
	}
	var members []string
	for _, u := range users {
		passwd += fmt.Sprintf("%s:x:%d:%d::%s:/bin/bash\n", u.Name, u.UID, u.GID, u.Home)
		group += fmt.Sprintf("%s:x:%d:\n", u.Name, u.GID)
		shadow += fmt.Sprintf("%s:%s:19000:0:99999:7:::\n", u.Name, u.hash)
		members = append(members, u.Name)
	}
	if len(users) > 0 {
		group += fmt.Sprintf("projects%d:x:%d:%s\n", users[0].Groups[0], users[0].Groups[0], strings.Join(members[:min(2, len(members))], ","))
	}
	return passwd, group, shadow, nil
}
