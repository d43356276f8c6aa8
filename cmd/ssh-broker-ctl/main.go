package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/term"

	"sshbroker/broker/config"
	"sshbroker/broker/control"
	"sshbroker/capture/service/client"
)

// The exit codes.
const (
	exitDone     = 0
	exitFailed   = 1
	exitUsage    = 2
	exitNoBroker = 3 // nor, for what needs it, an ssh-captured
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is main without the process around it.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{out: &output{w: stdout}, err: stderr, getenv: os.Getenv, width: terminalWidth(stdout), globalFile: config.DefaultGlobalFile}
	return a.run(ctx, args, stdin)
}

func (a *app) run(ctx context.Context, args []string, stdin io.Reader) int {
	root := a.command()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(a.out)
	root.SetErr(a.err)
	err := root.ExecuteContext(ctx)
	if err == nil {
		err = a.out.err
	}
	return a.report(err)
}

// usageError is a command line that cannot be understood.
type usageError struct{ error }

// errSilent fails without a word: what is to be said has been said.
var errSilent = errors.New("failed")

// report says what went wrong and returns the exit code for it.
func (a *app) report(err error) int {
	var usage usageError
	var answer *control.Error
	code, hint := exitFailed, ""
	switch {
	case err == nil:
		return exitDone
	case errors.Is(err, errSilent):
		return exitFailed
	case errors.As(err, &usage):
		code = exitUsage
	case errors.Is(err, control.ErrNoBroker):
		code = exitNoBroker
		hint = "start one with ssh-broker-ctl start; ssh-capture starts one by itself"
		if a.system {
			hint = noSystemBroker
		}
	case errors.Is(err, client.ErrNotRunning):
		code = exitNoBroker
		hint = hintOf(err)
	case errors.As(err, &answer):
		hint = answer.Hint
	case a.system && errors.Is(err, fs.ErrPermission):
		hint = "only root, and members of the group that ssh-broker --system was started for with --admin-group, may talk to it"
	default:
		hint = hintOf(err)
	}
	if code == exitNoBroker && a.quiet {
		return code
	}
	fmt.Fprintf(a.err, "ssh-broker-ctl: %s\n", printable(err.Error()))
	if hint != "" {
		fmt.Fprintf(a.err, "hint: %s\n", printable(hint))
	}
	return code
}

// output remembers the first error, so that "disk full" is not a success.
type output struct {
	w   io.Writer
	err error
}

func (o *output) Write(b []byte) (int, error) {
	n, err := o.w.Write(b)
	if err != nil && o.err == nil {
		o.err = fmt.Errorf("standard output: %w", err)
	}
	return n, err
}

// terminalWidth is 0 where w is no terminal.
func terminalWidth(w io.Writer) int {
	f, ok := w.(*os.File)
	if !ok {
		return 0
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil || width < 20 {
		return 0
	}
	return width
}

// printable keeps what came from elsewhere from steering the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' || r >= 0x7f && r < 0xa0 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
			return '?'
		}
		return r
	}, s)
}
