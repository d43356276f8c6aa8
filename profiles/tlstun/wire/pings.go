package wire

import (
	"encoding/binary"
	"errors"
	"sync/atomic"
)

const (
	// headerLen is that of a frame of yamux, framePing the type of one.
	headerLen = 12
	framePing = 2

	// maxPings is how many questions of the far end may wait for our answer. It asks one
	// at a time, unless it means harm.
	maxPings = 64
)

var errPings = errors.New("the other side asks for more signs of life than it takes answers")

// pings counts questions for a sign of life that wait for their answer. yamux has a
// goroutine for each, which waits for as long as the far end does not read (v0.1.2,
// session.go, handlePing): who sends many and reads nothing would take all memory.
type pings struct {
	head [headerLen]byte
	have int    // bytes of head
	skip uint32 // bytes of data before the next frame

	due atomic.Int32
}

// read follows what comes in, frame by frame.
func (p *pings) read(b []byte) error {
	for len(b) > 0 {
		if p.skip > 0 {
			n := min(uint64(p.skip), uint64(len(b)))
			p.skip -= uint32(n)
			b = b[n:]
			continue
		}
		n := copy(p.head[p.have:], b)
		b = b[n:]
		if p.have += n; p.have < headerLen {
			break
		}
		p.have = 0
		switch {
		case p.head[1] == frameData:
			p.skip = frameLength(p.head[:])
		case p.head[1] == framePing && frameFlags(p.head[:])&flagSYN != 0 && p.due.Add(1) > maxPings:
			return errPings
		}
	}
	return nil
}

// wrote notes a frame that went out.
func (p *pings) wrote(header []byte) {
	if header[1] == framePing && frameFlags(header)&flagACK != 0 {
		p.due.Add(-1)
	}
}

func frameFlags(header []byte) uint16 { return binary.BigEndian.Uint16(header[2:]) }
