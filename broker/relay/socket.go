package relay

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// TCP states, include/net/tcp_states.h.
const (
	tcpEstablished = 1
	tcpFinWait1    = 4
	tcpClose       = 7
	tcpCloseWait   = 8
	tcpLastAck     = 9
	tcpClosing     = 11
)

// resetTCP closes c so that its peer sees RST, whatever is queued.
func resetTCP(c *net.TCPConn) error {
	c.SetLinger(0) // fails only when c is closed already
	return c.Close()
}

// arm has the kernel reset c if this process dies: the peer must not take that for
// the end of the data. disarm, before an orderly close, takes it back.
func arm(c *net.TCPConn) { c.SetLinger(0) }

func disarm(c *net.TCPConn) { c.SetLinger(-1) }

// wakeReader ends waitDead.
func wakeReader(c *net.TCPConn) { c.SetReadDeadline(time.Unix(1, 0)) }

// waitDead waits until c is dead and returns true, or until wakeReader or a close of
// c and returns false. It reads nothing. The runtime's poller reports a reset like
// readability, also after the end of data.
func waitDead(c *net.TCPConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	return raw.Read(func(fd uintptr) bool { return state(fd) == tcpClose }) == nil
}

// isDead reports whether c was reset or timed out, or both of its directions ended.
func isDead(c *net.TCPConn) bool { return stateOf(c) == tcpClose }

// finAcknowledged reports whether the peer's kernel has everything that was written
// to c, and its end; or never will, as c is gone.
func finAcknowledged(c *net.TCPConn) bool {
	switch stateOf(c) {
	case tcpEstablished, tcpCloseWait, tcpFinWait1, tcpClosing, tcpLastAck:
		return false
	}
	return true
}

// unacknowledged reports whether the peer's kernel lacks some of what was written to c.
func unacknowledged(c *net.TCPConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	n := 0
	raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
	return err == nil && n > 0
}

// stateOf returns 0 for a closed descriptor.
func stateOf(c *net.TCPConn) (s uint8) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0
	}
	raw.Control(func(fd uintptr) { s = state(fd) })
	return s
}

func state(fd uintptr) uint8 {
	info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0
	}
	return info.State
}
