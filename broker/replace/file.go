package replace

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"sshbroker/broker/regular"
)

// Classes of errors about files.
var (
	ErrBusy    = errors.New("another editor has this file open")
	ErrChanged = errors.New("the file was changed by somebody else meanwhile; nothing was written")
)

// Options of Open.
type Options struct {
	Most   int64  // bytes that are read of a file; more are left out, so one above what is allowed
	Create bool   // make the file where there is none
	Empty  []byte // what a file that is not there reads as
}

// File is a file that is about to be replaced, locked against a second
// editor of this kind until it is closed.
//
// The lock is the file that becomes the new one: NAME is written as .NAME.edit beside
// it and renamed. What an editor that was killed has left there does no harm.
type File struct {
	path string      // symbolic links resolved
	most int64       // bytes to read
	old  fs.FileInfo // nil where there is none yet
	data []byte
	next *os.File // nil after it was renamed
}

// Open locks a file and reads it. A symbolic link is followed, so that a file that is
// kept elsewhere is changed there and the link stays. With Create a file that does not
// exist is made by Write.
//
// Its error is an ErrBusy, or fs.ErrNotExist, among others.
func Open(name string, o Options) (*File, error) {
	path, err := filepath.EvalSymlinks(name)
	if errors.Is(err, fs.ErrNotExist) && o.Create {
		if path, err = newPath(name); err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, err
	}
	f := &File{path: path, most: o.Most}
	if f.next, err = lock(f.nextName()); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if err := f.read(o); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// newPath is where a file that does not exist will be: the last part of name may not
// be a link that leads nowhere.
func newPath(name string) (string, error) {
	if _, err := os.Lstat(name); err == nil {
		return "", fmt.Errorf("%s is a symbolic link to a file that does not exist", name)
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(name))
	return filepath.Join(dir, filepath.Base(name)), err
}

func (f *File) nextName() string {
	return filepath.Join(filepath.Dir(f.path), "."+filepath.Base(f.path)+".edit")
}

// lock makes the next file, empty and only for us, and locks it.
func lock(name string) (*os.File, error) {
	const tries = 8 // each time an editor has ended between two system calls of ours
	for range tries {
		next, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
		if err != nil {
			return nil, err
		}
		switch err := claim(next, name); {
		case err == nil:
			return next, nil
		case !errors.Is(err, errStale):
			next.Close()
			return nil, err
		}
		next.Close()
	}
	return nil, ErrBusy
}

var errStale = errors.New("the lock has ended")

// claim locks a file that is still the one of that name, and empties it.
func claim(next *os.File, name string) error {
	if err := unix.Flock(int(next.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return ErrBusy
	} else if err != nil {
		return fmt.Errorf("lock %s: %w", name, err)
	}
	info, err := next.Stat()
	if err != nil {
		return err
	}
	now, err := os.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(info, now) {
		return errStale
	}
	if err != nil {
		return err
	}
	// It may be somebody's trap: a link to what we must not empty.
	if s := info.Sys().(*syscall.Stat_t); !info.Mode().IsRegular() || s.Nlink != 1 || int(s.Uid) != os.Geteuid() {
		return fmt.Errorf("%s is in the way, and is not ours", name)
	}
	return errors.Join(next.Truncate(0), next.Chmod(0o600))
}

// read remembers the file as it is.
func (f *File) read(o Options) error {
	info, err := os.Stat(f.path)
	if errors.Is(err, fs.ErrNotExist) && o.Create {
		f.data = o.Empty
		return nil
	}
	if err != nil {
		return err
	}
	if n := info.Sys().(*syscall.Stat_t).Nlink; n != 1 && info.Mode().IsRegular() {
		return fmt.Errorf("%s has %d names (hard links), of which the others would keep the old content", f.path, n)
	}
	f.old = info
	f.data, _, err = regular.Read(f.path, f.most)
	return err
}

// Data is what the file holds. It must not be changed.
func (f *File) Data() []byte { return f.data }

// Path is the file that is written, behind symbolic links.
func (f *File) Path() string { return f.path }

// New tells whether Write makes the file.
func (f *File) New() bool { return f.old == nil }

// Write replaces the file, whole or not at all, even if the host fails in between. It
// keeps mode, owner and access list; a new file is for its owner alone. It refuses
// with an ErrChanged if the file is not what Data has. It is called once, and the lock
// has ended when it has succeeded.
func (f *File) Write(data []byte) error {
	if err := f.write(data); err != nil {
		return fmt.Errorf("write %s: %w", f.path, err)
	}
	return nil
}

func (f *File) write(data []byte) error {
	if err := f.keep(); err != nil {
		return err
	}
	if _, err := f.next.Write(data); err != nil {
		return err
	}
	if err := f.next.Sync(); err != nil {
		return err
	}
	if f.old == nil {
		err := f.renameNew()
		if errors.Is(err, fs.ErrExist) {
			return ErrChanged
		}
		return f.renamed(err)
	}
	now, err := os.Stat(f.path)
	if err != nil {
		return err
	}
	content, _, err := regular.Read(f.path, f.most)
	if err != nil {
		return err
	}
	if !os.SameFile(now, f.old) || !bytes.Equal(content, f.data) {
		return ErrChanged
	}
	return f.renamed(os.Rename(f.nextName(), f.path))
}

// renameNew gives the next file a name that no file has, else it is an fs.ErrExist.
func (f *File) renameNew() error {
	err := unix.Renameat2(unix.AT_FDCWD, f.nextName(), unix.AT_FDCWD, f.path, unix.RENAME_NOREPLACE)
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	if _, there := os.Lstat(f.path); !errors.Is(there, fs.ErrNotExist) { // a file system that cannot
		return fs.ErrExist
	}
	return os.Rename(f.nextName(), f.path)
}

// renamed ends the lock once the next file has its name, and has the directory say so
// on the disk.
func (f *File) renamed(err error) error {
	if err != nil {
		return err
	}
	next := f.next
	f.next = nil
	dir, err := os.Open(filepath.Dir(f.path))
	if err != nil {
		return errors.Join(err, next.Close())
	}
	err = dir.Sync()
	if errors.Is(err, unix.EINVAL) {
		err = nil // file systems that know no such thing
	}
	return errors.Join(err, dir.Close(), next.Close())
}

// aclName is the extended attribute with the access list of a file. Without it the
// bits of a mode mean something else.
const aclName = "system.posix_acl_access"

// keep gives the next file the owner, the mode and the access list of the old one.
func (f *File) keep() error {
	if f.old == nil {
		return nil
	}
	s := f.old.Sys().(*syscall.Stat_t)
	if now, err := f.next.Stat(); err != nil {
		return err
	} else if is := now.Sys().(*syscall.Stat_t); is.Uid != s.Uid || is.Gid != s.Gid {
		if err := f.next.Chown(int(s.Uid), int(s.Gid)); err != nil {
			return fmt.Errorf("its owner cannot be kept: %w", err)
		}
	}
	// First the list, as the directory may have given the next file one, of which a mode
	// would bring names into force.
	if err := f.keepList(); err != nil {
		return fmt.Errorf("its access list cannot be kept: %w", err)
	}
	return f.next.Chmod(f.old.Mode().Perm())
}

// keepList gives the next file the access list of the old one, or none.
func (f *File) keepList() error {
	next := int(f.next.Fd())
	acl := make([]byte, 64<<10) // XATTR_SIZE_MAX
	n, err := unix.Getxattr(f.path, aclName, acl)
	switch {
	case err == nil:
		return unix.Fsetxattr(next, aclName, acl[:n], 0)
	case errors.Is(err, unix.ENODATA):
		err = unix.Fremovexattr(next, aclName)
	}
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	return err
}

// Close ends the lock. The file stays as it is unless Write has succeeded.
func (f *File) Close() error {
	if f.next == nil {
		return nil
	}
	err := os.Remove(f.nextName()) // while it is locked: nobody else's
	next := f.next
	f.next = nil
	return errors.Join(err, next.Close())
}

// Make writes a file of that mode, which is the caller's whatever was there before. A
// symbolic link of that name is not followed. Without over a file that is there is left
// alone: the error is an fs.ErrExist. It is an ErrBusy while another makes or edits it.
func Make(name string, data []byte, mode fs.FileMode, over bool) error {
	dir, err := filepath.EvalSymlinks(filepath.Dir(name))
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	f := &File{path: filepath.Join(dir, filepath.Base(name))}
	if f.next, err = lock(f.nextName()); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := f.make(data, mode, over); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", name, err), f.Close())
	}
	return nil
}

func (f *File) make(data []byte, mode fs.FileMode, over bool) error {
	if _, err := os.Lstat(f.path); err == nil && !over {
		return fs.ErrExist // before anything is written
	}
	if _, err := f.next.Write(data); err != nil {
		return err
	}
	if err := errors.Join(f.next.Chmod(mode), f.next.Sync()); err != nil {
		return err
	}
	if over {
		return f.renamed(os.Rename(f.nextName(), f.path))
	}
	return f.renamed(f.renameNew())
}
