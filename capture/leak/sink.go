package leak

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/capture/leak/ways"
)

// sink sees outside whether a probe arrives.
type sink struct {
	port    uint16
	token   string      // by which a probe is known from what else may come
	arrived chan string // one line of what came; the first counts
	close   func()
	file    *os.File // of tokenSink: the other end, for the program that is to inherit it
}

func newSink(port uint16, closers ...io.Closer) *sink {
	var once sync.Once
	return &sink{port: port, token: newToken(), arrived: make(chan string, 1), close: func() {
		once.Do(func() {
			for _, c := range closers {
				c.Close()
			}
		})
	}}
}

func (s *sink) came(format string, args ...any) {
	select {
	case s.arrived <- fmt.Sprintf(format, args...):
	default:
	}
}

// wait returns what came within that time, "" for nothing.
func (s *sink) wait(within time.Duration) string {
	select {
	case what := <-s.arrived: // though the time may be over
		return what
	default:
	}
	select {
	case what := <-s.arrived:
		return what
	case <-time.After(within):
		return ""
	}
}

func newToken() string { return "sshleak" + rand.Text() }

// isProbe says whether a packet is the one that is waited for.
func (s *sink) isProbe(packet []byte) bool { return bytes.Contains(packet, []byte(s.token)) }

func network(name string, six bool) string {
	if six {
		return name + "6"
	}
	return name + "4"
}

// tcpSink listens at the host's address; its port is new, so whoever connects is the probe.
func tcpSink(at func(Field) netip.Addr) func(Field) (*sink, error) {
	return func(f Field) (*sink, error) {
		l, err := net.Listen("tcp", netip.AddrPortFrom(at(f), 0).String())
		if err != nil {
			return nil, err
		}
		s := newSink(uint16(l.Addr().(*net.TCPAddr).Port), l)
		go s.accept(l)
		return s, nil
	}
}

func (s *sink) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		s.came("a connection from %v", c.RemoteAddr())
		_ = c.SetDeadline(time.Now().Add(ways.Limit))
		_, _ = io.Copy(io.Discard, io.LimitReader(c, 1<<10))
		c.Close()
	}
}

// udpSink takes datagrams at every address, as a group's come to no other.
func udpSink(six bool) func(Field) (*sink, error) {
	return func(Field) (*sink, error) {
		c, err := net.ListenUDP(network("udp", six), nil)
		if err != nil {
			return nil, err
		}
		s := newSink(uint16(c.LocalAddr().(*net.UDPAddr).Port), c)
		go func() {
			b := make([]byte, 1500)
			for {
				n, from, err := c.ReadFromUDPAddrPort(b)
				if err != nil {
					return
				}
				if s.isProbe(b[:n]) {
					s.came("a datagram from %v", from)
				}
			}
		}()
		return s, nil
	}
}

// tokenSink is a connection that is made before the capture is. Only the token counts.
func tokenSink() func(Field) (*sink, error) {
	return func(f Field) (*sink, error) {
		l, err := net.Listen("tcp4", netip.AddrPortFrom(f.V4, 0).String())
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ours, err := net.Dial("tcp4", l.Addr().String())
		if err != nil {
			return nil, err
		}
		theirs, err := l.Accept()
		if err != nil {
			ours.Close()
			return nil, err
		}
		file, err := ours.(*net.TCPConn).File()
		ours.Close()
		if err != nil {
			theirs.Close()
			return nil, err
		}
		s := newSink(uint16(l.Addr().(*net.TCPAddr).Port), theirs, file)
		s.file = file
		go func() {
			b := make([]byte, 1500)
			for {
				n, err := theirs.Read(b)
				if s.isProbe(b[:n]) {
					s.came("data from %v", theirs.RemoteAddr())
				}
				if err != nil {
					return
				}
			}
		}()
		return s, nil
	}
}

// packets reads from a socket of any kind, where match is to say what came.
func packets(family, typ, proto int, bind unix.Sockaddr, match func(s *sink, packet []byte) string) (*sink, error) {
	fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	port := uint16(0)
	if bind != nil {
		if err = unix.Bind(fd, bind); err == nil {
			var at unix.Sockaddr
			if at, err = unix.Getsockname(fd); err == nil {
				port = portOf(at)
			}
		}
		if err == nil && typ != unix.SOCK_DGRAM {
			err = unix.Listen(fd, 1)
		}
		if err != nil {
			unix.Close(fd)
			return nil, os.NewSyscallError("bind", err)
		}
	}
	file := os.NewFile(uintptr(fd), "sink")
	s := newSink(port, file)
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, err
	}
	go func() {
		b := make([]byte, 2048)
		for {
			n, taken := 0, -1
			var rerr error
			err := raw.Read(func(fd uintptr) bool {
				if bind != nil && typ != unix.SOCK_DGRAM {
					taken, _, rerr = unix.Accept4(int(fd), unix.SOCK_CLOEXEC)
				} else {
					n, _, rerr = unix.Recvfrom(int(fd), b, 0)
				}
				return rerr != unix.EAGAIN
			})
			if err != nil {
				return
			}
			if taken >= 0 {
				unix.Close(taken)
			}
			switch rerr {
			case nil:
			case unix.EINTR, unix.ECONNABORTED, unix.ENOBUFS, unix.ECONNREFUSED: // of one packet
				continue
			default:
				return
			}
			if what := match(s, b[:max(n, 0)]); what != "" {
				s.came("%s", what)
			}
		}
	}()
	return s, nil
}

func portOf(at unix.Sockaddr) uint16 {
	switch at := at.(type) {
	case *unix.SockaddrInet4:
		return uint16(at.Port)
	case *unix.SockaddrInet6:
		return uint16(at.Port)
	}
	return 0
}

func liteSink(Field) (*sink, error) {
	return packets(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE, &unix.SockaddrInet4{}, func(s *sink, b []byte) string {
		if s.isProbe(b) {
			return "a datagram"
		}
		return ""
	})
}

// streamSink listens for connections of another protocol than TCP.
func streamSink(typ, proto int) func(Field) (*sink, error) {
	return func(f Field) (*sink, error) {
		return packets(unix.AF_INET, typ, proto, &unix.SockaddrInet4{Addr: f.V4.As4()}, func(*sink, []byte) string { return "a connection" })
	}
}

// rawSink sees every packet of a protocol that comes to this host. It needs CAP_NET_RAW.
func rawSink(proto int) func(Field) (*sink, error) {
	return func(Field) (*sink, error) {
		return packets(unix.AF_INET, unix.SOCK_RAW, proto, nil, func(s *sink, b []byte) string {
			if s.isProbe(b) {
				return "a packet"
			}
			return ""
		})
	}
}

// rawSYNSink sees SYNs to a port that nobody listens on.
func rawSYNSink(Field) (*sink, error) {
	holder, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	keep := os.NewFile(uintptr(holder), "port") // so that nobody else gets its port
	err = unix.Bind(holder, &unix.SockaddrInet4{})
	var at unix.Sockaddr
	if err == nil {
		at, err = unix.Getsockname(holder)
	}
	if err != nil {
		keep.Close()
		return nil, err
	}
	port := portOf(at)
	s, err := packets(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_TCP, nil, func(_ *sink, b []byte) string {
		if isSYN(b, port) {
			return "a SYN"
		}
		return ""
	})
	if err != nil {
		keep.Close()
		return nil, err
	}
	s.port = port
	reader := s.close
	s.close = func() { reader(); keep.Close() }
	return s, nil
}

// isSYN reads an IPv4 packet.
func isSYN(b []byte, port uint16) bool {
	if len(b) < 20 {
		return false
	}
	header := int(b[0]&0xf) * 4
	if header < 20 || len(b) < header+20 {
		return false
	}
	tcp := b[header:]
	return binary.BigEndian.Uint16(tcp[2:]) == port && tcp[13]&0x17 == 0x02
}
