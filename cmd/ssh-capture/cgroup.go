package main

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"sshbroker/capture/command"
	"sshbroker/capture/inherit"
	"sshbroker/capture/service/client"
)

// insideCgroupArg is the first argument of the process that waits in a capture's
// cgroup until it may become the command.
const insideCgroupArg = "--inside-cgroup"

// inCgroup has ssh-captured make a cgroup and puts the process into it that becomes
// the command.
func (s *session) inCgroup(ctx context.Context, captured *client.Client, run program, started inherit.State) error {
	made, err := captured.Make(ctx, s.args.ID)
	if err != nil {
		return err
	}
	w, err := startWaiting(run.path, run.argv, release{s.args.ID, started})
	if err != nil {
		return err
	}
	if err := enter(ctx, captured, s.args.ID, w.Process); err != nil {
		w.Abort()
		return err
	}
	s.process, s.child, s.inside = w.Process, w, inside{Cgroup: made.Cgroup}
	s.args.Backend = backendCgroup
	return nil
}

// enter moves a child of ours, which nobody has waited for: its number is its own.
func enter(ctx context.Context, captured *client.Client, id string, p *os.Process) error {
	pidfd, err := openProcess(p.Pid)
	if err != nil {
		return err
	}
	defer pidfd.Close()
	return captured.Enter(ctx, id, pidfd)
}

func openProcess(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// release is what the waiting process is told.
type release struct {
	ID      string        `json:"id"`
	Inherit inherit.State `json:"inherit"`
}

// waiting is a process of ours that becomes the command.
type waiting struct {
	*command.Child
	release release
}

func startWaiting(path string, argv []string, r release) (waiting, error) {
	self, err := os.Executable()
	if err != nil {
		return waiting{}, err
	}
	c, err := command.Start(command.Options{Self: self, Arg: insideCgroupArg, Path: path, Argv: argv})
	return waiting{c, r}, err
}

func (w waiting) Release() error { return w.Child.Release(w.release) }

// becomeCommand is the life of the waiting process; args are those behind
// insideCgroupArg. It does not return.
func becomeCommand(args []string) {
	w := command.Inside(args)
	var r release
	w.Hear(&r)
	w.Become(r.ID, r.Inherit)
}
