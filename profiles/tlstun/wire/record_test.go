package wire

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"sshbroker/profiles"
)

// parsed is what a parser makes of a stream: the flow's bytes, whether their end was
// orderly, and how it all ended.
func parsed(t *testing.T, r io.Reader) (data []byte, ended bool, words, end string) {
	var p parser
	for {
		switch err := p.next(r); {
		case err == nil:
			if p.left <= 0 || p.left > maxRecord || ended {
				t.Fatalf("%d bytes of data, ended %t", p.left, ended)
			}
			piece := make([]byte, p.left)
			n, err := r.Read(piece)
			data = append(data, piece[:n]...)
			p.left -= n
			if err != nil && n == 0 {
				return data, ended, "", "cut"
			}
		case err == io.EOF && !ended:
			ended = true
		case errors.Is(err, profiles.ErrReset):
			words, _ = p.said()
			return data, ended, words, err.Error()
		case errors.Is(err, io.EOF):
			return data, ended, "", "cut"
		default:
			t.Fatal(err)
		}
	}
}

// FuzzRecords: however the bytes come, they mean the same; nothing is kept but a few
// words.
func FuzzRecords(f *testing.F) {
	f.Add([]byte("\x01\x00\x00\x03abc\x02\x00\x00\x00\x03\x00\x00\x00"))
	f.Add(append([]byte("\x01\x00\x00\x01x"), control(recordEnded, "revoked")...))
	f.Add([]byte("\x01\x01\x00\x00"))
	f.Fuzz(func(t *testing.T, in []byte) {
		data, ended, words, end := parsed(t, bytes.NewReader(in))
		data1, ended1, words1, end1 := parsed(t, iotest.OneByteReader(bytes.NewReader(in)))
		if !bytes.Equal(data, data1) || ended != ended1 || words != words1 || end != end1 {
			t.Fatalf("%q %t %q %q; byte by byte %q %t %q %q", data, ended, words, end, data1, ended1, words1, end1)
		}
		if len(words) > maxWords || !bytes.Contains(in, data[:min(len(data), 1)]) {
			t.Fatalf("%d bytes of words", len(words))
		}
	})
}
