package scrape

import (
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"
)

// Bounds on readers. A process has one or two.
const (
	MaxConns  = 16
	maxReads  = 4 // at a time
	headTime  = 5 * time.Second
	replyTime = 15 * time.Second
	idleTime  = 2 * time.Minute
	maxHead   = 8 << 10
)

// Options are what a Server is made of. All are required but Refused.
type Options struct {
	Metrics prometheus.Gatherer
	Log     *slog.Logger
	Refused func() // somebody was turned away; nil: nobody asks
}

// Server answers GET /metrics.
type Server struct {
	http     *http.Server
	listener net.Listener
	done     chan struct{}
}

// Serve listens at a Unix socket ("unix" and a path) of mode 0600, which root and our own
// user may connect to, or at an address and a port of the loopback ("tcp"), which everybody
// on this host may. It returns at once. The caller closes the server.
func Serve(network, address string, o Options) (*Server, error) {
	if o.Refused == nil {
		o.Refused = func() {}
	}
	var l net.Listener
	var err error
	if network == "unix" {
		if l, err = listenUnix(address); err == nil {
			l = ownOnly{l.(*net.UnixListener), o.Refused}
		}
	} else {
		l, err = listenLoopback(address)
	}
	if err != nil {
		return nil, err
	}
	s := &Server{listener: l, done: make(chan struct{}), http: &http.Server{
		Handler: handler(o, network), ReadHeaderTimeout: headTime, ReadTimeout: headTime, WriteTimeout: replyTime, IdleTimeout: idleTime, MaxHeaderBytes: maxHead,
		ErrorLog: slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug), // a reader's mistakes are its own
	}}
	go func() {
		defer close(s.done)
		if err := s.http.Serve(netutil.LimitListener(l, MaxConns)); !errors.Is(err, http.ErrServerClosed) {
			o.Log.Error("metrics are not served any more", "address", address, "error", err)
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

func handler(o Options, network string) http.Handler {
	read := promhttp.HandlerFor(o.Metrics, promhttp.HandlerOpts{MaxRequestsInFlight: maxReads, Timeout: replyTime - time.Second})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		if network != "unix" && !addressed(r) {
			o.Refused()
			http.Error(w, "the metrics are read by the name localhost or an address", http.StatusForbidden)
			return
		}
		read.ServeHTTP(w, r)
	})
	return mux
}

// addressed reports whether a request names us as who is on this host does. A page in a
// browser that has its own name lead to 127.0.0.1 does not.
func addressed(r *http.Request) bool {
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if len(host) > 1 && host[0] == '[' && host[len(host)-1] == ']' {
		host = host[1 : len(host)-1]
	}
	return host == "localhost" || host == "" || net.ParseIP(host) != nil
}
