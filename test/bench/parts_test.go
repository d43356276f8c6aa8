package bench

import (
	"testing"
	"time"
)

// Names of metrics that code asks for; the others stand in metrics alone.
const (
	memory = "memory per idle flow"
	slow   = "50 Mbit/s: " // over such a line
)

// metric is a row of the table.
type metric struct {
	Name   string `json:"name"`
	Unit   string `json:"unit"`
	Higher bool   `json:"higher_is_better"`

	process bool // of the client process, which no tunnel has not
	beside  bool // of a flow beside a transfer, where the way with several connections is ours
	digits  int
}

// of tells whether a way has a figure in this row.
func (m metric) of(way string) bool {
	return !(m.process && way == plain) && (m.beside || way != several)
}

// metrics lists them in the order of the table.
func metrics() []metric {
	return []metric{
		{Name: "1 stream up", Unit: "MB/s", Higher: true},
		{Name: "1 stream down", Unit: "MB/s", Higher: true},
		{Name: "8 streams up", Unit: "MB/s", Higher: true},
		{Name: "8 streams down", Unit: "MB/s", Higher: true},
		{Name: "echo p50", Unit: "ms", digits: 3},
		{Name: "echo p99", Unit: "ms", digits: 3},
		{Name: "connect to first byte p50", Unit: "ms", digits: 3},
		{Name: "connect to first byte p99", Unit: "ms", digits: 3},
		{Name: "connect to greeting p50", Unit: "ms", digits: 3},
		{Name: "connect to greeting p99", Unit: "ms", digits: 3},
		{Name: "new connections, serial", Unit: "/s", Higher: true},
		{Name: "new connections, 8 parallel", Unit: "/s", Higher: true},
		{Name: "echo beside up p50", Unit: "ms", beside: true, digits: 3},
		{Name: "echo beside up p95", Unit: "ms", beside: true, digits: 3},
		{Name: "stream beside, up", Unit: "MB/s", Higher: true, beside: true},
		{Name: "echo beside down p50", Unit: "ms", beside: true, digits: 3},
		{Name: "echo beside down p95", Unit: "ms", beside: true, digits: 3},
		{Name: "stream beside, down", Unit: "MB/s", Higher: true, beside: true},
		{Name: slow + "echo beside up p50", Unit: "ms", beside: true, digits: 1},
		{Name: slow + "echo beside up p95", Unit: "ms", beside: true, digits: 1},
		{Name: slow + "stream beside, up", Unit: "MB/s", Higher: true, beside: true, digits: 1},
		{Name: slow + "echo beside down p50", Unit: "ms", beside: true, digits: 1},
		{Name: slow + "echo beside down p95", Unit: "ms", beside: true, digits: 1},
		{Name: slow + "stream beside, down", Unit: "MB/s", Higher: true, beside: true, digits: 1},
		{Name: memory, Unit: "KiB", process: true, digits: 1},
		{Name: "client CPU up", Unit: "s/GB", process: true, digits: 2},
		{Name: "client CPU down", Unit: "s/GB", process: true, digits: 2},
	}
}

// part measures one thing on one way.
type part struct {
	name    string // what -only is held against
	several bool   // also on the way with several connections
	slow    bool   // over a line that is slower than everything else
	measure func(t testing.TB, w *way, f *figures)
}

// parts are one round, but for memory.
func parts(l lengths) []part {
	return []part{
		{name: "bulk", measure: func(t testing.TB, w *way, f *figures) { bulk(t, w, f, "up", 1, l.bulk, "1 stream up") }},
		{name: "bulk", measure: func(t testing.TB, w *way, f *figures) { bulk(t, w, f, "down", 1, l.bulk, "1 stream down") }},
		{name: "bulk", measure: func(t testing.TB, w *way, f *figures) { bulk(t, w, f, "up", 8, l.bulk, "8 streams up") }},
		{name: "bulk", measure: func(t testing.TB, w *way, f *figures) { bulk(t, w, f, "down", 8, l.bulk, "8 streams down") }},
		{name: "echo", measure: func(t testing.TB, w *way, f *figures) { echo(t, w, f, l.echo) }},
		{name: "connect", measure: func(t testing.TB, w *way, f *figures) { serial(t, w, f, l.connect) }},
		{name: "greeted", measure: func(t testing.TB, w *way, f *figures) { greeted(t, w, f, l.connect/2) }},
		{name: "connect", measure: func(t testing.TB, w *way, f *figures) {
			r := w.do(t, "connect 8 %d", l.connect.Milliseconds())
			f.add("new connections, 8 parallel", w.name, float64(r.Count)/r.Seconds)
		}},
		{name: "beside", several: true, measure: func(t testing.TB, w *way, f *figures) { beside(t, w, f, "", "up", l.bulk, l.before) }},
		{name: "beside", several: true, measure: func(t testing.TB, w *way, f *figures) { beside(t, w, f, "", "down", l.bulk, l.before) }},
		// A turn takes long there.
		{name: "slow", several: true, slow: true, measure: func(t testing.TB, w *way, f *figures) { beside(t, w, f, slow, "up", l.slow, l.before) }},
		{name: "slow", several: true, slow: true, measure: func(t testing.TB, w *way, f *figures) { beside(t, w, f, slow, "down", l.slow, l.before) }},
	}
}

// idle opens flows on every way, which say one byte each, and looks at what they cost
// while nothing moves. What the first one costs is the connection's, not the flows'.
// It comes first in a round, while the processes are fresh: what is freed later they
// may keep for themselves. Nothing here is timed, so the ways wait together.
func idle(t testing.TB, ways []*way, f *figures, l lengths) {
	before := map[*way]int64{}
	for _, w := range ways {
		w.do(t, "hold 1")
		w.do(t, "release")
	}
	time.Sleep(l.settle)
	for _, w := range ways {
		if w.carrier != 0 && w.name != several {
			before[w] = w.memory(t)
			w.do(t, "hold %d", l.idle)
		}
	}
	time.Sleep(l.settle)
	for w := range before {
		f.add(memory, w.name, float64(w.memory(t)-before[w])/float64(l.idle)/1024)
		w.do(t, "release")
	}
}

// bulk takes the CPU time along where one stream has the process to itself.
func bulk(t testing.TB, w *way, f *figures, direction string, streams int, length time.Duration, name string) {
	var before time.Duration
	if w.carrier != 0 {
		before = w.cpu(t)
	}
	r := w.do(t, "%s %d %d", direction, streams, length.Milliseconds())
	f.add(name, w.name, float64(r.Bytes)/r.Seconds/1e6)
	if w.carrier != 0 && streams == 1 {
		f.add("client CPU "+direction, w.name, (w.cpu(t)-before).Seconds()/(float64(r.Bytes)/1e9))
	}
}

func echo(t testing.TB, w *way, f *figures, length time.Duration) {
	r := w.do(t, "echo %d", length.Milliseconds())
	f.add("echo p50", w.name, r.P50/1e3)
	f.add("echo p99", w.name, r.P99/1e3)
}

// beside is what a session feels of a transfer.
func beside(t testing.TB, w *way, f *figures, line, direction string, length, before time.Duration) {
	r := w.do(t, "beside %s %d %d", direction, length.Milliseconds(), before.Milliseconds())
	f.add(line+"echo beside "+direction+" p50", w.name, r.P50/1e3)
	f.add(line+"echo beside "+direction+" p95", w.name, r.P95/1e3)
	f.add(line+"stream beside, "+direction, w.name, float64(r.Bytes)/r.Seconds/1e6)
}

func serial(t testing.TB, w *way, f *figures, length time.Duration) {
	r := w.do(t, "connect 1 %d", length.Milliseconds())
	f.add("connect to first byte p50", w.name, r.P50/1e3)
	f.add("connect to first byte p99", w.name, r.P99/1e3)
	f.add("new connections, serial", w.name, float64(r.Count)/r.Seconds)
}

// greeted is for programs whose server speaks first, as telnet's and mail's do.
func greeted(t testing.TB, w *way, f *figures, length time.Duration) {
	r := w.do(t, "greeted 1 %d", length.Milliseconds())
	f.add("connect to greeting p50", w.name, r.P50/1e3)
	f.add("connect to greeting p99", w.name, r.P99/1e3)
}
