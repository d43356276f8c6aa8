package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"sshbroker/broker/control"
	"sshbroker/broker/prompt"
	"sshbroker/capture/service"
)

// captureProcess captures a process that runs already, and leaves it to a keeper. It
// prints the capture's name and returns the exit code.
func captureProcess(ctx context.Context, o options, stdout, stderr io.Writer) int {
	ctx, cancel := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer cancel()
	person := prompt.NewPerson(ctx)
	defer person.Leave()
	id, err := moveProcess(ctx, o, person, stderr)
	if id != "" {
		fmt.Fprintln(stdout, id)
	}
	if err != nil {
		complain(stderr, err)
		return exitFailed
	}
	return 0
}

// moveProcess returns the capture's name once the process is in it, also where an
// error follows.
func moveProcess(ctx context.Context, o options, asked *prompt.Person, stderr io.Writer) (id string, err error) {
	process, err := openProcess(o.pid) // nobody else can get its number unnoticed from here on
	if err != nil {
		return "", err
	}
	defer process.Close()
	if o.pid == os.Getpid() {
		return "", errors.New("--pid: this is ssh-capture itself")
	}
	o.command = commandOf(o.pid)
	captured, err := dialCaptured(ctx)
	if err != nil {
		return "", err
	}
	defer captured.Close()
	s, broker, err := newSession(ctx, o, asked, stderr)
	if err != nil {
		return "", err
	}
	if broker.PID == o.pid {
		broker.Close()
		return "", fmt.Errorf("process %d is the broker that would carry its connections", o.pid)
	}
	made, err := captured.Make(ctx, s.args.ID)
	if err != nil {
		broker.Close()
		return "", err
	}
	s.args.Backend, s.inside = backendCgroup, inside{Cgroup: made.Cgroup}
	// Served first: a process cannot be taken out again if that fails.
	if err := s.serve(ctx, broker); err != nil {
		return "", err
	}
	defer s.close()
	if err := captured.Enter(ctx, s.args.ID, process); err != nil {
		if answer := (*service.Error)(nil); errors.As(err, &answer) && answer.Code == service.CodeForbidden {
			return "", &control.Error{Message: err.Error(), Hint: "run ssh-capture as that user: a capture takes the connections of its owner alone"}
		}
		return "", err
	}
	if before := children(o.pid); len(before) > 0 {
		fmt.Fprintf(stderr, "ssh-capture: warning: processes that %d has started before are not captured: %s\n", o.pid, strings.Join(before, " "))
	}
	if err := startKeeper(s); err != nil {
		return s.args.ID, fmt.Errorf("process %d is captured, but without a keeper: %w", o.pid, err)
	}
	return s.args.ID, nil
}

// commandOf is a process's command line, for people.
func commandOf(pid int) []string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
}

// children lists the children of all threads of a process, as far as this kernel
// tells (CONFIG_PROC_CHILDREN).
func children(pid int) []string {
	var found []string
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, file := range files {
		b, _ := os.ReadFile(file)
		found = append(found, strings.Fields(string(b))...)
	}
	return found
}
