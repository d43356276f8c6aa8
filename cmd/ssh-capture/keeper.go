package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"

	"sshbroker/broker/control"
)

// keepArg is the first argument of the keeper: the process that looks after a
// capture when the command has ended and left processes in the background.
const keepArg = "--keep-capture"

// bequest is what the keeper gets on its standard input; the descriptors follow
// from number 4 on, and 3 is where it says that it has them.
type bequest struct {
	Args     control.CaptureArgs `json:"args"`
	Inside   inside              `json:"inside"`
	Files    int                 `json:"files"`
	Address  string              `json:"address"`
	AnyOwner bool                `json:"any_owner"`
}

func startKeeper(s *session) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command(self, keepArg)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		w.Close()
		return err
	}
	cmd.ExtraFiles = append([]*os.File{w}, s.files...)
	err = cmd.Start()
	w.Close()
	if err != nil {
		return err
	}
	err = json.NewEncoder(stdin).Encode(bequest{s.args, s.inside, len(s.files), s.ensure.Address, s.ensure.AnyOwner})
	stdin.Close()
	if err != nil {
		return err
	}
	if b, err := io.ReadAll(r); err != nil || len(b) == 0 {
		return fmt.Errorf("keeper %d did not come up", cmd.Process.Pid)
	}
	return cmd.Process.Release()
}

// keep is the keeper's life: until the capture's last process ends.
func keep([]string) int {
	var b bequest
	if err := json.NewDecoder(os.Stdin).Decode(&b); err != nil {
		fmt.Fprintf(os.Stderr, "%s is for ssh-capture's own use\n", keepArg)
		return exitFailed
	}
	var files []*os.File
	for i := range b.Files {
		syscall.CloseOnExec(4 + i)
		files = append(files, os.NewFile(uintptr(4+i), "capture"))
	}
	// What else the command's starter had open is not for us to hold open: a pipe's
	// reader would wait for its end.
	_ = control.CloseInherited(3)
	ready := os.NewFile(3, "ready")

	s := &session{
		inside: b.Inside, files: files, args: b.Args, stderr: io.Discard,
		ensure: control.EnsureOptions{Address: b.Address, AnyOwner: b.AnyOwner, Start: control.StartOptions{Address: b.Address}},
		done:   make(chan struct{}),
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	go func() {
		defer close(s.done)
		// The broker that serves the capture just takes note of its new keeper.
		if client, err := connect(ctx, s.ensure); err == nil {
			s.lookAfter(ctx, client, make(chan error, 1))
		}
	}()
	_, _ = ready.WriteString("ready\n")
	ready.Close()
	_ = s.inside.waitEmpty(ctx)
	s.close()
	return 0
}
