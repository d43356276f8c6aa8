package keep

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

// Who keeps, as Kind says.
const (
	ServiceManager = "service manager"
	Parent         = "parent"
	None           = "none"
)

// Max is how many descriptors are kept, and FileDescriptorStoreMax= of the unit. Names
// of 40 bytes for all of them fit into one environment variable (128 KiB).
const (
	Max        = 2048
	envParent  = "SSH_CAPTURED_KEEPER" // set by our parent, to its process id
	nameParent = "keeper"              // of our parent's socket, among what is inherited
	sendWithin = 5 * time.Second
)

// ErrFull means that as much is kept as can be.
var ErrFull = errors.New("no room for another descriptor")

// Keep is the worker's side. Its methods are safe for concurrent use.
type Keep struct {
	parent *net.UnixConn // nil: no parent of ours
	pid    int           // of the parent
	notify string        // path of the service manager's socket

	mu    sync.Mutex
	files map[string][]*os.File // inherited, not taken yet
	kept  map[string]int        // what the keeper has, by name
}

// Open finds out who keeps and takes over what was inherited: an exec closes it from
// now on, and the environment does not name it any more. Call it once, early in main.
func Open() (*Keep, error) {
	k := &Keep{files: map[string][]*os.File{}, kept: map[string]int{}}
	self, parent := strconv.Itoa(os.Getpid()), os.Getenv(envParent)
	ours := parent != ""
	if by := os.Getenv("SYSTEMD_EXEC_PID"); !ours && (by == "" || by == self) { // else the variable was left by one above us
		k.notify = os.Getenv("NOTIFY_SOCKET")
	}
	if ours {
		os.Setenv("LISTEN_PID", self)
	}
	for _, f := range activation.Files(true) {
		k.files[f.Name()] = append(k.files[f.Name()], f)
		k.kept[f.Name()]++
	}
	for _, name := range []string{envParent, "NOTIFY_SOCKET", "LISTEN_PIDFDID", "SYSTEMD_EXEC_PID", "FDSTORE"} {
		os.Unsetenv(name)
	}
	if !ours {
		return k, nil
	}
	delete(k.kept, nameParent)
	sockets := k.Take(nameParent)
	if len(sockets) != 1 {
		return nil, fmt.Errorf("keeper: %s is set, and its socket is not there", envParent)
	}
	var err error
	if k.parent, err = unixConn(sockets[0]); err == nil {
		k.pid, err = strconv.Atoi(parent)
	}
	if err != nil {
		return nil, fmt.Errorf("keeper: %w", err)
	}
	return k, nil
}

// unixConn makes a connection of a socket, and closes f.
func unixConn(f *os.File) (*net.UnixConn, error) {
	defer f.Close() // the net package duplicates it
	c, err := net.FileConn(f)
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, fmt.Errorf("not a Unix socket: %w", errors.Join(err, unix.ENOTSOCK))
	}
	return u, nil
}

// Kind says who keeps: ServiceManager, Parent, or None, also once the parent is dead.
func (k *Keep) Kind() string {
	switch {
	case k.parent != nil && os.Getppid() == k.pid: // else this process was given another
		return Parent
	case k.notify != "":
		return ServiceManager
	}
	return None
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

// Store has a duplicate of f kept under a name, which several may share: 1 to 40
// characters of printable ASCII without colon. It does nothing where nobody keeps, and
// returns ErrFull, or why it was not sent.
func (k *Keep) Store(name string, f *os.File) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	count := 1
	for _, n := range k.kept {
		count += n
	}
	if count > Max {
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
	if err != nil && !errors.Is(err, unix.EPIPE) { // else the parent has died this moment
		return fmt.Errorf("keeper: %s: %w", strings.ReplaceAll(text, "\n", " "), err)
	}
	return nil
}
