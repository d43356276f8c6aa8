package cgroup

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
)

func (l *Leaf) slice() string { return fmt.Sprintf("user-%d.slice", l.UID) }

// startScope has PID 1 make the scope, with a placeholder in it.
func (l *Leaf) startScope(ctx context.Context) error {
	// PID 1's own socket, which is there before the system bus is, and without one.
	conn, err := dbus.NewSystemdConnectionContext(ctx)
	if err != nil {
		return fmt.Errorf("connect to systemd: %w", err)
	}
	defer conn.Close()
	cmd := exec.Command("/bin/sh", "-c", "read _")
	cmd.Env = []string{}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is not meant for it
	if _, err := cmd.StdinPipe(); err != nil {            // Wait closes it
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	l.settled = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})

	unit, done := filepath.Base(l.Path), make(chan string, 1)
	_, err = conn.StartTransientUnitContext(ctx, unit, "fail", []dbus.Property{
		dbus.PropDescription("Programs under ssh-capture " + l.ID),
		dbus.PropSlice(l.slice()),
		dbus.PropPids(uint32(cmd.Process.Pid)),
		{Name: "CollectMode", Value: godbus.MakeVariant("inactive-or-failed")},
		{Name: "DelegateControllers", Value: godbus.MakeVariant([]string{})},
	}, done)
	if err != nil {
		return fmt.Errorf("start %s: %w", unit, err)
	}
	select {
	case result := <-done:
		if path, err := OfProcess(cmd.Process.Pid); err != nil || l.tree.Mount+path != l.Path {
			return fmt.Errorf("start %s: systemd says %q, its process is in %q (%v)", unit, result, path, err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("start %s: %w", unit, ctx.Err())
	}
}
