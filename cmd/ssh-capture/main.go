// Command ssh-capture runs a command whose TCP connections are caught before they
// leave the host, judged by the broker's filter rules, and carried over SSH where a
// rule says so. See ssh-capture(1).
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"sshbroker/broker/control"
	"sshbroker/capture/netns"
)

// Exit codes that are ours; every other one is the command's.
const (
	exitFailed    = 125 // we could not do our part
	exitCannotRun = 126 // the command was found and cannot be run
	exitNotFound  = 127
)

func main() {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case netns.InsideArg:
			netns.Inside(os.Args[2:])
		case keepArg:
			os.Exit(keep(os.Args[2:]))
		}
	}
	os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}

// options are what the command line says.
type options struct {
	via         string
	config      string
	address     string
	localhost   bool
	fallback    bool
	allowDirect bool
	udp         string
	debug       int
	backend     string
	command     []string
}

// run does everything and returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var o options
	code := 0
	cmd := newCommand(&o, func() { code = captureCommand(ctx, o, stderr) })
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	if err := cmd.ExecuteContext(ctx); err != nil {
		complain(stderr, err)
		return exitFailed
	}
	return code
}

func newCommand(o *options, do func()) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ssh-capture [options] COMMAND [ARGS]...",
		Short: "Run a command with its TCP connections captured",
		Long: `Run COMMAND with every TCP connection that it and its children open caught before
it leaves the host. The filter rules of ssh-broker-config.xml decide what becomes of
each: carried over SSH, let through, or refused. With --via no configuration is
needed: everything goes through that server, and names are resolved there.

Options end at the first word that is none.`,
		Example: `  ssh-capture --via me@bastion psql -h db.internal
  ssh-capture telnet host.example.com
  ssh-capture bash`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("no command to run; see ssh-capture --help")
			}
			return nil
		},
		PreRunE:       func(_ *cobra.Command, _ []string) error { return o.check() },
		Run:           func(_ *cobra.Command, args []string) { o.command = args; do() },
		SilenceErrors: true, SilenceUsage: true,
		Version: control.Version(),
	}
	cmd.SetVersionTemplate("ssh-capture {{.Version}}\n")
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.SortFlags = false
	f.StringVar(&o.via, "via", "", "send everything through this SSH server, `[user@]host[:port]` or an alias of ~/.ssh/config")
	f.StringVarP(&o.config, "config-file", "f", "", "take the rules from this `FILE` for this command alone")
	f.StringVarP(&o.address, "broker-address", "a", "", "use the broker at this socket `PATH` (also "+control.EnvAddress+")")
	f.BoolVarP(&o.localhost, "localhost", "l", false, "judge connections to the local host by the rules as well")
	f.BoolVarP(&o.fallback, "fallback", "F", false, "run COMMAND uncaptured, with a warning, if no broker can be reached or started")
	f.BoolVar(&o.allowDirect, "allow-direct", false, "run COMMAND even if no filter rules exist: everything goes out in clear")
	f.StringVar(&o.udp, "udp", "refuse", "what becomes of UDP other than name queries: `refuse|direct`")
	f.IntVarP(&o.debug, "debug", "D", 0, "tell on standard error: `LEVEL` 1 fatal errors, 3 start-up, 5 connections, 7 name queries")
	f.StringVar(&o.backend, "backend", "auto", "how to capture: `auto|namespace`")
	f.BoolP("version", "V", false, "print the version")
	f.BoolP("help", "h", false, "print this help")
	return cmd
}

// check refuses options that contradict each other or cannot be served.
func (o *options) check() error {
	switch {
	case o.via != "" && o.config != "":
		return errors.New("--via needs no configuration: it cannot be used together with -f")
	case o.via != "" && o.fallback:
		return errors.New("-F would send in clear what --via promises to protect: use one of the two")
	case o.via != "" && o.allowDirect:
		return errors.New("--allow-direct has no meaning with --via")
	case o.backend != "auto" && o.backend != "namespace":
		return fmt.Errorf("--backend %q: it is auto or namespace", o.backend)
	case o.udp != "refuse" && o.udp != "direct":
		return fmt.Errorf("--udp %q: it is refuse or direct", o.udp)
	case o.debug < 0 || o.debug > 9:
		return fmt.Errorf("-D %d: it is 1, 3, 5 or 7", o.debug)
	}
	return nil
}

// complain prints an error, and its cure where there is one.
func complain(w io.Writer, err error) {
	fmt.Fprintf(w, "ssh-capture: %v\n", err)
	var answer *control.Error
	var forbidden *netns.ForbiddenError
	hint := ""
	switch {
	case errors.As(err, &answer):
		hint = answer.Hint
	case errors.As(err, &forbidden):
		hint = forbidden.Cure
	}
	if hint != "" {
		fmt.Fprintf(w, "ssh-capture: hint: %s\n", strings.ReplaceAll(hint, "\n", "\n                   "))
	}
}

// captureCommand runs the command inside a capture and returns its exit code.
func captureCommand(ctx context.Context, o options, stderr io.Writer) int {
	path, err := findCommand(o.command[0])
	if err != nil {
		complain(stderr, err)
		if errors.Is(err, errNotFound) {
			return exitNotFound
		}
		return exitCannotRun
	}
	o.trace(stderr, 3, "command is %s", path)

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	gate := newSignalGate(func(s syscall.Signal) { cancel(interrupted(s)) })

	c, err := openCapture(ctx, o, path, stderr)
	switch {
	case err == nil:
	case errors.As(context.Cause(ctx), new(interrupted)):
		return 128 + int(context.Cause(ctx).(interrupted))
	case errors.Is(err, errNoBroker) && o.fallback:
		fmt.Fprintf(stderr, "ssh-capture: warning: %v\n", err)
		fmt.Fprintf(stderr, "ssh-capture: warning: %s runs UNCAPTURED, its connections are not protected (-F)\n", o.command[0])
		signal.Reset()
		err := syscall.Exec(path, o.command, os.Environ())
		complain(stderr, fmt.Errorf("%s: %w", path, err))
		return exitCannotRun
	default:
		complain(stderr, err)
		return exitFailed
	}
	if err := c.child.Release(); err != nil {
		complain(stderr, err)
		c.close()
		_, _ = c.child.Process.Wait()
		if errors.Is(err, syscall.ENOENT) {
			return exitNotFound
		}
		return exitCannotRun
	}
	o.trace(stderr, 3, "command runs as process %d in capture %s", c.child.Process.Pid, c.args.ID)
	code := gate.superviseJob(c.child.Process.Pid)
	if err := c.handOver(); err != nil {
		complain(stderr, fmt.Errorf("processes in the background lose their keeper: %w", err))
	}
	c.close()
	return code
}

func (o *options) trace(w io.Writer, level int, format string, args ...any) {
	if o.debug >= level {
		fmt.Fprintf(w, "ssh-capture: "+format+"\n", args...)
	}
}
