package audit

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

var (
	// ErrCannotWrite is the class of what Ready returns.
	ErrCannotWrite = errors.New("audit records cannot be written")
	// ErrClosed is what Ready returns after Close.
	ErrClosed = errors.New("audit log closed")
)

// Defaults of Options.
const (
	DefaultMaxSize     = 64 << 20
	DefaultReportEvery = time.Minute
	DefaultRetryEvery  = time.Second
)

// maxPending bounds, in bytes, the records kept while the file cannot be written.
const maxPending = 4 << 20

// slowWrite is how long one write may take before Ready calls the file stuck.
const slowWrite = 5 * time.Second

// Options say where records go.
type Options struct {
	Path string // required

	MaxSize int64 // bytes; rotated before it would be exceeded; 0: DefaultMaxSize, <0: never
	Keep    int   // rotated files that are kept; 0: the file starts anew

	Required bool // Ready reports failure

	Logger      *slog.Logger  // required; told of failures, once each ReportEvery
	ReportEvery time.Duration // 0: DefaultReportEvery
	RetryEvery  time.Duration // 0: DefaultRetryEvery

	// Strict panics on a record without a reason. For tests: such a record is a
	// path through the broker that forgot to say what became of its flow.
	Strict bool
}

// Stats count records since Open.
type Stats struct {
	Written  uint64 // in the file
	Lost     uint64 // given up: the file could not be written for too long, or until Close
	Pending  int    // waiting
	Failures uint64 // failed writes
	Unset    uint64 // came without a reason
	Failing  error  // of the last write, nil after a success
}

// Log writes records to a file. Record never waits for the disk: a goroutine writes,
// many records at once when they come fast. While the file cannot be written, records
// are kept up to a bound and the write is tried again. Safe for concurrent use.
type Log struct {
	opts Options
	wake chan struct{} // capacity 1: there is something to write
	stop chan struct{} // closed by Close
	done chan struct{} // closed when the writer has ended

	file file // owned by the writer

	mu      sync.Mutex
	pending []byte        // whole lines
	count   int           // of them
	spare   []byte        // the batch before, for reuse
	taken   uint64        // lines ever taken, which are written in this order
	flushed chan struct{} // closed by the next flush; nil while nobody waits
	writing time.Time
	failing error // the last write's; nil after a success
	closed  bool
	stats   Stats
}

// Open starts a log. A file that cannot be opened is no error here: flows go on, and
// it is tried again. Call Ready to know. Errors are those of the options.
func Open(o Options) (*Log, error) {
	if o.Path == "" {
		return nil, errors.New("audit: no file given")
	}
	if o.Logger == nil {
		return nil, errors.New("audit: no logger given")
	}
	if o.Keep < 0 {
		return nil, fmt.Errorf("audit: cannot keep %d files", o.Keep)
	}
	if o.MaxSize == 0 {
		o.MaxSize = DefaultMaxSize
	}
	if o.ReportEvery <= 0 {
		o.ReportEvery = DefaultReportEvery
	}
	if o.RetryEvery <= 0 {
		o.RetryEvery = DefaultRetryEvery
	}
	l := &Log{
		opts: o,
		wake: make(chan struct{}, 1),
		stop: make(chan struct{}),
		done: make(chan struct{}),
		file: file{path: o.Path, maxSize: o.MaxSize, keep: o.Keep},
	}
	if err := l.file.open(); err != nil {
		l.failing = err
		l.stats.Failures++
	}
	go l.run()
	return l, nil
}

// Record writes r. A record without a reason is a fault of the caller: it is counted,
// logged as an error, and written with the reason Internal, or panics under Strict.
// After Close records are counted as lost.
func (l *Log) Record(r Record) {
	if r.Reason == Unset {
		if l.opts.Strict {
			panic(fmt.Sprintf("audit: flow %d has no reason: %+v", r.Flow, r))
		}
		l.mu.Lock()
		l.stats.Unset++
		l.mu.Unlock()
		l.opts.Logger.Error("audit record without a reason", "flow", r.Flow)
		r.Reason = Internal
		if r.Error == "" {
			r.Error = "no reason was recorded"
		}
	}
	text, err := r.AppendLine(nil)
	l.put(text, err)
}

// put hands one line to the writer and returns its number, or 0 where it is lost.
func (l *Log) put(line []byte, err error) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil || l.closed || len(l.pending)+len(line) > maxPending {
		l.stats.Lost++
		return 0
	}
	l.pending = append(l.pending, line...)
	l.count++
	l.taken++
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return l.taken
}

// await waits until the line of that number is in the file, for as long as the file
// can be written. Its errors are of class ErrCannotWrite.
func (l *Log) await(line uint64) error {
	if line == 0 {
		return fmt.Errorf("%w: too many wait", ErrCannotWrite)
	}
	limit := time.NewTimer(slowWrite)
	defer limit.Stop()
	for {
		l.mu.Lock()
		switch {
		case l.stats.Written >= line:
			l.mu.Unlock()
			return nil
		case l.failing != nil:
			defer l.mu.Unlock()
			return fmt.Errorf("%w: %w", ErrCannotWrite, l.failing)
		}
		if l.flushed == nil {
			l.flushed = make(chan struct{})
		}
		flushed := l.flushed
		l.mu.Unlock()
		select {
		case <-flushed:
		case <-l.done:
			return ErrClosed
		case <-limit.C:
			return fmt.Errorf("%w: a write to %s takes longer than %v", ErrCannotWrite, l.opts.Path, slowWrite)
		}
	}
}

// Ready returns an error, of class ErrCannotWrite, while records must be written and
// cannot: the last write failed, or one is stuck, or too much waits. It does not touch
// the disk. Where records are not required it returns nil until Close.
func (l *Log) Ready() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		return ErrClosed
	case !l.opts.Required:
		return nil
	case l.failing != nil:
		return fmt.Errorf("%w: %w", ErrCannotWrite, l.failing)
	case !l.writing.IsZero() && time.Since(l.writing) > slowWrite:
		return fmt.Errorf("%w: a write to %s takes longer than %v", ErrCannotWrite, l.opts.Path, slowWrite)
	case len(l.pending) > maxPending/2:
		return fmt.Errorf("%w: %d records wait", ErrCannotWrite, l.count)
	}
	return nil
}

// Required reports whether no flow may go unrecorded.
func (l *Log) Required() bool { return l.opts.Required }

// Stats returns the counts so far.
func (l *Log) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.stats
	s.Pending, s.Failing = l.count, l.failing
	return s
}

// Close writes what waits, trying once more if the file cannot be written, and closes
// the file. It returns an error if records were lost at this moment.
func (l *Log) Close() error {
	l.mu.Lock()
	already := l.closed
	l.closed = true
	l.mu.Unlock()
	if !already {
		close(l.stop)
	}
	<-l.done
	if already {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.count == 0 {
		return nil
	}
	lost := l.count
	l.stats.Lost += uint64(lost)
	l.pending, l.count = nil, 0
	return fmt.Errorf("%w: %d records lost: %w", ErrCannotWrite, lost, l.failing)
}

// run writes until Close. It is the only goroutine that touches the file.
func (l *Log) run() {
	defer close(l.done)
	defer l.file.close()
	report := reporter{log: l.opts.Logger, every: l.opts.ReportEvery, path: l.opts.Path}
	retry := time.NewTimer(0)
	retry.Stop()
	defer retry.Stop()
	l.mu.Lock()
	first := l.failing
	l.mu.Unlock()
	if first != nil {
		report.failed(first, l.Stats())
		retry.Reset(l.opts.RetryEvery)
	}
	for {
		l.mu.Lock()
		failing := l.failing != nil
		l.mu.Unlock()
		wake := l.wake
		if failing {
			wake = nil // only time, or the end, makes another attempt
		}
		select {
		case <-wake:
		case <-retry.C:
		case <-l.stop:
			l.flush(&report)
			return
		}
		if !l.flush(&report) {
			retry.Reset(l.opts.RetryEvery)
		}
	}
}

// flush writes everything that waits and reports whether the file is in order.
func (l *Log) flush(report *reporter) bool {
	l.mu.Lock()
	batch, lines := l.pending, l.count
	l.pending, l.count = l.spare[:0], 0
	l.spare = nil
	l.writing = time.Now()
	l.mu.Unlock()

	written, err := 0, error(nil)
	if len(batch) == 0 {
		err = l.file.open()
	} else {
		written, err = l.file.write(batch)
	}

	done := bytes.Count(batch[:written], []byte{'\n'})
	l.mu.Lock()
	l.writing = time.Time{}
	l.stats.Written += uint64(done)
	rest := batch[written:]
	if len(rest) > 0 {
		l.pending = append(append(make([]byte, 0, len(rest)+len(l.pending)), rest...), l.pending...)
		l.count += lines - done
	} else if cap(batch) <= 64<<10 {
		l.spare = batch
	}
	// A failed rotation loses nothing: it is reported, but the file is in order.
	was := l.failing
	l.failing = err
	if len(rest) == 0 && len(batch) > 0 {
		l.failing = nil
	}
	ok := l.failing == nil
	if err != nil {
		l.stats.Failures++
	}
	if l.flushed != nil {
		close(l.flushed)
		l.flushed = nil
	}
	l.mu.Unlock()
	switch {
	case err != nil:
		report.failed(err, l.Stats())
	case len(batch) > 0 || was != nil:
		report.succeeded(l.Stats())
	}
	return ok
}

// reporter tells of failures, at once and then once an interval, and of their end.
type reporter struct {
	log   *slog.Logger
	every time.Duration
	path  string
	last  time.Time // of the last report of a failure
	told  bool      // of a failure, and not yet of its end
}

func (r *reporter) failed(err error, s Stats) {
	if !r.last.IsZero() && time.Since(r.last) < r.every {
		return
	}
	r.last, r.told = time.Now(), true
	r.log.Error("audit file cannot be written or rotated", "file", r.path, "error", err,
		"failures", s.Failures, "pending", s.Pending, "lost", s.Lost)
}

func (r *reporter) succeeded(s Stats) {
	if !r.told {
		return
	}
	r.told = false
	r.log.Warn("audit file can be written again", "file", r.path, "failures", s.Failures, "lost", s.Lost)
}
