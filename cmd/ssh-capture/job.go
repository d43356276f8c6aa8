package main

import (
	"fmt"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// discarded reach the command as well, as both share the terminal's foreground
// group. They are caught, not ignored: an ignored signal is inherited.
var discarded = []os.Signal{unix.SIGINT, unix.SIGQUIT}

// forwarded hit this process only.
var forwarded = []os.Signal{unix.SIGTERM, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2}

// signalGate passes signals on: to abort while the capture is being made, to the
// command once it runs.
type signalGate struct {
	command atomic.Int64 // its process id; 0 before it runs
}

// interrupted is the cause by which a signal ends the making of a capture.
type interrupted syscall.Signal

func (i interrupted) Error() string { return syscall.Signal(i).String() }

// newSignalGate starts catching signals, but for those that whoever started us had
// us ignore: the command inherits that.
func newSignalGate(abort func(syscall.Signal)) *signalGate {
	signals := make(chan os.Signal, 16)
	for _, s := range append(discarded[:len(discarded):len(discarded)], forwarded...) {
		if !signal.Ignored(s) {
			signal.Notify(signals, s)
		}
	}
	g := &signalGate{}
	go g.pass(signals, abort)
	return g
}

func (g *signalGate) pass(signals <-chan os.Signal, abort func(syscall.Signal)) {
	for s := range signals {
		sig := s.(syscall.Signal)
		pid := int(g.command.Load())
		switch {
		case pid == 0:
			abort(sig)
		case sig == unix.SIGINT || sig == unix.SIGQUIT: // the terminal told the command itself
		default:
			_ = unix.Kill(pid, sig)
		}
	}
}

// superviseJob waits for the command and keeps the terminal's job control working
// for whoever started us: what stops the command stops us, what continues us
// continues it. It returns the exit code, 128+n for an end by signal n.
func (g *signalGate) superviseJob(pid int) int {
	g.command.Store(int64(pid))
	continued := make(chan os.Signal, 1)
	signal.Notify(continued, unix.SIGCONT)
	for {
		var st unix.WaitStatus
		_, err := unix.Wait4(pid, &st, unix.WUNTRACED|unix.WCONTINUED, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return exitFailed
		case st.Exited():
			return st.ExitStatus()
		case st.Signaled():
			return 128 + int(st.Signal())
		case st.Stopped():
			// Ctrl-Z stopped us as well, and this may be read only after fg: acting
			// on old news would stop the job a second time.
			if isStopped(pid) {
				stopSelf(continued)
				resume(pid)
			}
		}
	}
}

// stopSelf returns when this process was stopped and continued. The stop does not
// happen at once in the thread that asks for it.
func stopSelf(continued chan os.Signal) {
	select {
	case <-continued: // an old one
	default:
	}
	_ = unix.Kill(os.Getpid(), unix.SIGSTOP)
	<-continued
}

// resume continues the command, and gives it the terminal back if it leads a group
// of its own while the terminal is ours.
func resume(pid int) {
	if tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0); err == nil {
		defer tty.Close()
		fd := int(tty.Fd())
		foreground, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
		group, gerr := unix.Getpgid(pid)
		if err == nil && gerr == nil && foreground == unix.Getpgrp() && group != foreground {
			signal.Ignore(unix.SIGTTOU)
			_ = unix.IoctlSetPointerInt(fd, unix.TIOCSPGRP, group)
			signal.Reset(unix.SIGTTOU)
		}
	}
	_ = unix.Kill(pid, unix.SIGCONT)
}

// isStopped reads the state behind the name in /proc/PID/stat, which may itself
// contain anything.
func isStopped(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	i := strings.LastIndexByte(string(b), ')')
	return i >= 0 && strings.HasPrefix(string(b[i+1:]), " T")
}
