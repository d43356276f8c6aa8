// Command ssh-broker decides what becomes of captured connections and carries them.
// It runs as the user, or with --system as a service's account for all users; it never
// needs root. See ssh-broker(1).
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"log/syslog"
	"os"
	"os/signal"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"sshbroker/broker/audit"
	"sshbroker/broker/config"
	"sshbroker/broker/control"
	"sshbroker/broker/daemon"
	"sshbroker/broker/eventlog"
	"sshbroker/broker/heap"
	"sshbroker/capture/processors"
	"sshbroker/profiles/creds"
)

// failpointEnv names the state of a flow at which tests have the broker killed.
const failpointEnv = "SSH_BROKER_TEST_FAILPOINT"

const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
	exitNone   = 3 // no broker to talk to
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}

type options struct {
	address    string
	config     string
	debug      string
	logFile    string
	pidFile    string
	exit       bool
	reconfig   bool
	foreground bool
	onDemand   bool
	auditFile  string
	system     bool
	stateDir   string
	adminGroup string
	trial      bool // see broker/trial

	auditRequired bool
	readyFD       int
	notified      bool // readiness was told, or could not be
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var o options
	code := exitDone
	cmd := newCommand(&o, func(ctx context.Context) { code = o.run(ctx, stderr) })
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	if err := cmd.ExecuteContext(ctx); err != nil {
		complain(stderr, err)
		return exitUsage
	}
	return code
}

func newCommand(o *options, do func(context.Context)) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ssh-broker [options]",
		Short: "Decide about captured connections and carry them over SSH",
		Long: `Load ssh-broker-config.xml, serve the captures of this user, and keep the SSH
connections that their flows go through.

Started by hand it goes to the background once it serves. ssh-capture starts one on
demand, which ends ten seconds after its last client.

With --system it decides about the connections of all users, as ssh-captured hands
them over, by the rules of /etc/ssh2/ssh-broker-config.xml.`,
		Example: `  ssh-broker                      start in the background
  ssh-broker -f rules.xml -D 5 --foreground
  ssh-broker --reconfig           have the running broker read its configuration again
  ssh-broker --exit               stop the running broker and cut its connections
  ssh-broker --system --foreground --admin-group netadmin`,
		Args:          cobra.NoArgs,
		PreRunE:       func(*cobra.Command, []string) error { return o.check() },
		Run:           func(cmd *cobra.Command, _ []string) { do(cmd.Context()) },
		SilenceErrors: true, SilenceUsage: true,
		Version: control.Version(),
	}
	cmd.DisableFlagsInUseLine = true
	cmd.SetVersionTemplate("ssh-broker {{.Version}}\n")
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return fmt.Errorf("%w; see ssh-broker --help", err)
	})
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVarP(&o.address, "broker-address", "a", "", "listen at this socket `PATH` (also "+control.EnvAddress+")")
	f.StringVarP(&o.config, "config-file", "f", "", "read this `FILE` in place of ~/.ssh2/ssh-broker-config.xml, or of the global one with --system")
	f.StringVarP(&o.debug, "debug", "D", "", "log at this `LEVEL`: 0-99, or MODULE=LEVEL,...")
	f.StringVarP(&o.logFile, "debug-log-file", "l", "", "log to this `FILE`")
	f.StringVar(&o.auditFile, "audit-file", "", "write the audit record to this `FILE` (default ~/.ssh2/ssh-broker-audit.jsonl)")
	f.BoolVar(&o.auditRequired, "audit-required", false, "refuse connections while the audit record cannot be written")
	f.BoolVar(&o.system, "system", false, "be the broker of the whole system, at "+control.SystemAddress)
	f.StringVar(&o.stateDir, "state-dir", "", "with --system, keep made-up addresses in this `DIR` (default "+systemStateDir+")")
	f.StringVar(&o.adminGroup, "admin-group", "", "with --system, obey the members of this `GROUP`, not only root")
	f.StringVar(&o.pidFile, "pid-file", "", "write the process id to this `FILE`")
	f.BoolVar(&o.exit, "exit", false, "stop the running broker, closing all connections")
	f.BoolVar(&o.reconfig, "reconfig", false, "have the running broker read its configuration again")
	f.BoolVar(&o.foreground, "foreground", false, "stay in the foreground and log to standard error")
	f.BoolVar(&o.onDemand, "run-on-demand", false, "end when nobody needs this broker any more")
	f.IntVar(&o.readyFD, "ready-fd", -1, "")
	f.BoolVar(&o.trial, "trial", false, "go by the file of -f alone, and carry nothing for the broker of the whole system")
	_ = f.MarkHidden("trial")
	_ = f.MarkHidden("run-on-demand")
	_ = f.MarkHidden("ready-fd")
	f.BoolP("version", "V", false, "print the version")
	f.BoolP("help", "h", false, "print this help")
	return cmd
}

// check refuses options that contradict each other or cannot be served.
func (o *options) check() error {
	if o.exit && o.reconfig {
		return errors.New("--exit and --reconfig: use one of the two")
	}
	if err := o.checkSystem(); err != nil {
		return err
	}
	if o.debug != "" {
		_, err := daemon.ParseLevel(o.debug)
		return err
	}
	return nil
}

func (o *options) run(ctx context.Context, stderr io.Writer) int {
	address, err := o.socket()
	if err != nil {
		complain(stderr, err)
		return exitFailed
	}
	switch {
	case o.exit:
		return o.exitBroker(ctx, address, stderr)
	case o.reconfig:
		return o.tell(ctx, address, stderr, reload)
	case o.readyFD >= 0:
		err := control.CloseInherited(o.readyFD)
		if err == nil {
			err = o.serve(ctx, address, stderr)
		}
		switch {
		case err == nil:
			return exitDone
		case !o.notified: // afterwards the descriptor may be another file's
			_ = control.NotifyFailed(o.readyFD, err)
		}
		return exitFailed
	case o.foreground:
		if err := o.serve(ctx, address, stderr); err != nil {
			complain(stderr, err)
			return exitFailed
		}
		return exitDone
	}
	return o.background(ctx, address, stderr)
}

// socket is the path of the broker's socket. A user's environment does not move the
// system's.
func (o *options) socket() (string, error) {
	if o.system {
		return control.Address(cmp.Or(o.address, control.SystemAddress), os.Getenv)
	}
	return control.Address(o.address, os.Getenv)
}

// background starts the broker that stays. One that runs on demand is told to stay.
func (o *options) background(ctx context.Context, address string, stderr io.Writer) int {
	self, err := os.Executable()
	if err != nil {
		complain(stderr, err)
		return exitFailed
	}
	extra, err := o.passedOn()
	if err != nil {
		complain(stderr, err)
		return exitUsage
	}
	pid, err := control.Start(ctx, control.StartOptions{Program: self, Address: address, ConfigFile: o.config, Daemon: true, Extra: extra})
	switch {
	case errors.Is(err, control.ErrRunning):
		return o.tell(ctx, address, stderr, o.stay)
	case err != nil:
		complain(stderr, err)
		return exitFailed
	}
	fmt.Fprintf(stderr, "ssh-broker: runs as process %d\n", pid)
	return o.tell(ctx, address, stderr, warn)
}

// passedOn are the options that the broker in the background gets as well.
func (o *options) passedOn() ([]string, error) {
	var extra []string
	if o.debug != "" {
		extra = append(extra, "-D", o.debug)
	}
	if o.auditRequired {
		extra = append(extra, "--audit-required")
	}
	if o.system {
		extra = append(extra, "--system")
	}
	if o.adminGroup != "" {
		extra = append(extra, "--admin-group", o.adminGroup)
	}
	for _, file := range []struct{ option, path string }{
		{"-l", o.logFile}, {"--pid-file", o.pidFile}, {"--audit-file", o.auditFile}, {"--state-dir", o.stateDir},
	} {
		if file.path == "" {
			continue
		}
		path, err := filepath.Abs(file.path) // it runs in /
		if err != nil {
			return nil, err
		}
		extra = append(extra, file.option, path)
	}
	return extra, nil
}

// serve is the broker itself. It returns nil after it was asked to stop.
func (o *options) serve(ctx context.Context, address string, stderr io.Writer) error {
	// Before there is anything to leave behind: whoever started us may lose interest
	// and tell us to end while we are coming up.
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGHUP, unix.SIGTERM, unix.SIGINT)
	defer signal.Stop(signals)
	unix.Umask(0o077) // not that of whoever happened to start it; 0137 makes unusable directories
	level := new(slog.LevelVar)
	level.Set(slog.LevelWarn)
	if o.debug != "" {
		l, err := daemon.ParseLevel(o.debug)
		if err != nil {
			return err
		}
		level.Set(l)
	}
	log, closeLog, err := o.openLog(stderr, level)
	if err != nil {
		return err
	}
	defer closeLog()
	admins, err := o.admins()
	if err != nil {
		return err
	}
	if o.system {
		if err := o.systemPlaces(address); err != nil {
			return err
		}
	}
	env, err := o.environment()
	if err != nil {
		return err
	}
	l, err := control.Listen(address)
	if err != nil {
		return err
	}
	defer l.RemoveDir() // captures that end while we stop leave their name maps until then
	if o.auditFile == "" {
		// Nobody has made it yet where --via does without a configuration. Where it
		// cannot be made, the audit log says so.
		_ = os.MkdirAll(env.UserDir(), 0o700)
	}
	auditLog, err := audit.Open(audit.Options{Path: o.auditPath(env.UserDir()), Keep: auditKeep, Required: o.auditRequired, Logger: log})
	if err != nil {
		l.Close()
		return err
	}
	if err := auditLog.Stats().Failing; err != nil {
		log.Warn("the audit record cannot be written, connections go unrecorded", "error", err)
	}
	events := eventlog.New(eventlog.Options{Logger: log})
	defer events.Close()
	conf := config.Options{Env: env, GlobalFile: config.DefaultGlobalFile, File: o.config}
	if o.trial {
		conf.GlobalFile = ""
	}
	if o.system {
		conf = config.Options{Env: env, GlobalFile: config.DefaultGlobalFile, System: true}
		if o.config != "" { // in its place, and it must be there
			conf.GlobalFile, conf.File = "", o.config
		}
	}
	go heap.Keep(ctx)
	go processors.Keep(ctx)
	keys := new(creds.Keyring)
	d, err := daemon.New(daemon.Options{Listener: l, Config: conf, OnDemand: o.onDemand, MaxFlows: maxFlows(), Audit: auditLog, AuditPath: o.auditPath(env.UserDir()),
		Tunnels: newTunnels(log, daemon.Observer(events), keys), Keys: keys, Events: events, Log: log, Level: level, Failure: failpoint(log),
		StateDir: cmp.Or(o.stateDir, filepath.Dir(l.Address())), Home: env.Home, System: o.system, Admins: admins, NoCarry: o.trial})
	if err != nil {
		l.Close()
		auditLog.Close()
		if answer := (*control.Error)(nil); errors.As(err, &answer) && answer.Code == control.CodeConfig { // a line each, for editors to jump to
			answer.Message = "the configuration cannot be used:\n" + answer.Message
		}
		return err
	}
	if o.pidFile != "" {
		if err := writePIDFile(o.pidFile); err != nil {
			l.Close()
			auditLog.Close()
			return fmt.Errorf("pid file: %w", err)
		}
		defer os.Remove(o.pidFile)
	}
	defer onSignals(signals, d, log)()
	if o.readyFD >= 0 {
		o.notified = true
		if err := control.NotifyReady(o.readyFD); err != nil {
			log.Warn("readiness", "error", err)
		}
	}
	return d.Run(ctx)
}

// writePIDFile makes a file that everybody may read, whatever the umask.
func writePIDFile(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, os.Getpid())
	return errors.Join(err, f.Chmod(0o644), f.Close())
}

// onSignals has SIGHUP reload, SIGTERM and SIGINT drain and stop.
func onSignals(signals chan os.Signal, d *daemon.Daemon, log *slog.Logger) (stop func()) {
	go func() {
		for s := range signals {
			if s != unix.SIGHUP {
				d.Stop(drainOnSignal)
				continue
			}
			if _, err := d.Reload(); err != nil {
				log.Error("reload", "error", err)
			}
		}
	}()
	return func() {
		signal.Stop(signals)
		close(signals)
	}
}

// drainOnSignal is how long flows may go on after SIGTERM; service managers kill
// after 90 s.
const drainOnSignal = 10 * time.Second

// openLog opens the log: a file where one is named, else standard error, and for a
// broker in the background, which has none, the system's log.
func (o *options) openLog(stderr io.Writer, level *slog.LevelVar) (*slog.Logger, func(), error) {
	options := &slog.HandlerOptions{Level: level}
	if o.logFile != "" {
		f, err := os.OpenFile(o.logFile, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return nil, nil, fmt.Errorf("log file: %w", err)
		}
		return slog.New(slog.NewTextHandler(f, options)), func() { f.Close() }, nil
	}
	if o.readyFD >= 0 {
		if w, err := syslog.New(syslog.LOG_DAEMON|syslog.LOG_NOTICE, "ssh-broker"); err == nil {
			options.ReplaceAttr = withoutTime
			return slog.New(slog.NewTextHandler(w, options)), func() { w.Close() }, nil
		}
	}
	return slog.New(slog.NewTextHandler(stderr, options)), func() {}, nil
}

// withoutTime leaves the time to the system's log, which has its own.
func withoutTime(groups []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey && len(groups) == 0 {
		return slog.Attr{}
	}
	return a
}

// maxFlows leaves a descriptor for each flow and some for us. Flows in clear need
// more, and are refused for want of them when the time comes.
func maxFlows() int {
	const own = 64
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil {
		return 0
	}
	n := int(min(limit.Cur, 1<<22))
	return max(n-own, n/2)
}

func (o *options) auditPath(userDir string) string {
	if o.auditFile != "" {
		return o.auditFile
	}
	return filepath.Join(userDir, "ssh-broker-audit.jsonl")
}

// auditKeep is how many full audit files are kept beside the current one.
const auditKeep = 4

// environment is what values of the configuration may refer to.
func (o *options) environment() (config.Env, error) {
	env := config.Env{Home: os.Getenv("HOME"), UID: os.Getuid(), GID: os.Getgid(), Environ: os.Environ()}
	// An account need not be in /etc/passwd, nor USER be set: then its number will do.
	if u, err := user.Current(); err == nil {
		env.User = u.Username
		if !filepath.IsAbs(env.Home) {
			env.Home = u.HomeDir
		}
	} else {
		env.User = cmp.Or(os.Getenv("LOGNAME"), strconv.Itoa(env.UID))
	}
	if o.system { // a service's account may have none, and should not
		env.Home = o.stateDir
	}
	if !filepath.IsAbs(env.Home) {
		return config.Env{}, fmt.Errorf("uid %d has no home directory: set HOME", env.UID)
	}
	if g, err := user.LookupGroupId(strconv.Itoa(env.GID)); err == nil {
		env.Group = g.Name
	}
	return env, nil
}

// failpoint kills the process once, at one state of a flow, for tests of what a crash
// there leaves: the environment names the state and a file, STATE=FILE, and whoever
// removes the file is the one that dies. Who can set our environment can kill us anyway.
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

func complain(w io.Writer, err error) {
	fmt.Fprintf(w, "ssh-broker: %v\n", err)
	var answer *control.Error
	if errors.As(err, &answer) && answer.Hint != "" {
		fmt.Fprintf(w, "ssh-broker: hint: %s\n", answer.Hint)
	}
}
