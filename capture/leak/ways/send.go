package ways

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// noErrno stands for an error that holds none, and is in the text.
const noErrno = unix.EIO

// failed is a Result whose call failed.
func failed(call string, err error) Result {
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return Result{Errno: noErrno, Text: call + ": " + err.Error()}
	}
	return Result{Errno: errno, Text: call}
}

// variant is how a socket is made, and to which form of an address it connects.
type variant struct {
	typ, proto int
	mapped     bool
	prepare    func(fd int) (call string, err error)
}

func (v variant) family(to netip.Addr) int {
	if to.Is4() && !v.mapped {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

var (
	plain     = variant{typ: unix.SOCK_STREAM}
	mapped    = variant{typ: unix.SOCK_STREAM, mapped: true}
	multipath = variant{typ: unix.SOCK_STREAM, proto: unix.IPPROTO_MPTCP}

	boundToLoopback = variant{typ: unix.SOCK_STREAM, prepare: func(fd int) (string, error) {
		return "SO_BINDTODEVICE lo", unix.BindToDevice(fd, "lo")
	}}
)

func marked(mark uint32) variant {
	return variant{typ: unix.SOCK_STREAM, prepare: func(fd int) (string, error) {
		return "SO_MARK", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark))
	}}
}

func ofProtocol(typ, proto int) variant { return variant{typ: typ, proto: proto} }

// sockaddr is the form of an address that the system calls take.
func sockaddr(to netip.AddrPort, index int, asSix bool) unix.Sockaddr {
	if to.Addr().Is4() && !asSix {
		return &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	zone := uint32(0)
	if to.Addr().IsMulticast() {
		zone = uint32(index)
	}
	return &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16(), ZoneId: zone}
}

// socket is a blocking one whose calls end by themselves: a refusal by ICMP is told in one
// step to those alone.
func socket(family, typ, proto int) (int, error) {
	fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return -1, err
	}
	tv := unix.NsecToTimeval(Limit.Nanoseconds())
	if err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv); err == nil {
		err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// connect is a probe that connects and says its token.
func connect(v variant) func(Request) Result {
	return func(r Request) Result {
		fd, err := socket(v.family(r.To.Addr()), v.typ, v.proto)
		if err != nil {
			return failed("socket", err)
		}
		defer unix.Close(fd)
		if v.prepare != nil {
			if call, err := v.prepare(fd); err != nil {
				return failed(call, err)
			}
		}
		err = unix.Connect(fd, sockaddr(r.To, r.Index, v.family(r.To.Addr()) == unix.AF_INET6))
		return say(fd, r.Token, settled(fd, err))
	}
}

// settled waits for a connect that was interrupted.
func settled(fd int, err error) error {
	if err == unix.EINPROGRESS || err == unix.EAGAIN {
		return unix.ETIMEDOUT // what SO_SNDTIMEO ends connect(2) with
	}
	if err != unix.EINTR {
		return err
	}
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, int(Limit.Milliseconds()))
	switch {
	case err != nil:
		return err
	case n == 0:
		return unix.ETIMEDOUT
	}
	errno, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && errno != 0 {
		err = unix.Errno(errno)
	}
	return err
}

// say sends the token over what is connected, and waits until the other side has read it
// or let go.
func say(fd int, token string, err error) Result {
	if err != nil {
		return failed("connect", err)
	}
	if err := unix.Send(fd, []byte(token), unix.MSG_NOSIGNAL); err != nil {
		return failed("send", err)
	}
	_ = unix.Shutdown(fd, unix.SHUT_WR)
	_, _ = unix.Read(fd, make([]byte, 1))
	return Result{}
}

// fastOpen has the kernel send the token within the SYN where it knows a cookie, or needs none.
func fastOpen(r Request) Result {
	fd, err := socket(plain.family(r.To.Addr()), unix.SOCK_STREAM, 0)
	if err != nil {
		return failed("socket", err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN_NO_COOKIE, 1); err != nil {
		return failed("TCP_FASTOPEN_NO_COOKIE", err)
	}
	err = unix.Sendto(fd, []byte(r.Token), unix.MSG_FASTOPEN|unix.MSG_NOSIGNAL, sockaddr(r.To, 0, false))
	if err == unix.EINPROGRESS || err == unix.EAGAIN {
		err = unix.ETIMEDOUT
	}
	if err != nil {
		return failed("sendto with MSG_FASTOPEN", err)
	}
	_ = unix.Shutdown(fd, unix.SHUT_WR)
	if _, err := unix.Read(fd, make([]byte, 1)); err != nil {
		return failed("read", err)
	}
	return Result{}
}

// datagram is a probe by UDP or UDP-Lite.
func datagram(proto int, toDevice bool) func(Request) Result {
	return func(r Request) Result {
		fd, err := socket(plain.family(r.To.Addr()), unix.SOCK_DGRAM, proto)
		if err != nil {
			return failed("socket", err)
		}
		defer unix.Close(fd)
		if toDevice {
			if r.Device == "" {
				return Result{Errno: unix.ENODEV, Text: "this host has no device but loopback"}
			}
			if err := unix.BindToDevice(fd, r.Device); err != nil {
				return failed("SO_BINDTODEVICE "+r.Device, err)
			}
		}
		return r.sendTo(fd, []byte(r.Token))
	}
}

// sendTo sends a packet twice: the second call is told of what an ICMP error has refused.
func (r Request) sendTo(fd int, packet []byte) Result {
	if err := r.keepHere(fd); err != nil {
		return failed("multicast options", err)
	}
	if !r.Group { // for errors by ICMP; a group has none
		if err := unix.Connect(fd, sockaddr(r.To, r.Index, false)); err != nil {
			return failed("connect", err)
		}
	}
	for range 2 {
		err := error(nil)
		if r.Group {
			err = unix.Sendto(fd, packet, unix.MSG_NOSIGNAL, sockaddr(r.To, r.Index, false))
		} else {
			err = unix.Send(fd, packet, unix.MSG_NOSIGNAL)
		}
		if err != nil {
			return failed("send", err)
		}
	}
	return Result{}
}

// keepHere sees to it that what goes to a group leaves by the device in the kernel's eyes,
// and does not leave this host.
func (r Request) keepHere(fd int) error {
	switch {
	case !r.Group:
		return nil
	case r.To.Addr().Is4():
		return errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_TTL, 0),
			unix.SetsockoptInet4Addr(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, r.DeviceV4.As4()))
	}
	return errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 0),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, r.Index))
}

// echo sends echo requests of ICMP, by the socket for it or a raw one.
func echo(r Request) Result {
	packet := append([]byte{8, 0, 0, 0, 0x53, 0x42, 0, 1}, r.Token...)
	binary.BigEndian.PutUint16(packet[2:], checksum(packet))
	fd, err := socket(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP)
	if err != nil {
		if fd, err = socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP); err != nil {
			return failed("socket", err)
		}
	}
	defer unix.Close(fd)
	return r.sendTo(fd, packet)
}

// ProtoExperiment is for experiments (RFC 3692); nothing speaks it.
const ProtoExperiment = 253

func rawDatagram(r Request) Result {
	fd, err := socket(unix.AF_INET, unix.SOCK_RAW, ProtoExperiment)
	if err != nil {
		return failed("socket", err)
	}
	defer unix.Close(fd)
	return r.sendTo(fd, []byte(r.Token))
}

// rawSYN sends the first packet of a connection that no socket of TCP knows of.
func rawSYN(r Request) Result {
	fd, err := socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_TCP)
	if err != nil {
		return failed("socket", err)
	}
	defer unix.Close(fd)
	packet := make([]byte, 20)
	binary.BigEndian.PutUint16(packet[0:], 40000)
	binary.BigEndian.PutUint16(packet[2:], r.To.Port())
	copy(packet[4:8], r.Token) // the sequence number
	packet[12], packet[13] = 5<<4, 0x02
	binary.BigEndian.PutUint16(packet[14:], 0xffff)
	// The kernel does not make TCP's checksum here, and the sink does not look at it.
	if err := unix.Sendto(fd, packet, 0, sockaddr(netip.AddrPortFrom(r.To.Addr(), 0), 0, false)); err != nil {
		return failed("send", err)
	}
	return Result{}
}

// frame puts a UDP datagram on the loopback device, as a packet socket could on any. It is a
// broadcast of nobody's, as those of DHCP are: from and to addresses of this host the kernel
// would take none that comes from a device.
func frame(r Request) Result {
	fd, err := socket(unix.AF_PACKET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return failed("socket", err)
	}
	defer unix.Close(fd)
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		return failed("lo", err)
	}
	udp := binary.BigEndian.AppendUint16(nil, 40000)
	udp = binary.BigEndian.AppendUint16(udp, r.To.Port())
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(r.Token)))
	udp = append(binary.BigEndian.AppendUint16(udp, 0), r.Token...) // without a checksum, as IPv4 allows
	ip := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 1, unix.IPPROTO_UDP, 0, 0}
	binary.BigEndian.PutUint16(ip[2:], uint16(20+len(udp)))
	ip = append(ip, 0, 0, 0, 0, 255, 255, 255, 255)
	binary.BigEndian.PutUint16(ip[10:], checksum(ip))
	to := &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_IP), Ifindex: lo.Index, Halen: 6}
	if err := unix.Sendto(fd, append(ip, udp...), 0, to); err != nil {
		return failed("send", err)
	}
	return Result{}
}

func htons(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// checksum is that of RFC 1071.
func checksum(b []byte) uint16 {
	sum := uint32(0)
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// inherited sends by a socket that this process has from whoever started it.
func inherited(r Request) Result {
	typ, err := unix.GetsockoptInt(r.FD, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return failed("the descriptor", err)
	}
	if typ == unix.SOCK_STREAM {
		err = unix.Send(r.FD, []byte(r.Token), unix.MSG_NOSIGNAL)
	} else {
		err = unix.Sendto(r.FD, []byte(r.Token), unix.MSG_NOSIGNAL, sockaddr(r.To, 0, false))
	}
	if err != nil {
		return failed("send", err)
	}
	return Result{}
}

// remaining is what is left of Limit.
func remaining(since time.Time) time.Duration { return max(time.Millisecond, Limit-time.Since(since)) }
