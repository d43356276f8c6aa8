package descriptor

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestControl(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	err = Control(r, func(fd int) error {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		if flags&unix.O_NONBLOCK == 0 {
			t.Error("it is a blocking one now")
		}
		return errors.Join(err, unix.ENOTTY)
	})
	if !errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EBADF) {
		t.Errorf("the function's error: %v", err)
	}
	r.Close()
	if err := Control(r, func(int) error { return nil }); err == nil {
		t.Error("closed, and no error")
	}
}
