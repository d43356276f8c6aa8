package trial

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/broker/control"
)

// Programs are the paths of what is tried.
type Programs struct {
	Capture string // ssh-capture
	Broker  string // ssh-broker; "": the one beside this program, else on PATH
}

// Trial is a broker with rules of its own. The caller closes it.
type Trial struct {
	Dir string // private, and gone with the Trial

	programs Programs
	address  string
	rules    string // a file
}

// endTime is how long the broker may take to end.
const endTime = 5 * time.Second

// Open starts a broker with that configuration.
func Open(ctx context.Context, programs Programs, configuration string) (*Trial, error) {
	dir, err := os.MkdirTemp("", "ssh-trial-")
	if err != nil {
		return nil, fmt.Errorf("trial: %w", err)
	}
	t := &Trial{Dir: dir, programs: programs, address: filepath.Join(dir, "broker"), rules: filepath.Join(dir, "rules.xml")}
	if err = os.WriteFile(t.rules, []byte(configuration), 0o600); err == nil {
		_, err = control.Start(ctx, control.StartOptions{Program: programs.Broker, Address: t.address, ConfigFile: t.rules,
			Extra: []string{"--trial", "--audit-file", filepath.Join(dir, "audit.jsonl")}})
	}
	if err != nil {
		os.RemoveAll(dir)
		return nil, fmt.Errorf("trial: %w", err)
	}
	return t, nil
}

// Command is a command in a capture of the trial's; options are further ones of ssh-capture.
// It ends with ctx, by SIGTERM.
func (t *Trial) Command(ctx context.Context, options []string, command ...string) *exec.Cmd {
	// The rules are the capture's own: should the broker die, ssh-capture starts another.
	args := append([]string{"-a", t.address, "-f", t.rules}, options...)
	cmd := exec.CommandContext(ctx, t.programs.Capture, append(append(args, "--"), command...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = endTime
	return cmd
}

// Close ends the broker and removes what was made.
func (t *Trial) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), endTime)
	defer cancel()
	err := t.stop(ctx)
	return errors.Join(err, os.RemoveAll(t.Dir))
}

func (t *Trial) stop(ctx context.Context) error {
	c, err := control.Dialer{Address: t.address}.Dial(ctx)
	switch {
	case errors.Is(err, control.ErrNoBroker):
		return nil
	case err != nil:
		return fmt.Errorf("end the trial's broker: %w", err)
	}
	defer c.Close()
	pidfd, err := unix.PidfdOpen(c.PID, 0) // before it is told: its number may be another's afterwards
	if err != nil {
		return fmt.Errorf("end the trial's broker, process %d: %w", c.PID, err)
	}
	defer unix.Close(pidfd)
	if err := c.Call(ctx, control.OpStop, control.StopArgs{}, nil, nil, nil); err != nil && !errors.Is(err, control.ErrBrokerGone) {
		return fmt.Errorf("end the trial's broker: %w", err)
	}
	end, _ := ctx.Deadline()
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, max(0, int(time.Until(end).Milliseconds())))
		switch {
		case err == unix.EINTR:
		case n == 0 || err != nil:
			return fmt.Errorf("the trial's broker, process %d, does not end", c.PID)
		default:
			return nil
		}
	}
}

// said collects what a program says on standard error, without limit on neither side: it is
// read to its end, and the last of it is kept.
type said struct {
	mu   sync.Mutex
	text bytes.Buffer
}

const saidMost = 8 << 10

// Write implements io.Writer.
func (s *said) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text.Write(b)
	if n := s.text.Len() - saidMost; n > 0 {
		s.text.Next(n)
	}
	return len(b), nil
}

// String is what was said, without the last newline.
func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.TrimSpace(s.text.String())
}
