package metrics

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sshbroker/broker/scrape"
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
type way interface{ Close() error }

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
		e.add("socket "+w.Socket, func() (way, error) { return e.serve("unix", w.Socket) })
	}
	if w.Listen != "" {
		e.add("port "+w.Listen, func() (way, error) { return e.serve("tcp", w.Listen) })
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

func (e *Exposer) serve(network, address string) (way, error) {
	s, err := scrape.Serve(network, address, scrape.Options{Metrics: e.Metrics.registry, Refused: e.Metrics.refused.Inc, Log: e.Log})
	if err != nil {
		return nil, err // else a nil pointer would be a way
	}
	return s, nil
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
		_ = w.Close()
	}
	e.open, e.errs = nil, nil
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

// Close implements way.
func (f *textfile) Close() error {
	f.end()
	<-f.done
	return nil
}
