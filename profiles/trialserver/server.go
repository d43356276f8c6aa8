package trialserver

import (
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

// Server is a running one. Close ends it and all its connections.
type Server struct {
	// Key is the line that known_hosts and files of host keys have.
	Key string
	// Port is where it listens, on 127.0.0.1.
	Port uint16

	config *ssh.ServerConfig
	target netip.AddrPort

	mu    sync.Mutex
	conns map[io.Closer]bool // guarded by mu; nil once it is closed
}

// handshakeTime is how long a client may take to come in, and a target to answer.
const handshakeTime = 10 * time.Second

// Start starts a server that leads to target and nowhere else. The caller closes it.
func Start(target netip.AddrPort) (*Server, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("trial server: %w", err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		return nil, fmt.Errorf("trial server: %w", err)
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("trial server: %w", err)
	}
	s := &Server{Key: string(ssh.MarshalAuthorizedKey(signer.PublicKey())), Port: uint16(l.Addr().(*net.TCPAddr).Port),
		config: &ssh.ServerConfig{NoClientAuth: true}, target: target, conns: map[io.Closer]bool{l: true}}
	s.config.AddHostKey(signer)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go s.serve(c)
		}
	}()
	return s, nil
}

// Close implements io.Closer.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.Close()
	}
	s.conns = nil
	return nil
}

// keep has c closed with the server; false where that is closed already.
func (s *Server) keep(c io.Closer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns == nil {
		return false
	}
	s.conns[c] = true
	return true
}

func (s *Server) drop(c io.Closer) {
	c.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

func (s *Server) serve(c net.Conn) {
	defer s.drop(c)
	if !s.keep(c) {
		return
	}
	_ = c.SetDeadline(time.Now().Add(handshakeTime))
	conn, channels, requests, err := ssh.NewServerConn(c, s.config)
	if err != nil {
		return
	}
	defer conn.Close()
	_ = c.SetDeadline(time.Time{})
	go ssh.DiscardRequests(requests)
	for ch := range channels {
		go s.forward(ch)
	}
}

// directTCPIP is what RFC 4254, 7.2, has a client say of a channel.
type directTCPIP struct {
	Host       string
	Port       uint32
	OriginHost string
	OriginPort uint32
}

func (s *Server) forward(offer ssh.NewChannel) {
	var to directTCPIP
	switch {
	case offer.ChannelType() != "direct-tcpip" || ssh.Unmarshal(offer.ExtraData(), &to) != nil:
		_ = offer.Reject(ssh.UnknownChannelType, "not for a trial")
		return
	case to.Host != s.target.Addr().String() || to.Port != uint32(s.target.Port()):
		_ = offer.Reject(ssh.Prohibited, "not the target of the trial")
		return
	}
	c, err := net.DialTimeout("tcp", s.target.String(), handshakeTime)
	if err != nil {
		_ = offer.Reject(ssh.ConnectionFailed, "the target of the trial does not answer")
		return
	}
	defer s.drop(c)
	if !s.keep(c) {
		_ = offer.Reject(ssh.ConnectionFailed, "the trial is over")
		return
	}
	channel, requests, err := offer.Accept()
	if err != nil {
		return
	}
	defer channel.Close()
	go ssh.DiscardRequests(requests)
	var both sync.WaitGroup
	both.Go(func() { _, _ = io.Copy(channel, c); _ = channel.CloseWrite() })
	both.Go(func() { _, _ = io.Copy(c, channel); _ = c.(*net.TCPConn).CloseWrite() })
	both.Wait()
}
