// Command ssh-captured is the privileged part of system-wide and cgroup captures. See
// ssh-captured(8).
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"os/user"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"sshbroker/capture/captured"
	"sshbroker/capture/keep"
	"sshbroker/capture/loglimit"
	"sshbroker/capture/privilege"
	"sshbroker/capture/processors"
	"sshbroker/capture/service"
)

// version is set by the build.
var version = "unknown"

// failpointEnv names the state at which tests have the process killed, STATE=FILE:
// whoever removes the file is the one that dies.
const failpointEnv = "SSH_CAPTURED_TEST_FAILPOINT"

const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
	exitBroken = 3 // it served: the next one may do better, which a service manager starts
)

// errServing is the class of what ends an ssh-captured that was up.
var errServing = errors.New("serving")

// capabilities are all that this program ever has; the last one for BPF alone.
var capabilities = []privilege.Capability{unix.CAP_NET_ADMIN, unix.CAP_SYS_PTRACE, unix.CAP_DAC_OVERRIDE, unix.CAP_BPF}

type options struct {
	captured.Options
	adminGroup string
	debug      bool
	release    bool
	noKeeper   bool
	ownership  string
	origin     string
	began      bool // what goes wrong is no matter of usage any more
}

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	var o options
	cmd := newCommand(&o)
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	err := cmd.Execute()
	if err == nil {
		return exitDone
	}
	fmt.Fprintf(stderr, "ssh-captured: %v\n", err)
	if answer, ok := errors.AsType[*service.Error](err); ok && answer.Hint != "" {
		fmt.Fprintf(stderr, "ssh-captured: hint: %s\n", answer.Hint)
	}
	switch {
	case errors.Is(err, errServing):
		return exitBroken
	case o.began:
		return exitFailed
	}
	return exitUsage
}

func newCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ssh-captured [options]",
		Short: "Capture TCP connections for whole hosts and for cgroups",
		Long: `Hold the connections of captured programs in the kernel until a broker has decided
about them. This is the only privileged program; it knows no rules but addresses and
ports, and carries nothing.

It stays in the foreground. Started by hand, it has a parent of its own that keeps its
sockets and starts it again when it dies; a service manager does that itself.`,
		Example: `  ssh-captured                    as root, or as a service
  ssh-captured --release          open everything again, and forget it`,
		Args:          cobra.NoArgs,
		PreRunE:       func(*cobra.Command, []string) error { return o.check() },
		RunE:          func(cmd *cobra.Command, _ []string) error { return o.run(cmd.ErrOrStderr()) },
		SilenceErrors: true, SilenceUsage: true,
		Version: version,
	}
	cmd.CompletionOptions.DisableDefaultCmd = true
	cmd.DisableFlagsInUseLine = true
	cmd.SetVersionTemplate("ssh-captured {{.Version}}\n")
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return fmt.Errorf("%w; see ssh-captured --help", err)
	})
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVarP(&o.Socket, "socket", "a", service.DefaultSocket, "listen at this socket `PATH`")
	f.StringVar(&o.StateDir, "state-dir", "/var/lib/ssh-captured", "keep in this `DIR` what has to outlive the process")
	f.StringVar(&o.adminGroup, "admin-group", "", "let members of this `GROUP` set system-wide rules, not root alone (default ssh-broker, if there is that group)")
	f.BoolVar(&o.release, "release", false, "open everything again: end all captures and switch system-wide capture off")
	f.StringVar(&o.origin, "origin", "auto", "find the process behind a connection by `auto|proc`: a BPF program where the kernel takes it, or /proc alone")
	f.BoolVar(&o.noKeeper, "no-keeper", false, "have no parent that keeps the sockets: connections wait longer when this process dies")
	f.StringVar(&o.ownership, "ownership", "auto", "do as on a kernel that knows no persistent, or no owned tables: `auto|owner|none`")
	_ = f.MarkHidden("ownership")
	f.BoolVarP(&o.debug, "debug", "D", false, "log more")
	f.BoolP("version", "V", false, "print the version")
	f.BoolP("help", "h", false, "print this help")
	return cmd
}

func (o *options) check() error {
	switch {
	case o.origin != "auto" && o.origin != "proc":
		return fmt.Errorf("--origin %q: it is auto or proc", o.origin)
	case o.ownership != "auto" && o.ownership != "owner" && o.ownership != "none":
		return fmt.Errorf("--ownership %q: it is auto, owner or none", o.ownership)
	}
	return nil
}

func (o *options) run(stderr io.Writer) error {
	o.began = true
	need := capabilities
	if o.origin == "proc" {
		need = need[:len(need)-1]
	}
	if err := privilege.Reduce(need...); err != nil {
		return err
	}
	level := slog.LevelInfo
	if o.debug {
		level = slog.LevelDebug
	}
	limited := loglimit.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	defer limited.Flush()
	o.Log, o.Suppressed = slog.New(limited), limited.Suppressed
	o.Program = "ssh-captured " + version
	return o.serve()
}

func (o *options) serve() (err error) {
	if o.release {
		return captured.Release(o.Options)
	}
	if o.Admins, err = adminGroup(o.adminGroup); err != nil {
		return err
	}
	if o.Keep, err = keep.Open(); err != nil {
		return err
	}
	signal.Ignore(unix.SIGHUP) // there is nothing to read again
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	if o.Keep.Kind() == keep.None && !o.noKeeper {
		if code := keep.Supervise(ctx, os.Args, os.Environ(), o.Log); code != 0 {
			os.Exit(code)
		}
		return nil
	}
	lock, err := captured.Lock(o.StateDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	o.NoBPF = o.origin == "proc"
	o.NoPersist, o.NoOwner = o.ownership != "auto", o.ownership == "none"
	o.Failpoint = failpoint(o.Log)
	s, err := captured.New(o.Options)
	if err != nil {
		return err
	}
	go processors.Keep(ctx)
	if err := s.Run(ctx); err != nil {
		return fmt.Errorf("%w: %w", errServing, err)
	}
	return nil
}

// adminGroup is the id of the group whose members may set system-wide rules, -1 for none.
func adminGroup(name string) (int, error) {
	if gid, err := strconv.Atoi(name); err == nil {
		return gid, nil
	}
	g, err := user.LookupGroup(cmp.Or(name, "ssh-broker"))
	switch {
	case err == nil:
		return strconv.Atoi(g.Gid)
	case name == "":
		return -1, nil
	}
	return -1, fmt.Errorf("--admin-group %s: %w", name, err)
}

func failpoint(log *slog.Logger) func(string) {
	at, file, ok := strings.Cut(os.Getenv(failpointEnv), "=")
	if !ok {
		return nil
	}
	return func(state string) {
		if state == at && os.Remove(file) == nil {
			log.Error("failpoint", "state", state)
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
	}
}
