package bench

import (
	"flag"
	"fmt"
	"os"
	"testing"
	"time"

	"sshbroker/test/sut"
)

// options are given after -args.
type options struct {
	rounds  int
	quick   bool
	json    string
	only    string
	against string
}

// The one set of options of the process, as the testing package has its own.
var given options

func TestMain(m *testing.M) {
	flag.IntVar(&given.rounds, "rounds", 0, "rounds, each with every way (default 5, with -quick 2)")
	flag.BoolVar(&given.quick, "quick", false, "shorter, and less exact")
	flag.StringVar(&given.json, "json", "", "write all figures to this `FILE` too")
	flag.StringVar(&given.only, "only", "", "with bench-direct: only the situations whose names match this `PATTERN`")
	flag.StringVar(&given.against, "against", "", "compare with the ssh-capture and ssh-broker in this `DIR` too")
	flag.Parse()
	sut.Main(m, nil)
}

// lengths are how long the parts of one round take for one way.
type lengths struct {
	bulk, echo, connect time.Duration
	idle                int // flows
	settle              time.Duration
}

func (o options) lengths() lengths {
	if o.quick {
		return lengths{400 * time.Millisecond, 200 * time.Millisecond, 300 * time.Millisecond, 1000, 2500 * time.Millisecond}
	}
	return lengths{1200 * time.Millisecond, time.Second, time.Second, 1000, 4 * time.Second}
}

// BenchmarkTunnels prints the table. It runs once, whatever -benchtime says.
func BenchmarkTunnels(b *testing.B) {
	if os.Geteuid() != 0 {
		fmt.Println("bench: makes network namespaces that reach each other, which needs root: sudo make bench")
		b.FailNow()
	}
	o := given
	switch {
	case o.rounds > 0:
	case o.quick:
		o.rounds = 2
	default:
		o.rounds = 5
	}
	f := compare(b, o.rounds, o.lengths(), o.against, !o.quick)
	fmt.Print("\n", f.table())
	if o.json != "" {
		if err := f.write(o.json); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(0, "ns/op") // means nothing here; not printed
}

// TestComparison keeps the benchmark working: one round with hardly any load, in
// which every figure must come about.
func TestComparison(t *testing.T) {
	l := lengths{50 * time.Millisecond, 20 * time.Millisecond, 20 * time.Millisecond, 20, 0}
	f := compare(t, 1, l, "", true)
	for _, m := range metrics() {
		for _, way := range f.Ways {
			if m.process && way == plain {
				continue
			}
			if v := f.Values[m.Name][way]; len(v) != 1 || v[0] <= 0 && m.Name != memory {
				t.Errorf("%s, %s: %v, want one figure", m.Name, way, v)
			}
		}
	}
}

// compare runs the rounds. Ways take turns within every part of a round, and who
// begins changes from round to round. With peers the neighbours' tunnels are among
// them.
func compare(t testing.TB, rounds int, l lengths, against string, peers bool) *figures {
	w := newWorld(t, against)
	w.addGateway(t)
	if peers {
		w.addPeers(t)
	}
	f := newFigures(w.names(), metrics(), rounds)
	for round := range rounds {
		w.start(t)
		ways := w.ways
		for range round % len(ways) {
			ways = append(ways[1:len(ways):len(ways)], ways[0])
		}
		idle(t, ways, f, l)
		for _, p := range parts(l) {
			for _, way := range ways {
				p(t, way, f)
			}
		}
		w.stop(t)
	}
	return f
}
