package inherit

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// State is what a process was started with. It travels as JSON.
type State struct {
	Ignored uint64 `json:"ignored"` // signals, bit n-1 for signal n
	Blocked uint64 `json:"blocked"`
	Closed  uint8  `json:"closed"` // of descriptors 0 to 2, bit n for descriptor n
}

// What start has found. It writes them before the runtime is up, nobody does later.
var (
	recorded uint64 // 1 once the rest holds
	ignored  uint64
	blocked  uint64
	closed   uint64
)

// Started is the state in which this process was started.
func Started() State {
	if recorded != 0 {
		return State{ignored, blocked, uint8(closed)}
	}
	var s State
	for _, sig := range []syscall.Signal{unix.SIGHUP, unix.SIGINT} { // the runtime leaves these two alone
		if signal.Ignored(sig) {
			s.Ignored |= bit(sig)
		}
	}
	if s.Ignored&bit(unix.SIGINT) != 0 {
		s.Ignored |= bit(unix.SIGQUIT) // a shell's background job has both
	}
	return s
}

// Ignores says whether the signal is ignored.
func (s State) Ignores(sig syscall.Signal) bool { return s.Ignored&bit(sig) != 0 }

func bit(sig syscall.Signal) uint64 { return 1 << (sig - 1) }

// Exec runs a program in place of this one, in the state s. As execvp(3) does, it
// gives a script that names no interpreter to /bin/sh. It returns only on failure,
// with an errno; the process is good for nothing but a message then.
func (s State) Exec(path string, argv, env []string) error {
	runtime.LockOSThread() // the mask belongs to the thread, which becomes the process
	s.restore()
	err := syscall.Exec(path, argv, env)
	if errors.Is(err, unix.ENOEXEC) && isText(path) {
		err = syscall.Exec("/bin/sh", append([]string{"/bin/sh", path}, argv[1:]...), env)
	}
	return err
}

func (s State) restore() {
	for sig := syscall.Signal(1); sig <= 64; sig++ {
		if s.Ignores(sig) {
			ignore(sig)
		}
	}
	for fd := range 3 {
		if s.Closed>>fd&1 != 0 {
			unix.Close(fd)
		}
	}
	if recorded != 0 || s.Blocked != 0 {
		_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&s.Blocked)), 0, 8, 0, 0)
	}
}

// ignore is what signal.Ignore does, also for signals that os/signal does not know.
func ignore(sig syscall.Signal) {
	action := [4]uint64{1} // SIG_IGN in struct sigaction of the kernel
	_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&action)), 0, 8, 0, 0)
}

// isText says whether the file may be a script: its first line has no zero byte.
func isText(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	line, err := io.ReadAll(io.LimitReader(f, 128))
	if i := bytes.IndexByte(line, '\n'); i >= 0 {
		line = line[:i]
	}
	return err == nil && bytes.IndexByte(line, 0) < 0
}
