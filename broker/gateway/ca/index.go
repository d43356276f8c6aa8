package ca

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"
)

// Kind is what a certificate is for.
type Kind string

const (
	ForClient Kind = "client"
	ForServer Kind = "server"
)

// Entry is one certificate of the index.
type Entry struct {
	Serial   string // hexadecimal, lower case
	Kind     Kind
	Validity Validity
	Names    []string // each with its kind: email:ann@example.com

	Revoked time.Time // zero: it is not
	Reason  Reason
}

// index is the file with a line for each certificate that was issued and each that was
// revoked. It is only ever added to, and each line is on the disk before anybody has what
// it tells of. A line that was not finished, as the host failed or the disk was full, has
// never counted and is cut off by the next one.
type index struct {
	name    string
	entries []Entry
	at      map[string]int // serial -> place in entries
	size    int64          // of the whole lines
}

const indexHead = "# What this authority has issued and revoked. ssh-gateway ca adds lines to it.\n"

// readIndex reads the file. Its errors name the line.
func readIndex(name string) (*index, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	return parseIndex(name, text)
}

func parseIndex(name string, text []byte) (*index, error) {
	whole := text[:bytes.LastIndexByte(text, '\n')+1]
	x := &index{name: name, at: map[string]int{}, size: int64(len(whole))}
	number := 0
	for line := range strings.Lines(string(whole)) {
		number++
		if line = strings.TrimSuffix(line, "\n"); line == "" || line[0] == '#' {
			continue
		}
		if err := x.read(strings.Split(line, "\t")); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", name, number, err)
		}
	}
	return x, nil
}

// Kinds of lines.
const (
	lineIssued  = "issued"
	lineRevoked = "revoked"
)

func (x *index) read(fields []string) error {
	switch {
	case fields[0] == lineIssued && len(fields) >= 6:
		e := Entry{Serial: fields[1], Kind: Kind(fields[2]), Names: fields[5:]}
		var err, err2 error
		e.Validity.From, err = time.Parse(time.RFC3339, fields[3])
		e.Validity.Until, err2 = time.Parse(time.RFC3339, fields[4])
		if err := errors.Join(err, err2); err != nil {
			return err
		}
		if _, twice := x.at[e.Serial]; twice {
			return fmt.Errorf("serial %s was issued before", e.Serial)
		}
		if s, err := ParseSerial(e.Serial); err != nil || s != e.Serial {
			return fmt.Errorf("%q is not a serial number", e.Serial)
		}
		if e.Kind != ForClient && e.Kind != ForServer {
			return fmt.Errorf("%q is not a kind of certificate", e.Kind)
		}
		x.at[e.Serial] = len(x.entries)
		x.entries = append(x.entries, e)
	case fields[0] == lineRevoked && len(fields) == 4:
		i, known := x.at[fields[1]]
		if !known {
			return fmt.Errorf("serial %s was revoked and not issued", fields[1])
		}
		when, err := time.Parse(time.RFC3339, fields[2])
		if err != nil {
			return err
		}
		reason, err := ParseReason(fields[3])
		if err != nil {
			return err
		}
		x.entries[i].Revoked, x.entries[i].Reason = when, reason
	default:
		return errors.New("this is not a line of an index; put the file of a backup in its place, or take the line out if you have written it")
	}
	return nil
}

// add writes a line, and counts it once it is on the disk.
func (x *index) add(fields ...string) (err error) {
	f, err := os.OpenFile(x.name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Truncate(x.size); err != nil {
		return err
	}
	line := strings.Join(fields, "\t") + "\n"
	if _, err := f.WriteAt([]byte(line), x.size); err != nil {
		return errors.Join(err, f.Truncate(x.size))
	}
	if err := f.Sync(); err != nil {
		return errors.Join(err, f.Truncate(x.size))
	}
	x.size += int64(len(line))
	return x.read(fields)
}

// issued are the fields of the line that says so.
func (e Entry) issued() []string {
	return append([]string{lineIssued, e.Serial, string(e.Kind), stamp(e.Validity.From), stamp(e.Validity.Until)}, e.Names...)
}

// List returns what the authority of a directory has issued, in order. It needs neither
// the lock nor the key.
func List(dir string) ([]Entry, error) {
	x, err := readIndex(inDir(dir, indexFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, noAuthority(dir)
	}
	if err != nil {
		return nil, err
	}
	return x.entries, nil
}
