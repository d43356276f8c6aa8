package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

var errNotFound = errors.New("command not found")

// findCommand finds the executable as a shell would, and refuses one that would run
// as another user: in the capture's user namespace it could not.
func findCommand(name string) (string, error) {
	path, err := exec.LookPath(name)
	switch {
	case errors.Is(err, exec.ErrDot): // PATH has "."; a shell runs it
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("%s: %w", name, errNotFound)
	case err != nil:
		return "", err
	}
	if path, err = filepath.Abs(path); err != nil {
		return "", err
	}
	if os.Geteuid() == 0 {
		return path, nil
	}
	return path, refuseSetID(path)
}

func refuseSetID(path string) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	switch {
	case st.Mode&unix.S_ISUID != 0 && int(st.Uid) != os.Geteuid():
		return fmt.Errorf("%s is set-uid: a program that gains another user's rights cannot be captured without privilege; run it outside, or as the user it is for", path)
	case st.Mode&unix.S_ISGID != 0 && st.Mode&unix.S_IXGRP != 0 && int(st.Gid) != os.Getegid():
		return fmt.Errorf("%s is set-gid: a program that gains another group's rights cannot be captured without privilege; run it outside", path)
	}
	return nil
}
