package metrics

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sys/unix"
)

// Server answers GET /metrics.
type Server struct {
	http     http.Server
	listener net.Listener
	done     chan struct{}
}

// Serve listens at a Unix socket ("unix" and a path), which root and our own account may
// connect to, or at a loopback address ("tcp"). It returns at once; the caller closes
// the server.
func (m *Metrics) Serve(network, address string, log *slog.Logger) (*Server, error) {
	l, err := listen(network, address)
	if err != nil {
		return nil, fmt.Errorf("metrics at %s: %w", address, err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second}))
	s := &Server{listener: l, done: make(chan struct{})}
	s.http = http.Server{
		Handler: mux, MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 20 * time.Second, IdleTimeout: 2 * time.Minute,
	}
	go func() {
		defer close(s.done)
		if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Error("metrics are not served any more", "address", address, "error", err)
		}
	}()
	return s, nil
}

// Close ends the server and what it answers just now.
func (s *Server) Close() error {
	err := s.http.Close()
	<-s.done
	return err
}

// Addr is where it listens.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

func listen(network, address string) (net.Listener, error) {
	if network != "unix" {
		addr, err := netip.ParseAddrPort(address)
		if err != nil || !addr.Addr().Unmap().IsLoopback() {
			return nil, errors.New("it is no loopback address, and metrics are not for everybody")
		}
		return net.Listen("tcp", address)
	}
	if err := clearSocket(address); err != nil {
		return nil, err
	}
	// The file gets the mode of the socket, so it never has a wider one.
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		cerr := raw.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(cerr, err)
	}}
	l, err := config.Listen(context.Background(), "unix", address)
	if err != nil {
		return nil, err
	}
	return &peerListener{l.(*net.UnixListener)}, nil
}

// clearSocket removes what a dead gateway has left, and only that.
func clearSocket(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != os.ModeSocket:
		return errors.New("something that is not a socket is in the way; it is left alone")
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		c.Close()
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return errors.New("another program's socket is in the way; it is left alone")
	}
	return os.Remove(path)
}

// peerListener takes root's connections and those of our own account.
type peerListener struct{ *net.UnixListener }

func (l *peerListener) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if uid, err := peerOf(c); err == nil && (uid == 0 || uid == os.Geteuid()) {
			return c, nil
		}
		c.Close()
	}
}

func peerOf(c *net.UnixConn) (int, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	var cred *unix.Ucred
	cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(cerr, err); err != nil {
		return -1, err
	}
	return int(cred.Uid), nil
}
