package keep

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Who keeps, as Kind says.
const (
	ServiceManager = "service manager"
	Parent         = "parent"
	None           = "none"
)

// Max is how many descriptors are kept, and FileDescriptorStoreMax= of the unit. Their
// names, maxNames bytes at most, have to go into one environment variable (128 KiB).
const (
	Max        = 2048
	maxNames   = 96 << 10
	envParent  = "SSH_CAPTURED_KEEPER" // set by our parent
	first      = 3                     // inherited descriptor; our parent's socket, where it is ours
	sendWithin = 5 * time.Second
)

var (
	// ErrName is for what is not 1 to 255 characters of printable ASCII without colon.
	ErrName = errors.New("not a name for a descriptor")
	// ErrFull means that as much is kept as can be.
	ErrFull = errors.New("no room for another descriptor")
)

// Keep is the worker's side. Its methods are safe for concurrent use.
type Keep struct {
	parent *net.UnixConn // nil: no parent of ours
	notify string        // path of the service manager's socket

	mu    sync.Mutex
	files map[string][]*os.File // inherited, not taken yet
	kept  map[string]int        // what the keeper has, by name
}

// Open finds out who keeps and takes over what was inherited: an exec closes it from
// now on, and the environment does not name it any more. Call it once, early in main.
func Open() (*Keep, error) {
	env := map[string]string{}
	for _, name := range []string{envParent, "NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES", "SYSTEMD_EXEC_PID", "FDSTORE"} {
		env[name] = os.Getenv(name)
		os.Unsetenv(name)
	}
	k := &Keep{files: map[string][]*os.File{}, kept: map[string]int{}}
	self, fd := strconv.Itoa(os.Getpid()), first
	if env[envParent] != "" {
		f, err := inherited(fd, "keeper")
		if err == nil {
			k.parent, err = unixConn(f)
		}
		if err != nil {
			return nil, fmt.Errorf("keeper: %w", err)
		}
		fd++
	} else if by := env["SYSTEMD_EXEC_PID"]; by == "" || by == self { // else the variable was left by one above us
		k.notify = env["NOTIFY_SOCKET"]
	}
	if k.parent == nil && env["LISTEN_PID"] != self {
		return k, nil
	}
	names, err := parseNames(env["LISTEN_FDS"], env["LISTEN_FDNAMES"])
	if err != nil {
		return nil, fmt.Errorf("kept descriptors: %w", err)
	}
	for i, name := range names {
		f, err := inherited(fd+i, name)
		if err != nil {
			return nil, fmt.Errorf("kept descriptors: %w", err)
		}
		k.files[name] = append(k.files[name], f)
		k.kept[name]++
	}
	return k, nil
}

// unixConn makes a connection of a socket, and closes f.
func unixConn(f *os.File) (*net.UnixConn, error) {
	defer f.Close() // the net package duplicates it
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	if u, ok := c.(*net.UnixConn); ok {
		return u, nil
	}
	c.Close()
	return nil, errors.New("not a Unix socket")
}

// inherited returns a descriptor that came through the exec and ends with the next.
func inherited(fd int, name string) (*os.File, error) {
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC != 0 {
		return nil, fmt.Errorf("descriptor %d was not inherited", fd)
	}
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), name), nil
}

// parseNames reads LISTEN_FDS and LISTEN_FDNAMES.
func parseNames(count, names string) ([]string, error) {
	if count == "" || count == "0" {
		return nil, nil
	}
	if list := strings.Split(names, ":"); strconv.Itoa(len(list)) == count {
		return list, nil
	}
	return nil, fmt.Errorf("LISTEN_FDNAMES does not have LISTEN_FDS=%q names", count)
}

// Kind says who keeps: ServiceManager, Parent, or None, also once the parent is dead.
func (k *Keep) Kind() string {
	if k.parent == nil {
		if k.notify == "" {
			return None
		}
		return ServiceManager
	}
	raw, err := k.parent.SyscallConn()
	if err == nil {
		cerr := raw.Control(func(fd uintptr) { // it never sends: there is either nothing to read or the end
			_, _, err = unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		})
		if cerr == nil && err == unix.EAGAIN {
			return Parent
		}
	}
	return None
}

// Names are those of the inherited descriptors that were not taken yet, in order.
func (k *Keep) Names() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Sorted(maps.Keys(k.files))
}

// Take hands over the inherited descriptors of a name, which the caller closes, in no
// certain order. They stay kept for the next process as well: do not Store them again.
func (k *Keep) Take(name string) []*os.File {
	k.mu.Lock()
	defer k.mu.Unlock()
	files := k.files[name]
	delete(k.files, name)
	return files
}

// Store has a duplicate of f kept under a name, which several may share. It does
// nothing where nobody keeps, and returns ErrName, ErrFull, or why it was not sent.
func (k *Keep) Store(name string, f *os.File) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	count, bytes := 1, len(name)+1
	for other, n := range k.kept {
		count, bytes = count+n, bytes+n*(len(other)+1)
	}
	switch {
	case !validName(name):
		return fmt.Errorf("keep %q: %w", name, ErrName)
	case count > Max || bytes > maxNames:
		return fmt.Errorf("keep %s: %w", name, ErrFull)
	}
	raw, err := f.SyscallConn() // Fd would make it blocking, for everybody
	if err != nil {
		return fmt.Errorf("keep %s: %w", name, err)
	}
	cerr := raw.Control(func(fd uintptr) {
		// A service manager lets go of what is hung up, or in error like a queue that was
		// not read in time, but for FDPOLL=0.
		err = k.say("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, unix.UnixRights(int(fd)))
	})
	if err = errors.Join(cerr, err); err == nil {
		k.kept[name]++
	}
	return err
}

// Remove ends the keeping of all descriptors of that name.
func (k *Keep) Remove(name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.kept[name] == 0 {
		return nil
	}
	delete(k.kept, name)
	return k.say("FDSTOREREMOVE=1\nFDNAME="+name, nil)
}

// Ready says that the start is over: a worker that fails from now on is started again.
func (k *Keep) Ready() error { return k.say("READY=1", nil) }

// Stopping says that the worker is about to end.
func (k *Keep) Stopping() error { return k.say("STOPPING=1", nil) }

// Status says in one line what the worker is doing, for people.
func (k *Keep) Status(line string) error { return k.say("STATUS="+line, nil) }

func (k *Keep) say(text string, oob []byte) (err error) {
	c, to := k.parent, (*net.UnixAddr)(nil)
	switch k.Kind() {
	case None:
		return nil
	case ServiceManager: // not connected: package net sends no descriptors then
		to = &net.UnixAddr{Name: k.notify, Net: "unixgram"}
		if c, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram"}); err == nil {
			defer c.Close()
		}
	}
	if err == nil {
		err = c.SetWriteDeadline(time.Now().Add(sendWithin))
	}
	if err == nil {
		_, _, err = c.WriteMsgUnix([]byte(text), oob, to)
	}
	if err != nil && k.Kind() != None { // else it has died this moment
		return fmt.Errorf("keeper: %s: %w", strings.ReplaceAll(text, "\n", " "), err)
	}
	return nil
}

// validName is fdname_is_valid of systemd, but for the empty name.
func validName(name string) bool {
	return name != "" && len(name) <= 255 && !strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r > '~' || r == ':' })
}
