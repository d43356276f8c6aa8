package names

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/netip"
	"os"
	"strings"
	"syscall"
)

// journal is the file of the pseudo addresses, appended to at each new one: one
// write, as it has to outlive a killed process but not a lost machine. A line is
//
//	1 198.18.0.1 db.example 0f3c9a41
//
// the version, the IPv4 address, the name, and the CRC-32 of what is before it. Of
// lines with one address the last counts. Not safe for concurrent use.
type journal struct {
	path string
	f    *os.File // nil: closed
	torn bool     // the file ends in the middle of a line
}

const (
	journalVersion = "1"
	maxJournal     = 64 << 20 // bytes that are read back
	maxJournalLine = 512
)

var errJournalClosed = errors.New("journal is closed")

// openJournal opens the journal, making it where it is missing, and locks it against
// another process.
func openJournal(path string) (*journal, error) {
	flags := os.O_RDWR | os.O_CREATE | os.O_APPEND | syscall.O_CLOEXEC | syscall.O_NOFOLLOW | syscall.O_NONBLOCK
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, err
	}
	j := &journal{path: path, f: f}
	if err := j.adopt(); err != nil {
		f.Close()
		return nil, fmt.Errorf("journal %s: %w", path, err)
	}
	return j, nil
}

func (j *journal) adopt() error {
	info, err := j.f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("is not a file (%v)", info.Mode().Type())
	}
	st := info.Sys().(*syscall.Stat_t)
	if int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("belongs to user %d", st.Uid)
	}
	if info.Mode().Perm()&0o077 != 0 {
		if err := j.f.Chmod(0o600); err != nil {
			return err
		}
	}
	if err := syscall.Flock(int(j.f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return fmt.Errorf("another process has it locked: %w", err)
	}
	if there, err := os.Lstat(j.path); err != nil || !os.SameFile(there, info) {
		return errors.New("was replaced while it was opened")
	}
	if size := info.Size(); size > 0 {
		var last [1]byte
		if _, err := j.f.ReadAt(last[:], size-1); err != nil {
			return err
		}
		j.torn = last[0] != '\n'
	}
	return nil
}

// load hands every mapping to take, in order, and counts the lines and those that
// were bad: damaged, or refused by take.
func (j *journal) load(take func(addr netip.Addr, name string) bool) (lines, bad int, err error) {
	info, err := j.f.Stat()
	if err != nil {
		return 0, 0, err
	}
	r := bufio.NewReaderSize(io.NewSectionReader(j.f, 0, min(info.Size(), maxJournal)), 64<<10)
	for {
		line, err := r.ReadSlice('\n')
		for errors.Is(err, bufio.ErrBufferFull) { // no line of ours
			line = line[:0]
			_, err = r.ReadSlice('\n')
		}
		if len(line) > 0 || err == nil {
			lines++
			addr, name, ok := parseLine(line)
			if !ok || !take(addr, name) {
				bad++
			}
		}
		if errors.Is(err, io.EOF) {
			return lines, bad, nil
		}
		if err != nil {
			return lines, bad, err
		}
	}
}

// JournalAddress returns a pseudo address that the journal of a former process has, for
// whoever has to find the pool that it is of; ok is false where there is none.
func JournalAddress(path string) (addr netip.Addr, ok bool) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return netip.Addr{}, false
	}
	defer f.Close()
	_, _, _ = (&journal{f: f}).load(func(a netip.Addr, _ string) bool {
		addr, ok = a, true
		return true
	})
	return addr, ok
}

func formatLine(addr netip.Addr, name string) []byte {
	text := journalVersion + " " + addr.String() + " " + name
	return fmt.Appendf(nil, "%s %08x\n", text, crc32.ChecksumIEEE([]byte(text)))
}

func parseLine(line []byte) (addr netip.Addr, name string, ok bool) {
	if len(line) > maxJournalLine || !bytes.HasSuffix(line, []byte{'\n'}) {
		return addr, "", false
	}
	fields := strings.Split(string(line[:len(line)-1]), " ")
	if len(fields) != 4 {
		return addr, "", false
	}
	addr, err := netip.ParseAddr(fields[1])
	if err != nil || !addr.Is4() {
		return addr, "", false
	}
	name, err = Normalize(fields[2])
	if err != nil {
		return addr, "", false
	}
	return addr, name, bytes.Equal(formatLine(addr, name), line)
}

// add writes one mapping. After an error a part of it may be in the file; load takes
// it only if nothing but its newline was missing, and then for the same name.
func (j *journal) add(addr netip.Addr, name string) error {
	if j.f == nil {
		return errJournalClosed
	}
	line := formatLine(addr, name)
	if j.torn {
		line = append([]byte{'\n'}, line...)
	}
	n, err := j.f.Write(line)
	if err == nil {
		j.torn = false
	} else if n > 0 {
		j.torn = true // the checksum tells the part from a whole line
	}
	return err
}

// replace writes the journal anew with the mappings of each, atomically.
func (j *journal) replace(each func(func(addr netip.Addr, name string))) error {
	temp := j.path + ".new"
	if err := os.Remove(temp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	flags := os.O_RDWR | os.O_CREATE | os.O_EXCL | os.O_APPEND | syscall.O_CLOEXEC | syscall.O_NOFOLLOW
	f, err := os.OpenFile(temp, flags, 0o600)
	if err != nil {
		return err
	}
	// Locked before it has its name, so that nobody else can have it.
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	w := bufio.NewWriter(f)
	each(func(addr netip.Addr, name string) { w.Write(formatLine(addr, name)) })
	err = errors.Join(err, w.Flush(), f.Sync())
	if err == nil {
		err = os.Rename(temp, j.path)
	}
	if err != nil {
		f.Close()
		os.Remove(temp)
		return err
	}
	j.f.Close()
	j.f, j.torn = f, false
	return nil
}

func (j *journal) close() error {
	if j.f == nil {
		return nil
	}
	f := j.f
	j.f = nil
	return f.Close()
}
