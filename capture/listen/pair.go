package listen

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"sshbroker/capture"
	"sshbroker/capture/descriptor"
)

// Pair opens the same port on both loopback addresses, or on the IPv4 one alone.
func Pair(open func(netip.AddrPort) (*os.File, error), ipv6 bool) (files []*os.File, port uint16, err error) {
	loopback4, loopback6 := netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()
	for range 16 {
		f4, err := open(netip.AddrPortFrom(loopback4, 0))
		if err != nil {
			return nil, 0, err
		}
		files := []*os.File{f4}
		port, err := Port(f4)
		if err == nil && ipv6 {
			var f6 *os.File
			f6, err = open(netip.AddrPortFrom(loopback6, port))
			files = append(files, f6)
		}
		if err == nil {
			return files, port, nil
		}
		f4.Close()
		if !errors.Is(err, unix.EADDRINUSE) {
			return nil, 0, err
		}
	}
	return nil, 0, fmt.Errorf("no port is free on both loopback addresses")
}

// Port is the port that a socket is bound to.
func Port(f *os.File) (port uint16, err error) {
	err = descriptor.Control(f, func(fd int) error {
		sa, err := unix.Getsockname(fd)
		switch sa := sa.(type) {
		case *unix.SockaddrInet4:
			port = uint16(sa.Port)
		case *unix.SockaddrInet6:
			port = uint16(sa.Port)
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("own address: %w", err)
	}
	return port, nil
}

// Claim makes sockets that are bound to port known to the host's table as the ones that
// it diverts to. They take packets to that port alone from then on, also those that are
// accepted from them: who is given one cannot bind it anew in the place of another.
// It needs CAP_NET_ADMIN.
func Claim(port uint16, sockets ...*os.File) error {
	const dportOffset = 2 // in TCP and UDP, which is where such filters begin
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: dportOffset},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(port), Jt: 0, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 1<<32 - 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
	for _, f := range sockets {
		err := descriptor.Control(f, func(fd int) error {
			return errors.Join(
				unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}),
				unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_LOCK_FILTER, 1),
				unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(capture.MarkServer)))
		})
		if err != nil {
			return fmt.Errorf("claim port %d: %w", port, err)
		}
	}
	return nil
}

// ReceiveMarks has UDP sockets give each datagram's mark as an SO_MARK control message.
// Kernels ask for CAP_NET_ADMIN or nothing; those before 5.19 have ENOPROTOOPT.
func ReceiveMarks(sockets ...*os.File) error {
	for _, f := range sockets {
		err := descriptor.Control(f, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVMARK, 1) })
		if err != nil {
			return fmt.Errorf("SO_RCVMARK: %w", err)
		}
	}
	return nil
}
