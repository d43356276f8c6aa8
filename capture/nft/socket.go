package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// socket is one socket of nfnetlink. It is for one goroutine at a time.
type socket struct {
	file *os.File
	raw  syscall.RawConn
	port uint32 // its address, by which the kernel knows a table's owner
	buf  []byte
}

// dial opens a socket in the current network namespace.
func dial(groups uint32) (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("nftables: socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("nftables: bind: %w", err)
	}
	return adopt(os.NewFile(uintptr(fd), "nftables"))
}

// adopt takes over a socket, which it owns from now on.
func adopt(f *os.File) (*socket, error) {
	s := &socket{file: f, buf: make([]byte, 64<<10)}
	var name unix.Sockaddr
	var err error
	if s.raw, err = f.SyscallConn(); err == nil {
		err = errors.Join(s.raw.Control(func(fd uintptr) { name, err = unix.Getsockname(int(fd)) }), err)
	}
	own, ok := name.(*unix.SockaddrNetlink)
	if err == nil && !ok {
		err = unix.EPROTOTYPE
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("nftables: take over a socket: %w", err)
	}
	s.port = own.Pid
	return s, nil
}

// commit carries out a transaction. The error names the message that the kernel
// refused first.
func (s *socket) commit(b *batch) error {
	b.markLast()
	b.message("end of transaction", unix.NFNL_MSG_BATCH_END, 0, unix.AF_UNSPEC, nil)
	return s.transact(b)
}

// try has the kernel check a transaction and then forget it, as it has no end.
func (s *socket) try(b *batch) error {
	b.markLast()
	return s.transact(b)
}

// markLast asks for an acknowledgement of the last message. Failures of others are
// told unasked.
func (b *batch) markLast() {
	flags := b.buf[b.last+6:]
	binary.NativeEndian.PutUint16(flags, binary.NativeEndian.Uint16(flags)|unix.NLM_F_ACK)
}

func (s *socket) transact(b *batch) error {
	_ = s.pending(func(*syscall.NetlinkMessage) {}) // of one that was cut short
	if err := s.send(b.buf); err != nil {
		return err
	}
	// The kernel has done all of it within the call, so every reply is there.
	answered, refused := false, error(nil)
	err := s.pending(func(m *syscall.NetlinkMessage) {
		if m.Header.Type != unix.NLMSG_ERROR || len(m.Data) < 4 || m.Header.Seq >= uint32(len(b.what)) {
			return
		}
		answered = true
		if errno := replyErrno(m); errno != 0 && refused == nil {
			refused = fmt.Errorf("nftables: %s: %w", b.what[m.Header.Seq], errno)
		}
	})
	switch {
	case refused != nil:
		return refused
	case !answered && err != nil:
		return fmt.Errorf("nftables: answer to a transaction: %w", err)
	case !answered:
		return errors.New("nftables: no answer to a transaction")
	}
	return nil
}

// send sends all of b as one datagram, which is what a transaction has to be.
func (s *socket) send(b []byte) error {
	var serr error
	err := s.raw.Write(func(fd uintptr) bool {
		// What is not forced fits into the default buffer of 208 KiB, or EMSGSIZE tells.
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, len(b))
		serr = unix.Sendto(int(fd), b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		return serr != unix.EAGAIN && serr != unix.EINTR
	})
	if err = errors.Join(err, serr); err != nil {
		return fmt.Errorf("nftables: send %d bytes: %w", len(b), err)
	}
	return nil
}

// pending calls each for every message that has come.
func (s *socket) pending(each func(*syscall.NetlinkMessage)) (err error) {
	cerr := s.raw.Control(func(fd uintptr) {
		for {
			n, _, rerr := unix.Recvfrom(int(fd), s.buf, unix.MSG_DONTWAIT)
			switch {
			case rerr == unix.EAGAIN:
				return
			case rerr == unix.EINTR:
			case rerr != nil:
				err = rerr // ENOBUFS is told once, and what did fit follows
			default:
				err = errors.Join(err, parse(s.buf[:n], each))
			}
		}
	})
	return errors.Join(err, cerr)
}

// wait calls each for the messages of the next datagram.
func (s *socket) wait(each func(*syscall.NetlinkMessage)) error {
	var n int
	var rerr error
	err := s.raw.Read(func(fd uintptr) bool {
		n, _, rerr = unix.Recvfrom(int(fd), s.buf, 0)
		return rerr != unix.EAGAIN && rerr != unix.EINTR
	})
	if err = errors.Join(err, rerr); err != nil {
		return err
	}
	return parse(s.buf[:n], each)
}

func parse(b []byte, each func(*syscall.NetlinkMessage)) error {
	messages, err := syscall.ParseNetlinkMessage(b)
	for i := range messages {
		each(&messages[i])
	}
	return err
}

func replyErrno(m *syscall.NetlinkMessage) syscall.Errno {
	return syscall.Errno(-int32(binary.NativeEndian.Uint32(m.Data)))
}

// dump calls each with the attributes of everything that a request finds in the
// tables of family inet.
func (s *socket) dump(typ uint16, each func(attributes)) error {
	for range 10 { // a transaction of somebody else's came in between
		var found []attributes
		again, err := s.dumpOnce(typ, &found)
		if err != nil {
			return fmt.Errorf("nftables: list: %w", err)
		}
		if !again {
			for _, a := range found {
				each(a)
			}
			return nil
		}
	}
	return errors.New("nftables: list: it changes all the time")
}

func (s *socket) dumpOnce(typ uint16, found *[]attributes) (again bool, err error) {
	_ = s.pending(func(*syscall.NetlinkMessage) {})
	request := appendMessage(nil, unix.NFNL_SUBSYS_NFTABLES<<8|typ, unix.NLM_F_DUMP, 0, unix.NFPROTO_INET, nil)
	if err := s.send(request); err != nil {
		return false, err
	}
	for done := false; !done; {
		var refused error
		err := s.wait(func(m *syscall.NetlinkMessage) {
			again = again || m.Header.Flags&unix.NLM_F_DUMP_INTR != 0
			switch m.Header.Type {
			case unix.NLMSG_DONE:
				done = true
			case unix.NLMSG_ERROR:
				done = true
				if len(m.Data) >= 4 && replyErrno(m) != 0 {
					refused = replyErrno(m)
				}
			default:
				if a, err := body(m); err == nil {
					*found = append(*found, a)
				}
			}
		})
		if err = errors.Join(err, refused); err != nil {
			return again, err
		}
	}
	return again, nil
}

// attributes are those of one message, or those within one, by their type.
type attributes map[uint16][]byte

func body(m *syscall.NetlinkMessage) (attributes, error) {
	if len(m.Data) < headerLen {
		return nil, unix.EBADMSG
	}
	return parseAttributes(m.Data[headerLen:])
}

func parseAttributes(b []byte) (attributes, error) {
	list, err := netlink.UnmarshalAttributes(b)
	a := make(attributes, len(list))
	for _, e := range list {
		a[e.Type&typeMask] = append([]byte(nil), e.Data...)
	}
	return a, err
}

func (a attributes) text(typ uint16) string { return unix.ByteSliceToString(a[typ]) }

// num is an integer of any width; 0 where there is none.
func (a attributes) num(typ uint16) (v uint64) {
	for _, b := range a[typ] {
		v = v<<8 | uint64(b)
	}
	return v
}
