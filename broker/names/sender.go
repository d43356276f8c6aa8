package names

import (
	"encoding/binary"
	"net"

	"golang.org/x/sys/unix"
)

// sender is what the kernel tells of who sent a datagram.
type sender struct {
	addr  net.Addr
	marks bool // mark counts
	mark  uint32
}

// markRoom is for one control message with an int, and some to spare.
const markRoom = 64

// receiver reads the datagrams of a socket, with their marks or without. Those of a
// socket that is no UDP one have the mark 0.
func receiver(c net.PacketConn, marks bool) func(buf []byte) (size int, s sender, err error) {
	u, ok := c.(*net.UDPConn)
	if !marks || !ok {
		return func(buf []byte) (size int, s sender, err error) {
			size, s.addr, err = c.ReadFrom(buf)
			s.marks = marks
			return size, s, err
		}
	}
	control := make([]byte, markRoom)
	return func(buf []byte) (size int, s sender, err error) {
		size, n, _, from, err := u.ReadMsgUDPAddrPort(buf, control)
		if err != nil {
			return 0, s, err
		}
		return size, sender{net.UDPAddrFromAddrPort(from), true, markOf(control[:n])}, nil
	}
}

// markOf finds the mark among control messages; 0 where there is none (socket(7),
// SO_RCVMARK).
func markOf(control []byte) uint32 {
	list, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return 0
	}
	for _, m := range list {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_MARK && len(m.Data) >= 4 {
			return binary.NativeEndian.Uint32(m.Data)
		}
	}
	return 0
}
