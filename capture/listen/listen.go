package listen

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"sshbroker/capture/queue"
)

const (
	backlog   = 4096
	maxSavedN = 256 // an IPv6 header with extensions and 60 bytes of TCP
)

// Open makes a listener on addr, which must be loopback, in the current network
// namespace. It is plain TCP: an MPTCP listener would not know the original
// destination.
func Open(addr netip.AddrPort) (*os.File, error) {
	f, err := bound(addr, unix.SOCK_STREAM, unix.IPPROTO_TCP)
	if err != nil {
		return nil, fmt.Errorf("listener %v: %w", addr, err)
	}
	err = control(f, func(fd int) error {
		return errors.Join(
			unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_SAVE_SYN, 1),
			// Inherited by what is accepted, which a process that dies then resets.
			unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}),
			unix.Listen(fd, backlog))
	})
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("listener %v: %w", addr, err)
	}
	return f, nil
}

// OpenUDP makes a UDP socket. It binds exactly the loopback address: from the wildcard, an answer would
// come from another address than the program asked.
func OpenUDP(addr netip.AddrPort) (*os.File, error) {
	f, err := bound(addr, unix.SOCK_DGRAM, unix.IPPROTO_UDP)
	if err != nil {
		return nil, fmt.Errorf("UDP socket %v: %w", addr, err)
	}
	return f, nil
}

// bound makes a socket that is bound to addr.
func bound(addr netip.AddrPort, typ, protocol int) (*os.File, error) {
	family, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(addr.Port()), Addr: addr.Addr().As16()})
	if addr.Addr().Is4() {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}
	}
	fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.Bind(fd, sa); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("bind", err)
	}
	return os.NewFile(uintptr(fd), "capture socket"), nil
}

// control calls f with the descriptor. Fd of an os.File would make it blocking, in every
// process that holds it.
func control(c syscall.Conn, f func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) { err = f(int(fd)) })
	return errors.Join(cerr, err)
}

// ErrNoSYN means that the kernel kept no SYN for the connection: it came in by a
// SYN cookie, or not through a listener of this package.
var ErrNoSYN = errors.New("no saved SYN")

// Identify tells which diverted connection c is: the sequence number of its SYN,
// and the destination its program asked for. A connection that was made straight
// to the listener has its own address as destination, or none.
func Identify(c *net.TCPConn) (seq uint32, dst netip.AddrPort, err error) {
	err = control(c, func(fd int) error {
		if seq, err = savedSequence(fd); err == nil {
			dst, err = originalDestination(fd)
		}
		return err
	})
	return seq, dst, err
}

// Destination is what the program that c was accepted from asked for, which is not
// c's own address where c was diverted.
func Destination(c *net.TCPConn) (dst netip.AddrPort, err error) {
	err = control(c, func(fd int) (err error) { dst, err = originalDestination(fd); return err })
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOPROTOOPT) { // no connection tracking
		return c.LocalAddr().(*net.TCPAddr).AddrPort(), nil
	}
	return dst, err
}

func savedSequence(fd int) (uint32, error) {
	var b [maxSavedN]byte
	n, err := getsockopt(fd, unix.IPPROTO_TCP, unix.TCP_SAVED_SYN, b[:])
	if err != nil {
		return 0, fmt.Errorf("saved SYN: %w", err)
	}
	syn, ok := queue.ParseSYN(b[:n])
	if !ok {
		return 0, ErrNoSYN
	}
	return syn.Seq, nil
}

// originalDestination reads SO_ORIGINAL_DST, which answers with a sockaddr of the
// family that the connection came by (linux/netfilter_ipv4.h, netfilter_ipv6).
func originalDestination(fd int) (netip.AddrPort, error) {
	var b [unix.SizeofSockaddrInet6]byte
	if _, err := getsockopt(fd, unix.SOL_IP, unix.SO_ORIGINAL_DST, b[:unix.SizeofSockaddrInet4]); err == nil {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), binary.BigEndian.Uint16(b[2:])), nil
	}
	_, err := getsockopt(fd, unix.SOL_IPV6, unix.SO_ORIGINAL_DST, b[:])
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("original destination: %w", err)
	}
	return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:24])), binary.BigEndian.Uint16(b[2:])), nil
}

// getsockopt exists because the library's getters stop at the first zero byte or
// fix the length.
func getsockopt(fd int, level, name int, b []byte) (int, error) {
	n := uint32(len(b))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&n)), 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
