package relay

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// bufferSize is one full SSH packet. Measured through an x/crypto channel, 16 KiB
// costs a tenth more processor time for a byte, 64 and 128 KiB gain nothing.
const bufferSize = 32 << 10

// smallRead is what a flow keeps to wait with on a stream that cannot be polled.
const smallRead = 1 << 10

// quiet is how long a direction may be silent before what it needs while data moves
// is given up.
const quiet = time.Second

// stallCheck is how long a write may block before the other end is looked at.
const stallCheck = time.Second

type buffer [bufferSize]byte

type bufferPool struct{ pool sync.Pool }

func (p *bufferPool) get() *buffer {
	if b, ok := p.pool.Get().(*buffer); ok {
		return b
	}
	return new(buffer)
}

func (p *bufferPool) put(b *buffer) { p.pool.Put(b) }

// copyUp and copyDown move one direction until it ends. Both errors nil: the source
// came to its EOF and everything was written. srcErr is never io.EOF.

func (f *flow) copyUp() (srcErr, dstErr error) {
	watch := newStallWatch(f.stalled)
	defer watch.end()
	if f.farTCP != nil {
		return f.splice(f.farTCP, f.prog, &f.count.Up, watch)
	}
	if c, ok := f.far.(carrier); ok {
		return f.handOver(c, watch)
	}
	return f.copySocket(f.far, f.prog, &f.count.Up, watch)
}

func (f *flow) copyDown() (srcErr, dstErr error) {
	if f.farTCP != nil {
		return f.splice(f.prog, f.farTCP, &f.count.Down, nil)
	}
	return f.copyStream()
}

// carrier is a Stream that moves data in goroutines of its own.
type carrier interface {
	// TakeFrom carries what next gives until next fails, and returns that error, or
	// nil for io.EOF. When next is called, the piece before has been taken. Not
	// patient, next returns nothing where there has been none for a while.
	TakeFrom(next func(patient bool) ([]byte, error)) error
	// DeliverTo writes to w what comes and calls done once, with nil for EOF.
	DeliverTo(w io.Writer, done func(error))
}

// reader reads a socket into a buffer that it has only while there is data.
type reader struct {
	raw     syscall.RawConn
	conn    *net.TCPConn
	buffers *bufferPool
	attempt func(fd uintptr) bool
	patient bool // else next fails with os.ErrDeadlineExceeded after quiet without data

	buf *buffer // with data in it, until release
	n   int
	err error
}

func newReader(c *net.TCPConn, buffers *bufferPool) (*reader, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	r := &reader{raw: raw, conn: c, buffers: buffers, patient: true}
	r.attempt = r.tryRead
	return r, nil
}

// tryRead lends itself to the poller: false has it wait, without a buffer.
func (r *reader) tryRead(fd uintptr) bool {
	r.buf = r.buffers.get()
	for {
		r.n, r.err = syscall.Read(int(fd), r.buf[:])
		if r.err != syscall.EINTR {
			break
		}
	}
	if r.err == syscall.EAGAIN {
		r.release()
		if !r.patient {
			r.conn.SetReadDeadline(time.Now().Add(quiet))
		}
		return false
	}
	return true
}

// next waits for data; io.EOF at its end. The caller calls release when done with it.
func (r *reader) next() ([]byte, error) {
	err := r.raw.Read(r.attempt)
	switch {
	case err == nil && r.err != nil:
		err = os.NewSyscallError("read", r.err)
	case err == nil && r.n == 0:
		err = io.EOF
	}
	if err != nil {
		r.release()
		return nil, err
	}
	return r.buf[:r.n], nil
}

func (r *reader) release() {
	if r.buf != nil {
		r.buffers.put(r.buf)
		r.buf = nil
	}
}

// handOver has a carrier fetch what the program sends.
func (f *flow) handOver(far carrier, watch *stallWatch) (srcErr, dstErr error) {
	src, err := newReader(f.prog, &f.relay.buffers)
	if err != nil {
		return err, nil
	}
	var given int // with the carrier
	ended := false
	err = far.TakeFrom(func(patient bool) ([]byte, error) {
		if given > 0 {
			watch.disarm()
			f.count.Up.Add(int64(given))
			given = 0
			src.release()
		}
		src.patient = patient
		data, err := src.next()
		if !patient && errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, f.prog.SetReadDeadline(time.Time{})
		}
		if err != nil {
			ended, srcErr = true, err
			return nil, io.EOF
		}
		select {
		case <-f.farClosed:
			src.release()
			return nil, errFarClosed
		default:
		}
		watch.arm()
		given = len(data)
		return data, nil
	})
	watch.disarm()
	f.prog.SetReadDeadline(time.Time{}) // who waits for the program's reset has time
	switch {
	case err != nil:
		return nil, err // the buffer of the last piece may be in use: it is not given back
	case !ended:
		return nil, io.ErrUnexpectedEOF // cannot be
	case srcErr == io.EOF:
		return nil, nil
	}
	return srcErr, nil
}

// copySocket reads a socket and writes to dst.
func (f *flow) copySocket(dst io.Writer, from *net.TCPConn, count *atomic.Int64, watch *stallWatch) (srcErr, dstErr error) {
	src, err := newReader(from, &f.relay.buffers)
	if err != nil {
		return err, nil
	}
	for {
		data, err := src.next()
		if err == io.EOF {
			return nil, nil
		}
		if err != nil {
			return err, nil
		}
		written := 0
		select {
		case <-f.farClosed:
			err = errFarClosed
		default:
			watch.arm()
			written, err = dst.Write(data)
			watch.disarm()
		}
		count.Add(int64(written))
		src.release()
		if err == nil && written < len(data) {
			err = io.ErrShortWrite
		}
		if err != nil {
			return nil, err
		}
	}
}

// copyStream moves the far stream's data to the program.
func (f *flow) copyStream() (srcErr, dstErr error) {
	w := &programWriter{flow: f}
	if from, ok := f.far.(io.WriterTo); ok {
		_, err := from.WriteTo(w)
		if w.err != nil {
			return nil, w.err
		}
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return err, nil
	}
	for {
		if err := f.readIdle(w); err != nil {
			return readEnd(err), w.err
		}
		if err := f.readBusy(w); err != nil {
			return readEnd(err), w.err
		}
	}
}

func readEnd(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, errWrite) {
		return nil
	}
	return err
}

// readIdle waits for the first data after a quiet time with a small buffer.
func (f *flow) readIdle(w *programWriter) error {
	var buf [smallRead]byte
	n, err := f.far.Read(buf[:])
	if _, werr := w.Write(buf[:n]); werr != nil {
		return errWrite
	}
	return err
}

// readBusy moves data through a large buffer until the stream has been quiet. It
// sets a deadline once in a while, not for each read.
func (f *flow) readBusy(w *programWriter) error {
	if f.far.SetReadDeadline(time.Now().Add(quiet)) == nil {
		defer f.far.SetReadDeadline(time.Time{})
	}
	buf := f.relay.buffers.get()
	defer f.relay.buffers.put(buf)
	active := false
	for {
		n, err := f.far.Read(buf[:])
		if n > 0 {
			active = true
			if _, werr := w.Write(buf[:n]); werr != nil {
				return errWrite
			}
		}
		switch {
		case err == nil:
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return err
		case !active:
			return nil
		default:
			active = false
			if err := f.far.SetReadDeadline(time.Now().Add(quiet)); err != nil {
				return err
			}
		}
	}
}

// errWrite ends a read loop because the program's side failed; programWriter has
// the error.
var errWrite = errors.New("write to the program failed")

// programWriter counts what the program's socket takes and keeps its error apart
// from those of the stream.
type programWriter struct {
	flow *flow
	err  error
}

func (w *programWriter) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, w.err
	}
	n, err := w.flow.prog.Write(p)
	w.flow.count.Down.Add(int64(n))
	if err != nil {
		w.err = err
	}
	return n, err
}

// stallWatch calls check each second for as long as one write lasts, from its second
// second on. Its timer runs on from write to write, which is cheaper than setting it
// for each. A nil one does nothing.
type stallWatch struct {
	check   func()
	timer   *time.Timer
	running atomic.Bool
	state   atomic.Uint64 // odd while a write is under way; another number for each
	seen    uint64        // state when the timer fired last; the timer's own
	ended   atomic.Bool
}

func newStallWatch(check func()) *stallWatch {
	w := &stallWatch{check: check}
	w.timer = time.AfterFunc(stallCheck, w.fire)
	w.timer.Stop()
	return w
}

func (w *stallWatch) arm() {
	if w == nil {
		return
	}
	w.state.Add(1)
	if !w.running.Load() && w.running.CompareAndSwap(false, true) {
		w.timer.Reset(stallCheck)
	}
}

func (w *stallWatch) disarm() {
	if w != nil && w.state.Load()%2 == 1 {
		w.state.Add(1)
	}
}

func (w *stallWatch) fire() {
	state := w.state.Load()
	switch {
	case state%2 == 1 && state == w.seen:
		w.check()
	case state == w.seen: // no write for a while
		w.running.Store(false)
		// One that came in between found the watch running.
		if w.state.Load() == state || !w.running.CompareAndSwap(false, true) {
			return
		}
	}
	w.seen = state
	w.timer.Reset(stallCheck)
	if w.ended.Load() {
		w.timer.Stop()
	}
}

// end stops the watch for good.
func (w *stallWatch) end() {
	w.disarm()
	w.ended.Store(true)
	w.timer.Stop()
}
