package descriptor

import (
	"errors"
	"syscall"
)

// Control calls f with c's descriptor, which stays open meanwhile. Fd of an os.File would
// make it blocking, in every process that holds it.
func Control(c syscall.Conn, f func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) { err = f(int(fd)) })
	return errors.Join(cerr, err)
}
