package netns

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Wire sees every frame that passes an interface, both ways, from the moment
// Capture returns. It keeps them all: not for gigabytes.
type Wire struct {
	fd   int // AF_PACKET, in the machine's namespace
	wake int // eventfd that ends the reader
	gone chan struct{}

	mu      sync.Mutex // guards what follows, and reading from fd
	packets []Packet
	buffer  []byte
	err     error
	dropped uint32
	closed  bool
}

// wireQueue is what the kernel may hold before the reader comes to it.
const wireQueue = 64 << 20

// Capture begins to watch an interface of the machine. The test's end ends it.
func (m *Machine) Capture(t testing.TB, iface string) *Wire {
	t.Helper()
	w := &Wire{gone: make(chan struct{}), buffer: make([]byte, 256<<10)}
	err := m.Do(func() (err error) {
		l, err := netlink.LinkByName(iface)
		if err != nil {
			return err
		}
		w.fd, err = openPacketSocket(l.Attrs().Index)
		return err
	})
	if err == nil {
		if w.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err != nil {
			unix.Close(w.fd)
		}
	}
	if err != nil {
		t.Fatalf("capture on %s of %s: %v", iface, m.Name, err)
	}
	m.net.mu.Lock()
	m.net.wires = append(m.net.wires, w)
	m.net.mu.Unlock()
	go w.read()
	return w
}

func openPacketSocket(index int) (int, error) {
	// Protocol 0 first: nothing of other interfaces may be queued before the bind.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, wireQueue),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: index}),
	)
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// read keeps the kernel's queue short until the wire is closed.
func (w *Wire) read() {
	defer close(w.gone)
	fds := []unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}, {Fd: int32(w.wake), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return
		}
		if fds[1].Revents != 0 {
			return
		}
		w.mu.Lock()
		w.drain()
		failed := w.err != nil
		w.mu.Unlock()
		if failed {
			return
		}
	}
}

// drain reads all that the kernel has; w.mu is held.
func (w *Wire) drain() {
	if w.closed {
		return
	}
	for {
		n, from, err := unix.Recvfrom(w.fd, w.buffer, unix.MSG_TRUNC)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			stats, err := unix.GetsockoptTpacketStats(w.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
			if err != nil {
				w.err = err
			} else {
				w.dropped += stats.Drops // the kernel starts again from 0
			}
			return
		case err != nil:
			w.err = err
			return
		case n > len(w.buffer):
			w.err = fmt.Errorf("a frame of %d bytes", n)
			return
		}
		p := parse(bytes.Clone(w.buffer[:n]))
		p.Time = time.Now()
		if ll, ok := from.(*unix.SockaddrLinklayer); ok {
			p.Outgoing = ll.Pkttype == unix.PACKET_OUTGOING
		}
		w.packets = append(w.packets, p)
	}
}

// all returns what has passed so far, or fails: a capture with gaps proves nothing.
func (w *Wire) all(t testing.TB) []Packet {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.drain()
	if w.err != nil || w.dropped > 0 {
		t.Fatalf("capture: %d frames lost, error %v", w.dropped, w.err)
	}
	return w.packets[:len(w.packets):len(w.packets)]
}

// Packets returns the packets that match, in order; all for nil. The caller
// does not change what they point to.
func (w *Wire) Packets(t testing.TB, match func(Packet) bool) []Packet {
	t.Helper()
	var found []Packet
	for _, p := range w.all(t) {
		if match == nil || match(p) {
			found = append(found, p)
		}
	}
	return found
}

// Streams returns the TCP conversations, each direction on its own.
func (w *Wire) Streams(t testing.TB) []Stream {
	t.Helper()
	return reassemble(w.all(t))
}

// Contains reports whether text passed in clear: within one frame, or in order
// within a TCP stream.
func (w *Wire) Contains(t testing.TB, text []byte) bool {
	t.Helper()
	packets := w.all(t)
	for _, p := range packets {
		if bytes.Contains(p.Frame, text) {
			return true
		}
	}
	for _, s := range reassemble(packets) {
		if bytes.Contains(s.Bytes, text) {
			return true
		}
	}
	return false
}

func (w *Wire) close() {
	unix.Write(w.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	<-w.gone
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	unix.Close(w.fd)
	unix.Close(w.wake)
}

// NewConnections matches the first packet of every TCP connection attempt.
func NewConnections(p Packet) bool {
	return p.Proto == protoTCP && p.Flags&(SYN|ACK) == SYN
}
