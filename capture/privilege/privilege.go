package privilege

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// Capability is one of capabilities(7), by its number in linux/capability.h.
type Capability = cap.Value

// The capabilities that programs of ours use.
const (
	DACOverride = cap.DAC_OVERRIDE
	NetAdmin    = cap.NET_ADMIN
	SysPtrace   = cap.SYS_PTRACE
	BPF         = cap.BPF
)

// Reduce makes all threads of the process have exactly the capabilities named,
// permitted, effective and bounding, and no_new_privs. So does what they start. After an
// error the process must end.
func Reduce(keep ...Capability) error {
	if missing := Missing(keep...); len(missing) > 0 {
		return fmt.Errorf("privileges: %s", strings.Join(missing, "; "))
	}
	set, rest := cap.NewSet(), cap.NewIAB()
	err := errors.Join(set.SetFlag(cap.Permitted, true, keep...), set.SetFlag(cap.Effective, true, keep...), rest.Fill(cap.Bound, set, cap.Permitted))
	// An exec gives root all of the bounding set, another uid only what is ambient.
	if os.Geteuid() != 0 {
		err = errors.Join(err, set.SetFlag(cap.Inheritable, true, keep...), rest.SetVector(cap.Amb, true, keep...))
	}
	if err != nil {
		return fmt.Errorf("privileges: %w", err)
	}
	if err := rest.SetProc(); err != nil {
		return fmt.Errorf("privileges: bounding set: %w: start as root, or set CapabilityBoundingSet= in the unit", err)
	}
	_, err = cap.Prctlw(unix.PR_SET_NO_NEW_PRIVS, 1)
	if err = errors.Join(err, set.SetProc()); err != nil {
		return fmt.Errorf("privileges: %w", err)
	}
	return nil
}

// Missing says which of the capabilities this process does not have, and for each why
// not and what would help.
func Missing(keep ...Capability) []string {
	now := cap.GetProc()
	var missing []string
	for _, c := range keep {
		name := strings.ToUpper(c.String())
		if has, _ := now.GetFlag(cap.Permitted, c); has {
			continue
		}
		bound, err := cap.GetBound(c)
		switch {
		case err != nil:
			missing = append(missing, name+" is not known to this kernel: a newer one is needed")
		case !bound:
			missing = append(missing, name+" was taken away from this process and all it starts: "+
				"name it in CapabilityBoundingSet= of the unit, or add it to the container (--cap-add)")
		default:
			missing = append(missing, name+" is missing: start as root, or name it in AmbientCapabilities= of the unit")
		}
	}
	return missing
}
