package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/broker/control"
)

// tell has a running broker do one thing, and returns the exit code.
func (o *options) tell(ctx context.Context, address string, stderr io.Writer,
	do func(context.Context, *control.Client, io.Writer) error) int {

	c, err := control.Dialer{Address: address, AnyOwner: o.address != "" || o.system}.Dial(ctx)
	if err != nil {
		complain(stderr, err)
		if errors.Is(err, control.ErrNoBroker) {
			program := "ssh-broker"
			if o.system {
				program += " --system"
			}
			fmt.Fprintf(stderr, "ssh-broker: hint: start one with %s\n", program)
			return exitNone
		}
		return exitFailed
	}
	defer c.Close()
	if err := do(ctx, c, stderr); err != nil {
		complain(stderr, err)
		return exitFailed
	}
	return exitDone
}

// stay makes a running broker what we would have started: one that runs until it is
// told to stop.
func (o *options) stay(ctx context.Context, c *control.Client, stderr io.Writer) error {
	if o.config != "" {
		return &control.Error{Message: fmt.Sprintf("a broker runs already as process %d, %s was not read", c.PID, o.config),
			Hint: "ssh-broker --exit, then start again; or choose another address with -a"}
	}
	status, err := statusOf(ctx, c)
	if err != nil {
		return err
	}
	if status.Mode != control.ModeOnDemand {
		fmt.Fprintf(stderr, "ssh-broker: runs already as process %d\n", c.PID)
		return nil
	}
	if err := c.Call(ctx, control.OpStay, nil, nil, nil, nil); err != nil {
		return err
	}
	fmt.Fprintf(stderr, "ssh-broker: ran on demand as process %d, stays now\n", c.PID)
	return nil
}

func statusOf(ctx context.Context, c *control.Client) (status control.StatusRow, err error) {
	err = c.Call(ctx, control.OpStatus, nil, nil, func(b json.RawMessage) error { return json.Unmarshal(b, &status) }, nil)
	return status, err
}

// warn tells whoever has started a broker what it cannot say itself from the
// background.
func warn(ctx context.Context, c *control.Client, stderr io.Writer) error {
	status, err := statusOf(ctx, c)
	if err != nil {
		return err
	}
	for _, w := range status.Warnings {
		fmt.Fprintf(stderr, "ssh-broker: warning: %s\n", w)
	}
	if status.Audit.Error != "" {
		fmt.Fprintf(stderr, "ssh-broker: warning: the audit record cannot be written, connections go unrecorded: %s\n", status.Audit.Error)
	}
	return nil
}

func reload(ctx context.Context, c *control.Client, _ io.Writer) error {
	return c.Call(ctx, control.OpReload, nil, nil, nil, nil)
}

// exitBroker has a running broker end. One that is about to is waited for.
func (o *options) exitBroker(ctx context.Context, address string, stderr io.Writer) int {
	stopping := false
	for deadline := time.Now().Add(endTime); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		c, err := control.Dialer{Address: address, AnyOwner: o.address != "" || o.system}.Dial(ctx)
		if err == nil {
			c.Close()
		}
		answer := (*control.Error)(nil)
		switch {
		case errors.As(err, &answer) && answer.Code == control.CodeStopping:
			stopping = true
		case stopping && errors.Is(err, control.ErrNoBroker):
			return exitDone
		default:
			return o.tell(ctx, address, stderr, stop)
		}
	}
	return o.tell(ctx, address, stderr, stop)
}

// endTime is how long a broker may take to end that was told to cut everything.
const endTime = 15 * time.Second

// stop has the broker end, and waits until it has: whoever starts the next one is not
// to meet it.
func stop(ctx context.Context, c *control.Client, _ io.Writer) error {
	// Before the call: afterwards the number may be another process's.
	pidfd, err := unix.PidfdOpen(c.PID, 0)
	if err == nil {
		defer unix.Close(pidfd)
	}
	cerr := c.Call(ctx, control.OpStop, control.StopArgs{}, nil, nil, nil)
	if cerr != nil && !errors.Is(cerr, control.ErrBrokerGone) {
		return cerr
	}
	if err != nil {
		return nil // it is in another pid namespace
	}
	for deadline := time.Now().Add(endTime); time.Now().Before(deadline); {
		left := time.Until(deadline).Milliseconds()
		if n, _ := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(left)); n > 0 {
			return nil
		}
	}
	return fmt.Errorf("process %d was told to stop and has not ended within %v", c.PID, endTime)
}
