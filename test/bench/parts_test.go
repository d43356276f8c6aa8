package bench

import (
	"fmt"
	"testing"
	"time"
)

// Names of metrics that code asks for; the others stand in metrics alone.
const memory = "memory per idle flow"

// metric is a row of the table.
type metric struct {
	Name   string `json:"name"`
	Unit   string `json:"unit"`
	Higher bool   `json:"higher_is_better"`

	process bool // of the client process, which no tunnel has not
	digits  int
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
		{Name: memory, Unit: "KiB", process: true, digits: 1},
		{Name: "client CPU up", Unit: "s/GB", process: true, digits: 2},
		{Name: "client CPU down", Unit: "s/GB", process: true, digits: 2},
	}
}

// part measures one thing on one way.
type part func(t testing.TB, w *way, f *figures)

// parts are one round, but for memory.
func parts(l lengths) []part {
	return []part{
		func(t testing.TB, w *way, f *figures) { bulk(t, w, f, "up", 1, l.bulk, "1 stream up") },
		func(t testing.TB, w *way, f *figures) { bulk(t, w, f, "down", 1, l.bulk, "1 stream down") },
		func(t testing.TB, w *way, f *figures) { bulk(t, w, f, "up", 8, l.bulk, "8 streams up") },
		func(t testing.TB, w *way, f *figures) { bulk(t, w, f, "down", 8, l.bulk, "8 streams down") },
		func(t testing.TB, w *way, f *figures) { echo(t, w, f, l.echo) },
		func(t testing.TB, w *way, f *figures) { serial(t, w, f, l.connect) },
		func(t testing.TB, w *way, f *figures) { greeted(t, w, f, l.connect/2) },
		func(t testing.TB, w *way, f *figures) {
			r := w.do(t, "connect 8 %d", l.connect.Milliseconds())
			f.add("new connections, 8 parallel", w.name, float64(r.Count)/r.Seconds)
		},
	}
}

// idle holds flows on every way and lets go of them again. It comes first in a round,
// while the processes are fresh: what is freed later they may keep for themselves.
func idle(t testing.TB, ways []*way, f *figures, l lengths) {
	for _, w := range hold(t, ways, f, l) {
		w.do(t, "release")
	}
}

// hold opens flows on every tunnel, which say one byte each, and looks at what they
// cost while nothing moves. What the first one costs is the connection's, not the
// flows'. Nothing here is timed, so the ways wait together. It returns the tunnels that
// have all flows open.
func hold(t testing.TB, ways []*way, f *figures, l lengths) (full []*way) {
	before := map[*way]int64{}
	for _, w := range ways {
		w.do(t, "hold 1")
		w.do(t, "release")
	}
	time.Sleep(l.settle)
	for _, w := range ways {
		if w.carriers != nil {
			before[w] = w.memory(t)
			if open(t, w, l.idle) {
				full = append(full, w)
			}
		}
	}
	time.Sleep(l.settle)
	for _, w := range full {
		f.add(memory, w.name, float64(w.memory(t)-before[w])/float64(l.idle)/1024)
	}
	return full
}

// patience is how long a tunnel may take to open the flows that are to be idle.
const patience = 2 * time.Minute

// open opens flows, some at a time as a job has a limit of its own, and tells whether
// all of them were open within patience.
func open(t testing.TB, w *way, flows int) bool {
	const some = 200
	began := time.Now()
	for held := 0; held < flows; held += some {
		if time.Since(began) > patience {
			fmt.Printf("%s: %d of %d flows open after %v, the rest is not measured\n", w.name, held, flows, patience)
			return false
		}
		w.do(t, "hold %d", min(flows-held, some))
	}
	return true
}

// bulk takes the CPU time along where one stream has the process to itself.
func bulk(t testing.TB, w *way, f *figures, direction string, streams int, length time.Duration, name string) {
	var before time.Duration
	if w.carriers != nil {
		before = w.cpu(t)
	}
	r := w.do(t, "%s %d %d", direction, streams, length.Milliseconds())
	f.add(name, w.name, float64(r.Bytes)/r.Seconds/1e6)
	if w.carriers != nil && streams == 1 {
		f.add("client CPU "+direction, w.name, (w.cpu(t)-before).Seconds()/(float64(r.Bytes)/1e9))
	}
}

func echo(t testing.TB, w *way, f *figures, length time.Duration) {
	r := w.do(t, "echo %d", length.Milliseconds())
	f.add("echo p50", w.name, r.P50/1e3)
	f.add("echo p99", w.name, r.P99/1e3)
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
