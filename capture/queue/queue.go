package queue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/capture/netlink"
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

	attrHeader  = 1
	attrVerdict = 2
	attrMark    = 3
	attrPayload = 10
	attrUID     = 16
	copyRange   = 128 // any SYN fits: an IPv6 one with all options has 80 bytes
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
	Payload []byte // from the IP header on
}

// ErrNotPermitted means that this process may not give verdicts on the queue: it
// is neither in the namespace, nor above it as the user who made it.
var ErrNotPermitted = errors.New("verdicts are not permitted from this process")

// Queue is one socket that queues are bound to. Receive is for one goroutine; Bind,
// Verdict and the counters are safe for concurrent use.
type Queue struct {
	socket *netlink.Socket
	buf    []byte

	overruns atomic.Uint64
	gone     atomic.Uint64

	configuring sync.Mutex  // one at a time
	configured  uint32      // sequence number of the last one; verdicts have 0
	answers     chan answer // to configurations
}

// answer is the kernel's to the message with that number.
type answer struct {
	seq uint32
	err error
}

// ErrTaken means that somebody has a queue number, be it this socket.
var ErrTaken = errors.New("queue number is taken")

// OpenSocket makes a socket without queues in the current network namespace, with a
// receive buffer of rcvbuf bytes, or as much as the host allows.
func OpenSocket(rcvbuf int) (*Queue, error) {
	s, err := netlink.Open(unix.NETLINK_NETFILTER, 0)
	if err == nil {
		// 256 unread messages fill the default buffer; what does not fit costs the
		// program a second. Forcing needs privilege over the host.
		err = s.Control(func(fd int) error {
			if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, rcvbuf) != nil {
				_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, rcvbuf)
			}
			return nil
		})
	}
	return newQueue(s, err)
}

// Adopt takes over a queue socket that was made elsewhere. It owns f from now on.
func Adopt(f *os.File) (*Queue, error) { return newQueue(netlink.Adopt(f)) }

func newQueue(s *netlink.Socket, err error) (*Queue, error) {
	if err != nil {
		return nil, fmt.Errorf("packet queue: %w", err)
	}
	return &Queue{socket: s, buf: make([]byte, 256<<10), answers: make(chan answer, 1)}, nil
}

// Bind adds a queue with room for length packets, while another goroutine is in
// Receive. Its error is an ErrTaken where the number is in use.
func (q *Queue) Bind(number uint16, length uint32) error {
	err := q.configure(number,
		netlink.Attr(cfgCommand, []byte{commandBind, 0, 0, 0}),
		netlink.Attr(cfgParams, binary.BigEndian.AppendUint32(nil, copyRange), []byte{copyPacket}),
		netlink.Uint32(cfgMaxLen, length),
		netlink.Uint32(cfgFlags, flagUIDGID), netlink.Uint32(cfgMask, flagUIDGID))
	// What a number answers that another socket has, or this one.
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EBUSY) {
		err = fmt.Errorf("%w, or %w", ErrTaken, err)
	}
	if err != nil {
		return fmt.Errorf("packet queue %d: bind: %w", number, err)
	}
	return nil
}

// Unbind removes a queue; the kernel drops what waits in it.
func (q *Queue) Unbind(number uint16) error {
	if err := q.configure(number, netlink.Attr(cfgCommand, []byte{commandUnbind, 0, 0, 0})); err != nil {
		return fmt.Errorf("packet queue %d: unbind: %w", number, err)
	}
	return nil
}

// File is the socket, to be duplicated into another process. The queue keeps owning it.
func (q *Queue) File() *os.File { return q.socket.File() }

// Overruns counts how often the kernel had to drop packets because they were not
// read in time; their programs connect a second later.
func (q *Queue) Overruns() uint64 { return q.overruns.Load() }

// Gone counts verdicts for packets that the kernel had dropped in the meantime.
func (q *Queue) Gone() uint64 { return q.gone.Load() }

// Close closes this process's descriptor. The queue lives on as long as another
// process holds a duplicate.
func (q *Queue) Close() error { return q.socket.Close() }

// Receive waits for packets and calls each for every one of a batch. It returns
// after one batch, os.ErrClosed once the queue is closed, and ErrNotPermitted when
// the kernel refused a verdict.
func (q *Queue) Receive(each func(Packet)) error {
	b, err := q.socket.Receive(q.buf)
	switch {
	case errors.Is(err, unix.ENOBUFS):
		q.overruns.Add(1)
		return nil
	case err != nil:
		return fmt.Errorf("packet queue: %w", err)
	}
	return q.parse(b, each)
}

func (q *Queue) parse(b []byte, each func(Packet)) (refused error) {
	messages, _ := netlink.Messages(b)
	for _, m := range messages {
		switch m.Type {
		case unix.NLMSG_ERROR:
			refused = errors.Join(refused, q.judge(answer{m.Seq, m.Err()}))
		case msgPacket:
			if p, ok := parsePacket(m.Body); ok {
				each(p)
			}
		}
	}
	return refused
}

// judge hands the answer to a configuration on, and judges that to a verdict.
func (q *Queue) judge(a answer) error {
	switch {
	case a.seq != 0:
		select {
		case <-q.answers: // to one that nobody waits for any more
		default:
		}
		q.answers <- a // has room for the one
	case a.err == unix.ENOENT:
		q.gone.Add(1)
	case a.err == unix.EPERM:
		return ErrNotPermitted
	case a.err != nil:
		return fmt.Errorf("packet queue: verdict: %w", a.err)
	}
	return nil
}

func parsePacket(body []byte) (p Packet, ok bool) {
	if len(body) < netlink.NetfilterLen {
		return p, false
	}
	p.Queue = binary.BigEndian.Uint16(body[2:])
	for typ, data := range netlink.Attributes(body[netlink.NetfilterLen:]) {
		switch {
		case typ == attrHeader && len(data) >= 4:
			p.ID, ok = binary.BigEndian.Uint32(data), true
		case typ == attrMark && len(data) == 4:
			p.Mark = binary.BigEndian.Uint32(data)
		case typ == attrUID && len(data) == 4:
			p.UID = binary.BigEndian.Uint32(data)
		case typ == attrPayload:
			p.Payload = data
		}
	}
	return p, ok
}

// Verdict decides one packet of a queue and replaces its mark.
func (q *Queue) Verdict(number uint16, id uint32, v Verdict, mark uint32) error {
	return q.send(msgVerdict, 0, 0, number, netlink.Uint32(attrVerdict, uint32(v), id), netlink.Uint32(attrMark, mark))
}

// Requeue makes the kernel queue every packet of one queue again, with new ids: what a
// process has to do that takes a queue over from a dead one, which had read them.
func (q *Queue) Requeue(number uint16) error {
	// Ids compare by signed difference: every id is at or below one of the two.
	for _, last := range []uint32{0x7fffffff, 0xffffffff} {
		if err := q.send(msgBatch, 0, 0, number, netlink.Uint32(attrVerdict, uint32(Repeat), last)); err != nil {
			return err
		}
	}
	return nil
}

// answerTimeout is how long the kernel may take, which answers while it is asked, and
// the reader behind whatever it has to read first.
const answerTimeout = 5 * time.Second

// configure sends one configuration message and waits for the kernel's answer, which
// Receive finds among the packets.
func (q *Queue) configure(number uint16, attrs ...[]byte) error {
	q.configuring.Lock()
	defer q.configuring.Unlock()
	q.configured++
	if err := q.send(msgConfig, unix.NLM_F_ACK, q.configured, number, attrs...); err != nil {
		return err
	}
	limit := time.After(answerTimeout)
	for {
		select {
		case a := <-q.answers:
			if a.seq == q.configured {
				return a.err
			}
		case <-limit:
			return fmt.Errorf("no answer from the kernel: %w", os.ErrDeadlineExceeded)
		}
	}
}

func (q *Queue) send(typ, flags uint16, seq uint32, number uint16, attrs ...[]byte) error {
	header := netlink.Netfilter(unix.AF_UNSPEC, number)
	err := q.socket.Send(netlink.Append(nil, typ, unix.NLM_F_REQUEST|flags, seq, append([][]byte{header}, attrs...)...))
	switch {
	case errors.Is(err, unix.EPERM):
		return ErrNotPermitted
	case err != nil:
		return fmt.Errorf("packet queue %d: %w", number, err)
	}
	return nil
}
