package netns

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"sshbroker/capture/message"
)

// Exit codes of a child that does not become the command, as shells use them.
const (
	exitNotFound  = 127
	exitCannotRun = 126
	exitOwn       = 125
)

// Inside is the half that runs in the new namespaces; args are those behind
// InsideArg. It does not return: the process becomes the command, or ends.
func Inside(args []string) {
	if len(args) < 3 {
		fmt.Fprintf(os.Stderr, "%s is for ssh-capture's own use\n", InsideArg)
		os.Exit(exitOwn)
	}
	fd, err := strconv.Atoi(args[0])
	if err != nil {
		os.Exit(exitOwn)
	}
	unix.CloseOnExec(fd)
	conn, err := message.New(os.NewFile(uintptr(fd), "capture"))
	if err != nil {
		os.Exit(exitOwn)
	}
	var o order
	if _, err := conn.Receive(&o); err != nil {
		os.Exit(exitOwn) // the caller is gone
	}
	m, files, err := prepare(o)
	if err != nil {
		var errno syscall.Errno
		errors.As(err, &errno)
		_ = conn.Send(report{Error: err.Error(), Errno: errno})
		os.Exit(exitOwn)
	}
	if err := conn.Send(report{Manifest: m}, files...); err != nil {
		os.Exit(exitOwn)
	}
	message.CloseAll(files)
	if _, err := conn.Receive(&struct{}{}); err != nil {
		os.Exit(exitOwn)
	}
	become(conn, o, args[1], args[2:])
}

func prepare(o order) (Manifest, []*os.File, error) {
	if err := cover(o.AllNames, o.UserNS); err != nil {
		return Manifest{}, nil, err
	}
	return buildNetwork(o.UDPRelay, o.Unheld)
}

// become gives up every capability that the namespace brought and runs the command.
func become(conn *message.Conn, o order, path string, argv []string) {
	runtime.LockOSThread() // capabilities belong to the thread that execs
	if o.UserNS {
		if err := dropCapabilities(); err != nil {
			fmt.Fprintf(os.Stderr, "ssh-capture: %v\n", err)
			os.Exit(exitOwn)
		}
	}
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "SSH_CAPTURE=") })
	env = append(env, "SSH_CAPTURE="+o.ID)
	err := o.Inherit.Exec(path, argv, env)
	var errno syscall.Errno
	errors.As(err, &errno)
	_ = conn.Send(report{Error: path, Errno: errno})
	if errno == unix.ENOENT {
		os.Exit(exitNotFound)
	}
	os.Exit(exitCannotRun)
}

func dropCapabilities() error {
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("give up ambient capabilities: %w", err)
	}
	if os.Geteuid() == 0 { // root gets back by its exec what the bounding set has
		for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && err != unix.EINVAL { // EINVAL: this kernel has no such
				return fmt.Errorf("give up capability %d: %w", c, err)
			}
		}
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&hdr, &none[0]); err != nil {
		return fmt.Errorf("give up capabilities: %w", err)
	}
	return nil
}
