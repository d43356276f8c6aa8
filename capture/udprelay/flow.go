package udprelay

import (
	"container/list"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// key is a program's address as one of the relay's sockets sees it.
type key struct {
	via   *net.UDPConn // where its datagrams arrive and answers leave
	local netip.AddrPort
	peer  netip.AddrPort
}

// flow is what the relay has for one peer. One without a socket is a refusal.
type flow struct {
	key  key
	dst  netip.AddrPort
	conn *net.UDPConn // to dst
	raw  syscall.RawConn

	sent, received atomic.Uint64

	trusted time.Duration // how long after its last use nobody needs to be asked again
	used    time.Time     // guarded by relay.mu
	place   *list.Element // in relay.recent; guarded by relay.mu
}

func (f *flow) close() {
	if f.conn != nil {
		f.conn.Close()
	}
}

// send never waits.
func (f *flow) send(datagram []byte) error {
	var serr error
	err := f.raw.Write(func(fd uintptr) bool {
		for {
			serr = unix.Send(int(fd), datagram, unix.MSG_NOSIGNAL)
			if serr != unix.EINTR {
				return true
			}
		}
	})
	if err = errors.Join(err, serr); err == nil {
		f.sent.Add(uint64(len(datagram)))
	}
	return err
}

// lostOne reports whether a datagram could not be sent for a reason that says nothing
// about the next one: no room just now, too large, or a firewall's word.
func lostOne(err error) bool {
	for _, e := range []error{unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM, unix.EMSGSIZE, unix.EPERM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func outOfDescriptors(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE)
}

// carryBack brings answers to the program until the flow is idle for too long, its
// far side is reported gone, or somebody ends it.
func (r *relay) carryBack(f *flow) {
	defer func() {
		r.end(f)
		if r.Ended != nil {
			r.Ended(Record{f.key.peer, f.dst, f.sent.Load(), f.received.Load()})
		}
	}()
	var b *[maxDatagram]byte
	var n int
	var rerr error
	receive := func(fd uintptr) bool {
		b = r.buffers.Get().(*[maxDatagram]byte)
		for {
			if n, rerr = unix.Read(int(fd), b[:]); rerr != unix.EINTR {
				break
			}
		}
		if rerr != nil {
			r.buffers.Put(b)
		}
		return rerr != unix.EAGAIN
	}
	_ = f.conn.SetReadDeadline(time.Now().Add(r.IdleTimeout))
	for {
		err := f.raw.Read(receive)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			left := r.idle(f)
			if left <= 0 {
				return
			}
			_ = f.conn.SetReadDeadline(time.Now().Add(left))
			continue
		}
		if err := errors.Join(err, rerr); err != nil {
			if !errors.Is(err, net.ErrClosed) {
				r.Log.Debug("UDP ended", "peer", f.key.peer, "dst", f.dst, "error", err)
			}
			return
		}
		current := r.current(f)
		if current {
			// An answer that the program's socket has no room for is lost there.
			if _, err := f.key.via.WriteToUDPAddrPort(b[:n], f.key.peer); err == nil {
				f.received.Add(uint64(n))
			}
		}
		r.buffers.Put(b)
		if !current {
			return
		}
	}
}
