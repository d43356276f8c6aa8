package eventlog

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// file is a log file, as an output. It is made for its owner alone; one that is there
// keeps its permissions.
type file struct {
	path string
	f    *os.File
	torn bool // the file ends in the middle of a line
	buf  []byte
}

// open refuses links and what another user may have put there: what is logged is not
// everybody's business. Waiting for the reader of a pipe would hold up the queue.
func (w *file) open() error {
	if w.f != nil {
		return nil
	}
	f, err := os.OpenFile(w.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND|syscall.O_CLOEXEC|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil {
		err = suitable(info)
	}
	if err != nil {
		f.Close()
		return fmt.Errorf("%s: %w", w.path, err)
	}
	w.f, w.torn = f, false
	return nil
}

// suitable says what keeps a file that is there already from being a log file.
func suitable(info fs.FileInfo) error {
	switch st, ok := info.Sys().(*syscall.Stat_t); {
	case info.Mode()&fs.ModeCharDevice != 0:
		return nil
	case !info.Mode().IsRegular():
		return fmt.Errorf("is not a file (%v)", info.Mode().Type())
	case ok && st.Uid != 0 && int(st.Uid) != os.Geteuid():
		return fmt.Errorf("belongs to user %d", st.Uid)
	}
	return nil
}

// CheckFile says what keeps path from being a target just now, without making it.
func CheckFile(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		dir := filepath.Dir(path)
		if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
			return &fs.PathError{Op: "write to", Path: dir, Err: err}
		}
		return nil
	}
	if err == nil {
		err = suitable(info)
	}
	if err == nil {
		err = unix.Access(path, unix.W_OK)
	}
	return err
}

// write writes all entries at once. What is there of a line that was cut short ends with
// the next write.
func (w *file) write(entries []*entry) (int, error) {
	if err := w.open(); err != nil {
		return 0, err
	}
	if len(entries) == 0 {
		return 0, nil
	}
	w.buf = w.buf[:0]
	if w.torn {
		w.buf = append(w.buf, '\n')
	}
	for _, e := range entries {
		w.buf = appendFileLine(w.buf, e)
	}
	n, err := w.f.Write(w.buf)
	lines := bytes.Count(w.buf[:n], []byte{'\n'})
	if w.torn && lines > 0 {
		lines--
	}
	if n > 0 {
		w.torn = w.buf[n-1] != '\n'
	}
	if cap(w.buf) > 64<<10 {
		w.buf = nil
	}
	return lines, err
}

func (w *file) close() {
	if w.f != nil {
		w.f.Close()
		w.f = nil
	}
}
