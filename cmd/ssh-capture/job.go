package main

import (
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// superviseJob waits for the command and keeps the terminal's job control working
// for whoever started us: what stops the command stops us, what continues us
// continues it. It returns the exit code, 128+n for an end by signal n.
func superviseJob(pid int) int {
	continued := make(chan os.Signal, 1)
	signal.Notify(continued, unix.SIGCONT)
	hang := 0 // WNOHANG when we have just been continued
	for {
		var st unix.WaitStatus
		n, err := unix.Wait4(pid, &st, unix.WUNTRACED|unix.WCONTINUED|hang, nil)
		hang = 0
		switch {
		case err == unix.EINTR:
		case err != nil:
			return exitFailed
		case n == 0:
			// The stop that we followed is still the last that happened to it. Had it
			// been continued, and stopped anew, this would undo the new stop.
			resume(pid)
		case st.Exited():
			return st.ExitStatus()
		case st.Signaled():
			return 128 + int(st.Signal())
		case st.Stopped():
			// This may be old news, read only after fg: acting on it would stop the
			// job a second time. Without a terminal there is no job control, and
			// nobody who would continue us when the command goes on.
			if hasTerminal() && isStopped(pid) {
				stopSelf(continued)
				hang = unix.WNOHANG
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
			giveTerminal(fd, group)
		}
	}
	_ = unix.Kill(pid, unix.SIGCONT)
}

// giveTerminal works in a thread that blocks SIGTTOU: should we be in the background
// by now, the kernel would stop us for it.
func giveTerminal(tty, group int) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var block, saved unix.Sigset_t
	block.Val[0] = 1 << (unix.SIGTTOU - 1)
	if unix.PthreadSigmask(unix.SIG_BLOCK, &block, &saved) != nil {
		return
	}
	_ = unix.IoctlSetPointerInt(tty, unix.TIOCSPGRP, group)
	_ = unix.PthreadSigmask(unix.SIG_SETMASK, &saved, nil)
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
