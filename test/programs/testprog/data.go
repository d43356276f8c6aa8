package main

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
)

// pattern is the endless sequence of bytes that both sides know: 64 KiB blocks,
// each beginning with its number, so that a lost, repeated or misplaced block
// changes the checksum.
type pattern struct {
	block  []byte
	number uint64
	off    int // into block
	left   int64
}

const blockSize = 64 << 10

// newPattern reads n bytes of the sequence, then reports io.EOF.
func newPattern(n int64) *pattern {
	p := &pattern{block: make([]byte, blockSize), left: n}
	x := uint64(0x9e3779b97f4a7c15)
	for i := 8; i < blockSize; i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		binary.LittleEndian.PutUint64(p.block[i:], x)
	}
	return p
}

func (p *pattern) Read(b []byte) (int, error) {
	if p.left == 0 {
		return 0, io.EOF
	}
	if p.off == blockSize {
		p.off = 0
		p.number++
		binary.BigEndian.PutUint64(p.block, p.number)
	}
	n := copy(b[:min(int64(len(b)), p.left)], p.block[p.off:])
	p.off += n
	p.left -= int64(n)
	return n, nil
}

// patternSum is the checksum of the first n bytes of the sequence.
func patternSum(n int64) string {
	t := newTally()
	io.Copy(t, newPattern(n))
	return t.String()
}

// tally counts and sums what is written to it.
type tally struct {
	n   int64
	sum hash.Hash
}

func newTally() *tally { return &tally{sum: sha256.New()} }

func (t *tally) Write(b []byte) (int, error) {
	t.n += int64(len(b))
	return t.sum.Write(b)
}

// String is "COUNT SHA256", the form in which both sides exchange it.
func (t *tally) String() string { return fmt.Sprintf("%d %x", t.n, t.sum.Sum(nil)) }
