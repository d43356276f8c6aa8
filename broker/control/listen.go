package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Listener is the broker's socket, with the lock that keeps a second broker away.
// It is safe for concurrent use.
type Listener struct {
	*net.UnixListener
	path string

	private bool // the directory is there for the socket alone

	dir  int // the directory, kept open so that Close removes from the right one
	lock int
	id   inode // of the socket

	spare spare

	once sync.Once
	err  error
}

type inode struct {
	dev, ino uint64
}

// Listen takes the lock at address and makes the socket, mode 0600. It returns
// ErrRunning when another broker has the lock. What a dead broker left is replaced,
// under the lock; anything else at that path is refused. The caller closes the
// listener, which removes the socket.
func Listen(address string) (*Listener, error) { return systemPlaces().listen(address) }

func (p places) listen(address string) (*Listener, error) {
	path, err := checkPath(address)
	if err != nil {
		return nil, fmt.Errorf("broker address %q: %w", address, err)
	}
	// A broker that ends removes the directory, which may be the one just opened.
	const tries = 100
	for try := 1; ; try++ {
		l, err := p.listenAt(path)
		if err == nil || try == tries || !errors.Is(err, errDirGone) {
			return l, err
		}
	}
}

var errDirGone = errors.New("the directory was removed")

func (p places) listenAt(path string) (*Listener, error) {
	dir, err := p.openDir(filepath.Dir(path), true)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: %w", errDirGone, err)
	}
	if err != nil {
		return nil, fmt.Errorf("broker address %s: %w", path, err)
	}
	if p.private(filepath.Dir(path)) {
		// systemd-tmpfiles leaves a directory alone that somebody has a lock on;
		// else it would take the lock file away after some days.
		_ = unix.Flock(dir, unix.LOCK_SH|unix.LOCK_NB)
	}
	l := &Listener{path: path, dir: dir, private: p.private(filepath.Dir(path))}
	if l.lock, err = p.takeLock(dir, filepath.Base(path)+".lock"); err != nil {
		unix.Close(dir)
		l.RemoveDir() // it may have been made just now
		return nil, fmt.Errorf("broker address %s: %w", path, err)
	}
	if err := l.bind(); err != nil {
		l.removeLock()
		unix.Close(dir)
		l.RemoveDir()
		return nil, fmt.Errorf("broker address %s: %w", path, err)
	}
	l.spare.take()
	return l, nil
}

// Address is the path of the socket.
func (l *Listener) Address() string { return l.path }

// takeLock opens and locks the file. The holder removes it before unlocking, so
// whoever gets a lock must see that it is still the file of that name.
func (p places) takeLock(dir int, name string) (int, error) {
	for {
		fd, err := unix.Openat(dir, name, unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o600)
		if err == unix.ENOENT {
			return -1, errDirGone
		}
		if err != nil {
			return -1, &fs.PathError{Op: "open", Path: name, Err: err}
		}
		same, err := p.lockFile(fd, dir, name)
		if same {
			return fd, nil
		}
		unix.Close(fd)
		if err != nil {
			return -1, err
		}
	}
}

// lockFile returns false and no error when the file was removed meanwhile.
func (p places) lockFile(fd, dir int, name string) (bool, error) {
	var st, at unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return false, &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	if int(st.Uid) != p.uid || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return false, fmt.Errorf("%s belongs to %s, or is no regular file", name, accountName(st.Uid))
	}
	switch err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); {
	case err == unix.EWOULDBLOCK:
		return false, runningError(fd)
	case err == unix.EINTR:
		return false, nil
	case err != nil:
		return false, &fs.PathError{Op: "lock", Path: name, Err: err}
	}
	switch err := unix.Fstatat(dir, name, &at, unix.AT_SYMLINK_NOFOLLOW); {
	case err == unix.ENOENT, err == nil && inodeOf(&at) != inodeOf(&st):
		return false, nil
	case err != nil:
		return false, &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	// For people and for runningError; the lock does not depend on it.
	_ = unix.Ftruncate(fd, 0)
	_, _ = unix.Pwrite(fd, []byte(strconv.Itoa(unix.Getpid())+"\n"), 0)
	return true, nil
}

func runningError(lock int) error {
	var b [24]byte
	n, _ := unix.Pread(lock, b[:], 0)
	var pid int
	if _, err := fmt.Sscanf(string(b[:max(n, 0)]), "%d", &pid); err == nil && pid > 0 {
		return fmt.Errorf("%w (process %d)", ErrRunning, pid)
	}
	return ErrRunning
}

// bind makes the socket. It is called under the lock.
func (l *Listener) bind() error {
	name := filepath.Base(l.path)
	if err := l.clearPlace(name); err != nil {
		return err
	}
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		// The file gets the mode of the socket it is made from, so it never exists
		// with a wider one; the umask, which belongs to the process, stays untouched.
		if cerr := raw.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); cerr != nil {
			return cerr
		}
		return err
	}}
	ln, err := config.Listen(context.Background(), "unixpacket", l.path)
	if err != nil {
		return err
	}
	l.UnixListener = ln.(*net.UnixListener)
	l.UnixListener.SetUnlinkOnClose(false) // Close looks first whether it is still ours
	var st unix.Stat_t
	if err := unix.Fstatat(l.dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		l.UnixListener.Close()
		return errors.New("the directory was exchanged while the socket was made")
	}
	l.id = inodeOf(&st)
	return nil
}

// Share lets the members of a group connect, too; see Server.Admins. We have to be a
// member of it ourselves, or privileged.
func (l *Listener) Share(gid int) error {
	name := filepath.Base(l.path)
	// Not chmod by path: the name could be a link by now, for whoever may write there.
	fd, err := unix.Openat(l.dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: l.path, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || inodeOf(&st) != l.id {
		return fmt.Errorf("%s is not our socket any more", l.path)
	}
	self := fmt.Sprintf("/proc/self/fd/%d", fd)
	if err := unix.Chown(self, -1, gid); err != nil {
		return &fs.PathError{Op: fmt.Sprintf("give to group %d", gid), Path: l.path, Err: err}
	}
	if err := unix.Chmod(self, 0o660); err != nil {
		return &fs.PathError{Op: "chmod", Path: l.path, Err: err}
	}
	return nil
}

// clearPlace removes the socket of a dead broker, and only that.
func (l *Listener) clearPlace(name string) error {
	var st unix.Stat_t
	switch err := unix.Fstatat(l.dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); {
	case err == unix.ENOENT:
		return nil
	case err != nil:
		return &fs.PathError{Op: "stat", Path: l.path, Err: err}
	case st.Mode&unix.S_IFMT != unix.S_IFSOCK:
		return errors.New("something that is not a socket is in the way; it is left alone")
	}
	// With -a this may be some other program's socket, an agent's for instance.
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: l.path}); err != unix.ECONNREFUSED {
		return fmt.Errorf("another program's socket is in the way; it is left alone (connect: %v)", err)
	}
	if err := unix.Unlinkat(l.dir, name, 0); err != nil && err != unix.ENOENT {
		return &fs.PathError{Op: "remove", Path: l.path, Err: err}
	}
	return nil
}

// Close stops listening, removes the socket if it is still ours, and lets the lock
// go last: whoever takes it finds the place empty. A private directory goes as well.
func (l *Listener) Close() error {
	l.once.Do(func() {
		name := filepath.Base(l.path)
		var st unix.Stat_t
		if unix.Fstatat(l.dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && inodeOf(&st) == l.id {
			l.err = unix.Unlinkat(l.dir, name, 0)
		}
		if err := l.UnixListener.Close(); err != nil {
			l.err = err
		}
		l.spare.close()
		l.removeLock()
		unix.Close(l.dir)
		l.RemoveDir()
	})
	return l.err
}

// RemoveDir removes a private directory that is empty: not one with a next broker's
// lock in it, or name maps. A broker that removes such a map after Close calls it again.
func (l *Listener) RemoveDir() {
	if l.private {
		_ = unix.Rmdir(filepath.Dir(l.path))
	}
}

func (l *Listener) removeLock() {
	name := filepath.Base(l.path) + ".lock"
	var st, at unix.Stat_t
	if unix.Fstat(l.lock, &st) == nil && unix.Fstatat(l.dir, name, &at, unix.AT_SYMLINK_NOFOLLOW) == nil &&
		inodeOf(&st) == inodeOf(&at) {
		_ = unix.Unlinkat(l.dir, name, 0)
	}
	unix.Close(l.lock)
}

func inodeOf(st *unix.Stat_t) inode { return inode{uint64(st.Dev), st.Ino} }
