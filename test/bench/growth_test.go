package bench

import (
	"fmt"
	"os"
	"testing"
	"time"
)

// growth is how many flows are open beside what is measured. Up to mostMoving of them
// move at once too: each takes megabytes before it waits for the other end.
var growth = []int{1, 10, 100, 1000, 10000}

const mostMoving = 100

// growing are the figures taken at each number of flows.
var growing = []metric{
	{Name: "1 stream up", Unit: "MB/s", Higher: true},
	{Name: "1 stream down", Unit: "MB/s", Higher: true},
	{Name: "echo p50", Unit: "ms", digits: 3},
	{Name: "connect to first byte p50", Unit: "ms", digits: 3},
	{Name: "new connections, serial", Unit: "/s", Higher: true},
	{Name: "client CPU up", Unit: "s/GB", process: true, digits: 2},
	{Name: memory, Unit: "KiB", process: true, digits: 1},
	{Name: "all of them up", Unit: "MB/s", Higher: true},
	{Name: "all of them down", Unit: "MB/s", Higher: true},
}

// at is the name of a figure beside so many flows.
func at(flows int, name string) string { return fmt.Sprintf("%d flows: %s", flows, name) }

// BenchmarkGrowth prints how each figure changes with the flows that are open.
func BenchmarkGrowth(b *testing.B) {
	if os.Geteuid() != 0 {
		fmt.Println("bench: makes network namespaces that reach each other, which needs root: sudo make bench-growth")
		b.FailNow()
	}
	o := given
	if o.rounds == 0 {
		o.rounds = 3
	}
	f := grow(b, o.rounds, lengths{bulk: 600 * time.Millisecond, echo: 300 * time.Millisecond, connect: 500 * time.Millisecond, settle: 3 * time.Second}, growth)
	fmt.Print("\n", f.table())
	if o.json != "" {
		if err := f.write(o.json); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(0, "ns/op") // means nothing here; not printed
}

// TestGrowth keeps the benchmark working.
func TestGrowth(t *testing.T) {
	const flows = 3
	f := grow(t, 1, lengths{bulk: 50 * time.Millisecond, echo: 20 * time.Millisecond, connect: 20 * time.Millisecond}, []int{flows})
	for _, m := range growing {
		for _, way := range []string{sshL, ours} {
			if v := f.Values[at(flows, m.Name)][way]; len(v) != 1 || v[0] <= 0 && m.Name != memory {
				t.Errorf("%s, %s: %v, want one figure", m.Name, way, v)
			}
		}
	}
}

// grow runs the rounds: for each number of flows fresh processes on ssh -L and on ours,
// in turns.
func grow(t testing.TB, rounds int, l lengths, counts []int) *figures {
	w := newWorld(t, "")
	var tunnels []*way
	for _, way := range w.ways {
		if way.name != plain {
			tunnels = append(tunnels, way)
		}
	}
	w.ways = tunnels
	var rows []metric
	for _, n := range counts {
		for _, m := range growing {
			m.Name = at(n, m.Name)
			rows = append(rows, m)
		}
	}
	f := newFigures(w.names(), rows, rounds)
	for round := range rounds {
		for _, n := range counts {
			here := newFigures(w.names(), growing, 1)
			l.idle = n
			beside(t, w, here, l, round%2 == 1)
			for _, m := range growing {
				for way, values := range here.Values[m.Name] {
					f.add(at(n, m.Name), way, values[0])
				}
			}
		}
	}
	return f
}

// beside takes each figure once on every way, with l.idle flows open there; at last
// so many move at once.
func beside(t testing.TB, w *world, f *figures, l lengths, turned bool) {
	t.Helper()
	w.start(t)
	ways := []*way{w.ways[0], w.ways[1]}
	if turned {
		ways[0], ways[1] = ways[1], ways[0]
	}
	ways = hold(t, ways, f, l)
	for _, p := range []part{
		func(t testing.TB, w *way, f *figures) { bulk(t, w, f, "up", 1, l.bulk, "1 stream up") },
		func(t testing.TB, w *way, f *figures) { bulk(t, w, f, "down", 1, l.bulk, "1 stream down") },
		func(t testing.TB, w *way, f *figures) { echo(t, w, f, l.echo) },
		func(t testing.TB, w *way, f *figures) { serial(t, w, f, l.connect) },
		func(t testing.TB, w *way, f *figures) { w.do(t, "release") },
		func(t testing.TB, w *way, f *figures) { moving(t, w, f, l, "up") },
		func(t testing.TB, w *way, f *figures) { moving(t, w, f, l, "down") },
	} {
		for _, way := range ways {
			p(t, way, f)
		}
	}
	w.stop(t)
}

func moving(t testing.TB, w *way, f *figures, l lengths, direction string) {
	if l.idle <= mostMoving {
		r := w.do(t, "%s %d %d", direction, l.idle, l.bulk.Milliseconds())
		f.add("all of them "+direction, w.name, float64(r.Bytes)/r.Seconds/1e6)
	}
}
