// Command ssh-gateway is the far end of TLS tunnels: mutual TLS in front, services
// behind. It runs as an account of its own; it never needs root. See ssh-gateway(8).
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"sshbroker/broker/control"
	"sshbroker/broker/gateway"
	"sshbroker/broker/gateway/gwconfig"
	"sshbroker/broker/heap"
)

const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

// defaultConfig is where the configuration is, unless --config says otherwise.
const defaultConfig = "/etc/ssh-gateway/ssh-gateway.yaml"

func main() {
	code := run(context.Background(), os.Args[1:], os.Stdout, os.Stderr)
	os.Exit(code)
}

type options struct {
	config string
	check  bool
	debug  bool
}

// usage is an error of the command line.
type usage struct{ error }

func (u usage) Unwrap() error { return u.error }
func (u usage) ExitCode() int { return exitUsage }

// run is main without the process around it.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	cmd := newCommand()
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return exitDone
	}
	return complain(stderr, err)
}

// complain prints an error, with what to do about it, and returns its exit code.
func complain(w io.Writer, err error) int {
	fmt.Fprintf(w, "ssh-gateway: %v\n", err)
	if hinted, ok := errors.AsType[interface {
		error
		Hint() string
	}](err); ok && hinted.Hint() != "" {
		fmt.Fprintf(w, "hint: %s\n", hinted.Hint())
	}
	if coded, ok := errors.AsType[interface {
		error
		ExitCode() int
	}](err); ok {
		return coded.ExitCode()
	}
	return exitFailed
}

func newCommand() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "ssh-gateway [options]",
		Short: "Let clients with certificates reach services, and these alone",
		Long: `Take TLS connections of clients that show a certificate, decide by the configuration
what each of them may reach, and carry it there: streams of ssh-broker's TLS tunnels,
HTTP CONNECT, or bytes as they are to the target of a service.

It stays in the foreground. SIGHUP has it read its configuration again; what is carried
goes on where it is still allowed. SIGTERM ends it, after the time that the
configuration gives to what is carried.`,
		Example: `  ssh-gateway --config gateway.yaml
  ssh-gateway check gateway.yaml`,
		Args: arguments(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.check {
				return check(cmd.OutOrStdout(), o.config)
			}
			return o.serve(cmd.Context(), cmd.ErrOrStderr())
		},
		SilenceErrors: true, SilenceUsage: true,
		Version: control.Version(),
	}
	cmd.CompletionOptions.HiddenDefaultCmd = true
	cmd.DisableFlagsInUseLine = true
	cmd.SetVersionTemplate("ssh-gateway {{.Version}}\n")
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usage{fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())}
	})
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVarP(&o.config, "config", "f", defaultConfig, "read the configuration from this `FILE`")
	f.BoolVar(&o.check, "check", false, "check the configuration, and serve nothing")
	f.BoolVarP(&o.debug, "debug", "D", false, "log more: each connection and each flow")
	f.BoolP("version", "V", false, "print the version")
	f.BoolP("help", "h", false, "print this help")
	cmd.AddCommand(checkCommand(), caCommand())
	return cmd
}

// arguments wants so many of them.
func arguments(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < n:
			return usage{fmt.Errorf("a file is missing; see %s --help", cmd.CommandPath())}
		case len(args) > n:
			return usage{fmt.Errorf("%q is one argument too many; see %s --help", args[n], cmd.CommandPath())}
		}
		return nil
	}
}

func checkCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check FILE",
		Short: "Check a configuration",
		Long: `Print all errors of a configuration, or its warnings, each with line and column. The
files that it names are looked at where they can be read. Exit code 1 tells of errors.`,
		Args: arguments(1),
		RunE: func(cmd *cobra.Command, args []string) error { return check(cmd.OutOrStdout(), args[0]) },
	}
	cmd.DisableFlagsInUseLine = true
	cmd.Flags().BoolP("help", "h", false, "print this help")
	return cmd
}

// check prints what is to be said of a configuration.
func check(out io.Writer, file string) error {
	problems, err := gwconfig.Check(file, time.Now())
	if err != nil {
		return err
	}
	wrong := 0
	for _, p := range problems {
		fmt.Fprintln(out, p)
		if p.Hint != "" {
			fmt.Fprintf(out, "  hint: %s\n", p.Hint)
		}
		if !p.Warning {
			wrong++
		}
	}
	if wrong > 0 {
		return fmt.Errorf("%s cannot be used: %d errors", file, wrong)
	}
	return nil
}

// serve is the gateway itself. It returns nil after it was asked to stop.
func (o *options) serve(ctx context.Context, stderr io.Writer) error {
	// Before there is anything: who starts us may lose interest at once.
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGHUP, unix.SIGTERM, unix.SIGINT)
	defer signal.Stop(signals)
	unix.Umask(0o077)
	level := slog.LevelInfo
	if o.debug {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	g, err := gateway.New(gateway.Options{Load: func() (*gwconfig.Config, error) { return o.load(log) }, Log: log, Version: control.Version()})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go heap.Keep(ctx)
	go onSignals(ctx, signals, g, log)
	notify(log, daemon.SdNotifyReady)
	return g.Run(ctx)
}

// load reads the configuration and logs its warnings.
func (o *options) load(log *slog.Logger) (*gwconfig.Config, error) {
	cfg, err := gwconfig.Load(o.config)
	if err != nil {
		return nil, fmt.Errorf("the configuration cannot be used:\n%w", err)
	}
	for _, w := range cfg.Warnings {
		log.Warn("configuration", "warning", w.String())
	}
	return cfg, nil
}

// onSignals has SIGHUP reload and the others stop: the second of them at once.
func onSignals(ctx context.Context, signals <-chan os.Signal, g *gateway.Gateway, log *slog.Logger) {
	told := false
	for {
		var s os.Signal
		select {
		case <-ctx.Done():
			return
		case s = <-signals:
		}
		switch {
		case s == unix.SIGHUP:
			var now unix.Timespec
			_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) // cannot fail
			notify(log, fmt.Sprintf("%s\nMONOTONIC_USEC=%d", daemon.SdNotifyReloading, now.Nano()/1000))
			if err := g.Reload(); err != nil {
				log.Error("the old configuration stays in force", "error", err)
			}
			notify(log, daemon.SdNotifyReady)
		case told:
			log.Warn("told to stop twice: connections are ended now")
			g.Abort()
		default:
			told = true
			notify(log, daemon.SdNotifyStopping)
			g.Stop(g.Draining())
		}
	}
}

// notify tells the service manager, where there is one.
func notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("the service manager cannot be told", "error", err)
	}
}
