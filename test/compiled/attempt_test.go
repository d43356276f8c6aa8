package compiled

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// attempt is one flow on its way.
type attempt struct {
	fd    int
	errno unix.Errno // EINPROGRESS until it has ended
	syn   syn
}

// start begins to connect from a port, without waiting. The socket belongs to the
// flow's uid, by the calling thread's, which has it from then on.
func start(f flow, port uint16) (a attempt, err error) {
	_, _ = unix.SetfsuidRetUid(int(f.uid)) // it never says that it failed
	if is, _ := unix.SetfsuidRetUid(int(f.uid)); is != int(f.uid) {
		return a, fmt.Errorf("setfsuid %d: still %d", f.uid, is)
	}
	family := unix.AF_INET
	var to unix.Sockaddr
	if f.Addr.Is4() {
		to = &unix.SockaddrInet4{Port: int(f.Port), Addr: f.Addr.As4()}
	} else {
		family = unix.AF_INET6
		six := &unix.SockaddrInet6{Port: int(f.Port), Addr: f.Addr.As16()}
		if zone := f.Addr.Zone(); zone != "" {
			dev, err := net.InterfaceByName(zone)
			if err != nil {
				return a, err
			}
			six.ZoneId = uint32(dev.Index)
		}
		to = six
	}
	if a.fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
		return a, fmt.Errorf("socket: %w", err)
	}
	var from unix.Sockaddr = &unix.SockaddrInet4{Port: int(port)}
	if family == unix.AF_INET6 {
		from = &unix.SockaddrInet6{Port: int(port)}
	}
	err = unix.Bind(a.fd, from)
	if err == nil {
		err = unix.Connect(a.fd, to)
	}
	if !errors.As(err, &a.errno) || a.errno != unix.EINPROGRESS && a.errno != unix.ECONNREFUSED {
		unix.Close(a.fd)
		return a, fmt.Errorf("connect: %w", err)
	}
	a.syn = syn{port, netip.AddrPortFrom(f.Addr.WithZone(""), f.Port)}
	return a, nil
}

// wait returns once every attempt has ended, or with an error at the deadline.
func wait(attempts []attempt, deadline time.Time) error {
	for {
		var fds []unix.PollFd
		var waiting []*attempt
		for i := range attempts {
			if a := &attempts[i]; a.errno == unix.EINPROGRESS {
				waiting = append(waiting, a)
				fds = append(fds, unix.PollFd{Fd: int32(a.fd), Events: unix.POLLOUT})
			}
		}
		if len(waiting) == 0 {
			return nil
		}
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("%d of %d connects have no end, the first to %v", len(waiting), len(attempts), waiting[0].syn.dst)
		}
		if _, err := unix.Poll(fds, int(left.Milliseconds())+1); err != nil && err != unix.EINTR {
			return fmt.Errorf("poll: %w", err)
		}
		for i, a := range waiting {
			if fds[i].Revents == 0 {
				continue
			}
			errno, err := unix.GetsockoptInt(a.fd, unix.SOL_SOCKET, unix.SO_ERROR)
			if err != nil {
				return fmt.Errorf("SO_ERROR: %w", err)
			}
			a.errno = unix.Errno(errno) // 0 where somebody has accepted
		}
	}
}
