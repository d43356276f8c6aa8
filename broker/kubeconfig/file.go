package kubeconfig

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"sshbroker/broker/regular"
	"sshbroker/broker/replace"
)

// Files lists where kubectl looks for clusters, in its order: the files of KUBECONFIG, or
// else ~/.kube/config. They need not exist. Without a home directory it may be none.
func Files(getenv func(string) string) []string {
	list := getenv("KUBECONFIG")
	if list == "" {
		home := getenv("HOME")
		if home == "" {
			return nil
		}
		return []string{filepath.Join(home, ".kube", "config")}
	}
	var files []string
	for _, name := range filepath.SplitList(list) {
		if name != "" && !slices.Contains(files, name) {
			files = append(files, name)
		}
	}
	return files
}

// Read reads those of the files that exist. Its error is an *Error, or the system's.
func Read(files []string) ([]*Text, error) {
	var list []*Text
	for _, name := range files {
		data, _, err := regular.Read(name, Most+1)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		t, err := Parse(name, data)
		if err != nil {
			return nil, err
		}
		list = append(list, t)
	}
	return list, nil
}

// File is a kubeconfig that is about to be replaced, locked against kubectl until it is
// closed.
type File struct {
	*replace.File
	locks []string
}

// ErrLocked says that kubectl, or another program that goes by its lock, changes a file.
var ErrLocked = errors.New("another program changes it, or was killed while it did")

// Open locks a file as kubectl does, by a file NAME.lock beside it, and reads it. Where
// the name is a symbolic link both ends are locked. Its error is an *Error about the lock,
// which wraps ErrLocked, or that of replace.Open.
func Open(name string) (*File, error) {
	f := &File{}
	names := []string{name}
	if path, err := filepath.EvalSymlinks(name); err != nil {
		return nil, err
	} else if !besides(name, path) {
		names = append(names, path)
	}
	for _, n := range names {
		if err := f.lock(n + ".lock"); err != nil {
			return nil, errors.Join(err, f.unlock())
		}
	}
	var err error
	if f.File, err = replace.Open(name, replace.Options{Most: Most + 1}); err != nil {
		return nil, errors.Join(err, f.unlock())
	}
	return f, nil
}

// besides tells whether a lock beside one name is one beside the other: the way to the
// directory may have links in it.
func besides(a, b string) bool {
	x, errX := os.Stat(filepath.Dir(a))
	y, errY := os.Stat(filepath.Dir(b))
	return errX == nil && errY == nil && os.SameFile(x, y) && filepath.Base(a) == filepath.Base(b)
}

func (f *File) lock(name string) error {
	made, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL, 0)
	if errors.Is(err, fs.ErrExist) {
		since := ""
		if info, err := os.Lstat(name); err == nil {
			since = ", since " + info.ModTime().Local().Format(time.DateTime)
		}
		return &Error{File: name, Msg: fmt.Sprintf("this lock exists%s: %v", since, ErrLocked),
			Cure: "try again; if no kubectl is at work, remove " + name, class: ErrLocked}
	}
	if err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	f.locks = append(f.locks, name)
	return made.Close()
}

func (f *File) unlock() error {
	var errs []error
	for _, name := range f.locks {
		errs = append(errs, os.Remove(name))
	}
	f.locks = nil
	return errors.Join(errs...)
}

// Close ends the locks.
func (f *File) Close() error { return errors.Join(f.File.Close(), f.unlock()) }
