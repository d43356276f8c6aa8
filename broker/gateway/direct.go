package gateway

import (
	"crypto/tls"
	"errors"
	"io"
	"time"

	"sshbroker/broker/gateway/httpconnect"
	"sshbroker/broker/relay"
)

// serveRaw carries a connection as it is to the target of its service.
func (c *client) serveRaw() {
	c.serveFlow("raw", &whole{client: c}, func() (request, error) { return request{}, nil })
}

// serveConnect reads one CONNECT and serves it.
func (c *client) serveConnect() {
	w := &whole{client: c, http: true}
	c.serveFlow("connect", w, func() (request, error) {
		c.tls.SetReadDeadline(time.Now().Add(c.g.current.Load().Config.Limits.Handshake))
		req, err := httpconnect.Read(c.tls)
		c.tls.SetReadDeadline(time.Time{})
		if errors.Is(err, httpconnect.ErrEmpty) {
			return request{}, errServed
		}
		w.rest = req.Rest
		return request{host: req.Host, port: req.Port, flowID: req.Flow}, err
	})
}

// whole is a connection that is one flow.
type whole struct {
	client *client
	http   bool   // an answer is due
	rest   []byte // that was read with the request
}

func (w *whole) accept(func() string) (relay.Stream, error) {
	c := w.client
	if w.http {
		c.tls.SetWriteDeadline(time.Now().Add(answerTime))
		if _, err := io.WriteString(c.tls, httpconnect.Opened); err != nil {
			return nil, err
		}
		c.tls.SetWriteDeadline(time.Time{})
	}
	// If this process dies the kernel resets it: the client must not take that for the
	// end of the data. Close takes it back.
	c.tcp.SetLinger(0)
	return &tlsStream{Conn: c.tls, tcp: c.tcp, rest: w.rest}, nil
}

// refuse answers, or where nobody would understand an answer, resets.
func (w *whole) refuse(no *refusal) {
	c := w.client
	if !w.http {
		c.tcp.SetLinger(0)
		c.tcp.Close()
		return
	}
	c.tls.SetDeadline(time.Now().Add(answerTime))
	text := httpconnect.Refusal{Status: no.status, Error: no.proxy, Details: no.rule, Text: no.text}
	if _, err := c.tls.Write(text.Append(nil)); err == nil {
		c.tls.CloseWrite()
	}
	farewell(c.tcp.TCPConn)
}

// tlsStream is a TLS connection as the client's end of a flow: close_notify ends one
// direction. An end of TCP without it is no end of data, but a fault (RFC 8446 section
// 6.1), and Read says so.
type tlsStream struct {
	*tls.Conn
	tcp  *tcpConn
	rest []byte
}

func (s *tlsStream) Read(p []byte) (int, error) {
	if len(s.rest) > 0 {
		n := copy(p, s.rest)
		if s.rest = s.rest[n:]; len(s.rest) == 0 {
			s.rest = nil
		}
		return n, nil
	}
	n, err := s.Conn.Read(p)
	if err == io.EOF && s.tcp.ended.Load() {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (s *tlsStream) Close() error {
	s.tcp.SetLinger(-1)
	return s.Conn.Close()
}

// Reset makes the kernel send RST in place of close_notify and FIN.
func (s *tlsStream) Reset() error {
	s.tcp.SetLinger(0)
	return s.tcp.Close()
}
