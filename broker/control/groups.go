package control

import (
	"encoding/binary"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// peerGroups returns the supplementary groups that the peer had when it connected
// (SO_PEERGROUPS, Linux 4.13).
func (c *conn) peerGroups() ([]uint32, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var groups []uint32
	cerr := raw.Control(func(fd uintptr) { groups, err = peerGroups(int(fd)) })
	if cerr != nil {
		return nil, cerr
	}
	return groups, err
}

func peerGroups(fd int) ([]uint32, error) {
	b := make([]byte, 64*4)
	for {
		size := uint32(len(b))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == unix.ERANGE && int(size) > len(b): // it says how many there are
			b = make([]byte, size)
		case errno != 0:
			return nil, os.NewSyscallError("getsockopt SO_PEERGROUPS", errno)
		default:
			groups := make([]uint32, size/4)
			for i := range groups {
				groups[i] = binary.NativeEndian.Uint32(b[i*4:])
			}
			return groups, nil
		}
	}
}
