package privilege

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Capability is one of capabilities(7), by its number in linux/capability.h.
type Capability uint8

// The capabilities that programs of ours use.
const (
	DACOverride Capability = unix.CAP_DAC_OVERRIDE
	NetAdmin    Capability = unix.CAP_NET_ADMIN
	SysPtrace   Capability = unix.CAP_SYS_PTRACE
	BPF         Capability = unix.CAP_BPF
)

var names = map[Capability]string{DACOverride: "CAP_DAC_OVERRIDE", NetAdmin: "CAP_NET_ADMIN", SysPtrace: "CAP_SYS_PTRACE", BPF: "CAP_BPF"}

// String is the capability's name in the kernel's headers, or its number.
func (c Capability) String() string { return cmp.Or(names[c], fmt.Sprintf("capability %d", uint8(c))) }

// marker is set in the environment of the process that Reduce makes of this one. It
// keeps Reduce from trying for ever, and is no proof of anything.
const marker = "SSH_CAPTURED_REDUCED"

// Reduce makes the process run with exactly the capabilities named, permitted,
// effective and bounding, and with no_new_privs. Where that is so already, as a service
// manager can have it, it returns at once. Else it starts the same program again in
// place of this one, with the same arguments, since the threads of a running Go program
// cannot all be changed: then it does not return, and what is open without close-on-exec
// stays open. Call it first thing in main. After an error the process must end.
func Reduce(keep ...Capability) error {
	marked := os.Getenv(marker) != ""
	os.Unsetenv(marker)
	var set uint64
	for _, c := range keep {
		set |= 1 << c
	}
	want := state{permitted: set, effective: set, bounding: set, noNewPrivs: true}
	now, err := current()
	switch {
	case err != nil:
		return fmt.Errorf("privileges: %w", err)
	case now == want:
		if marked { // the exec has named the process "exe"
			_ = os.WriteFile("/proc/self/comm", []byte(filepath.Base(os.Args[0])), 0)
		}
		return nil
	case marked:
		return fmt.Errorf("privileges: they are %+v after they were reduced to %+v", now, want)
	}
	if missing := Missing(keep...); len(missing) > 0 {
		return fmt.Errorf("privileges: %s", strings.Join(missing, "; "))
	}
	runtime.LockOSThread() // for good: this thread becomes the process, or is worth nothing
	if err = now.reduce(want); err == nil {
		err = syscall.Exec("/proc/self/exe", os.Args, append(os.Environ(), marker+"=1"))
	}
	return fmt.Errorf("privileges: %w", err)
}

// Missing says which of the capabilities this process does not have, and for each why
// not and what would help.
func Missing(keep ...Capability) []string {
	now, err := current()
	if err != nil {
		return []string{err.Error()}
	}
	var missing []string
	for _, c := range keep {
		_, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(c), 0, 0, 0)
		switch {
		case now.permitted>>c&1 != 0:
		case err != nil:
			missing = append(missing, c.String()+" is not known to this kernel: a newer one is needed")
		case now.bounding>>c&1 == 0:
			missing = append(missing, c.String()+" was taken away from this process and all it starts: "+
				"name it in CapabilityBoundingSet= of the unit, or add it to the container (--cap-add)")
		default:
			missing = append(missing, c.String()+" is missing: start as root, or name it in AmbientCapabilities= of the unit")
		}
	}
	return missing
}

// state is what a thread may do; the sets have bit n for capability n.
type state struct {
	permitted, effective, bounding uint64
	noNewPrivs                     bool
}

func current() (s state, err error) {
	var data [2]unix.CapUserData
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &data[0]); err != nil {
		return s, os.NewSyscallError("capget", err)
	}
	s.permitted = uint64(data[0].Permitted) | uint64(data[1].Permitted)<<32
	s.effective = uint64(data[0].Effective) | uint64(data[1].Effective)<<32
	for c := range uintptr(64) {
		if has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0); err == nil && has == 1 {
			s.bounding |= 1 << c
		}
	}
	nnp, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	s.noNewPrivs = nnp == 1
	return s, os.NewSyscallError("no_new_privs", err)
}

// reduce changes the calling thread so that what it executes has want and no more.
func (s state) reduce(want state) error {
	for c := range uintptr(64) {
		if (s.bounding&^want.bounding)>>c&1 == 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
			return fmt.Errorf("bounding set: %v: %w: start as root, or set CapabilityBoundingSet= in the unit", Capability(c), err)
		}
	}
	// An exec gives root all of the bounding set, another uid only what is ambient.
	ambient := want.permitted
	if os.Geteuid() == 0 {
		ambient = 0
	}
	var data [2]unix.CapUserData
	for i := range data {
		part := uint32(want.permitted >> (32 * i))
		data[i] = unix.CapUserData{Permitted: part, Effective: part, Inheritable: uint32(ambient >> (32 * i))}
	}
	err := errors.Join(unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
		unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &data[0]),
		unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
	for c := range uintptr(64) {
		if ambient>>c&1 != 0 {
			err = errors.Join(err, unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, c, 0, 0))
		}
	}
	return err
}
