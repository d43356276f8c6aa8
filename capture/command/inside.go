package command

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"sshbroker/capture/inherit"
	"sshbroker/capture/message"
)

// Exit codes of a process that does not become the command, as shells use them.
const (
	ExitOwn       = 125 // something before that has failed
	exitCannotRun = 126
	exitNotFound  = 127
)

// Waiting is the other half: this process, until it is the command.
type Waiting struct {
	*message.Conn

	path string
	argv []string
}

// Inside makes one of the arguments behind the one by which the program knows that it is
// to call this. It ends the process where they are not Start's.
func Inside(args []string) *Waiting {
	if len(args) < 3 {
		fmt.Fprintf(os.Stderr, "%s is for ssh-capture's own use\n", os.Args[1])
		os.Exit(ExitOwn)
	}
	fd, err := strconv.Atoi(args[0])
	if err != nil {
		os.Exit(ExitOwn)
	}
	unix.CloseOnExec(fd)
	conn, err := message.New(os.NewFile(uintptr(fd), "command"))
	if err != nil {
		os.Exit(ExitOwn)
	}
	return &Waiting{Conn: conn, path: args[1], argv: args[2:]}
}

// Hear waits for what the half says that has started this one. If that has gone, the
// command is not to be, and the process ends.
func (w *Waiting) Hear(v any) {
	if _, err := w.Receive(v); err != nil {
		os.Exit(ExitOwn)
	}
}

// Become becomes the command, in the capture id. It does not return.
func (w *Waiting) Become(id string, state inherit.State) {
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "SSH_CAPTURE=") })
	var errno syscall.Errno
	errors.As(state.Exec(w.path, w.argv, append(env, "SSH_CAPTURE="+id)), &errno)
	_ = w.Send(failure{errno})
	if errno == unix.ENOENT {
		os.Exit(exitNotFound)
	}
	os.Exit(exitCannotRun)
}
