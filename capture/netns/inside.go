package netns

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"sshbroker/capture/command"
	"sshbroker/capture/message"
)

// Inside is the half that runs in the new namespaces; args are those behind
// InsideArg. It does not return: the process becomes the command, or ends.
func Inside(args []string) {
	w := command.Inside(args)
	var o order
	w.Hear(&o)
	m, files, err := prepare(o)
	if err != nil {
		var errno syscall.Errno
		errors.As(err, &errno)
		_ = w.Send(report{Error: err.Error(), Errno: errno})
		os.Exit(command.ExitOwn)
	}
	if err := w.Send(report{Manifest: m}, files...); err != nil {
		os.Exit(command.ExitOwn)
	}
	message.CloseAll(files)
	w.Hear(&struct{}{})
	become(w, o)
}

func prepare(o order) (Manifest, []*os.File, error) {
	if err := cover(o.AllNames, o.UserNS); err != nil {
		return Manifest{}, nil, err
	}
	return buildNetwork(o.UDPRelay, o.Unheld)
}

// become gives up every capability that the namespace brought and runs the command.
func become(w *command.Waiting, o order) {
	runtime.LockOSThread() // capabilities belong to the thread that execs
	if o.UserNS {
		if err := dropCapabilities(); err != nil {
			fmt.Fprintf(os.Stderr, "ssh-capture: %v\n", err)
			os.Exit(command.ExitOwn)
		}
	}
	w.Become(o.ID, o.Inherit)
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
