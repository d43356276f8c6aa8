package tuntest

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.org/x/crypto/ssh"

	"sshbroker/profiles"
)

// KeyPair is a key as files have it: the private half in OpenSSH's format, the
// public one as a line of authorized_keys without its end.
type KeyPair struct {
	Private []byte
	Public  string
}

// NewKeyPair makes an Ed25519 key. passphrase "" leaves it unencrypted.
func NewKeyPair(passphrase string) (KeyPair, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return KeyPair{}, err
	}
	var block *pem.Block
	if passphrase == "" {
		block, err = ssh.MarshalPrivateKey(private, "")
	} else {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(private, "", []byte(passphrase))
	}
	if err != nil {
		return KeyPair{}, err
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		return KeyPair{}, err
	}
	return KeyPair{
		Private: pem.EncodeToMemory(block),
		Public:  string(bytes.TrimSpace(ssh.MarshalAuthorizedKey(key))),
	}, nil
}

// Open is a client's request for a direct-tcpip channel.
type Open struct {
	User       string
	Host       string
	Port       uint16
	OriginHost string
	OriginPort uint16
}

// Address is the destination as the net package writes it.
func (o Open) Address() string { return net.JoinHostPort(o.Host, strconv.Itoa(int(o.Port))) }

// Refusal is what Server.Decide returns to refuse a channel.
type Refusal struct {
	Reason uint32 // RFC 4254 section 5.1
	Text   string
}

func (r Refusal) Error() string { return r.Text }

// Prohibited refuses as a server does whose policy forbids forwarding.
func Prohibited() error { return Refusal{Reason: uint32(ssh.Prohibited), Text: "open failed"} }

// Server is an SSH server that serves direct-tcpip channels and nothing else. Fill
// the fields in before Serve; HostKey and one way to authenticate are required.
type Server struct {
	HostKey    []byte   // private key file
	Authorized []string // public keys, lines of authorized_keys
	Password   string   // "" accepts none
	// Challenge answers keyboard-interactive with one hidden question; nil does not
	// offer it.
	Challenge func(answer string) bool
	// Dial reaches destinations; nil uses a plain net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Decide is called before a destination is dialled. It may take its time, until
	// ctx ends, and it refuses by an error; nil allows all.
	Decide func(ctx context.Context, o Open) error
	// Confirm is called after a destination is dialled and before the channel is
	// confirmed. It may take its time, until ctx ends.
	Confirm func(ctx context.Context, o Open)
	// MoreKeys are host keys beside HostKey, for other algorithms and as certificates.
	MoreKeys []ssh.Signer
	// Algorithms are those offered where they are set; else the library's own choice.
	Algorithms ssh.Algorithms
	// CloseWithoutEOF closes channels whose destination ended without sending EOF.
	CloseWithoutEOF bool

	connections atomic.Int64
	opened      atomic.Int64
	open        atomic.Int64

	mu     sync.Mutex
	closed bool
	live   map[io.Closer]struct{}
	tasks  sync.WaitGroup
}

// Connections is how many clients have authenticated so far.
func (s *Server) Connections() int { return int(s.connections.Load()) }

// Opened is how many channels have been confirmed so far.
func (s *Server) Opened() int { return int(s.opened.Load()) }

// OpenChannels is how many confirmed channels have not ended.
func (s *Server) OpenChannels() int { return int(s.open.Load()) }

// HostKeyLine is the line of known_hosts for the server at address.
func (s *Server) HostKeyLine(address string) (string, error) {
	signer, err := ssh.ParsePrivateKey(s.HostKey)
	if err != nil {
		return "", err
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", err
	}
	if port != "22" {
		host = "[" + host + "]:" + port
	}
	return host + " " + string(bytes.TrimSpace(ssh.MarshalAuthorizedKey(signer.PublicKey()))), nil
}

func (s *Server) config() (*ssh.ServerConfig, error) {
	authorized := make(map[string]bool)
	for _, line := range s.Authorized {
		key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
		if err != nil {
			return nil, fmt.Errorf("authorized key: %w", err)
		}
		authorized[string(key.Marshal())] = true
	}
	config := &ssh.ServerConfig{ServerVersion: "SSH-2.0-tuntest"}
	config.KeyExchanges, config.Ciphers, config.MACs = s.Algorithms.KeyExchanges, s.Algorithms.Ciphers, s.Algorithms.MACs
	checker := ssh.CertChecker{
		// A key with the word cert-authority would be OpenSSH's way; here every
		// authorized key may sign certificates too.
		IsUserAuthority: func(key ssh.PublicKey) bool { return authorized[string(key.Marshal())] },
		UserKeyFallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			if authorized[string(key.Marshal())] {
				return nil, nil
			}
			return nil, errors.New("key not authorized")
		},
	}
	if len(authorized) > 0 {
		config.PublicKeyCallback = checker.Authenticate
	}
	if s.Password != "" {
		config.PasswordCallback = func(_ ssh.ConnMetadata, password []byte) (*ssh.Permissions, error) {
			if string(password) == s.Password {
				return nil, nil
			}
			return nil, errors.New("wrong password")
		}
	}
	if s.Challenge != nil {
		config.KeyboardInteractiveCallback = func(_ ssh.ConnMetadata, ask ssh.KeyboardInteractiveChallenge) (*ssh.Permissions, error) {
			answers, err := ask("", "", []string{"Password: "}, []bool{false})
			if err == nil && len(answers) == 1 && s.Challenge(answers[0]) {
				return nil, nil
			}
			return nil, errors.New("wrong answer")
		}
	}
	hostKey, err := ssh.ParsePrivateKey(s.HostKey)
	if err != nil {
		return nil, fmt.Errorf("host key: %w", err)
	}
	config.AddHostKey(hostKey)
	for _, more := range s.MoreKeys {
		config.AddHostKey(more)
	}
	return config, nil
}

// Serve accepts connections from l until Close, and owns l.
func (s *Server) Serve(l net.Listener) error {
	config, err := s.config()
	if err != nil {
		l.Close()
		return err
	}
	if !s.keep(l) {
		l.Close()
		return net.ErrClosed
	}
	for {
		c, err := l.Accept()
		if err != nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.closed {
				return nil
			}
			return err
		}
		if !s.keep(c) {
			c.Close()
			continue
		}
		s.tasks.Go(func() {
			defer s.drop(c)
			s.serve(c, config)
		})
	}
}

// Close ends every connection and returns when all is over.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	for c := range s.live {
		c.Close()
	}
	s.mu.Unlock()
	s.tasks.Wait()
	return nil
}

// CutAll closes the connections of all clients and goes on serving.
func (s *Server) CutAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.live {
		if _, listener := c.(net.Listener); !listener {
			c.Close()
		}
	}
}

func (s *Server) keep(c io.Closer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	if s.live == nil {
		s.live = make(map[io.Closer]struct{})
	}
	s.live[c] = struct{}{}
	return true
}

func (s *Server) drop(c io.Closer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.Close()
	delete(s.live, c)
}

func (s *Server) serve(c net.Conn, config *ssh.ServerConfig) {
	conn, chans, reqs, err := ssh.NewServerConn(c, config)
	if err != nil {
		return
	}
	s.connections.Add(1)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go ssh.DiscardRequests(reqs)
	var tasks sync.WaitGroup
	for request := range chans {
		tasks.Go(func() { s.channel(ctx, conn.User(), request) })
	}
	cancel()
	tasks.Wait()
}

func (s *Server) channel(ctx context.Context, user string, request ssh.NewChannel) {
	var payload struct {
		Host       string
		Port       uint32
		OriginHost string
		OriginPort uint32
	}
	if request.ChannelType() != "direct-tcpip" {
		request.Reject(ssh.UnknownChannelType, "only direct-tcpip")
		return
	}
	if err := ssh.Unmarshal(request.ExtraData(), &payload); err != nil || payload.Port > 65535 || payload.OriginPort > 65535 {
		request.Reject(ssh.ConnectionFailed, "malformed request")
		return
	}
	o := Open{User: user, Host: payload.Host, Port: uint16(payload.Port),
		OriginHost: payload.OriginHost, OriginPort: uint16(payload.OriginPort)}
	if s.Decide != nil {
		if err := s.Decide(ctx, o); err != nil {
			reject(request, err)
			return
		}
	}
	dial := s.Dial
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	target, err := dial(ctx, "tcp", o.Address())
	if err != nil {
		reject(request, err)
		return
	}
	defer target.Close()
	defer context.AfterFunc(ctx, func() { target.Close() })()
	if s.Confirm != nil {
		s.Confirm(ctx, o)
	}
	ch, reqs, err := request.Accept()
	if err != nil {
		return
	}
	s.opened.Add(1)
	s.open.Add(1)
	defer s.open.Add(-1)
	s.carry(ch, reqs, target)
}

func reject(request ssh.NewChannel, err error) {
	var refusal Refusal
	if errors.As(err, &refusal) {
		request.Reject(ssh.RejectionReason(refusal.Reason), refusal.Text)
		return
	}
	request.Reject(ssh.ConnectionFailed, profiles.RemoteText(err.Error(), 300, false))
}

// carry joins a channel and its destination until both directions have ended, or
// the client closes the channel.
func (s *Server) carry(ch ssh.Channel, reqs <-chan *ssh.Request, target net.Conn) {
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer ch.Close()
	up, down, gone := make(chan error, 1), make(chan error, 1), make(chan struct{})
	tasks.Go(func() {
		ssh.DiscardRequests(reqs)
		close(gone)
	})
	tasks.Go(func() {
		_, err := io.Copy(target, struct{ io.Reader }{ch})
		if cw, ok := target.(interface{ CloseWrite() error }); ok {
			cw.CloseWrite()
		}
		up <- err
	})
	tasks.Go(func() {
		_, err := io.Copy(struct{ io.Writer }{ch}, target)
		down <- err
	})
	delivered := false // all that the client had sent
	for range 2 {
		select {
		case err := <-up:
			delivered = true
			if err != nil {
				target.Close() // it takes no more data
				return
			}
		case err := <-down:
			if err != nil || s.CloseWithoutEOF {
				target.Close()
				return
			}
			ch.CloseWrite()
		case <-gone:
			if !delivered {
				<-up
			}
			target.Close()
			return
		}
	}
}
