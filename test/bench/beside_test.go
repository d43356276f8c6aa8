package bench

import (
	"fmt"
	"os"
	"testing"
	"time"

	"sshbroker/test/netns"
	"sshbroker/test/sut"
)

// several is ours with a configuration that allows three connections to the server.
const several = "transports=3"

// slow is what figures over a slow line are called by.
const slow = "50 Mbit/s: "

// besideMetrics are what a session feels of a transfer, and what the transfer moves.
func besideMetrics() (rows []metric) {
	for _, line := range []string{"", slow} {
		for _, direction := range []string{"up", "down"} {
			rows = append(rows,
				metric{Name: line + "echo beside 1 stream " + direction + " p50", Unit: "ms", digits: 2},
				metric{Name: line + "echo beside 1 stream " + direction + " p95", Unit: "ms", digits: 2},
				metric{Name: line + "that stream " + direction, Unit: "MB/s", Higher: true, digits: 1})
		}
	}
	return rows
}

// BenchmarkBeside prints how an echo fares beside a transfer, on a line that nothing but
// the machine limits and on a slow one.
func BenchmarkBeside(b *testing.B) {
	if os.Geteuid() != 0 {
		fmt.Println("bench: makes network namespaces that reach each other, which needs root: sudo make bench-beside")
		b.FailNow()
	}
	o := given
	if o.rounds == 0 {
		o.rounds = 5
	}
	f := besides(b, o.rounds, 2*time.Second, 3*time.Second, o.against)
	fmt.Print("\n", f.table())
	if o.json != "" {
		if err := f.write(o.json); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(0, "ns/op") // means nothing here; not printed
}

// TestBeside keeps the benchmark working. It is not long enough for a second connection.
func TestBeside(t *testing.T) {
	f := besides(t, 1, 20*time.Millisecond, time.Second, "")
	for _, m := range besideMetrics() {
		for _, way := range f.Ways {
			if v := f.Values[m.Name][way]; len(v) != 1 || v[0] <= 0 {
				t.Errorf("%s, %s: %v, want one figure", m.Name, way, v)
			}
		}
	}
}

// besides runs the rounds: a session that was there for a while, then a transfer beside it.
func besides(t testing.TB, rounds int, before, length time.Duration, against string) *figures {
	w := newWorld(t, against)
	w.addSeveral(t)
	f := newFigures(w.names(), besideMetrics(), rounds)
	f.mine = several
	for round := range rounds {
		w.start(t)
		ways := w.ways
		for range round % len(ways) {
			ways = append(ways[1:len(ways):len(ways)], ways[0])
		}
		for _, line := range []string{"", slow} {
			if line == slow {
				w.slowDown(t)
			}
			for _, direction := range []string{"up", "down"} {
				for _, way := range ways {
					transfer(t, way, f, line, direction, length, before)
				}
			}
		}
		w.speedUp(t)
		w.stop(t)
	}
	return f
}

func transfer(t testing.TB, w *way, f *figures, line, direction string, length, before time.Duration) {
	r := w.do(t, "beside %s %d %d", direction, length.Milliseconds(), before.Milliseconds())
	f.add(line+"echo beside 1 stream "+direction+" p50", w.name, r.P50/1e3)
	f.add(line+"echo beside 1 stream "+direction+" p95", w.name, r.P95/1e3)
	f.add(line+"that stream "+direction, w.name, float64(r.Bytes)/r.Seconds/1e6)
}

// addSeveral adds the way with several connections, by a user of its own.
func (w *world) addSeveral(t testing.TB) {
	t.Helper()
	u, programs := w.Carol, sut.Build(t)
	file := u.Write(t, "several.xml", fmt.Sprintf(`<secsh-broker><profiles><profile id="p" host="%s" port="%d" user="%s" transports="3">
  <server-authentication-methods><auth-server-publickey policy="strict"/></server-authentication-methods></profile></profiles>
  <filter-engine><rule action="TUNNEL" profile-id="p"/></filter-engine></secsh-broker>`, w.sshd.Addr4.Addr(), w.sshd.Addr4.Port(), u.Name), 0o600)
	w.ways = append(w.ways, &way{name: several, run: runCapture(u, programs.Dir, "-f", file)})
	t.Cleanup(func() { // after a failure; before the network goes
		w.Client.Run(t, netns.Cmd{Args: []string{programs.Ctl, "stop", "--drain", "0"}, User: u})
	})
}

// slowDown makes the line between the machines slow, with room for 20 ms before it, as a
// router has that is not to hold up others.
func (w *world) slowDown(t testing.TB) {
	w.line(t, "add", "tbf", "rate", "50mbit", "burst", "64kb", "latency", "20ms")
}

func (w *world) speedUp(t testing.TB) { w.line(t, "del") }

func (w *world) line(t testing.TB, verb string, kind ...string) {
	t.Helper()
	tc := netns.RequireProgram(t, "tc", "iproute2")
	for dev, m := range map[string]*netns.Machine{"to-server": w.Client, "to-client": w.Server} {
		m.Output(t, nil, append([]string{tc, "qdisc", verb, "dev", dev, "root"}, kind...)...)
	}
}
