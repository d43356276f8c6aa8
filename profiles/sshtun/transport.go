package sshtun

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"

	"sshbroker/profiles"
	"sshbroker/profiles/socket"
)

// maxOpens is how many channels may wait for the server's answer. The library cannot
// take an open back, so one that its caller has given up still counts.
const maxOpens = 1024

// Transport is one authenticated connection to a server.
type Transport struct {
	conn        ssh.Conn
	wire        *socket.Conn
	hostKey     string
	openTimeout time.Duration
	opens       chan struct{}
	buffers     buffers
	probing     atomic.Bool
	attended    bool // a person had a part in the login
	unasked     bool // the other end is no server, and takes no request but for channels

	once sync.Once
	done chan struct{}
	err  error // written before done is closed
}

var (
	_ profiles.Transport = (*Transport)(nil)
	_ profiles.Describer = (*Transport)(nil)
	_ profiles.Carrying  = (*Transport)(nil)
	_ profiles.Attended  = (*Transport)(nil)
)

// newTransport takes an authenticated connection over and serves what the server
// asks of us, which is nothing: left unread, its requests would stall all streams.
func newTransport(conn ssh.Conn, chans <-chan ssh.NewChannel, reqs <-chan *ssh.Request, w *socket.Conn, hostKey string, p *profiles.Profile) *Transport {
	t := &Transport{
		conn:        conn,
		wire:        w,
		hostKey:     hostKey,
		openTimeout: p.OpenTimeout,
		opens:       make(chan struct{}, maxOpens),
		done:        make(chan struct{}),
	}
	w.Settle()
	go func() {
		for r := range reqs {
			r.Reply(false, nil)
		}
	}()
	go func() {
		for c := range chans {
			c.Reject(ssh.Prohibited, "this client serves no channels")
		}
	}()
	go func() {
		err := conn.Wait()
		if cause := w.Failure(); cause != nil {
			err = cause
		}
		t.end(err)
		w.Close()
	}()
	if p.KeepaliveInterval > 0 {
		go socket.KeepAlive(t, p.KeepaliveInterval, max(p.KeepaliveMisses, 1))
	}
	return t
}

func (t *Transport) end(err error) {
	t.once.Do(func() {
		t.err = fmt.Errorf("%w: %w", profiles.ErrLost, err)
		close(t.done)
	})
}

func (t *Transport) Done() <-chan struct{} { return t.done }

func (t *Transport) Err() error {
	select {
	case <-t.done:
		return t.err
	default:
		return nil
	}
}

var errClosedByUs = errors.New("closed by this side")

// Close sends what is waiting, for a second at most, and closes. It returns when the
// library has let go of every channel.
func (t *Transport) Close() error {
	t.end(errClosedByUs)
	t.conn.Close()
	t.conn.Wait()
	<-t.wire.Ended()
	return nil
}

// Received is socket.Watched's.
func (t *Transport) Received() uint64 { return t.wire.Received() }

// Ask is socket.Watched's. Any answer will do, also the failure that RFC 4254 section 4
// asks for.
func (t *Transport) Ask() { t.conn.SendRequest("keepalive@openssh.com", true, nil) }

// Lose is socket.Watched's.
func (t *Transport) Lose(err error) {
	t.end(err)
	t.wire.Abort(err)
}

func (t *Transport) Describe() profiles.Description {
	d := profiles.Description{
		Local:         t.wire.LocalAddr().String(),
		Remote:        t.wire.RemoteAddr().String(),
		User:          t.conn.User(),
		ServerVersion: profiles.RemoteText(string(t.conn.ServerVersion()), 200, false),
		HostKey:       t.hostKey,
		Sent:          t.wire.Sent(),
		Received:      t.wire.Received(),
	}
	if c, ok := t.conn.(ssh.AlgorithmsConnMetadata); ok {
		a := c.Algorithms()
		d.KeyExchange, d.Cipher = a.KeyExchange, a.Write.Cipher
	}
	return d
}

// Carried is profiles.Carrying's.
func (t *Transport) Carried() uint64 { return t.wire.Sent() + t.wire.Received() }

// Attended is profiles.Attended's.
func (t *Transport) Attended() bool { return t.attended }

// channelOpen is the payload of a direct-tcpip open, RFC 4254 section 7.2.
type channelOpen struct {
	Host       string
	Port       uint32
	OriginHost string
	OriginPort uint32
}

func payloadOf(dst profiles.Destination) []byte {
	open := channelOpen{Host: dst.Host, Port: uint32(dst.Port), OriginHost: "127.0.0.1"}
	if dst.Origin.IsValid() {
		open.OriginHost = dst.Origin.Addr().Unmap().String()
		open.OriginPort = uint32(dst.Origin.Port())
	}
	return ssh.Marshal(&open)
}

// opened is the server's answer to an open.
type opened struct {
	stream *stream
	err    error
}

// Open asks for a direct-tcpip channel to dst. Where ctx or the profile's
// OpenTimeout ends first, a later confirmation is answered with CLOSE.
func (t *Transport) Open(ctx context.Context, dst profiles.Destination) (profiles.Stream, error) {
	s, err := t.open(ctx, dst)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", dst, err)
	}
	return s, nil
}

var errNoAnswer = errors.New("no answer from the server")

func (t *Transport) open(ctx context.Context, dst profiles.Destination) (*stream, error) {
	if t.openTimeout > 0 {
		var cancel context.CancelFunc
		late := fmt.Errorf("%w: %w within %s", profiles.ErrOpen, errNoAnswer, t.openTimeout)
		ctx, cancel = context.WithTimeoutCause(ctx, t.openTimeout, late)
		defer cancel()
	}
	select {
	case t.opens <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-t.done:
		return nil, t.err
	}
	answer := make(chan opened)
	left := make(chan struct{})
	defer close(left)
	go func() {
		a := t.ask(dst)
		<-t.opens
		select {
		case answer <- a:
		case <-left:
			if a.stream != nil {
				a.stream.Reset()
			}
		}
	}()
	select {
	case a := <-answer:
		return a.stream, a.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-t.done:
		return nil, t.err
	}
}

// ask waits for the server's answer, however long that takes.
func (t *Transport) ask(dst profiles.Destination) opened {
	ch, reqs, err := t.conn.OpenChannel("direct-tcpip", payloadOf(dst))
	if err != nil {
		return opened{err: openFailure(err)}
	}
	return opened{stream: newStream(t, ch, reqs, dst)}
}
