package socket

import (
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// goneAfter is how long the kernel tries to reach a server that acknowledges nothing, where
// nobody asks for a sign of life. By itself it would try for a quarter of an hour as
// soon as there is something to send (tcp_retries2, tcp(7)), keepalives or not.
const goneAfter = 2 * time.Minute

// unsentAt is how many bytes the kernel takes before it could send the ones it has
// (TCP_NOTSENT_LOWAT, tcp(7)). By itself it would take megabytes on a slow line, and what
// an interactive stream writes would wait behind all of them. What is on its way does not
// count, so that a long line is filled.
const unsentAt = 128 << 10

// Tune sets up the socket, where conn is one: small packets leave at once, little waits in
// the kernel before them, and a peer that is gone is noticed by the kernel as soon as by
// keepalives, which are sent each interval and may be missed so often. No interval: none
// are sent.
func Tune(conn net.Conn, interval time.Duration, misses int) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	tcp.SetNoDelay(true)
	tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 15 * time.Second, Count: 4})
	gone := goneAfter
	if interval > 0 {
		gone = interval * time.Duration(max(misses, 1)+1)
	}
	if raw, err := tcp.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) {
			// A kernel without the one option has the keepalives above, without the other
			// it takes more.
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(gone.Milliseconds()))
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentAt)
		})
	}
}

// acknowledger returns a function that has the kernel acknowledge at once what came,
// which the kernel forgets again soon. sshd leaves Nagle's algorithm on for
// connections without a terminal, so that its second small packet in a row (data,
// then EOF) waits for the acknowledgement of the first, which the kernel would delay
// by 40 ms.
func acknowledger(c syscall.Conn) func() {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	set := func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1) }
	return func() { _ = raw.Control(set) }
}
