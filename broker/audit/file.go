package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// file is the audit file with its rotated predecessors: PATH, PATH.1, PATH.2 ...
// Owned by one goroutine.
type file struct {
	path    string
	maxSize int64
	keep    int

	f       *os.File // nil: not open
	regular bool     // not a device
	size    int64
	torn    bool // the file ends in the middle of a line and could not be shortened
}

// open opens the file for appending, and makes sure that it ends with a whole line.
// It refuses what another user may write to or may have put there: links, and files
// that are not ours.
func (w *file) open() error {
	if w.f != nil {
		return nil
	}
	// O_NONBLOCK: a FIFO must not hold us up.
	flags := os.O_RDWR | os.O_CREATE | os.O_APPEND | syscall.O_CLOEXEC | syscall.O_NOFOLLOW | syscall.O_NONBLOCK
	f, err := os.OpenFile(w.path, flags, 0o600)
	if err != nil {
		return err
	}
	if err := w.adopt(f); err != nil {
		f.Close()
		w.f = nil
		return fmt.Errorf("audit file %s: %w", w.path, err)
	}
	return nil
}

func (w *file) adopt(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	w.f, w.size, w.torn = f, 0, false
	w.regular = info.Mode().IsRegular()
	if !w.regular {
		if info.Mode()&fs.ModeCharDevice == 0 {
			return fmt.Errorf("is not a file (%v)", info.Mode().Type())
		}
		return nil
	}
	st := info.Sys().(*syscall.Stat_t)
	if int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("belongs to user %d", st.Uid)
	}
	if st.Nlink > 1 {
		return fmt.Errorf("has %d links", st.Nlink)
	}
	if info.Mode().Perm()&0o077 != 0 {
		if err := f.Chmod(0o600); err != nil {
			return err
		}
	}
	w.size = info.Size()
	return w.mendTail()
}

// lineStart is how every record begins.
var lineStart = []byte(`{"v":`)

// mendTail takes away the part of a line that a crash has left at the end.
func (w *file) mendTail() error {
	const most = 64 << 10 // longer than any record
	tail := make([]byte, min(w.size, most))
	if _, err := w.f.ReadAt(tail, w.size-int64(len(tail))); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	last := bytes.LastIndexByte(tail, '\n')
	if len(tail) == 0 || last == len(tail)-1 {
		return nil
	}
	if rest := tail[last+1:]; !bytes.HasPrefix(rest, lineStart) && !bytes.HasPrefix(lineStart, rest) {
		w.torn = true // not ours: it stays, on a line of its own
		return nil
	}
	return w.shorten(w.size - int64(len(tail)-last-1))
}

// shorten cuts the file to size. Where it cannot, the next write begins with a
// newline instead.
func (w *file) shorten(size int64) error {
	if !w.regular {
		w.torn = true
		return nil
	}
	if err := w.f.Truncate(size); err != nil {
		w.torn = true
		return err
	}
	w.size = size
	return nil
}

// write appends whole lines and returns how many bytes of them are in the file as
// whole lines. After an error the file holds these and nothing else.
func (w *file) write(lines []byte) (int, error) {
	if err := w.reopenIfMoved(); err != nil {
		return 0, err
	}
	var rotateErr error
	if w.regular && w.maxSize > 0 && w.size > 0 && w.size+int64(len(lines)) > w.maxSize {
		rotateErr = w.rotate()
		if w.f == nil {
			return 0, rotateErr
		}
	}
	if w.torn {
		if err := w.mend(); err != nil {
			return 0, err
		}
	}
	n, err := w.f.Write(lines)
	w.size += int64(n)
	if err == nil {
		return n, rotateErr
	}
	whole := bytes.LastIndexByte(lines[:n], '\n') + 1
	if whole < n {
		w.shorten(w.size - int64(n-whole)) // on failure mended by the next write
	}
	return whole, err
}

// mend ends the torn line.
func (w *file) mend() error {
	if w.regular {
		info, err := w.f.Stat()
		if err != nil {
			return err
		}
		w.size = info.Size()
		w.torn = false
		if err := w.mendTail(); err == nil && !w.torn {
			return nil
		}
	}
	n, err := w.f.Write([]byte{'\n'})
	w.size += int64(n)
	w.torn = err != nil
	return err
}

// reopenIfMoved follows a rotation by another program, or a file that was deleted.
func (w *file) reopenIfMoved() error {
	if w.f != nil && w.regular {
		there, err := os.Lstat(w.path)
		ours, err2 := w.f.Stat()
		if err2 == nil {
			w.size = ours.Size()
		}
		if err != nil || err2 != nil || !os.SameFile(there, ours) {
			w.close()
		}
	}
	return w.open()
}

// rotate renames the file and its predecessors by one, and opens a new one. When it
// fails the old file goes on, larger than it should be; w.f is nil only if not even
// that is open.
func (w *file) rotate() error {
	if w.keep < 1 {
		if err := w.f.Truncate(0); err != nil {
			return err
		}
		w.size, w.torn = 0, false
		return nil
	}
	for i := w.keep - 1; i >= 1; i-- {
		err := os.Rename(w.numbered(i), w.numbered(i+1))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := os.Rename(w.path, w.numbered(1)); err != nil {
		return err
	}
	w.close()
	return w.open()
}

func (w *file) numbered(i int) string { return fmt.Sprintf("%s.%d", w.path, i) }

func (w *file) close() error {
	if w.f == nil {
		return nil
	}
	err := w.f.Close()
	w.f = nil
	return err
}
