package leak

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// Socket is one that leads to a network and was open when the program was started.
type Socket struct {
	FD   int
	Kind string // for people
}

// Sockets lists the descriptors of this process, the least first, that are sockets of a
// network: those of before a capture belong to the host, and to no capture, whether they
// are connected or not. Unix sockets are none of them; nor are files, though a program that
// means to can get out by a descriptor of a namespace.
func Sockets() ([]Socket, error) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil, err
	}
	var list []Socket
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
		if err != nil { // not a socket, or the directory's own descriptor, which is closed by now
			continue
		}
		switch domain {
		case unix.AF_UNIX, unix.AF_NETLINK, unix.AF_ALG:
			continue
		}
		list = append(list, Socket{fd, kind(fd, domain)})
	}
	slices.SortFunc(list, func(a, b Socket) int { return a.FD - b.FD })
	return list, nil
}

func kind(fd, domain int) string {
	what := fmt.Sprintf("a socket of family %d", domain)
	switch domain {
	case unix.AF_PACKET:
		return "a packet socket"
	case unix.AF_VSOCK:
		return "a socket to the virtual machine's host"
	case unix.AF_INET, unix.AF_INET6:
		proto, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
		what = map[int]string{unix.IPPROTO_TCP: "a TCP socket", unix.IPPROTO_MPTCP: "a TCP socket", unix.IPPROTO_UDP: "a UDP socket"}[proto]
		if what == "" {
			what = fmt.Sprintf("a socket of IP protocol %d", proto)
		}
	}
	if at, err := unix.Getpeername(fd); err == nil {
		if port := portOf(at); port != 0 {
			what += " connected to " + peer(at)
		}
	}
	return what
}

func peer(at unix.Sockaddr) string {
	switch at := at.(type) {
	case *unix.SockaddrInet4:
		return addrPort(at.Addr[:], at.Port)
	case *unix.SockaddrInet6:
		return addrPort(at.Addr[:], at.Port)
	}
	return "?"
}

func addrPort(addr []byte, port int) string {
	a, _ := netip.AddrFromSlice(addr)
	return netip.AddrPortFrom(a.Unmap(), uint16(port)).String()
}
