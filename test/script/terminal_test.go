package script

import (
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// terminal is a program under a terminal of its own, and the person in front of it.
type terminal struct {
	t      testing.TB
	master *os.File
	slave  *os.File // kept open, so that what was written last can still be read
	cmd    *exec.Cmd

	mu    sync.Mutex
	text  strings.Builder // all that was shown
	seen  int             // of it, by expect
	more  chan struct{}   // closed and replaced when something is shown
	ended chan struct{}   // closed when the program has ended
}

// openTerminal starts the command as the leader of a session with a terminal of 24
// lines and 80 columns.
func (p *place) openTerminal(cmd *exec.Cmd) *terminal {
	p.t.Helper()
	master, slave, err := pty.Open()
	if err != nil {
		p.t.Fatal(err)
	}
	tty := &terminal{t: p.t, master: master, slave: slave, cmd: cmd, more: make(chan struct{}), ended: make(chan struct{})}
	tty.resize(24, 80)
	if err := slave.Chown(p.uid, p.gid); err != nil {
		p.t.Fatal(err)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty = true, true
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		tty.readAll()
	}()
	go func() {
		defer close(tty.ended)
		_ = cmd.Wait()
	}()
	p.t.Cleanup(func() {
		if p.t.Failed() {
			for _, left := range p.processes("") {
				p.t.Logf("process %v is in state %s", left, state(left.pid))
			}
		}
		_ = cmd.Process.Kill()
		<-tty.ended
		slave.Close()
		master.Close()
		<-read
		if p.t.Failed() {
			p.t.Logf("terminal:\n%s", tty.shown())
		}
	})
	return tty
}

func (tty *terminal) readAll() {
	b := make([]byte, 4096)
	for {
		n, err := tty.master.Read(b)
		tty.mu.Lock()
		tty.text.Write(b[:n])
		close(tty.more)
		tty.more = make(chan struct{})
		tty.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (tty *terminal) shown() string {
	tty.mu.Lock()
	defer tty.mu.Unlock()
	return tty.text.String()
}

// expect waits until text is shown behind what was expected before, and returns what
// came in between.
func (tty *terminal) expect(text string) string {
	tty.t.Helper()
	timeout := time.After(patience)
	for {
		tty.mu.Lock()
		rest, more := tty.text.String()[tty.seen:], tty.more
		if i := strings.Index(rest, text); i >= 0 {
			tty.seen += i + len(text)
			tty.mu.Unlock()
			return rest[:i]
		}
		tty.mu.Unlock()
		select {
		case <-more:
		case <-timeout:
			tty.t.Fatalf("terminal does not show %q but\n%q", text, rest)
		}
	}
}

// say types a line.
func (tty *terminal) say(line string) { tty.press(line + "\r") }

// Keys that make signals.
const (
	ctrlC = "\x03"
	ctrlD = "\x04"
	ctrlZ = "\x1a"
)

func (tty *terminal) press(keys string) {
	tty.t.Helper()
	if _, err := tty.master.WriteString(keys); err != nil {
		tty.t.Fatal(err)
	}
}

func (tty *terminal) resize(rows, cols uint16) {
	tty.t.Helper()
	if err := pty.Setsize(tty.master, &pty.Winsize{Rows: rows, Cols: cols}); err != nil {
		tty.t.Fatal(err)
	}
}

func (tty *terminal) modes() unix.Termios {
	tty.t.Helper()
	t, err := unix.IoctlGetTermios(int(tty.slave.Fd()), unix.TCGETS)
	if err != nil {
		tty.t.Fatal(err)
	}
	return *t
}

// wait returns the exit code of the program that was started, 128+n for signal n.
func (tty *terminal) wait() int {
	tty.t.Helper()
	select {
	case <-tty.ended:
	case <-time.After(patience):
		tty.t.Fatalf("%q has not ended", tty.cmd.Args)
	}
	status := tty.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}
