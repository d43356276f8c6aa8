package relay

import (
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// pipeSize is the room of one splice pipe. It stays well below what
// /proc/sys/fs/pipe-user-pages-soft grants a user, as pipes are used only while
// data moves.
const pipeSize = 256 << 10

// idlePipes is how many empty pipes are kept, two descriptors each.
const idlePipes = 16

type pipe struct{ r, w int }

func (p pipe) close() {
	unix.Close(p.r)
	unix.Close(p.w)
}

// pipePool keeps empty pipes.
type pipePool struct {
	mu   sync.Mutex
	idle []pipe
}

func (p *pipePool) get() (pipe, error) {
	p.mu.Lock()
	if n := len(p.idle); n > 0 {
		last := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		return last, nil
	}
	p.mu.Unlock()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return pipe{}, os.NewSyscallError("pipe2", err)
	}
	// A user over the pipe limit keeps the size it was given.
	unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, pipeSize)
	return pipe{r: fds[0], w: fds[1]}, nil
}

func (p *pipePool) put(e pipe) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.idle) < idlePipes {
		p.idle = append(p.idle, e)
		return
	}
	e.close()
}

func (p *pipePool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.idle {
		e.close()
	}
	p.idle = nil
}

// splice moves data from socket to socket without it coming to user space.
// io.Copy would too, but holds a pipe while it waits and counts only at the end.
// Where there is no pipe (no descriptors left) or no splice, it copies.
func (f *flow) splice(dst, src *net.TCPConn, count *atomic.Int64, watch *stallWatch) (srcErr, dstErr error) {
	in, err := src.SyscallConn()
	if err != nil {
		return err, nil
	}
	out, err := dst.SyscallConn()
	if err != nil {
		return nil, err
	}
	const flags = unix.SPLICE_F_MOVE | unix.SPLICE_F_NONBLOCK
	var (
		p     pipe
		n     int64 // in the pipe
		errno error
		plain bool
	)
	fill := func(fd uintptr) bool {
		if p, errno = f.relay.pipes.get(); errno != nil {
			plain = true
			return true
		}
		n, errno = spliceOnce(int(fd), p.w, pipeSize, flags)
		if errno == nil && n > 0 {
			return true
		}
		f.relay.pipes.put(p) // empty
		plain = errno == unix.EINVAL || errno == unix.ENOSYS || errno == unix.EPERM
		return errno != unix.EAGAIN
	}
	drain := func(fd uintptr) bool {
		for n > 0 {
			var moved int64
			moved, errno = spliceOnce(p.r, int(fd), int(n), flags)
			if errno != nil {
				return errno != unix.EAGAIN
			}
			n -= moved
			count.Add(moved)
		}
		return true
	}
	for {
		err := in.Read(fill)
		if err == nil && plain {
			return f.copySocket(dst, src, count, watch)
		}
		if err == nil && errno != nil {
			err = os.NewSyscallError("splice", errno)
		}
		if err != nil || n == 0 {
			return err, nil
		}
		watch.arm()
		err = out.Write(drain)
		watch.disarm()
		if err == nil && errno != nil {
			err = os.NewSyscallError("splice", errno)
		}
		if err != nil {
			p.close() // still holds data of this flow
			return nil, err
		}
		f.relay.pipes.put(p)
	}
}

func spliceOnce(from, to, size, flags int) (int64, error) {
	for {
		n, err := unix.Splice(from, nil, to, nil, size, flags)
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}
