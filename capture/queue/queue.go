package queue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

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
	Queue   uint16 // its number
	ID      uint32 // in its queue
	Mark    uint32
	UID     uint32 // of the socket's owner, in terms of the initial user namespace
	HasUID  bool
	Payload []byte // from the IP header on
}

// ErrNotPermitted means that this process may not give verdicts on the queue: it
// is neither in the namespace, nor above it as the user who made it.
var ErrNotPermitted = errors.New("verdicts are not permitted from this process")

// Queue is one socket that queues are bound to. Receive is for one goroutine; Bind,
// Verdict and the counters are safe for concurrent use.
type Queue struct {
	file *os.File
	raw  syscall.RawConn
	buf  []byte

	overruns atomic.Uint64
	gone     atomic.Uint64

	mu      sync.Mutex // guards what follows
	seq     uint32
	answers map[uint32]chan unix.Errno // to configurations that wait
}

// ErrTaken means that somebody has a queue number, be it this socket.
var ErrTaken = errors.New("queue number is taken")

// Open makes a socket in the current network namespace and binds one queue to it, with
// room for length packets. Bind adds more.
func Open(number uint16, length uint32, rcvbuf int) (*Queue, error) {
	q, err := OpenSocket(rcvbuf)
	if err != nil {
		return nil, err
	}
	if err := q.bind(number, length, q.receiveAnswer); err != nil {
		q.Close()
		return nil, err
	}
	return q, nil
}

// OpenSocket makes a socket without queues in the current network namespace, with a
// receive buffer of rcvbuf bytes, or as much as the host allows.
func OpenSocket(rcvbuf int) (*Queue, error) {
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
	return Adopt(os.NewFile(uintptr(fd), "packet queue"))
}

// Bind adds a queue with room for length packets, while another goroutine is in
// Receive. Its error is an ErrTaken where the number is in use.
func (q *Queue) Bind(number uint16, length uint32) error {
	return q.bind(number, length, awaitAnswer)
}

func (q *Queue) bind(number uint16, length uint32, wait waiter) error {
	for _, c := range []struct {
		what  string
		attrs []byte
	}{
		{"bind", attr(cfgCommand, []byte{commandBind, 0, 0, 0})},
		{"copy mode", attr(cfgParams, append(be32(copyRange), copyPacket))},
		{"length", attr(cfgMaxLen, be32(length))},
		{"flags", append(attr(cfgFlags, be32(flagUIDGID)), attr(cfgMask, be32(flagUIDGID))...)},
	} {
		err := q.configure(number, c.attrs, wait)
		// What a number answers that another socket has, or this one.
		if c.what == "bind" && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.EBUSY)) {
			err = fmt.Errorf("%w, or %w", ErrTaken, err)
		}
		if err != nil {
			return fmt.Errorf("packet queue %d: %s: %w", number, c.what, err)
		}
	}
	return nil
}

// Unbind removes a queue; the kernel drops what waits in it.
func (q *Queue) Unbind(number uint16) error {
	if err := q.configure(number, attr(cfgCommand, []byte{commandUnbind, 0, 0, 0}), awaitAnswer); err != nil {
		return fmt.Errorf("packet queue %d: unbind: %w", number, err)
	}
	return nil
}

// Adopt takes over a queue socket that was made elsewhere. It owns f from now on.
func Adopt(f *os.File) (*Queue, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("packet queue: %w", err)
	}
	return &Queue{file: f, raw: raw, buf: make([]byte, 256<<10), answers: map[uint32]chan unix.Errno{}}, nil
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
		return fmt.Errorf("packet queue: receive: %w", rerr)
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
			if len(body) < 4 {
				break
			}
			errno := unix.Errno(-int32(binary.NativeEndian.Uint32(body)))
			if q.answered(binary.NativeEndian.Uint32(b[8:]), errno) {
				break
			}
			if err := q.complaint(errno); err != nil {
				refused = err
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
		return fmt.Errorf("packet queue: verdict: %w", errno)
	}
}

func parsePacket(body []byte) (p Packet, ok bool) {
	if len(body) < nfHeaderLen {
		return p, false
	}
	p.Queue = binary.BigEndian.Uint16(body[2:])
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

// Verdict decides one packet of a queue and replaces its mark.
func (q *Queue) Verdict(number uint16, id uint32, v Verdict, mark uint32) error {
	attrs := attr(attrVerdict, append(be32(uint32(v)), be32(id)...))
	return q.send(msgVerdict, 0, 0, number, append(attrs, attr(attrMark, be32(mark))...))
}

// Requeue makes the kernel queue every packet of one queue again, with new ids: what a
// process has to do that takes a queue over from a dead one, which had read them.
func (q *Queue) Requeue(number uint16) error {
	// Ids compare by signed difference: every id is at or below one of the two.
	for _, last := range []uint32{0x7fffffff, 0xffffffff} {
		if err := q.send(msgBatch, 0, 0, number, attr(attrVerdict, append(be32(uint32(Repeat)), be32(last)...))); err != nil {
			return err
		}
	}
	return nil
}

// answerTimeout is how long the kernel may take, which answers while it is asked, and
// the reader behind whatever it has to read first.
const answerTimeout = 5 * time.Second

// waiter waits for the kernel's answer to a configuration.
type waiter func(answer <-chan unix.Errno) error

// awaitAnswer leaves the reading to the goroutine that does it.
func awaitAnswer(answer <-chan unix.Errno) error {
	select {
	case errno := <-answer:
		return asError(errno)
	case <-time.After(answerTimeout):
		return fmt.Errorf("no answer from the kernel: %w", os.ErrDeadlineExceeded)
	}
}

// receiveAnswer reads itself, on a socket that nobody else reads yet.
func (q *Queue) receiveAnswer(answer <-chan unix.Errno) error {
	for {
		if err := q.Receive(func(Packet) {}); err != nil {
			return err
		}
		select {
		case errno := <-answer:
			return asError(errno)
		default:
		}
	}
}

func asError(errno unix.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}

// configure sends one configuration message and waits for the kernel's answer, which
// Receive finds among the packets.
func (q *Queue) configure(number uint16, attrs []byte, wait waiter) error {
	answer := make(chan unix.Errno, 1)
	q.mu.Lock()
	q.seq++
	seq := q.seq
	q.answers[seq] = answer
	q.mu.Unlock()
	defer func() {
		q.mu.Lock()
		delete(q.answers, seq)
		q.mu.Unlock()
	}()
	if err := q.send(msgConfig, unix.NLM_F_ACK, seq, number, attrs); err != nil {
		return err
	}
	return wait(answer)
}

// answered hands the kernel's answer to the configuration that waits for it.
func (q *Queue) answered(seq uint32, errno unix.Errno) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	answer, ok := q.answers[seq]
	if ok {
		answer <- errno // has room for the one
		delete(q.answers, seq)
	}
	return ok
}

func (q *Queue) send(typ, flags uint16, seq uint32, number uint16, attrs []byte) error {
	n := nlHeaderLen + nfHeaderLen + len(attrs)
	b := make([]byte, nlHeaderLen, n)
	binary.NativeEndian.PutUint32(b, uint32(n))
	binary.NativeEndian.PutUint16(b[4:], typ)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST|flags)
	binary.NativeEndian.PutUint32(b[8:], seq)
	b = append(b, unix.AF_UNSPEC, 0)
	b = binary.BigEndian.AppendUint16(b, number)
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
		return fmt.Errorf("packet queue %d: send: %w", number, serr)
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
