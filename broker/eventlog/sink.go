package eventlog

import (
	"strconv"
	"sync"
	"time"
)

// maxPending bounds what waits for one target, in bytes.
const maxPending = 1 << 20

// output is where a sink writes. Its goroutine alone uses it.
type output interface {
	// write writes entries and returns how many of them, from the first, are through.
	write([]*entry) (int, error)
	// close lets go of what is open; the next write opens it again.
	close()
}

// sink is one target with the queue of what waits for it.
type sink struct {
	target Target
	opts   Options
	wake   chan struct{} // capacity 1: there is something to do
	stop   chan struct{} // closed by close
	done   chan struct{} // closed when the goroutine has ended

	mu      sync.Mutex
	pending []*entry
	bytes   int  // of pending
	again   bool // open the output anew first
	lost    uint64
	untold  uint64 // of lost, what no LogEventsLost has told of yet
	written uint64
	failed  uint64
	failing error
}

func newSink(t Target, o Options) *sink {
	s := &sink{target: t, opts: o, wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{})}
	out := output(&file{path: t.Path})
	if t.Type == Syslog {
		out = &system{socket: o.SyslogSocket}
	}
	s.again = true // so that a file that cannot be opened is known before the first event
	s.wake <- struct{}{}
	go s.run(out)
	return s
}

// put adds an entry to the queue, or counts it as lost.
func (s *sink) put(e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	size := e.size()
	if s.bytes+size > maxPending {
		s.lost++
		s.untold++
		return
	}
	s.pending = append(s.pending, e)
	s.bytes += size
	s.signal()
}

func (s *sink) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// reopen has the output opened anew before the next write.
func (s *sink) reopen() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.again = true
	s.signal()
}

// close has what waits written, and returns when that is done or has failed, or after
// closePatience: a target that hangs keeps its goroutine until it takes or fails what it
// was given.
func (s *sink) close() {
	close(s.stop)
	select {
	case <-s.done:
	case <-time.After(closePatience):
	}
}

// run is the goroutine of the sink.
func (s *sink) run(out output) {
	defer close(s.done)
	defer out.close()
	retry := time.NewTimer(0)
	retry.Stop()
	defer retry.Stop()
	resting := false
	for {
		wake := s.wake
		if resting {
			wake = nil
		}
		select {
		case <-wake:
		case <-retry.C:
			resting = false
		case <-s.stop:
			if now := s.stats(); !s.flush(out) && now.Pending > 0 {
				s.opts.Logger.Error("events are lost", "target", s.target.String(), "events", s.stats().Pending)
			}
			return
		}
		if resting = !s.flush(out); resting {
			retry.Reset(s.opts.RetryEvery)
		}
	}
}

// flush writes what waits and reports whether the target is in order.
func (s *sink) flush(out output) bool {
	s.mu.Lock()
	batch, again, untold := s.pending, s.again, s.untold
	s.pending, s.bytes, s.again = nil, 0, false
	s.mu.Unlock()
	if again {
		out.close()
	}
	var told *entry
	if untold > 0 {
		told = s.lostEntry(untold)
		batch = append(batch, told)
	}
	n, err := out.write(batch)
	done, rest := uint64(n), batch[n:]
	if told != nil && n < len(batch) {
		told, rest = nil, rest[:len(rest)-1]
	}
	if told != nil {
		done--
	}

	s.mu.Lock()
	s.written += done
	if told != nil {
		s.untold -= untold
	}
	for _, e := range rest {
		s.bytes += e.size()
	}
	s.pending = append(rest, s.pending...)
	was := s.failing
	s.failing = err
	if err != nil {
		s.failed++
	}
	lost := s.lost
	s.mu.Unlock()
	switch {
	case err != nil && was == nil:
		s.opts.Logger.Error("events cannot be logged", "target", s.target.String(), "error", err)
	case err == nil && was != nil:
		s.opts.Logger.Warn("events can be logged again", "target", s.target.String(), "lost", lost)
	}
	return err == nil
}

// lostEntry tells the target's reader that there is a gap.
func (s *sink) lostEntry(n uint64) *entry {
	args := []Arg{ArgTo.Is(cut(s.target.String())), ArgCount.Is(strconv.FormatUint(n, 10))}
	return &entry{at: time.Now(), event: LogEventsLost, severity: LogEventsLost.Definition().Severity, facility: Normal,
		args: args, text: string(appendText(nil, LogEventsLost, args))}
}

func (s *sink) stats() TargetStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return TargetStats{Target: s.target, Written: s.written, Lost: s.lost, Pending: len(s.pending), Failures: s.failed, Failing: s.failing}
}
