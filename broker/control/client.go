package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Prompter puts a question to a person and returns the answer.
type Prompter func(Prompt) (string, error)

// Client is a connection to a broker. One call runs at a time; Send and Close may
// be used during it.
type Client struct {
	Version string // of the broker
	PID     int    // of the broker; 0 where it is in another pid namespace

	conn *conn
	in   chan message // closed when the connection is lost
	quit chan struct{}

	calling sync.Mutex // held for the length of a call
	once    sync.Once
	reader  sync.WaitGroup
	lost    error // why in was closed; read after that
}

// Dialer says which broker to talk to.
type Dialer struct {
	Address string // see Address

	// AnyOwner lets root talk to a broker of any user, as when -a names one. For
	// everybody else it changes nothing.
	AnyOwner bool
}

// Dial connects to the broker at address. It returns ErrNoBroker when none
// listens there.
func Dial(ctx context.Context, address string) (*Client, error) {
	return Dialer{Address: address}.Dial(ctx)
}

// Dial connects and checks that the broker is one of ours, or root's.
func (d Dialer) Dial(ctx context.Context) (*Client, error) {
	uc, err := d.connect(ctx)
	if err != nil {
		return nil, fmt.Errorf("broker %s: %w", d.Address, err)
	}
	c := &Client{conn: newConn(uc, helloTimeout), in: make(chan message), quit: make(chan struct{})}
	if err := d.greet(ctx, c); err != nil {
		c.conn.Close()
		return nil, fmt.Errorf("broker %s: %w", d.Address, err)
	}
	c.reader.Add(1)
	go c.readAll()
	return c, nil
}

func (d Dialer) connect(ctx context.Context) (*net.UnixConn, error) {
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		var dialer net.Dialer
		nc, err := dialer.DialContext(ctx, "unixpacket", d.Address)
		switch {
		case err == nil:
			return nc.(*net.UnixConn), nil
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ENOTDIR):
			return nil, ErrNoBroker
		case errors.Is(err, unix.EPROTOTYPE):
			return nil, errors.New("another program's socket, not a broker's")
		case errors.Is(err, fs.ErrPermission):
			return nil, fmt.Errorf("%w; it belongs to somebody else", unix.EACCES)
		case !errors.Is(err, unix.EAGAIN): // EAGAIN: its backlog is full just now
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("it does not take connections: %w", context.Cause(ctx))
		case <-time.After(pause):
		}
	}
}

func (d Dialer) greet(ctx context.Context, c *Client) error {
	cred, err := c.conn.peer()
	if err != nil {
		return fmt.Errorf("credentials: %w", err)
	}
	own := os.Geteuid()
	if uid := int(cred.Uid); uid != own && uid != 0 && (own != 0 || !d.AnyOwner) && !d.isSystem(cred.Uid) {
		if own == 0 {
			return fmt.Errorf("it is run by %s; name it with -a to use it as root", accountName(cred.Uid))
		}
		return fmt.Errorf("it is run by %s, not by us: not trusted", accountName(cred.Uid))
	}
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := c.conn.SetReadDeadline(time.Now().Add(helloTimeout)); err != nil {
		return err
	}
	// Where the broker has turned us away already, writing fails and reading tells why.
	werr := c.conn.write(message{Kind: kindHello, Protocol: protocol, Version: Version()})
	m, err := c.conn.readPlain()
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, io.EOF):
		return fmt.Errorf("%w: it ended as we came", ErrNoBroker)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errors.New("it does not answer")
	case err != nil:
		return err
	case m.Kind == kindDone && m.err() != nil:
		return m.err()
	case werr != nil:
		return werr
	case m.Kind != kindHello:
		return fmt.Errorf("not a broker: it began with %q", m.Kind)
	case m.Protocol != protocol:
		return &Error{Code: CodeVersion, Message: fmt.Sprintf("broker %s speaks protocol %d, we speak %d", m.Version, m.Protocol, protocol)}
	}
	if !stop() {
		return context.Cause(ctx)
	}
	c.Version, c.PID = m.Version, int(cred.Pid)
	return c.conn.SetReadDeadline(time.Time{})
}

// isSystem reports whether uid is the account of the broker of the whole host: who owns
// the directory of its socket, which only root can have made.
func (d Dialer) isSystem(uid uint32) bool {
	if d.Address != SystemAddress {
		return false
	}
	var dir, parent unix.Stat_t
	path := filepath.Dir(SystemAddress)
	return unix.Lstat(path, &dir) == nil && unix.Lstat(filepath.Dir(path), &parent) == nil &&
		dir.Mode&unix.S_IFMT == unix.S_IFDIR && dir.Uid == uid && parent.Uid == 0 && parent.Mode&0o022 == 0
}

// readPlain reads a message of a broker, which never sends descriptors.
func (c *conn) readPlain() (message, error) {
	m, files, err := c.read()
	if len(files) > 0 {
		closeAll(files)
		return message{}, protocolErrorf("descriptors on a %q", m.Kind)
	}
	return m, err
}

func (c *Client) readAll() {
	defer c.reader.Done()
	defer close(c.in)
	for {
		m, err := c.conn.readPlain()
		if err != nil {
			c.lost = err
			return
		}
		select {
		case c.in <- m:
		case <-c.quit:
			c.lost = net.ErrClosed
			return
		}
	}
}

// Close ends the connection, and with it a call that runs.
func (c *Client) Close() error {
	c.once.Do(func() {
		close(c.quit)
		c.conn.Close()
		c.reader.Wait()
	})
	return nil
}

// Call runs one operation. files, which stay the caller's, go with it. Each row is
// handed to row, each question to prompt, one at a time; a nil row drops them, a
// nil prompt tells the broker that nobody can be asked.
//
// An answer that says no is an *Error, a broker that goes away ErrBrokerGone. When
// ctx ends or row returns an error, Call returns that and closes the client, as the
// broker may still be sending. A prompt that is open then is not waited for: its
// answer goes nowhere.
func (c *Client) Call(ctx context.Context, op string, args any, files []*os.File,
	row func(json.RawMessage) error, prompt Prompter) error {

	c.calling.Lock()
	defer c.calling.Unlock()
	var body json.RawMessage
	if args != nil {
		var err error
		if body, err = json.Marshal(args); err != nil {
			return fmt.Errorf("arguments of %q: %w", op, err)
		}
	}
	if err := c.conn.write(message{Kind: kindCall, Op: op, Body: body}, files...); err != nil {
		if unsent(err) {
			return fmt.Errorf("%s: %w", op, err)
		}
		return c.fail(op, c.whyLost())
	}
	var (
		waiting []message // questions not put yet
		open    bool      // one is being put
		answers = make(chan message, 1)
	)
	for {
		if !open && len(waiting) > 0 {
			open = true
			go ask(prompt, waiting[0], answers)
			waiting = waiting[1:]
		}
		select {
		case <-ctx.Done():
			return c.fail(op, context.Cause(ctx))
		case a := <-answers:
			open = false
			if err := c.conn.write(a); errors.Is(err, ErrTooLarge) {
				a.Text, a.Error = "", "the answer is too long"
				_ = c.conn.write(a)
			} // any other error: the reader will tell
		case m, ok := <-c.in:
			switch {
			case !ok:
				return c.fail(op, c.whyLost())
			case m.Kind == kindDone:
				return m.err()
			case m.Kind == kindAsk && m.Prompt != nil && len(waiting) < maxNotes:
				waiting = append(waiting, m)
			case m.Kind == kindRow:
				if row == nil {
					continue
				}
				if err := row(m.Body); err != nil {
					return c.fail(op, err)
				}
			default:
				return c.fail(op, fmt.Errorf("unexpected %q from the broker", m.Kind))
			}
		}
	}
}

// Send sends v and files, which stay the caller's, to the handler of the call that
// runs, which gets them from Call.Recv.
func (c *Client) Send(v any, files ...*os.File) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return c.conn.write(message{Kind: kindNote, Body: b}, files...)
}

// ask puts one question. answers has room for the answer.
func ask(prompt Prompter, q message, answers chan<- message) {
	a := message{Kind: kindAnswer, ID: q.ID}
	if prompt == nil {
		a.Code = codeNoPrompt
	} else if text, err := prompt(*q.Prompt); err != nil {
		a.Error = err.Error()
		if errors.Is(err, ErrNoPrompt) {
			a.Code = codeNoPrompt
		}
	} else {
		a.Text = text
	}
	answers <- a
}

// fail ends the connection and names the operation.
func (c *Client) fail(op string, err error) error {
	c.Close()
	return fmt.Errorf("%s: %w", op, err)
}

// whyLost waits for the reader to end and says why it did. What the broker said
// last, before it closed, counts most.
func (c *Client) whyLost() error {
	for {
		select {
		case m, ok := <-c.in:
			switch {
			case ok && m.Kind == kindDone && m.err() != nil:
				return m.err()
			case ok:
				continue
			case errors.Is(c.lost, net.ErrClosed):
				return c.lost
			case errors.Is(c.lost, io.EOF):
				return ErrBrokerGone
			}
			return fmt.Errorf("%w: %w", ErrBrokerGone, c.lost)
		case <-time.After(helloTimeout):
			return ErrBrokerGone // it neither takes our messages nor goes away
		}
	}
}

func decodeStrict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("more than one value")
	}
	return nil
}
