package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"sshbroker/capture/command"
	"sshbroker/capture/descriptor"
	"sshbroker/capture/inherit"
	"sshbroker/capture/leak"
)

// prepareArg is the first argument of this program where it stands in COMMAND's place
// inside the capture, until it has done there what --strict or --close-sockets asks for.
const prepareArg = "--prepare-command"

// noProbes stands for the descriptor where no probes are made.
const noProbes = "-"

// program is what a process becomes.
type program struct {
	path string
	argv []string
}

// inPlace is what is run inside: COMMAND itself, or this program in its place. probes is a
// descriptor of this process that the other one inherits, nil for none.
func (o *options) inPlace(path string, probes *os.File) (program, error) {
	if !o.closed && !o.strict {
		return program{path, o.command}, nil
	}
	self, err := os.Executable()
	if err != nil {
		return program{}, err
	}
	number := noProbes
	if probes != nil {
		err := descriptor.Control(probes, func(fd int) error {
			number = strconv.Itoa(fd)
			_, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0)
			return err
		})
		if err != nil {
			return program{}, fmt.Errorf("--strict: %w", err)
		}
	}
	return program{self, append([]string{os.Args[0], prepareArg, number, path}, o.command...)}, nil
}

// prepareCommand is the life of this program in COMMAND's place; args are those behind
// prepareArg. It becomes COMMAND, or returns the exit code.
func prepareCommand(args []string) int {
	if len(args) < 3 {
		fmt.Fprintf(os.Stderr, "%s is for ssh-capture's own use\n", prepareArg)
		return exitFailed
	}
	if args[0] != noProbes {
		if err := leak.Serve(args[0]); err != nil { // ErrGone, or killed: the other half has said why
			return exitFailed
		}
	}
	if err := closeSockets(); err != nil {
		complain(os.Stderr, err)
		return exitFailed
	}
	path, argv := args[1], args[2:]
	var errno syscall.Errno
	errors.As(inherit.Started().Exec(path, argv, os.Environ()), &errno)
	return failed(os.Stderr, &command.ExecError{Path: path, Errno: errno})
}

// closeSockets closes what COMMAND is not to inherit. A standard descriptor that is one of
// them is COMMAND's purpose, so that is an error.
func closeSockets() error {
	list, err := leak.Sockets()
	if err != nil {
		return fmt.Errorf("--close-sockets: %w", err)
	}
	for _, s := range list {
		if s.FD <= 2 {
			return fmt.Errorf("--close-sockets, --strict: descriptor %d is %s, of before the capture: what is written there goes out in clear; start the command without it, or without these options", s.FD, s.Kind)
		}
		if err := unix.Close(s.FD); err != nil {
			return fmt.Errorf("--close-sockets: descriptor %d: %w", s.FD, err)
		}
		fmt.Fprintf(os.Stderr, "ssh-capture: warning: descriptor %d is closed: %s, of before the capture\n", s.FD, s.Kind)
	}
	return nil
}

// leaksError lists what --strict has found.
type leaksError struct{ findings []leak.Finding }

func (e *leaksError) Error() string {
	var b strings.Builder
	b.WriteString("--strict: the command is not started, as it could send in clear:")
	for _, f := range e.findings {
		fmt.Fprintf(&b, "\n  %s: %s\n    cure: %s", f.What, f.Detail, f.Cure)
	}
	return b.String()
}

// prove has the process in COMMAND's place make the probes that are about COMMAND's own
// rules, and lets it go on. It returns a *leaksError where something leaks.
func (s *session) prove(ctx context.Context) error {
	field, err := leak.Survey()
	if err != nil {
		return fmt.Errorf("--strict: %w", err)
	}
	remote, elsewhere, err := leak.NewRemote(ctx, s.probes)
	if err != nil {
		return fmt.Errorf("--strict: %w", err)
	}
	defer remote.Close()
	field.Namespace = elsewhere
	var leaks []leak.Finding
	err = leak.Run(ctx, field, leak.Own(), remote.Do, nil, func(f leak.Finding) {
		if f.Verdict == leak.Leaked {
			leaks = append(leaks, f)
		}
	})
	switch {
	case err != nil:
		return fmt.Errorf("--strict: %w", err)
	case len(leaks) > 0:
		return &leaksError{leaks}
	}
	return remote.Done()
}

// notStarted ends the process that was to become COMMAND, and returns the exit code.
func (s *session) notStarted(why error, stderr io.Writer) int {
	_ = s.process.Kill()
	code := superviseJob(s.process.Pid)
	s.close()
	if leaks := (*leaksError)(nil); !errors.As(why, &leaks) && code != 128+int(unix.SIGKILL) {
		return code // it was ended, by Ctrl-C say, or has said why
	}
	return failed(stderr, why)
}
