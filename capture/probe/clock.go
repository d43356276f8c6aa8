package probe

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Synchronised says whether something keeps the clock right, as the kernel was told
// (adjtimex(2)).
func Synchronised() (bool, error) {
	state, err := unix.ClockAdjtime(unix.CLOCK_REALTIME, new(unix.Timex))
	if err != nil {
		return false, fmt.Errorf("clock: %w", err)
	}
	return state != timeError, nil
}

const timeError = 5 // TIME_ERROR of linux/timex.h: not synchronised
