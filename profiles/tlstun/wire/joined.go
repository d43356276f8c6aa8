package wire

import (
	"encoding/binary"
	"io"
	"net"
	"sync/atomic"

	"sshbroker/profiles/socket"
)

// Of yamux's frames (spec.md of the library): twelve bytes of header, with the type in
// the second, 0 for data, and the length in the last four.
const (
	frameHeader = 12
	frameData   = 0
)

// joinable is how much data goes out in one call with its header. Of more the header
// goes first by itself, which costs less than the copy.
const joinable = 4 << 10

// joined is the connection under yamux, which writes the header and the data of a frame
// by two calls. Small ones it makes one of, so that they are one record of TLS.
type joined struct {
	net.Conn
	below *socket.Conn // under the TLS; nil: none that has to be flushed
	lost  func(error)

	sent, received atomic.Uint64 // of Conn

	// Writing; only yamux's sender comes here.
	frame [frameHeader + joinable]byte
	head  bool // frame begins with a header whose data comes next
}

func (j *joined) Write(p []byte) (int, error) {
	n, err := j.write(p)
	if err != nil {
		j.lost(err)
	}
	j.sent.Add(uint64(n))
	return n, err
}

func (j *joined) write(p []byte) (int, error) {
	switch {
	case j.head:
		j.head = false
		n := copy(j.frame[frameHeader:], p)
		_, err := j.Conn.Write(j.frame[:frameHeader+n])
		j.flush()
		if err != nil {
			return 0, err
		}
		return n, nil
	case len(p) == frameHeader && p[1] == frameData && 0 < frameLength(p) && frameLength(p) <= joinable:
		copy(j.frame[:], p)
		j.head = true
		return len(p), nil
	}
	n, err := j.Conn.Write(p)
	if more := len(p) == frameHeader && p[1] == frameData && frameLength(p) > 0; !more {
		j.flush()
	}
	return n, err
}

func (j *joined) flush() {
	if j.below != nil {
		j.below.Flush()
	}
}

func frameLength(header []byte) uint32 { return binary.BigEndian.Uint32(header[8:]) }

func (j *joined) Read(p []byte) (int, error) {
	n, err := j.Conn.Read(p)
	j.received.Add(uint64(n))
	if err != nil {
		if err == io.EOF {
			err = errEnded
		}
		j.lost(err)
	}
	return n, err
}

// Close is called by yamux, which does not tell why: by then we know, or the far end has
// broken its protocol.
func (j *joined) Close() error {
	j.lost(errProtocol)
	return j.Conn.Close()
}
