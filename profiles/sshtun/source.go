package sshtun

import (
	"io"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// pieceSize is what one system call takes from a program. The library cuts it into
// packets of the server's size, 32 KiB as a rule.
const pieceSize = 64 << 10

// buffers lends pieces of memory to streams while data moves.
type buffers struct{ pool sync.Pool }

func (b *buffers) get() []byte {
	if p, ok := b.pool.Get().(*[pieceSize]byte); ok {
		return p[:]
	}
	return make([]byte, pieceSize)
}

// put takes a buffer back; what is not a whole one is left to the collector.
func (b *buffers) put(p []byte) {
	if cap(p) == pieceSize {
		b.pool.Put((*[pieceSize]byte)(p[:pieceSize]))
	}
}

// rawSource reads a socket with a buffer that is borrowed only once there is
// something to read, so that idle flows hold none.
func (s *stream) rawSource(c syscall.Conn) func() ([]byte, int, error) {
	raw, err := c.SyscallConn()
	return func() ([]byte, int, error) {
		if err != nil {
			return nil, 0, err
		}
		var buf []byte
		var n int
		var readErr error
		waitErr := raw.Read(func(fd uintptr) bool {
			buf = s.t.buffers.get()
			for {
				n, readErr = unix.Read(int(fd), buf)
				if readErr != unix.EINTR {
					break
				}
			}
			if readErr == unix.EAGAIN {
				s.t.buffers.put(buf)
				return false
			}
			return true
		})
		switch {
		case waitErr != nil:
			return nil, 0, waitErr
		case readErr != nil:
			s.t.buffers.put(buf)
			return nil, 0, os.NewSyscallError("read", readErr)
		case n == 0:
			s.t.buffers.put(buf)
			return nil, 0, io.EOF
		}
		return buf, n, nil
	}
}
