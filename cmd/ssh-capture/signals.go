package main

import (
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"sshbroker/capture/inherit"
)

// interrupting and stopping reach the command as well, as both share the terminal's
// foreground group. They are caught, not ignored: an ignored signal is inherited. And
// not obeyed: whether the command ends or stops, and when, is its own decision; an
// editor puts the terminal in order first. superviseJob follows it.
var (
	interrupting = []os.Signal{unix.SIGINT, unix.SIGQUIT}
	stopping     = []os.Signal{unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU}
)

// forwarded hit this process only. SIGALRM is of whoever set an alarm before the exec.
var forwarded = []os.Signal{unix.SIGTERM, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM}

// signalGate passes signals on: to abort while the capture is being made, to the
// command once it runs.
type signalGate struct {
	abort    func(syscall.Signal)
	terminal bool // there is one, so those signals are its business
	signals  chan os.Signal

	mu      sync.Mutex
	came    syscall.Signal // the first one, while there was no command
	command *os.Process    // nil before it runs
}

// interrupted is the cause by which a signal ends the making of a capture.
type interrupted syscall.Signal

func (i interrupted) Error() string { return syscall.Signal(i).String() }

// newSignalGate starts catching signals, but for those that whoever started us had
// us ignore: the command inherits that.
func newSignalGate(started inherit.State, abort func(syscall.Signal)) *signalGate {
	g := &signalGate{abort: abort, terminal: hasTerminal(), signals: make(chan os.Signal, 16)}
	for _, s := range slices.Concat(interrupting, forwarded) {
		if sig := s.(syscall.Signal); started.Ignores(sig) {
			signal.Ignore(sig) // the runtime has put a handler there
		} else {
			signal.Notify(g.signals, sig)
		}
	}
	// Whoever reads our messages may go away; the command has to be waited for.
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
	go func() {
		for s := range g.signals {
			g.pass(s.(syscall.Signal))
		}
	}()
	return g
}

func (g *signalGate) pass(sig syscall.Signal) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.command == nil:
		if g.came == 0 {
			g.came = sig
		}
		g.abort(sig)
	case g.terminal && slices.Contains(slices.Concat(interrupting, stopping), os.Signal(sig)): // the command has it too
	default:
		_ = g.command.Signal(sig) // by pidfd: to nobody else, once it has ended
	}
}

// toCommand has signals go to the command from now on. It returns the one that came
// before, if one did: then the command is not to run.
func (g *signalGate) toCommand(p *os.Process) (before syscall.Signal) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.came == 0 {
		g.command = p
		signal.Notify(g.signals, stopping...)
	}
	return g.came
}

// hasTerminal says whether this process has a controlling terminal.
func hasTerminal() bool {
	tty, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	tty.Close()
	return true
}
