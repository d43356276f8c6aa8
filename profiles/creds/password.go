package creds

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// maxPassword bounds what is taken from a file or a command.
const maxPassword = 4096

// commandTime is how long a command that prints the password may take.
const commandTime = 30 * time.Second

// StoredPassword returns the password that the profile has or knows how to get, and
// whether there is one. A file or a command is asked once an authentication.
func (s *Session) StoredPassword() (secret string, given bool, err error) {
	if s.password != nil {
		return *s.password, true, nil
	}
	p := s.profile
	switch {
	case p.PasswordText != "":
		secret = p.PasswordText
	case p.PasswordFile != "":
		secret, err = passwordFromFile(p.PasswordFile)
	case p.PasswordCmd != "":
		s.attended = true
		secret, err = s.passwordFromCommand(p.PasswordCmd)
	default:
		return "", false, nil
	}
	if err != nil {
		return "", false, err
	}
	s.password = &secret
	return secret, true, nil
}

func passwordFromFile(name string) (string, error) {
	if err := CheckPrivate(name, false); err != nil {
		return "", err
	}
	text, err := os.ReadFile(name)
	if err != nil {
		return "", err
	}
	return firstLine(text, name)
}

// passwordFromCommand runs the command line in a shell, as ssh_config(5) does with
// its commands.
func (s *Session) passwordFromCommand(command string) (string, error) {
	cmd := exec.CommandContext(s.ctx, "/bin/sh", "-c", command)
	cmd.WaitDelay = time.Second
	var out bytes.Buffer
	cmd.Stdout = &limited{buf: &out}
	timer := time.AfterFunc(commandTime, func() { cmd.Cancel() })
	defer timer.Stop()
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("password command: %w", err)
	}
	return firstLine(out.Bytes(), "password command")
}

// limited keeps what fits and lets the rest go.
type limited struct{ buf *bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	if room := maxPassword + 2 - l.buf.Len(); room > 0 {
		l.buf.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// firstLine takes the line end off a password. More than a line is no password.
func firstLine(text []byte, from string) (string, error) {
	line, rest, _ := bytes.Cut(text, []byte("\n"))
	line = bytes.TrimSuffix(line, []byte("\r"))
	switch {
	case len(line) == 0:
		return "", fmt.Errorf("%s: no password in it", from)
	case len(line) > maxPassword:
		return "", fmt.Errorf("%s: password longer than %d bytes", from, maxPassword)
	case len(bytes.TrimSpace(rest)) > 0:
		return "", fmt.Errorf("%s: more than one line", from)
	}
	return string(line), nil
}

var (
	errOpenToOthers = errors.New("others may read it; use chmod 600")
	errForeign      = errors.New("it belongs to another user, and file-access-control is on")
)

// CheckPrivate refuses a file of ours with a secret that others may read, as OpenSSH does
// with keys. A file of another owner is that owner's matter, unless strict is set; see
// profiles.Profile.CheckKeyModes.
func CheckPrivate(name string, strict bool) error {
	st, err := os.Stat(name)
	if err != nil {
		return err
	}
	if st.IsDir() {
		return fmt.Errorf("%s: is a directory", name)
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); strict && !ownedByUs(st) && (!ok || sys.Uid != 0) {
		return fmt.Errorf("%s: %w", name, errForeign)
	}
	if (strict || ownedByUs(st)) && st.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s: mode %#o: %w", name, st.Mode().Perm(), errOpenToOthers)
	}
	return nil
}
