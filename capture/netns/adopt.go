package netns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/capture"
	"sshbroker/capture/hold"
	"sshbroker/capture/message"
	"sshbroker/capture/origin"
	"sshbroker/capture/queue"
	"sshbroker/capture/udprelay"
	"sshbroker/capture/unheld"
)

// Served is a capture as the broker holds it. Close it once Ended returns.
type Served struct {
	capture.Source
	DNSUDP []net.PacketConn // name queries of the capture; closed by Close
	DNSTCP []net.Listener

	relay     []*net.UDPConn // where UDP is relayed; closed by Close
	conntrack *udprelay.Conntrack

	manifest Manifest
	log      *slog.Logger
	close    func() error // of Source
}

// Adopt serves a capture's descriptors from outside its namespace. It owns files
// from now on, whatever it returns. With takeover set, another process served them
// before and is dead. The caller must run as the user who made the capture, in the
// user namespace above it: from elsewhere the kernel takes no verdicts.
func Adopt(m Manifest, files []*os.File, takeover bool, log *slog.Logger) (*Served, error) {
	if err := m.check(files); err != nil {
		message.CloseAll(files)
		return nil, err
	}
	s := &Served{manifest: m, log: log}
	c := hold.Config{
		Local: isLocal,
		Find:  (&origin.Search{Processes: s.Processes}).Find,
		Log:   log,
	}
	// The only way that the kernel has leads to a listener inside.
	c.WayOut = func(f capture.Flow) bool {
		if !f.Local {
			return false
		}
		sock, err := c.Diag.Lookup(f.Dst, f.Src)
		return err == nil && sock.State == origin.StateListen
	}
	var errs []error
	for i, role := range m.Files {
		if err := s.adopt(&c, role, files[i]); err != nil {
			errs = append(errs, fmt.Errorf("capture descriptor %q: %w", role, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		s.closeNames()
		s.closeRelay()
		for _, l := range c.Listeners {
			l.Close()
		}
		if c.Queue != nil {
			c.Queue.Close()
		}
		if c.Diag != nil {
			c.Diag.Close()
		}
		return nil, err
	}
	if !m.Held {
		u := unheld.New(unheld.Config{Listeners: c.Listeners, Diag: c.Diag, UID: uint32(os.Getuid()), Find: (&origin.Search{Processes: s.Processes}).Find, Log: log})
		s.Source, s.close = u, u.Close
		return s, nil
	}
	var takeOver []uint16
	if takeover {
		takeOver = []uint16{queueNumber}
	}
	h := hold.New(c, takeOver...)
	s.Source, s.close = h, h.Close
	return s, nil
}

func isLocal(a netip.Addr) bool {
	return a.IsLoopback() || a == netip.MustParseAddr(address4) || a == netip.MustParseAddr(address6)
}

func (s *Served) adopt(c *hold.Config, role string, f *os.File) (err error) {
	switch role {
	case roleQueue:
		c.Queue, err = queue.Adopt(f)
		return err
	case roleDiag:
		c.Diag, err = origin.AdoptDiag(f)
		return err
	case roleConntrack:
		s.conntrack, err = udprelay.AdoptConntrack(f)
		return err
	}
	defer f.Close() // the net package duplicates what it takes
	switch role {
	case roleTCP, roleDNSTCP:
		l, err := net.FileListener(f)
		if err != nil {
			return err
		}
		tcp, ok := l.(*net.TCPListener)
		if !ok {
			l.Close()
			return fmt.Errorf("not a TCP listener")
		}
		if role == roleTCP {
			c.Listeners = append(c.Listeners, tcp)
		} else {
			s.DNSTCP = append(s.DNSTCP, tcp)
		}
	case roleDNSUDP:
		p, err := net.FilePacketConn(f)
		if err != nil {
			return err
		}
		s.DNSUDP = append(s.DNSUDP, p)
	case roleRelay:
		p, err := net.FilePacketConn(f)
		if err != nil {
			return err
		}
		u, ok := p.(*net.UDPConn)
		if !ok {
			p.Close()
			return fmt.Errorf("not a UDP socket")
		}
		s.relay = append(s.relay, u)
	default:
		return fmt.Errorf("unknown role")
	}
	return nil
}

// Close ends the service and closes every descriptor.
func (s *Served) Close() error {
	s.closeNames()
	s.closeRelay()
	return s.close()
}

func (s *Served) closeNames() {
	for _, p := range s.DNSUDP {
		p.Close()
	}
	for _, l := range s.DNSTCP {
		l.Close()
	}
}

// Queue tells of the packet queue, zeros where SYNs are not held.
func (s *Served) Queue() hold.Counters {
	if h, ok := s.Source.(*hold.Source); ok {
		return h.Counters()
	}
	return hold.Counters{}
}

// Processes lists the processes in the capture.
func (s *Served) Processes() ([]int, error) { return Processes(s.manifest) }

// Strangers counts the connections to a listener of the capture that no program was
// admitted to make. They were reset.
func (s *Served) Strangers() uint64 {
	return s.Queue().Strangers
}

// Processes lists the processes in the capture that m describes, as far as the
// caller may look at them: its own user's. An error says nothing about whether there
// are any. They are in ascending order.
func Processes(m Manifest) ([]int, error) {
	pids, err := origin.Processes()
	if err != nil {
		return nil, err
	}
	want := fmt.Sprintf("net:[%d]", m.NetNS)
	return slices.DeleteFunc(pids, func(pid int) bool {
		link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
		return err != nil || link != want
	}), nil
}

// WaitEmpty returns once no process is left in the capture, or with ctx's error. It
// sleeps on pidfds, not on a clock, but where it cannot look for want of a descriptor.
func WaitEmpty(ctx context.Context, m Manifest) error {
	const again = time.Second
	for {
		pids, err := Processes(m)
		if err == nil && len(pids) == 0 {
			// A process that forks and ends during one look may be missed by it.
			if pids, err = Processes(m); err == nil && len(pids) == 0 {
				return nil
			}
		}
		for _, pid := range pids {
			if err = errors.Join(err, waitExit(ctx, pid)); err != nil {
				break
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(again):
			}
		}
	}
}

// waitExit waits for the end of any process, child or not.
func waitExit(ctx context.Context, pid int) error {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err == unix.ESRCH {
		return ctx.Err() // gone already
	}
	if err != nil {
		return os.NewSyscallError("pidfd_open", err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { f.Close() })
	defer stop()
	// A pidfd is readable when the process has ended.
	err = raw.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 0)
		return err == nil && n > 0
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("wait for process %d: %w", pid, err)
	}
	return nil
}
