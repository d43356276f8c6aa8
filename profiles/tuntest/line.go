package tuntest

import (
	"net"
	"sync"
	"syscall"
)

// line is a connection that can go dead in the middle.
type line struct {
	net.Conn
	mu     sync.Mutex
	frozen chan struct{} // nil, or closed at the thaw
}

func newLine(c net.Conn) *line { return &line{Conn: c} }

// SyscallConn lets the connector set socket options.
func (l *line) SyscallConn() (syscall.RawConn, error) { return l.Conn.(*net.TCPConn).SyscallConn() }

func (l *line) freeze() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.frozen == nil {
		l.frozen = make(chan struct{})
	}
}

func (l *line) thaw() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.frozen != nil {
		close(l.frozen)
		l.frozen = nil
	}
}

func (l *line) wait() {
	l.mu.Lock()
	frozen := l.frozen
	l.mu.Unlock()
	if frozen != nil {
		<-frozen
	}
}

func (l *line) Read(p []byte) (int, error) {
	l.wait()
	n, err := l.Conn.Read(p)
	l.wait()
	return n, err
}

func (l *line) Write(p []byte) (int, error) {
	l.wait()
	return l.Conn.Write(p)
}

// Close releases whoever waits, as that of a socket does on a dead path.
func (l *line) Close() error {
	defer l.thaw()
	return l.Conn.Close()
}
