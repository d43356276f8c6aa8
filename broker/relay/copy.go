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

// quiet is how long such a stream may be silent before its large buffer is given up.
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
	defer watch.disarm()
	if f.farTCP != nil {
		return f.splice(f.farTCP, f.prog, &f.count.Up, watch)
	}
	return f.copySocket(f.far, f.prog, &f.count.Up, watch)
}

func (f *flow) copyDown() (srcErr, dstErr error) {
	if f.farTCP != nil {
		return f.splice(f.prog, f.farTCP, &f.count.Down, nil)
	}
	return f.copyStream()
}

// copySocket reads a socket into a buffer that it has only while there is data.
func (f *flow) copySocket(dst io.Writer, src *net.TCPConn, count *atomic.Int64, watch *stallWatch) (srcErr, dstErr error) {
	raw, err := src.SyscallConn()
	if err != nil {
		return err, nil
	}
	var buf *buffer
	var n int
	var errno error
	read := func(fd uintptr) bool {
		buf = f.relay.buffers.get()
		for {
			n, errno = syscall.Read(int(fd), buf[:])
			if errno != syscall.EINTR {
				break
			}
		}
		if errno == syscall.EAGAIN {
			f.relay.buffers.put(buf)
			buf = nil
			return false // wait without a buffer
		}
		return true
	}
	for {
		err := raw.Read(read)
		if err == nil && errno != nil {
			err = os.NewSyscallError("read", errno)
		}
		if err != nil || n == 0 {
			if buf != nil {
				f.relay.buffers.put(buf)
			}
			return err, nil
		}
		written := 0
		select {
		case <-f.farClosed:
			err = errFarClosed
		default:
			watch.arm()
			written, err = dst.Write(buf[:n])
			watch.disarm()
		}
		count.Add(int64(written))
		f.relay.buffers.put(buf)
		buf = nil
		if err == nil && written < n {
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

// stallWatch calls check each second for as long as it is armed. A nil one does nothing.
type stallWatch struct {
	timer *time.Timer
	armed atomic.Bool
	check func()
}

func newStallWatch(check func()) *stallWatch {
	w := &stallWatch{check: check}
	w.timer = time.AfterFunc(stallCheck, w.fire)
	w.timer.Stop()
	return w
}

func (w *stallWatch) fire() {
	if !w.armed.Load() {
		return
	}
	w.check()
	if w.armed.Load() {
		w.timer.Reset(stallCheck) // a disarm just now leaves one call that does nothing
	}
}

func (w *stallWatch) arm() {
	if w != nil {
		w.armed.Store(true)
		w.timer.Reset(stallCheck)
	}
}

func (w *stallWatch) disarm() {
	if w != nil {
		w.armed.Store(false)
		w.timer.Stop()
	}
}
