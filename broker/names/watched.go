package names

import (
	"io"
	"os"
	"sync"
	"syscall"
)

// maxWatched bounds what is read of a hosts file or a resolv.conf, in bytes.
const maxWatched = 16 << 20

// watched is a parsed file that is read again when it has changed. What was read last
// stays in force while the file cannot be read. Safe for concurrent use.
type watched[T any] struct {
	path  string // "": the zero T
	parse func(text []byte) T

	mu    sync.Mutex
	seen  identity
	value T
}

// identity changes with every change of a file that others make.
type identity struct {
	dev, ino     uint64
	size         int64
	mtime, ctime syscall.Timespec
}

func (w *watched[T]) get() T {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.path == "" {
		return w.value
	}
	var st syscall.Stat_t
	if err := syscall.Stat(w.path, &st); err != nil {
		return w.value
	}
	now := identity{st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim}
	if now == w.seen || st.Mode&syscall.S_IFMT != syscall.S_IFREG {
		return w.value
	}
	f, err := os.Open(w.path)
	if err != nil {
		return w.value
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxWatched))
	if err != nil {
		return w.value
	}
	w.seen, w.value = now, w.parse(text)
	return w.value
}
