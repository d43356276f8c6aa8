package client

import (
	"context"
	"errors"
	"fmt"
	"os"

	"sshbroker/capture/message"
	"sshbroker/capture/service"
)

// Client is a connection for single requests. Its methods are safe for concurrent use.
// Where ssh-captured refuses, a *service.Error is in their error; where it is gone,
// ErrLost: the Client is of no more use then.
type Client struct{ session *session }

// Dial connects to ssh-captured at path; "" takes the place that is usual. program names
// the caller. The errors are ErrNotRunning, that of a version which does not fit
// (service.CodeVersion), or that somebody else than root answers.
func Dial(ctx context.Context, path, program string) (*Client, error) {
	return Dialer{Path: path, Program: program}.Dial(ctx)
}

// Dial is like the function of that name.
func (d Dialer) Dial(ctx context.Context) (*Client, error) {
	w, err := d.dial(ctx, nil)
	if err != nil {
		return nil, err
	}
	ignore := func(_ *session, _ *service.Message, files []*os.File) { message.CloseAll(files) }
	return &Client{newSession(w, ignore, nil)}, nil
}

// Close ends the connection. What was made stays.
func (c *Client) Close() { c.session.shut() }

// Make makes a cgroup for the capture of that id, which is the caller's from now on.
func (c *Client) Make(ctx context.Context, id string) (service.Made, error) {
	a, err := c.ask(ctx, service.Message{Op: service.OpMake, Capture: id})
	switch {
	case err != nil:
		return service.Made{}, fmt.Errorf("make capture %s: %w", id, err)
	case a.Made == nil:
		return service.Made{}, fmt.Errorf("make capture %s: %w", id, errEmpty)
	}
	return *a.Made, nil
}

// Enter moves the process behind pidfd, and what it starts from now on, into a capture.
// Process and capture are the caller's. The caller keeps pidfd.
func (c *Client) Enter(ctx context.Context, id string, pidfd *os.File) error {
	if _, err := c.ask(ctx, service.Message{Op: service.OpEnter, Capture: id}, pidfd); err != nil {
		return fmt.Errorf("enter capture %s: %w", id, err)
	}
	return nil
}

// Connector turns system-wide capture on or off.
func (c *Client) Connector(ctx context.Context, enable bool) error {
	if _, err := c.ask(ctx, service.Message{Op: service.OpConnector, Enable: &enable}); err != nil {
		return fmt.Errorf("connector: %w", err)
	}
	return nil
}

// Status asks what is going on.
func (c *Client) Status(ctx context.Context) (service.Status, error) {
	a, err := c.ask(ctx, service.Message{Op: service.OpStatus})
	switch {
	case err != nil:
		return service.Status{}, fmt.Errorf("status: %w", err)
	case a.Status == nil:
		return service.Status{}, fmt.Errorf("status: %w", errEmpty)
	}
	return *a.Status, nil
}

// Release opens everything and forgets it: nothing is captured any more.
func (c *Client) Release(ctx context.Context) error {
	if _, err := c.ask(ctx, service.Message{Op: service.OpRelease}); err != nil {
		return fmt.Errorf("release: %w", err)
	}
	return nil
}

var errEmpty = errors.New("the answer says nothing")

func (c *Client) ask(ctx context.Context, m service.Message, files ...*os.File) (answer, error) {
	a, err := c.session.call(ctx, m, files...)
	message.CloseAll(a.files) // none belongs there
	return a, err
}
