package broker

import (
	"bytes"
	"fmt"

	"sshbroker/broker/regular"
	"sshbroker/filter"
	"sshbroker/profiles"
)

// maxUsername bounds a name that is read from a file, without its line end.
const maxUsername = 256

// username is the name that a rule gives for the login, "" where it gives none. One
// that stands in a file is read each time, so that it may change without a reload.
func username(r *filter.Rule) (string, error) {
	if r.UsernameFile == "" {
		return r.Username, nil
	}
	name, err := readUsername(r.UsernameFile)
	if err != nil {
		return "", fmt.Errorf("user name of rule %d: %w", r.Number, err)
	}
	return name, nil
}

// readUsername reads the one line of a regular file. It does not wait for a pipe that
// somebody put in its place.
func readUsername(file string) (string, error) {
	text, _, err := regular.Read(file, maxUsername+3) // a line end, and one byte that is too much
	if err != nil {
		return "", err
	}
	line, rest, _ := bytes.Cut(text, []byte("\n"))
	line = bytes.TrimSuffix(line, []byte("\r"))
	switch {
	case len(line) > maxUsername:
		return "", fmt.Errorf("%s: the name is longer than %d bytes", file, maxUsername)
	case len(rest) > 0:
		return "", fmt.Errorf("%s has more than one line", file)
	}
	if err := profiles.CheckUser(string(line)); err != nil {
		return "", fmt.Errorf("%s: %w", file, err)
	}
	return string(line), nil
}
