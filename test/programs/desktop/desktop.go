package desktop

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// tpkt is one packet of RFC 1006, as RDP begins with.
func tpkt(payload []byte) []byte {
	b := []byte{3, 0, 0, 0}
	binary.BigEndian.PutUint16(b[2:], uint16(4+len(payload)))
	return append(b, payload...)
}

// Serve sends screens with the hash of all so far, in bursts of every size, and takes
// input between them. After each quarter of the rounds it is silent for idle. The caller
// closes c.
func Serve(c net.Conn, rounds int, idle time.Duration) {
	request := make([]byte, 4+7)
	if _, err := io.ReadFull(c, request); err != nil || request[0] != 3 || request[5] != 0xe0 {
		return
	}
	c.Write(tpkt([]byte{6, 0xd0, 0, 0, 0, 0, 0})) // connection confirm, X.224 section 13.4
	sum := sha256.New()
	screen := make([]byte, 128<<10)
	rand.Read(screen)
	for i := range rounds {
		if i > 0 && i%max(rounds/4, 1) == 0 {
			time.Sleep(idle)
		}
		size := []int{1, 100, 1460, 16 << 10, 64<<10 + 1, 128 << 10}[i%6]
		part := screen[:size]
		sum.Write(part)
		head := binary.BigEndian.AppendUint32(nil, uint32(size))
		if _, err := c.Write(append(append(head, part...), sum.Sum(nil)...)); err != nil {
			return
		}
		input := make([]byte, 12)
		if _, err := io.ReadFull(c, input); err != nil || binary.BigEndian.Uint64(input) != uint64(i) {
			return
		}
	}
	c.Write(binary.BigEndian.AppendUint32(nil, 0))
}

// Client takes the screens and answers each, until the server has ended; it checks that
// each is the one that was sent. The caller closes c.
func Client(c net.Conn) error {
	if _, err := c.Write(tpkt([]byte{6, 0xe0, 0, 0, 0, 0, 0})); err != nil {
		return err
	}
	confirm := make([]byte, 11)
	if _, err := io.ReadFull(c, confirm); err != nil || confirm[5] != 0xd0 {
		return fmt.Errorf("confirm %x: %w", confirm, err)
	}
	sum := sha256.New()
	for i := 0; ; i++ {
		head := make([]byte, 4)
		if _, err := io.ReadFull(c, head); err != nil {
			return fmt.Errorf("screen %d: %w", i, err)
		}
		size := binary.BigEndian.Uint32(head)
		if size == 0 {
			break
		}
		screen := make([]byte, size+sha256.Size)
		if _, err := io.ReadFull(c, screen); err != nil {
			return fmt.Errorf("screen %d: %w", i, err)
		}
		sum.Write(screen[:size])
		if !bytes.Equal(sum.Sum(nil), screen[size:]) {
			return fmt.Errorf("screen %d is another one", i)
		}
		if _, err := c.Write(append(binary.BigEndian.AppendUint64(nil, uint64(i)), "move"...)); err != nil {
			return err
		}
	}
	if n, err := c.Read(make([]byte, 1)); n > 0 || !errors.Is(err, io.EOF) {
		return fmt.Errorf("behind the last screen: %d bytes, %v", n, err)
	}
	return nil
}
