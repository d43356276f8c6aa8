package eventlog

import (
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// closePatience is how long Close waits for a target that hangs.
const closePatience = 2 * time.Second

// DefaultRetryEvery is how long a target rests that could not be written to.
const DefaultRetryEvery = time.Second

// Options of a Log.
type Options struct {
	Logger     *slog.Logger  // required; told of targets that fail, once until they work again
	RetryEvery time.Duration // 0: DefaultRetryEvery

	// SyslogSocket is a syslogd's datagram socket, in place of the system's log.
	SyslogSocket string

	// Strict panics on an event with an argument that its Definition does not have. For
	// tests.
	Strict bool
}

// Log sends events to where a Routing says. A nil Log logs nothing. Safe for concurrent
// use.
type Log struct {
	opts   Options
	limits [endOfEvents]limiter
	routes atomic.Pointer[routes] // nil: nothing is logged

	// mu is held for reading while an event is put into queues, and for writing while the
	// queues are changed: so none gets into one that is given up.
	mu     sync.RWMutex
	sinks  map[Target]*sink
	closed bool
	gone   sync.WaitGroup // sinks that are given up
}

// routes is a Routing with its queues.
type routes [endOfEvents]struct {
	severity Severity
	facility Facility
	sinks    []*sink
}

// New returns a Log that logs nothing before Apply. The caller closes it.
func New(o Options) *Log {
	if o.RetryEvery <= 0 {
		o.RetryEvery = DefaultRetryEvery
	}
	return &Log{opts: o, sinks: map[Target]*sink{}}
}

// Apply brings a routing into force, whole, for every event raised from now on. Targets
// that stay keep what waits for them, and their files are opened anew, as after a
// rotation; those that are not in it any more are given what waits for them and let go.
// It does not wait for any of that.
func (l *Log) Apply(r Routing) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	table, logs, keep := &routes{}, false, map[Target]bool{}
	for _, e := range Events() {
		route := r.Route(e)
		table[e].severity, table[e].facility = route.Severity, route.Facility
		for _, t := range route.Targets {
			if l.sinks[t] == nil {
				l.sinks[t] = newSink(t, l.opts)
			} else if !keep[t] {
				l.sinks[t].reopen()
			}
			keep[t], logs = true, true
			table[e].sinks = append(table[e].sinks, l.sinks[t])
		}
	}
	if !logs {
		table = nil
	}
	l.routes.Store(table)
	for t, s := range l.sinks {
		if !keep[t] {
			delete(l.sinks, t)
			l.gone.Go(func() { s.close() })
		}
	}
}

// Reopen opens the files of all targets anew, as after a rotation.
func (l *Log) Reopen() {
	if l == nil {
		return
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	for _, s := range l.sinks {
		s.reopen()
	}
}

// Enabled reports whether e is logged anywhere. Where it is not, its arguments need not
// be made.
func (l *Log) Enabled(e Event) bool {
	if l == nil {
		return false
	}
	table := l.routes.Load()
	return table != nil && len(table[e].sinks) > 0
}

// Raise logs e, if it is logged anywhere. It does not wait for a target. The arguments
// are kept until it is written; secrets must not be among them.
func (l *Log) Raise(e Event, args ...Arg) {
	if !l.Enabled(e) {
		return
	}
	if now := time.Now(); l.limits[e].take(now, func(n uint64) { l.suppressed(e, n) }) {
		l.enqueue(now, e, args)
	}
}

// suppressed tells how many events of a kind were not logged, as there were too many.
func (l *Log) suppressed(e Event, n uint64) {
	l.enqueue(time.Now(), LogEventsSuppressed, []Arg{ArgKind.Is(e.String()), ArgCount.Is(strconv.FormatUint(n, 10))})
}

func (l *Log) enqueue(now time.Time, e Event, args []Arg) {
	if l.opts.Strict {
		for _, a := range args {
			if !slices.Contains(e.Definition().Args, a.Name) {
				panic(fmt.Sprintf("event %v has no argument %s", e, a.Name))
			}
		}
	}
	for i := range args {
		args[i].Value = cut(args[i].Value)
	}
	n := &entry{at: now, event: e, args: args, text: string(appendText(make([]byte, 0, 256), e, args))}
	l.mu.RLock()
	defer l.mu.RUnlock()
	table := l.routes.Load() // that of the queues
	if table == nil {
		return
	}
	n.severity, n.facility = table[e].severity, table[e].facility
	for _, s := range table[e].sinks {
		s.put(n)
	}
}

// TargetStats is how one target does.
type TargetStats struct {
	Target   Target
	Written  uint64
	Lost     uint64 // could not be written, and there was no room to wait
	Pending  int
	Failures uint64 // failed writes
	Failing  error  // of the last write; nil after a success
}

// Stats returns how the targets of the routing in force do, sorted by name.
func (l *Log) Stats() []TargetStats {
	if l == nil {
		return nil
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	list := make([]TargetStats, 0, len(l.sinks))
	for _, s := range l.sinks {
		list = append(list, s.stats())
	}
	slices.SortFunc(list, func(a, b TargetStats) int { return strings.Compare(a.Target.String(), b.Target.String()) })
	return list
}

// Close writes what waits, as far as the targets take it within two seconds.
func (l *Log) Close() {
	if l == nil {
		return
	}
	for e := range l.limits {
		if n := l.limits[e].collect(); n > 0 {
			l.suppressed(Event(e), n)
		}
	}
	l.mu.Lock()
	l.closed = true
	l.routes.Store(nil)
	for t, s := range l.sinks {
		delete(l.sinks, t)
		l.gone.Go(func() { s.close() })
	}
	l.mu.Unlock()
	l.gone.Wait()
}
