package listen

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"sshbroker/capture/descriptor"
	"sshbroker/capture/queue"
)

const maxSavedN = 256 // an IPv6 header with extensions and 60 bytes of TCP

// Open makes a listener on addr, which must be loopback, in the current network
// namespace. It is plain TCP: an MPTCP listener would not know the original
// destination.
func Open(addr netip.AddrPort) (*os.File, error) {
	c := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		cerr := raw.Control(func(fd uintptr) {
			err = errors.Join(
				// Package net's default lets others have the port as soon as nobody listens.
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 0),
				unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_SAVE_SYN, 1),
				// Inherited by what is accepted, which a process that dies then resets.
				unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
		})
		return errors.Join(cerr, err)
	}}
	c.SetMultipathTCP(false)
	l, err := c.Listen(context.Background(), "tcp", addr.String())
	if err != nil {
		return nil, err
	}
	defer l.Close()
	return l.(*net.TCPListener).File()
}

// OpenUDP makes a UDP socket. It binds exactly the loopback address: from the wildcard, an answer would
// come from another address than the program asked.
func OpenUDP(addr netip.AddrPort) (*os.File, error) {
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.File()
}

// ErrNoSYN means that the kernel kept no SYN for the connection: it came in by a
// SYN cookie, or not through a listener of this package.
var ErrNoSYN = errors.New("no saved SYN")

// Identify tells which diverted connection c is: the sequence number of its SYN,
// and the destination its program asked for. A connection that was made straight
// to the listener has its own address as destination, or none.
func Identify(c *net.TCPConn) (seq uint32, dst netip.AddrPort, err error) {
	var b [maxSavedN]byte
	n, err := getsockopt(c, unix.IPPROTO_TCP, unix.TCP_SAVED_SYN, b[:])
	if err != nil {
		return 0, dst, fmt.Errorf("saved SYN: %w", err)
	}
	syn, ok := queue.ParseSYN(b[:n])
	if !ok {
		return 0, dst, ErrNoSYN
	}
	dst, err = OriginalDestination(c)
	return syn.Seq, dst, err
}

// OriginalDestination reads SO_ORIGINAL_DST, which answers with a sockaddr of the
// family that the connection came by (linux/netfilter_ipv4.h, netfilter_ipv6).
// unix.ENOENT and unix.ENOPROTOOPT: no connection tracking knows of it.
func OriginalDestination(c *net.TCPConn) (netip.AddrPort, error) {
	var b [unix.SizeofSockaddrInet6]byte
	if _, err := getsockopt(c, unix.SOL_IP, unix.SO_ORIGINAL_DST, b[:unix.SizeofSockaddrInet4]); err == nil {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), binary.BigEndian.Uint16(b[2:])), nil
	}
	if _, err := getsockopt(c, unix.SOL_IPV6, unix.SO_ORIGINAL_DST, b[:]); err != nil {
		return netip.AddrPort{}, fmt.Errorf("original destination: %w", err)
	}
	return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:24])), binary.BigEndian.Uint16(b[2:])), nil
}

// getsockopt exists because the library's getters stop at the first zero byte or
// fix the length.
func getsockopt(c *net.TCPConn, level, name int, b []byte) (int, error) {
	n := uint32(len(b))
	err := descriptor.Control(c, func(fd int) error {
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
			uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&n)), 0)
		if errno != 0 {
			return errno
		}
		return nil
	})
	return int(n), err
}
