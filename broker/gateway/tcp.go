package gateway

import (
	"io"
	"net"
	"sync/atomic"

	"sshbroker/profiles/socket"
	"sshbroker/profiles/tlstun/wire"
)

// tcpConn is what is below TLS. The library takes an end of TCP for close_notify where
// it comes between two records; this tells them apart. Of a session's connection it
// hands all to a socket.Conn, once the handshake has shown that it is one.
type tcpConn struct {
	*net.TCPConn
	ended   atomic.Bool
	session *socket.Conn
}

// gather has the connection be read ahead and its small writes be gathered, before
// anybody else uses it.
func (c *tcpConn) gather() { c.session = wire.NewSocket(c.TCPConn) }

// Socket is for the session that runs in the connection.
func (c *tcpConn) Socket() *socket.Conn { return c.session }

func (c *tcpConn) Read(p []byte) (int, error) {
	if c.session != nil {
		return c.session.Read(p)
	}
	n, err := c.TCPConn.Read(p)
	if err == io.EOF {
		c.ended.Store(true)
	}
	return n, err
}

func (c *tcpConn) Write(p []byte) (int, error) {
	if c.session != nil {
		return c.session.Write(p)
	}
	return c.TCPConn.Write(p)
}

func (c *tcpConn) Close() error {
	if c.session != nil {
		return c.session.Close()
	}
	return c.TCPConn.Close()
}
