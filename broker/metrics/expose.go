package metrics

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"
)

// Ways says by which ways the metrics are read; "" is none.
type Ways struct {
	Socket   string        // path of a Unix socket, for our own user and root
	Listen   string        // address:port of the loopback, for everybody on the host
	Textfile string        // path, for node_exporter's textfile collector
	Interval time.Duration // between writings of Textfile; 0: DefaultInterval
}

// DefaultInterval is how often the text file is written: as often as Prometheus reads it,
// by its own default.
const DefaultInterval = 15 * time.Second

// Bounds on readers. A broker has one or two.
const (
	maxConns  = 16
	maxReads  = 4 // at a time
	headTime  = 5 * time.Second
	replyTime = 15 * time.Second
	idleTime  = 2 * time.Minute
	maxHead   = 8 << 10
)

// Exposer has the metrics read by the ways of the configuration. Close ends it. Safe for
// concurrent use.
type Exposer struct {
	Metrics *Metrics
	Log     *slog.Logger

	mu     sync.Mutex
	ways   Ways
	open   []way
	errs   []error
	closed bool
}

// way is one that is open.
type way interface{ close() }

// Apply has the metrics read by these ways from now on, and by no others. One that cannot
// be opened is logged and is in Errors; a broker does not end for want of it. Nothing is
// closed and opened again where the ways are those of before and all are open.
func (e *Exposer) Apply(w Ways) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed || w == e.ways && len(e.errs) == 0 {
		return
	}
	e.shut()
	e.ways = w
	if w.Socket != "" {
		e.add("socket "+w.Socket, func() (way, error) { return e.serve(listenUnix(w.Socket)) })
	}
	if w.Listen != "" {
		e.add("port "+w.Listen, func() (way, error) { return e.serve(listenLoopback(w.Listen)) })
	}
	if w.Textfile != "" {
		e.add("", func() (way, error) { return e.write(w.Textfile, w.Interval), nil })
	}
}

func (e *Exposer) add(what string, open func() (way, error)) {
	opened, err := open()
	if err != nil {
		err = fmt.Errorf("metrics: %s: %w", what, err)
		e.errs = append(e.errs, err)
		e.Log.Warn("metrics cannot be read by a way of the configuration", "error", err)
		return
	}
	e.open = append(e.open, opened)
}

// Errors says which ways are not open.
func (e *Exposer) Errors() []error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.errs)
}

// Close closes every way. The text file goes as well: what it says would be true no more.
func (e *Exposer) Close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.shut()
	e.closed = true
}

func (e *Exposer) shut() {
	for _, w := range e.open {
		w.close()
	}
	e.open, e.errs = nil, nil
}

// server is a way by HTTP.
type server struct {
	http *http.Server
	done chan struct{}
}

// serve answers readers at a listener.
func (e *Exposer) serve(l net.Listener, err error) (way, error) {
	if err != nil {
		return nil, err
	}
	if u, ok := l.(*net.UnixListener); ok {
		l = ownOnly{u, e.Metrics.refused}
	}
	s := &server{done: make(chan struct{}), http: &http.Server{
		Handler: e.handler(), ReadHeaderTimeout: headTime, ReadTimeout: headTime, WriteTimeout: replyTime, IdleTimeout: idleTime, MaxHeaderBytes: maxHead,
		ErrorLog: slog.NewLogLogger(e.Log.Handler(), slog.LevelDebug), // a reader's mistakes are its own
	}}
	go func() {
		defer close(s.done)
		if err := s.http.Serve(netutil.LimitListener(l, maxConns)); !errors.Is(err, http.ErrServerClosed) {
			e.Log.Warn("metrics are read no more", "at", l.Addr(), "error", err)
		}
	}()
	return s, nil
}

func (s *server) close() {
	_ = s.http.Close()
	<-s.done
}

func (e *Exposer) handler() http.Handler {
	read := promhttp.HandlerFor(e.Metrics.registry, promhttp.HandlerOpts{MaxRequestsInFlight: maxReads, ErrorLog: slog.NewLogLogger(e.Log.Handler(), slog.LevelWarn)})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		if !addressed(r) {
			e.Metrics.refused.Inc()
			http.Error(w, "the metrics are read by the name localhost or an address", http.StatusForbidden)
			return
		}
		read.ServeHTTP(w, r)
	})
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "ssh-broker: the metrics are at /metrics")
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

// textfile is a way by a file.
type textfile struct {
	end  context.CancelFunc
	done chan struct{}
}

// write writes the file at once, and then again and again. It is replaced whole; who may
// read the directory may read it.
func (e *Exposer) write(path string, every time.Duration) way {
	if every <= 0 {
		every = DefaultInterval
	}
	ctx, end := context.WithCancel(context.Background())
	f := &textfile{end: end, done: make(chan struct{})}
	go func() {
		defer close(f.done)
		tick := time.NewTicker(every)
		defer tick.Stop()
		failing, ours := false, false
		for {
			err := prometheus.WriteToTextfile(path, e.Metrics.registry)
			if err == nil {
				ours = true
			} else {
				e.Metrics.writeErrors.Inc()
			}
			if err != nil && !failing {
				e.Log.Warn("metrics cannot be written, it is tried again and again", "file", path, "every", every, "error", err)
			} else if err == nil && failing {
				e.Log.Warn("metrics can be written again", "file", path)
			}
			failing = err != nil
			select {
			case <-tick.C:
			case <-ctx.Done():
				if ours {
					_ = os.Remove(path)
				}
				return
			}
		}
	}()
	return f
}

func (f *textfile) close() {
	f.end()
	<-f.done
}
