package wire

import (
	"fmt"
	"io"

	"sshbroker/profiles"
)

// Kinds of records.
const (
	recordData = iota + 1
	recordEnd
	recordReset
	recordEnded
)

const (
	// headerSize is the kind and the length of a record.
	headerSize = 4
	// maxRecord is the most that a data record carries, in bytes.
	maxRecord = 64 << 10
	// maxWords bounds the reason in a record, in bytes.
	maxWords = 512
)

// header writes the header of a record into the first bytes of b.
func header(b []byte, kind byte, length int) {
	b[0], b[1], b[2], b[3] = kind, byte(length>>16), byte(length>>8), byte(length)
}

// control returns a record without data for the flow.
func control(kind byte, words string) []byte {
	b := append(make([]byte, headerSize, headerSize+len(words)), words...)
	header(b, kind, len(words))
	return b
}

// parser finds the records in what comes. Its zero value is at the beginning of one.
type parser struct {
	head  [headerSize]byte
	have  int    // bytes of head, or of words once that is whole
	left  int    // bytes of data before the next record
	words []byte // of an ended record that is being read
	ended bool   // the end record has come
}

// next reads from r until there is data before it: left is not 0 then. It returns io.EOF
// at an end record, once, an error of class ErrReset at one that says so or that breaks
// the protocol, and r's errors as they are; it goes on where it was after these.
func (p *parser) next(r io.Reader) error {
	for p.left == 0 {
		if p.words != nil {
			n, err := r.Read(p.words[p.have:])
			if p.have += n; p.have == len(p.words) {
				return fmt.Errorf("%w: %w: %q", profiles.ErrReset, profiles.ErrEnded, profiles.RemoteText(string(p.words), maxWords, false))
			}
			if err != nil {
				return fromBelow{err}
			}
			continue
		}
		n, err := r.Read(p.head[p.have:])
		if p.have += n; p.have < headerSize {
			if err != nil {
				return fromBelow{err}
			}
			continue
		}
		p.have = 0
		if err := p.begin(); err != nil {
			return err
		}
	}
	return nil
}

// said gives the words of an ended record that has come whole.
func (p *parser) said() (words string, whole bool) {
	return string(p.words), p.words != nil && p.have == len(p.words)
}

// begin looks at a header that is whole.
func (p *parser) begin() error {
	length := int(p.head[1])<<16 | int(p.head[2])<<8 | int(p.head[3])
	switch kind := p.head[0]; {
	case kind == recordData && !p.ended && 0 < length && length <= maxRecord:
		p.left = length
	case kind == recordEnd && !p.ended && length == 0:
		p.ended = true
		return io.EOF
	case kind == recordReset && length == 0:
		return profiles.ErrReset
	case kind == recordEnded && 0 < length && length <= maxWords:
		p.words = make([]byte, length)
	default:
		return fmt.Errorf("%w: record of kind %d with %d bytes (%w)", profiles.ErrReset, kind, length, ErrMalformed)
	}
	return nil
}

// fromBelow marks an error as the reader's, which may be an io.EOF too.
type fromBelow struct{ error }

func (e fromBelow) Unwrap() error { return e.error }
