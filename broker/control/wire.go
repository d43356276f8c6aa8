package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// MaxMessage is the largest message, in bytes of JSON.
	MaxMessage = 64 << 10
	// MaxFiles is the largest number of descriptors on one message.
	MaxFiles = 32

	// protocol is raised when old and new cannot talk. A new operation does not
	// raise it: an old broker answers that it does not know it.
	protocol = 1
)

// The kinds of message; doc.go shows who sends which.
const (
	kindHello  = "hello"
	kindCall   = "call"
	kindRow    = "row"
	kindAsk    = "ask"
	kindAnswer = "answer"
	kindNote   = "note"
	kindDone   = "done"
)

type message struct {
	Kind string `json:"kind"`

	Protocol int    `json:"protocol,omitempty"` // hello
	Version  string `json:"version,omitempty"`  // hello, for people

	Op   string          `json:"op,omitempty"`   // call
	Body json.RawMessage `json:"body,omitempty"` // call, row, note

	ID     uint64  `json:"id,omitempty"`     // ask and its answer
	Prompt *Prompt `json:"prompt,omitempty"` // ask
	Text   string  `json:"text,omitempty"`   // answer

	Error string `json:"error,omitempty"` // done; answer of a client that cannot ask
	Code  Code   `json:"code,omitempty"`
	Hint  string `json:"hint,omitempty"`
}

// Prompt is a question for the person at the client.
type Prompt struct {
	Text   string `json:"text"`             // shown as it is; the asker keeps control characters out
	Secret bool   `json:"secret,omitempty"` // the answer is not echoed
	YesNo  bool   `json:"yes_no,omitempty"` // the answer is "yes" or "no"
}

// done is the message that ends a call.
func done(err error) message {
	if err == nil {
		return message{Kind: kindDone}
	}
	e := asError(err)
	return message{Kind: kindDone, Error: e.Message, Code: e.Code, Hint: e.Hint}
}

// err is the error that a done message carries.
func (m *message) err() error {
	if m.Error == "" {
		return nil
	}
	return &Error{Message: m.Error, Code: m.Code, Hint: m.Hint}
}

// conn frames messages on a socket. One goroutine reads; any may write.
type conn struct {
	*net.UnixConn
	writeTimeout time.Duration
	buf, oob     []byte // owned by the reader
}

func newConn(uc *net.UnixConn, writeTimeout time.Duration) *conn {
	return &conn{
		UnixConn:     uc,
		writeTimeout: writeTimeout,
		buf:          make([]byte, MaxMessage),
		oob:          make([]byte, unix.CmsgSpace(4*MaxFiles)),
	}
}

// errProtocol marks what a peer did wrong, as opposed to a peer that went away.
type errProtocol struct{ error }

func (e errProtocol) Unwrap() error { return e.error }

func protocolErrorf(format string, args ...any) error {
	return errProtocol{fmt.Errorf(format, args...)}
}

// read returns the next message and the descriptors on it, which the caller
// closes. With an error there are none. A peer that went away is io.EOF.
func (c *conn) read() (message, []*os.File, error) {
	n, oobn, flags, _, err := c.ReadMsgUnix(c.buf, c.oob)
	if errors.Is(err, unix.ECONNRESET) {
		// The peer closed without reading all of ours. The kernel reports that once,
		// ahead of what the peer has said before, which may be why it closed.
		n, oobn, flags, _, err = c.ReadMsgUnix(c.buf, c.oob)
	}
	// Also with an error: an empty packet can carry descriptors. Lengths can be -1 then.
	files := received(c.oob[:max(oobn, 0)])
	m, err := parse(c.buf[:max(n, 0)], flags, err)
	if err != nil {
		closeAll(files)
		return message{}, nil, err
	}
	return m, files, nil
}

func parse(b []byte, flags int, err error) (message, error) {
	switch {
	case errors.Is(err, unix.ECONNRESET):
		return message{}, io.EOF
	case err != nil:
		return message{}, err
	case flags&unix.MSG_TRUNC != 0:
		return message{}, protocolErrorf("%w: more than %d bytes", ErrTooLarge, MaxMessage)
	case flags&unix.MSG_CTRUNC != 0: // too many for the peer's right, or for our descriptor limit
		return message{}, protocolErrorf("%w: descriptors lost: more than %d on one message, or the limit of open files reached", ErrTooLarge, MaxFiles)
	}
	var m message
	if err := json.Unmarshal(b, &m); err != nil {
		return message{}, protocolErrorf("malformed message: %w", err)
	}
	return m, nil
}

// received wraps the descriptors of a control message.
func received(oob []byte) []*os.File {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	var files []*os.File
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			continue // not SCM_RIGHTS
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files
}

// errUnsent marks a message that was never sent; the connection is as it was.
type errUnsent struct{ error }

func (e errUnsent) Unwrap() error { return e.error }

func unsent(err error) bool {
	_, ok := errors.AsType[errUnsent](err)
	return ok
}

// write sends m with files, which stay the caller's. It gives up after the write
// timeout, so that a peer that does not read holds nobody up.
func (c *conn) write(m message, files ...*os.File) error {
	b, err := json.Marshal(m)
	if err != nil {
		return errUnsent{err}
	}
	if len(b) > MaxMessage {
		return errUnsent{fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(b), MaxMessage)}
	}
	if len(files) > MaxFiles {
		return errUnsent{fmt.Errorf("%w: %d descriptors, at most %d", ErrTooLarge, len(files), MaxFiles)}
	}
	if err := c.SetWriteDeadline(time.Now().Add(c.writeTimeout)); err != nil {
		return err
	}
	return withFDs(files, nil, func(fds []int) error {
		var rights []byte
		if len(fds) > 0 {
			rights = unix.UnixRights(fds...)
		}
		_, _, err := c.WriteMsgUnix(b, rights, nil)
		return err
	})
}

// withFDs calls fn with the descriptors of files, all held open meanwhile. It does
// not use File.Fd, which would make shared descriptors blocking.
func withFDs(files []*os.File, fds []int, fn func([]int) error) error {
	if len(files) == 0 {
		return fn(fds)
	}
	raw, err := files[0].SyscallConn()
	if err != nil {
		return errUnsent{fmt.Errorf("descriptor to send: %w", err)}
	}
	var inner error
	if err := raw.Control(func(fd uintptr) {
		inner = withFDs(files[1:], append(fds, int(fd)), fn)
	}); err != nil {
		return errUnsent{fmt.Errorf("descriptor to send: %w", err)}
	}
	return inner
}

// peer returns the credentials of the other end: for a client those of the
// process that listens.
func (c *conn) peer() (*unix.Ucred, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var inner error
	if err := raw.Control(func(fd uintptr) {
		cred, inner = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return nil, err
	}
	return cred, inner
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
