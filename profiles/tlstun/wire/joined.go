package wire

import (
	"encoding/binary"
	"io"
	"net"
	"sync/atomic"

	"sshbroker/profiles/socket"
)

// Of yamux's frames (spec.md of the library): twelve bytes of header, with the type in
// the second, flags in the third and fourth, and the length in the last four.
const (
	frameData         = 0
	frameWindowUpdate = 1

	flagSYN = 1
	flagACK = 2
)

const (
	// joinable is how much data goes out in one record of TLS with its header. Of more
	// the header goes first by itself, which costs less than the copy.
	joinable = 4 << 10
	// maxHeld is how much may be held back for what follows.
	maxHeld = 4 << 10
)

// joined is the connection under yamux. yamux writes the header and the data of a frame
// by two calls, and the beginning of a stream, or its acceptance, by another frame, to
// which the first data follow soon: a Request or an Answer. What belongs together goes out
// together, as one record of TLS and one system call.
type joined struct {
	net.Conn
	below *socket.Conn // under the TLS; nil: none that has to be flushed
	lost  func(error)

	sent, received atomic.Uint64 // of Conn

	// Writing; only yamux's sender comes here.
	held []byte // goes out before what comes next
	data bool   // the next call has the data of the frame whose header came last
	join bool   // and that header is still held
}

func (j *joined) Write(p []byte) (int, error) {
	if err := j.write(p); err != nil {
		j.lost(err)
		return 0, err
	}
	return len(p), nil
}

func (j *joined) write(p []byte) error {
	switch {
	case j.data && !j.join:
		j.data = false
		return j.send(p, true)
	case j.data:
		j.data = false
		return j.sendHeld(p, true)
	case p[1] == frameData && frameLength(p) > 0:
		j.data, j.join = true, frameLength(p) <= joinable
		if j.join {
			j.held = append(j.held, p...)
			return nil
		}
		return j.sendHeld(p, false)
	case p[1] == frameWindowUpdate && binary.BigEndian.Uint16(p[2:])&^(flagSYN|flagACK) == 0 && binary.BigEndian.Uint16(p[2:]) != 0 && len(j.held) < maxHeld:
		j.held = append(j.held, p...)
		return nil
	}
	return j.sendHeld(p, true)
}

func frameLength(header []byte) uint32 { return binary.BigEndian.Uint32(header[8:]) }

// sendHeld sends what is held and p.
func (j *joined) sendHeld(p []byte, last bool) error {
	j.held = append(j.held, p...)
	err := j.send(j.held, last)
	j.held = j.held[:0]
	return err
}

// send sends p. last: what comes next may be long in coming.
func (j *joined) send(p []byte, last bool) error {
	n, err := j.Conn.Write(p)
	j.sent.Add(uint64(n))
	if last && j.below != nil {
		j.below.Flush()
	}
	return err
}

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
