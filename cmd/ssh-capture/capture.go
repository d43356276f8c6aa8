package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"sshbroker/broker/control"
	"sshbroker/broker/prompt"
	"sshbroker/capture/command"
	"sshbroker/capture/inherit"
	"sshbroker/capture/message"
	"sshbroker/capture/netns"
	"sshbroker/capture/service/client"
)

var errNoBroker = errors.New("no broker can be reached or started")

// session is one capture as this process holds it: the process that becomes the
// command, copies of the descriptors, and the broker that serves them.
type session struct {
	process *os.Process // becomes the command; nil where none of ours does
	child   child       // its other side
	inside  inside
	files   []*os.File // of a namespace: the capture's descriptors
	probes  *os.File   // with --strict: where the process that becomes the command is asked for probes

	args   control.CaptureArgs
	ensure control.EnsureOptions
	person *prompt.Person // nil where nobody can be asked
	stderr io.Writer

	told   chan struct{} // has a token after each event
	cancel context.CancelFunc
	done   chan struct{} // closed when nobody looks after the broker any more
}

// child is the process that becomes the command. It waits until Release.
type child interface {
	Release() error // nil once it is the command
	Abort()
}

// openCapture makes the capture and waits until a broker serves it, with every
// question answered that has to be asked first.
func openCapture(ctx context.Context, o options, path string, started inherit.State, asked *prompt.Person, stderr io.Writer) (*session, error) {
	captured, err := o.chooseBackend(ctx, path, stderr)
	if err != nil {
		return nil, err
	}
	if captured != nil {
		defer captured.Close()
	}
	s, broker, err := newSession(ctx, o, asked, stderr)
	if err != nil {
		return nil, err
	}
	if err = s.makeChild(ctx, o, captured, path, started); err == nil {
		err = s.serve(ctx, broker)
	}
	if err != nil {
		broker.Close()
		s.abort()
		return nil, err
	}
	return s, nil
}

// newSession has a broker to serve a capture that is yet to be made. It is started
// before, and by us, so that it is outside.
func newSession(ctx context.Context, o options, asked *prompt.Person, stderr io.Writer) (*session, *control.Client, error) {
	ensure, err := brokerToUse(o)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", errNoBroker, err)
	}
	broker, err := connect(ctx, ensure)
	if answer := (*control.Error)(nil); errors.As(err, &answer) && answer.Code == control.CodeConfig {
		return nil, nil, err // a broker could be had: -F is not for rules that are wrong
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", errNoBroker, err)
	}
	o.trace(stderr, 3, "broker %s is process %d", ensure.Address, broker.PID)
	args, err := captureArgs(o, newID())
	if err != nil {
		broker.Close()
		return nil, nil, err
	}
	return &session{args: args, ensure: ensure, person: asked, stderr: stderr,
		told: make(chan struct{}, 1), done: make(chan struct{})}, broker, nil
}

// makeChild makes the capture, by cgroup where ssh-captured was reached, and in it
// the process that becomes the command.
func (s *session) makeChild(ctx context.Context, o options, captured *client.Client, path string, started inherit.State) error {
	var theirs *os.File
	if o.strict {
		var err error
		if s.probes, theirs, err = command.Pair("probes"); err != nil {
			return err
		}
		defer theirs.Close()
	}
	run, err := o.inPlace(path, theirs)
	if err != nil {
		return err
	}
	if captured != nil {
		err := s.inCgroup(ctx, captured, run, started)
		switch {
		case err == nil:
			warnSetID(path, s.stderr)
			return nil
		case o.backend == backendCgroup || !canDoWithout(err):
			return fmt.Errorf("capture by cgroup: %w", err)
		}
		// A namespace protects no less: what the broker does not carry gets nowhere.
		o.trace(s.stderr, 3, "warning: captured in a namespace, as not by cgroup: %v", err)
		if err := refuseSetID(path); err != nil {
			return err
		}
	}
	return s.inNamespace(o, run, started)
}

func (s *session) inNamespace(o options, run program, started inherit.State) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	c, err := netns.Start(netns.Options{
		Self: self, Path: run.path, Argv: run.argv, ID: s.args.ID,
		AllNames: o.via != "", UDPRelay: o.udp == "direct", Inherit: started,
	})
	if err != nil {
		return err
	}
	s.process, s.child, s.files, s.inside = c.Process, c, c.Files, inside{Namespace: &c.Manifest}
	s.args.Manifest, err = json.Marshal(c.Manifest)
	return err
}

// brokerToUse says where the broker is, and how one is started if none is there.
func brokerToUse(o options) (control.EnsureOptions, error) {
	address, err := control.Address(o.address, os.Getenv)
	if err != nil {
		return control.EnsureOptions{}, err
	}
	return control.EnsureOptions{
		Address: address, AnyOwner: o.address != "",
		Start: control.StartOptions{Address: address},
	}, nil
}

// connect starts a broker where none runs, but never inside a capture: it could not
// serve the capture around it, nor reach anything but through it.
func connect(ctx context.Context, ensure control.EnsureOptions) (*control.Client, error) {
	if !isCaptured() {
		return control.Ensure(ctx, ensure)
	}
	client, err := control.Dialer{Address: ensure.Address, AnyOwner: ensure.AnyOwner}.Dial(ctx)
	if errors.Is(err, control.ErrNoBroker) {
		return nil, fmt.Errorf("%w, and none is started inside a capture", err)
	}
	return client, err
}

func captureArgs(o options, id string) (control.CaptureArgs, error) {
	config := o.config
	if config != "" {
		var err error
		if config, err = filepath.Abs(config); err != nil {
			return control.CaptureArgs{}, err
		}
	}
	command := o.command
	if len(command) > 8 {
		command = command[:8] // for people; arguments can be long
	}
	return control.CaptureArgs{
		ID: id, Via: o.via, ConfigFile: config, Localhost: o.localhost, UDPDirect: o.udp == "direct",
		AllowDirect: o.allowDirect, Debug: int(o.debug), Command: command,
		Agent: os.Getenv("SSH_AUTH_SOCK"),
	}, nil
}

// serve has the broker take the capture, and from then on looks after it: when the
// broker is gone, a new one takes the capture over.
func (s *session) serve(ctx context.Context, client *control.Client) error {
	life, cancel := context.WithCancel(context.Background())
	serving := make(chan error, 1)
	go func() {
		defer close(s.done)
		s.lookAfter(life, client, serving)
	}()
	select {
	case err := <-serving:
		if err != nil {
			cancel()
			<-s.done
			return err
		}
	case <-ctx.Done():
		cancel()
		<-s.done
		return context.Cause(ctx)
	}
	s.cancel = cancel
	return nil
}

// lookAfter reports on serving once: nil when the first broker serves, or why it
// does not.
func (s *session) lookAfter(ctx context.Context, client *control.Client, serving chan<- error) {
	err := s.offer(ctx, client, s.person.Ask, func() { serving <- nil })
	client.Close()
	// A broker that ends while we come is no reason to fail: the next one will do.
	for range 3 {
		if s.args.Takeover || ctx.Err() != nil || !isGone(err) {
			break
		}
		if client, err = connect(ctx, s.ensure); err == nil {
			err = s.offer(ctx, client, s.person.Ask, func() { serving <- nil })
			client.Close()
		}
	}
	if !s.args.Takeover {
		serving <- err // it never served
		return
	}
	for pause := 10 * time.Millisecond; ctx.Err() == nil; pause = min(2*pause, 2*time.Second) {
		client, cerr := connect(ctx, s.ensure)
		if cerr == nil {
			served := false
			// Nobody is asked again: the terminal is the command's now.
			err = s.offer(ctx, client, nil, func() { served = true })
			client.Close()
			if served {
				pause = 10 * time.Millisecond
				continue
			}
		} else {
			err = cerr
		}
		if ctx.Err() != nil {
			return
		}
		if pause > time.Second {
			fmt.Fprintf(s.stderr, "ssh-capture: no broker takes the capture over, connections wait: %v\n", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// isGone says that a broker has ended, or is about to, before it did what it was asked.
func isGone(err error) bool {
	var answer *control.Error
	return errors.Is(err, control.ErrBrokerGone) || errors.As(err, &answer) && answer.Code == control.CodeStopping
}

// offer gives the capture to a broker and returns when the broker is gone.
func (s *session) offer(ctx context.Context, client *control.Client, ask control.Prompter, serving func()) error {
	return client.Call(ctx, control.OpCapture, s.args, s.files, func(b json.RawMessage) error {
		var row control.CaptureRow
		if err := json.Unmarshal(b, &row); err != nil {
			return err
		}
		for _, w := range row.Warnings {
			fmt.Fprintf(s.stderr, "ssh-capture: warning: %s\n", w)
		}
		if row.Event != nil {
			fmt.Fprintf(s.stderr, "ssh-capture: %s\n", row.Event.Text)
			select {
			case s.told <- struct{}{}:
			default:
			}
		}
		if row.Serving && ctx.Err() == nil {
			s.args.Takeover = true // what comes after this broker takes over
			serving()
		}
		return nil
	}, ask)
}

// settle waits for the last events where they were asked for: what they tell of may
// have ended the command before they are here.
func (s *session) settle() {
	const quiet, most = 100 * time.Millisecond, time.Second
	if s.args.Debug < 5 {
		return
	}
	limit := time.After(most)
	for {
		select {
		case <-s.told:
		case <-time.After(quiet):
			return
		case <-limit:
			return
		}
	}
}

// handOver leaves the capture to a keeper if the command left processes behind: they
// stay captured, and need somebody who starts a new broker when theirs is gone.
func (s *session) handOver() error {
	if empty, err := s.inside.empty(); err == nil && empty {
		return nil
	}
	return startKeeper(s)
}

// close gives the capture up. The broker serves it until its last process ends.
func (s *session) close() {
	if s.cancel != nil {
		s.cancel()
		<-s.done
	}
	message.CloseAll(s.files)
}

// abort ends the process that was to become the command, and with it the capture.
func (s *session) abort() {
	if s.child != nil {
		s.child.Abort()
	}
	s.close()
}

// newID names a capture: short, for prompts, and not to be guessed from another.
func newID() string { return strings.ToLower(rand.Text()[:10]) }
