package wake

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Watch calls told after each discontinuity of the clock until ctx ends, from its
// caller's goroutine. An error is that of a kernel which cannot tell.
//
// The kernel cancels a timer of CLOCK_REALTIME with TFD_TIMER_CANCEL_ON_SET when the
// clock is set and when the host resumes (timerfd_create(2), fs/timerfd.c).
func Watch(ctx context.Context, told func()) error {
	fd, err := unix.TimerfdCreate(unix.CLOCK_REALTIME, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("watch the clock: timerfd_create: %w", err)
	}
	timer := os.NewFile(uintptr(fd), "timer")
	defer timer.Close()
	defer context.AfterFunc(ctx, func() { _ = timer.SetReadDeadline(time.Unix(1, 0)) })()
	never := unix.ItimerSpec{Value: unix.Timespec{Sec: 1 << 40}}
	var expirations [8]byte
	for {
		// ECANCELED says that the clock was set since the last call: the timer is set
		// all the same, and the event is told.
		err := unix.TimerfdSettime(fd, unix.TFD_TIMER_ABSTIME|unix.TFD_TIMER_CANCEL_ON_SET, &never, nil)
		if err != nil && !errors.Is(err, unix.ECANCELED) {
			return fmt.Errorf("watch the clock: timerfd_settime: %w", err)
		}
		if err == nil {
			_, err = timer.Read(expirations[:])
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ECANCELED):
			told()
		case err != nil:
			return fmt.Errorf("watch the clock: %w", err)
		}
	}
}
