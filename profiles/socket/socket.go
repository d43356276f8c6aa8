package socket

import (
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// readAhead is what one system call may take from the server. The library asks
	// for 4 KiB at a time.
	readAhead = 256 << 10
	// smallFill is what one system call brings when little is under way.
	smallFill = 16 << 10
	// busyAt is how many bytes may wait to be sent before streams hold their data
	// back. It is room for several packets of 32 KiB, so that encryption and system
	// calls overlap, and small enough that an interactive stream waits behind little.
	busyAt = 256 << 10
	// fullAt is where even the library's own messages wait. Streams keep below it,
	// give or take one packet each.
	fullAt = 8 << 20
	// flushTime is how long the rest may take to be sent at the end.
	flushTime = time.Second
)

// Conn is the connection under a transport. It reads ahead. With nothing under way a
// packet is sent by Write itself, as far as the kernel takes it without waiting: that
// spares the wake-up of another goroutine, which costs more than it gains. What is
// left, and what comes up meanwhile, a goroutine of its own sends, gathered while one
// system call runs for the next. A failure to send fails the connection for reading
// too, so that no success of Write is left standing.
type Conn struct {
	net.Conn

	quickACK func()              // nil where the connection is no socket
	direct   func(...[]byte) int // sends what the kernel takes at once; nil likewise

	more func(n int) bool // a Write of n bytes waits for what follows, or Flush

	// Reading; only the library's reader goroutine comes here.
	ahead      []byte
	begin, end int
	received   atomic.Uint64

	lifeMu  sync.Mutex
	reading bool            // inside the system call
	life    []chan struct{} // closed at the next one

	sendMu  sync.Mutex
	work    sync.Cond     // there is something to send, or an end
	room    sync.Cond     // less waits
	freed   chan struct{} // closed then; nil: nobody asked
	waiting []byte
	spare   []byte
	sending bool // somebody is in the system call
	settled bool // the handshake is over
	closing bool
	err     error
	sent    atomic.Uint64
	ended   chan struct{} // closed when the sender is done and the connection closed
}

// New takes c over, whose protocol has yet to shake hands: see Settle. more tells, from
// then on, which sizes of Write are only a beginning, that is to leave with what follows;
// Flush comes after the last. The caller closes the Conn and waits for Ended.
func New(c net.Conn, more func(n int) bool) *Conn {
	w := &Conn{Conn: c, more: more, ahead: make([]byte, readAhead), ended: make(chan struct{})}
	w.work.L = &w.sendMu
	w.room.L = &w.sendMu
	if socket, ok := c.(syscall.Conn); ok {
		w.quickACK = acknowledger(socket)
		w.direct = directSender(socket)
	}
	go w.send()
	return w
}

func (w *Conn) Read(p []byte) (int, error) {
	if w.begin == w.end {
		n, err := w.fill()
		if n == 0 {
			return 0, err
		}
		w.begin, w.end = 0, n
	}
	n := copy(p, w.ahead[w.begin:w.end])
	w.begin += n
	return n, nil
}

// fill reads what the kernel has and shows to AwaitReader that it was called.
func (w *Conn) fill() (int, error) {
	w.lifeMu.Lock()
	w.reading = true
	for _, c := range w.life {
		close(c)
	}
	w.life = nil
	w.lifeMu.Unlock()

	// In bulk the kernel acknowledges by itself soon enough.
	if w.quickACK != nil && w.end < smallFill {
		w.quickACK()
	}
	n, err := w.Conn.Read(w.ahead)
	w.received.Add(uint64(n))

	w.lifeMu.Lock()
	w.reading = false
	w.lifeMu.Unlock()
	return n, err
}

// AwaitReader waits until the library's reader is waiting for more data, which
// proves that it has not given up, and returns true; or until lost is closed, and
// returns false.
func (w *Conn) AwaitReader(lost <-chan struct{}) bool {
	w.lifeMu.Lock()
	if w.reading {
		w.lifeMu.Unlock()
		return true
	}
	c := make(chan struct{})
	w.life = append(w.life, c)
	w.lifeMu.Unlock()
	select {
	case <-c:
		return true
	case <-lost:
		return false
	}
}

// Write takes p over and returns. It waits only where fullAt bytes wait already.
func (w *Conn) Write(p []byte) (int, error) {
	w.sendMu.Lock()
	defer w.sendMu.Unlock()
	for len(w.waiting) >= fullAt && w.err == nil && !w.closing {
		w.room.Wait()
	}
	switch {
	case w.err != nil:
		return 0, w.err
	case w.closing:
		return 0, net.ErrClosed
	}
	if w.sending || !w.settled || w.direct == nil {
		w.leave(p)
		return len(p), nil
	}
	if w.more(len(p)) { // Flush sees to it where nothing follows
		w.waiting = append(w.waiting, p...)
		return len(p), nil
	}
	w.sendNow(p)
	return len(p), nil
}

// leave leaves p to the sender. The caller holds sendMu.
func (w *Conn) leave(p []byte) {
	w.waiting = append(w.waiting, p...)
	if !w.sending {
		w.work.Signal()
	}
}

// sendNow sends what waits and p without waiting for the kernel, and leaves the rest
// to the sender. The caller holds sendMu, and that nobody is sending.
func (w *Conn) sendNow(p []byte) {
	first := w.waiting
	w.waiting = w.spare[:0]
	w.sending = true
	w.tellRoom()
	w.sendMu.Unlock()

	n := w.direct(first, p) // what may be wrong the sender finds out
	w.sent.Add(uint64(n))

	w.sendMu.Lock()
	w.sending = false
	later := w.waiting
	w.waiting, w.spare = first[:0], later[:0]
	if n < len(first) {
		w.waiting = append(w.waiting, first[n:]...)
		n = len(first)
	}
	w.waiting = append(append(w.waiting, p[n-len(first):]...), later...)
	if len(w.waiting) > 0 || w.closing {
		w.work.Signal()
	}
}

// SetWriteDeadline does nothing: Write does not wait for the other end, and crypto/tls
// would stop what waits with the deadline that it sets for the last record.
func (w *Conn) SetWriteDeadline(time.Time) error { return nil }

// SetDeadline is SetReadDeadline.
func (w *Conn) SetDeadline(t time.Time) error { return w.SetReadDeadline(t) }

// Settle says that the handshake is over. Until then the sender sends everything, so
// that nothing depends on a Flush.
func (w *Conn) Settle() {
	w.sendMu.Lock()
	w.settled = true
	w.sendMu.Unlock()
}

// Flush sends what Write has put off.
func (w *Conn) Flush() {
	w.sendMu.Lock()
	if w.direct != nil && len(w.waiting) > 0 && !w.sending && w.err == nil && !w.closing {
		w.sendNow(nil)
	}
	w.sendMu.Unlock()
}

// directSender returns a function that sends what the kernel takes without waiting,
// and tells how much that was.
func directSender(c syscall.Conn) func(...[]byte) int {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	return func(pieces ...[]byte) (n int) {
		_ = raw.Control(func(fd uintptr) {
			sent, err := unix.SendmsgBuffers(int(fd), pieces, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
			if err == nil {
				n = sent
			}
		})
		return n
	}
}

// Room returns nil where there is room for data of streams, which are held back while
// much waits to be sent, else a channel that is closed when there may be some.
func (w *Conn) Room() <-chan struct{} {
	w.sendMu.Lock()
	defer w.sendMu.Unlock()
	if len(w.waiting) < busyAt || w.err != nil || w.closing {
		return nil
	}
	if w.freed == nil {
		w.freed = make(chan struct{})
	}
	return w.freed
}

// AwaitRoomUntil is AwaitRoom that gives up at a time, unless that is zero, or when woken
// has something; it tells whether there is room.
func (w *Conn) AwaitRoomUntil(until time.Time, woken <-chan struct{}) bool {
	room := w.Room()
	if room == nil {
		return true
	}
	var late <-chan time.Time
	if !until.IsZero() {
		timer := time.NewTimer(time.Until(until))
		defer timer.Stop()
		late = timer.C
	}
	select {
	case <-room:
	case <-late:
	case <-woken:
	case <-w.ended:
	}
	return false // look again: others were waiting too
}

// AwaitRoom waits for what Room tells of.
func (w *Conn) AwaitRoom() {
	for room := w.Room(); room != nil; room = w.Room() {
		<-room
	}
}

// tellRoom wakes whoever waits for room. The caller holds sendMu.
func (w *Conn) tellRoom() {
	w.room.Broadcast()
	if w.freed != nil {
		close(w.freed)
		w.freed = nil
	}
}

func (w *Conn) send() {
	defer close(w.ended)
	for {
		w.sendMu.Lock()
		for (len(w.waiting) == 0 && !w.closing || w.sending) && w.err == nil {
			w.work.Wait()
		}
		if len(w.waiting) == 0 || w.err != nil {
			w.sendMu.Unlock()
			break
		}
		out := w.waiting
		w.waiting = w.spare[:0]
		w.sending = true
		w.tellRoom()
		w.sendMu.Unlock()

		n, err := w.Conn.Write(out)
		w.sent.Add(uint64(n))

		w.sendMu.Lock()
		w.sending = false
		if cap(out) > 2*busyAt {
			out = nil // of a rush; do not keep it
		}
		w.spare = out
		if err != nil && w.err == nil {
			w.err = err
		}
		w.sendMu.Unlock()
	}
	w.Conn.Close()
}

// Close is CloseWithin a second.
func (w *Conn) Close() error { return w.CloseWithin(flushTime) }

// CloseWithin closes when what waits was sent, or limit has passed. It does not wait for
// that, and it ends reading at once.
func (w *Conn) CloseWithin(limit time.Duration) error {
	w.sendMu.Lock()
	defer w.sendMu.Unlock()
	if !w.closing {
		w.closing = true
		now := time.Now()
		w.Conn.SetReadDeadline(now)
		w.Conn.SetWriteDeadline(now.Add(limit))
		w.work.Broadcast()
		w.tellRoom()
	}
	return nil
}

// Delivered tells whether the other end's kernel has acknowledged all that was written,
// as far as there is one.
func (w *Conn) Delivered() bool {
	w.sendMu.Lock()
	waits := len(w.waiting) > 0 || w.sending
	w.sendMu.Unlock()
	if waits {
		return false
	}
	socket, ok := w.Conn.(syscall.Conn)
	if !ok {
		return true
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return true
	}
	var n int
	_ = raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
	return err != nil || n == 0
}

// Abort closes without sending what is waiting, for err's sake.
func (w *Conn) Abort(err error) {
	w.sendMu.Lock()
	if w.err == nil {
		w.err = err
	}
	w.closing = true
	w.work.Broadcast()
	w.tellRoom()
	w.sendMu.Unlock()
	w.Conn.Close()
}

// Failure says why the connection ended, where it was the connection.
func (w *Conn) Failure() error {
	w.sendMu.Lock()
	defer w.sendMu.Unlock()
	return w.err
}

// Ended is closed when what waited was sent, or could not be, and the connection is
// closed.
func (w *Conn) Ended() <-chan struct{} { return w.ended }

// Sent is how many bytes went out so far.
func (w *Conn) Sent() uint64 { return w.sent.Load() }

// Received is how many bytes came so far.
func (w *Conn) Received() uint64 { return w.received.Load() }
