package queue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// Messages and attributes of linux/netfilter/nfnetlink_queue.h.
const (
	msgPacket  = unix.NFNL_SUBSYS_QUEUE << 8
	msgVerdict = unix.NFNL_SUBSYS_QUEUE<<8 | 1
	msgConfig  = unix.NFNL_SUBSYS_QUEUE<<8 | 2
	msgBatch   = unix.NFNL_SUBSYS_QUEUE<<8 | 3

	cfgCommand = 1
	cfgParams  = 2
	cfgMaxLen  = 3
	cfgMask    = 4
	cfgFlags   = 5

	commandBind   = 1
	commandUnbind = 2
	copyPacket    = 2
	flagUIDGID    = 1 << 3

	attrHeader    = 1
	attrVerdict   = 2
	attrMark      = 3
	attrPayload   = 10
	attrUID       = 16
	copyRange     = 128 // any SYN fits: an IPv6 one with all options has 80 bytes
	nlHeaderLen   = unix.SizeofNlMsghdr
	nfHeaderLen   = 4
	attrHeaderLen = 4
	attrTypeMask  = 0x3fff // without the nested and byte-order flags
)

// Verdict is what the kernel is to do with a queued packet (linux/netfilter.h).
type Verdict uint32

const (
	Drop   Verdict = 0
	Accept Verdict = 1
	Repeat Verdict = 4 // run the same hook again, which queues the packet anew
)

// Packet is one queued packet. Payload is valid until the next Receive.
type Packet struct {
	ID      uint32
	Mark    uint32
	UID     uint32 // of the socket's owner, in terms of the initial user namespace
	HasUID  bool
	Payload []byte // from the IP header on
}

// ErrNotPermitted means that this process may not give verdicts on the queue: it
// is neither in the namespace, nor above it as the user who made it.
var ErrNotPermitted = errors.New("verdicts are not permitted from this process")

// Queue is one bound queue socket. Receive is for one goroutine; Verdict and the
// counters are safe for concurrent use.
type Queue struct {
	file   *os.File
	raw    syscall.RawConn
	number uint16
	buf    []byte

	overruns atomic.Uint64
	gone     atomic.Uint64
}

// Open makes a socket in the current network namespace and binds the queue number
// to it, with room for length packets and a receive buffer of rcvbuf bytes, or as
// much as the host allows. The number must be free: a bound one answers EPERM.
func Open(number uint16, length uint32, rcvbuf int) (*Queue, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("packet queue: socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("packet queue: bind: %w", err)
	}
	// 256 unread messages fill the default buffer; what does not fit costs the
	// program a second. Forcing needs privilege over the host.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, rcvbuf) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, rcvbuf)
	}
	q, err := Adopt(os.NewFile(uintptr(fd), "packet queue"), number)
	if err != nil {
		return nil, err
	}
	for _, c := range []struct {
		what  string
		attrs []byte
	}{
		{"bind", attr(cfgCommand, []byte{commandBind, 0, 0, 0})},
		{"copy mode", attr(cfgParams, append(be32(copyRange), copyPacket))},
		{"length", attr(cfgMaxLen, be32(length))},
		{"flags", append(attr(cfgFlags, be32(flagUIDGID)), attr(cfgMask, be32(flagUIDGID))...)},
	} {
		if err := q.configure(c.attrs); err != nil {
			q.file.Close()
			return nil, fmt.Errorf("packet queue %d: %s: %w", number, c.what, err)
		}
	}
	return q, nil
}

// Adopt takes over a queue socket that was bound elsewhere. It owns f from now on.
func Adopt(f *os.File, number uint16) (*Queue, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("packet queue %d: %w", number, err)
	}
	return &Queue{file: f, raw: raw, number: number, buf: make([]byte, 256<<10)}, nil
}

// File is the socket, to be duplicated into another process. The queue keeps owning it.
func (q *Queue) File() *os.File { return q.file }

// Overruns counts how often the kernel had to drop packets because they were not
// read in time; their programs connect a second later.
func (q *Queue) Overruns() uint64 { return q.overruns.Load() }

// Gone counts verdicts for packets that the kernel had dropped in the meantime.
func (q *Queue) Gone() uint64 { return q.gone.Load() }

// Close closes this process's descriptor. The queue lives on as long as another
// process holds a duplicate.
func (q *Queue) Close() error { return q.file.Close() }

// Receive waits for packets and calls each for every one of a batch. It returns
// after one batch, os.ErrClosed once the queue is closed, and ErrNotPermitted when
// the kernel refused a verdict.
func (q *Queue) Receive(each func(Packet)) error {
	var n int
	var rerr error
	err := q.raw.Read(func(fd uintptr) bool {
		n, _, rerr = unix.Recvfrom(int(fd), q.buf, 0)
		return rerr != unix.EAGAIN && rerr != unix.EINTR
	})
	if err != nil {
		return os.ErrClosed // no deadline is ever set, so nothing else ends the wait
	}
	switch {
	case rerr == unix.ENOBUFS:
		q.overruns.Add(1)
		return nil
	case rerr != nil:
		return fmt.Errorf("packet queue %d: receive: %w", q.number, rerr)
	}
	return q.parse(q.buf[:n], each)
}

func (q *Queue) parse(b []byte, each func(Packet)) error {
	var refused error
	for len(b) >= nlHeaderLen {
		length := int(binary.NativeEndian.Uint32(b))
		if length < nlHeaderLen || length > len(b) {
			return refused
		}
		switch body := b[nlHeaderLen:length]; binary.NativeEndian.Uint16(b[4:]) {
		case unix.NLMSG_ERROR:
			if len(body) >= 4 {
				if err := q.complaint(unix.Errno(-int32(binary.NativeEndian.Uint32(body)))); err != nil {
					refused = err
				}
			}
		case msgPacket:
			if p, ok := parsePacket(body); ok {
				each(p)
			}
		}
		b = b[min(align(length), len(b)):]
	}
	return refused
}

// complaint judges the kernel's answer to a verdict.
func (q *Queue) complaint(errno unix.Errno) error {
	switch errno {
	case 0:
		return nil
	case unix.ENOENT:
		q.gone.Add(1)
		return nil
	case unix.EPERM:
		return ErrNotPermitted
	default:
		return fmt.Errorf("packet queue %d: verdict: %w", q.number, errno)
	}
}

func parsePacket(body []byte) (p Packet, ok bool) {
	if len(body) < nfHeaderLen {
		return p, false
	}
	for b := body[nfHeaderLen:]; len(b) >= attrHeaderLen; {
		length := int(binary.NativeEndian.Uint16(b))
		if length < attrHeaderLen || length > len(b) {
			break
		}
		data := b[attrHeaderLen:length]
		switch typ := binary.NativeEndian.Uint16(b[2:]) & attrTypeMask; {
		case typ == attrHeader && len(data) >= 4:
			p.ID, ok = binary.BigEndian.Uint32(data), true
		case typ == attrMark && len(data) == 4:
			p.Mark = binary.BigEndian.Uint32(data)
		case typ == attrUID && len(data) == 4:
			p.UID, p.HasUID = binary.BigEndian.Uint32(data), true
		case typ == attrPayload:
			p.Payload = data
		}
		b = b[min(align(length), len(b)):]
	}
	return p, ok
}

// Verdict decides one packet and replaces its mark.
func (q *Queue) Verdict(id uint32, v Verdict, mark uint32) error {
	attrs := attr(attrVerdict, append(be32(uint32(v)), be32(id)...))
	return q.send(msgVerdict, 0, append(attrs, attr(attrMark, be32(mark))...))
}

// Requeue makes the kernel queue every pending packet again, with new ids: what a
// process has to do that takes a queue over from a dead one, which had read them.
func (q *Queue) Requeue() error {
	// Ids compare by signed difference: every id is at or below one of the two.
	for _, last := range []uint32{0x7fffffff, 0xffffffff} {
		if err := q.send(msgBatch, 0, attr(attrVerdict, append(be32(uint32(Repeat)), be32(last)...))); err != nil {
			return err
		}
	}
	return nil
}

// configure sends one configuration message and waits for the kernel's answer,
// which comes before any packet only while the socket is fresh.
func (q *Queue) configure(attrs []byte) error {
	if err := q.send(msgConfig, unix.NLM_F_ACK, attrs); err != nil {
		return err
	}
	var errno unix.Errno
	var rerr error
	err := q.raw.Read(func(fd uintptr) bool {
		var n int
		n, _, rerr = unix.Recvfrom(int(fd), q.buf, 0)
		if rerr == unix.EAGAIN || rerr == unix.EINTR {
			return false
		}
		if n >= nlHeaderLen+4 && binary.NativeEndian.Uint16(q.buf[4:]) == unix.NLMSG_ERROR {
			errno = unix.Errno(-int32(binary.NativeEndian.Uint32(q.buf[nlHeaderLen:])))
		}
		return true
	})
	switch {
	case err != nil:
		return err
	case rerr != nil:
		return rerr
	case errno != 0:
		return errno
	}
	return nil
}

func (q *Queue) send(typ, flags uint16, attrs []byte) error {
	n := nlHeaderLen + nfHeaderLen + len(attrs)
	b := make([]byte, nlHeaderLen, n)
	binary.NativeEndian.PutUint32(b, uint32(n))
	binary.NativeEndian.PutUint16(b[4:], typ)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST|flags)
	b = append(b, unix.AF_UNSPEC, 0)
	b = binary.BigEndian.AppendUint16(b, q.number)
	b = append(b, attrs...)

	var serr error
	err := q.raw.Write(func(fd uintptr) bool {
		serr = unix.Sendto(int(fd), b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		return serr != unix.EAGAIN && serr != unix.EINTR
	})
	switch {
	case err != nil:
		return os.ErrClosed
	case serr == unix.EPERM:
		return ErrNotPermitted
	case serr != nil:
		return fmt.Errorf("packet queue %d: send: %w", q.number, serr)
	}
	return nil
}

func attr(typ uint16, data []byte) []byte {
	b := make([]byte, attrHeaderLen, align(attrHeaderLen+len(data)))
	binary.NativeEndian.PutUint16(b, uint16(attrHeaderLen+len(data)))
	binary.NativeEndian.PutUint16(b[2:], typ)
	b = append(b, data...)
	return b[:cap(b)]
}

func align(n int) int { return (n + 3) &^ 3 }

func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(make([]byte, 0, 8), v) }
