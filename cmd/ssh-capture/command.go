package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

var errNotFound = errors.New("command not found")

// defaultPath is where commands are looked for without a PATH, as execvp(3) does.
const defaultPath = "/bin:/usr/bin"

// findCommand finds the executable as a shell would.
func findCommand(name string) (string, error) {
	path, err := search(name)
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	return filepath.Abs(path)
}

// search is what os/exec does not do quite as shells and execvp(3) do: a file that is
// there but may not be run is told from one that is not.
func search(name string) (string, error) {
	if strings.Contains(name, "/") {
		err := mayRun(name)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			return "", errNotFound
		}
		return name, err
	}
	dirs, given := os.LookupEnv("PATH")
	if !given {
		dirs = defaultPath
	}
	failure := errNotFound
	for _, dir := range filepath.SplitList(dirs) {
		if name == "" {
			break
		}
		path := filepath.Join(cmp.Or(dir, "."), name)
		switch err := mayRun(path); {
		case err == nil:
			return path, nil
		case errors.Is(err, fs.ErrPermission):
			failure = err
		}
	}
	return "", failure
}

func mayRun(path string) error {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return errors.Unwrap(err) // the path is named already
	case info.IsDir():
		return unix.EISDIR
	case info.Mode()&0o111 == 0: // root may access it, and not run it
		return unix.EACCES
	}
	return unix.Access(path, unix.X_OK)
}

// setIDError is a command that would gain rights which a namespace cannot give.
type setIDError struct {
	path string
	kind string // "user" or "group"
}

func (e *setIDError) Error() string {
	text := fmt.Sprintf("%s is set-%cid: a program that gains another %s's rights cannot be captured without privilege; run it outside", e.path, e.kind[0], e.kind)
	if e.kind == "user" {
		text += ", or as the user it is for"
	}
	return text
}

// refuseSetID refuses a command that would run as another user: in a capture's user
// namespace it could not.
func refuseSetID(path string) error {
	if os.Geteuid() == 0 {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	switch {
	case st.Mode&unix.S_ISUID != 0 && int(st.Uid) != os.Geteuid():
		return &setIDError{path: path, kind: "user"}
	case st.Mode&unix.S_ISGID != 0 && st.Mode&unix.S_IXGRP != 0 && int(st.Gid) != os.Getegid():
		return &setIDError{path: path, kind: "group"}
	}
	return nil
}
