package bench

import (
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/test/host"
	"sshbroker/test/netns"
)

// What is measured of direct traffic. The first four are of a load generator, a target
// and all that the kernel does for them on one processor, so that every cycle shows.
const (
	directUp    = "up"
	directDown  = "down"
	directTurns = "turns" // at the median of batches, as others may have the processor in between
	directOpens = "opens"
	directOpen  = "connect()"
)

func directMetrics() []metric {
	return []metric{
		{Name: directUp, Unit: "MB/s", Higher: true},
		{Name: directDown, Unit: "MB/s", Higher: true},
		{Name: directTurns, Unit: "/s", Higher: true},
		{Name: directOpens, Unit: "/s", Higher: true},
		{Name: directOpen, Unit: "µs", digits: 1},
	}
}

// bar is what one situation may cost compared with another.
type bar struct {
	is, than string // situations
	metric   string
	least    float64 // ratio; 0: more is what counts
	more     float64 // in the unit of the metric
}

func directBars() (bars []bar) {
	for _, m := range []string{directUp, directDown, directTurns, directOpens} {
		bars = append(bars, bar{is: tracked + byAddress, than: tracked, metric: m, least: 0.95})
	}
	for _, on := range []string{tracked, ""} {
		for _, m := range []string{directUp, directDown} {
			bars = append(bars, bar{is: on + byName, than: cmp.Or(on, untouched), metric: m, least: 0.95})
		}
		bars = append(bars, bar{is: on + byName, than: cmp.Or(on, untouched), metric: directOpen, more: 300})
	}
	return bars
}

// directWorld is a host whose users' direct traffic goes to a target on the server.
type directWorld struct {
	*host.Host
	cpu        string // that everything measured is pinned to
	situations []situation
}

// Ports of the target.
const (
	directPort = 7001 + iota
	directTurnsPort
	directEndPort
)

func newDirectWorld(t testing.TB) *directWorld {
	t.Helper()
	netns.RequireRoot(t)
	w := &directWorld{Host: host.New(t), cpu: lastCPU(t)}
	w.situations = w.directSituations()
	at := func(port uint16) string { return netip.AddrPortFrom(w.Server.Addr4, port).String() }
	target := w.Server.Start(t, netns.Cmd{Limit: -1, Args: w.pinned(w.Testprog, "target",
		"-turns", at(directTurnsPort), "-end", at(directEndPort), at(directPort))})
	for _, port := range []uint16{directPort, directTurnsPort, directEndPort} {
		target.WaitFor(t, "listening "+at(port))
	}
	return w
}

// lastCPU is the number of the last processor that this process may use.
func lastCPU(t testing.TB) string {
	t.Helper()
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		t.Fatal(err)
	}
	for n := len(set)*64 - 1; n >= 0; n-- {
		if set.IsSet(n) {
			return fmt.Sprint(n)
		}
	}
	t.Fatal("no processor")
	return ""
}

func (w *directWorld) pinned(args ...string) []string {
	return append([]string{"taskset", "-c", w.cpu}, args...)
}

// round measures every situation once, beginning with another one each time.
func (w *directWorld) round(t testing.TB, number int, f *figures, length time.Duration) {
	for i := range w.situations {
		s := w.situations[(i+number)%len(w.situations)]
		leave := s.enter(t, w)
		w.measure(t, s, f, length)
		leave()
	}
}

func (w *directWorld) measure(t testing.TB, s situation, f *figures, length time.Duration) {
	to := func(port uint16) string { return netip.AddrPortFrom(w.Server.Addr4, port).String() }
	load := startSession(t, w.Client, w.Alice, w.pinned(w.Testprog, "load", to(directPort), to(directPort)), nil)
	defer load.end(t)
	ms := length.Milliseconds()
	load.do(t, "opens 20 %s", to(directEndPort)) // warms up: neighbours, code, a transport's name
	if !s.opensAlone {
		for _, direction := range []string{directUp, directDown} {
			r := load.do(t, "%s 1 %d", direction, ms)
			f.add(direction, s.name, float64(r.Bytes)/r.Seconds/1e6)
		}
		r := load.do(t, "turns %d %s", ms, to(directTurnsPort))
		f.add(directTurns, s.name, 1e6/r.P50)
	}
	r := load.do(t, "opens %d %s", ms, to(directEndPort))
	f.add(directOpens, s.name, float64(r.Count)/r.Seconds)
	f.add(directOpen, s.name, r.P50)
}

// BenchmarkDirect prints what captures cost the traffic that they let alone.
func BenchmarkDirect(b *testing.B) {
	if os.Geteuid() != 0 {
		fmt.Println("bench: makes network namespaces and captures a whole host in one, which needs root: sudo make bench-direct")
		b.FailNow()
	}
	o := given
	switch {
	case o.rounds > 0:
	case o.quick:
		o.rounds = 3
	default:
		o.rounds = 11
	}
	w := newDirectWorld(b)
	only, err := regexp.Compile(o.only)
	if err != nil {
		b.Fatal(err)
	}
	w.situations = slices.DeleteFunc(w.situations, func(s situation) bool { return !only.MatchString(s.name) })
	f := newFigures(w.names(), directMetrics(), o.rounds)
	length := o.lengths().bulk / 3
	for round := range o.rounds {
		w.round(b, round, f, length)
	}
	fmt.Print("\n", w.table(f), "\n", barsMet(f))
	if o.json != "" {
		if err := f.write(o.json); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(0, "ns/op") // means nothing here; not printed
}

func (w *directWorld) names() (names []string) {
	for _, s := range w.situations {
		names = append(names, s.name)
	}
	return names
}

// table has a row for each situation: medians, ranges, and their ratios to those of what
// it is compared with.
func (w *directWorld) table(f *figures) string {
	var text strings.Builder
	fmt.Fprintf(&text, "%s  %s  kernel %s  %d CPUs  load before %s\n%d rounds  median (range) and ratio to what the host is like without us\n\n",
		f.When.Format(time.RFC3339), f.Version, f.Kernel, f.CPUs, f.Load, f.Rounds)
	tw := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	for _, m := range f.Metrics {
		fmt.Fprintf(tw, "\t%s %s", m.Name, m.Unit)
	}
	fmt.Fprintln(tw)
	for _, s := range w.situations {
		fmt.Fprint(tw, s.name)
		for _, m := range f.Metrics {
			values := f.Values[m.Name][s.name]
			fmt.Fprintf(tw, "\t%s", spread(values, m.digits))
			if than := median(f.Values[m.Name][s.than]); than > 0 && len(values) > 0 {
				fmt.Fprintf(tw, " %.3f", median(values)/than)
			}
		}
		fmt.Fprintln(tw)
	}
	tw.Flush()
	return text.String()
}

// barsMet says of each bar whether it is met.
func barsMet(f *figures) string {
	var text strings.Builder
	tw := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	for _, b := range directBars() {
		is, than := median(f.Values[b.metric][b.is]), median(f.Values[b.metric][b.than])
		if is == 0 || than == 0 { // left out
			continue
		}
		what, met := fmt.Sprintf("%.3f, at least %.2f", is/than, b.least), is/than >= b.least
		if b.least == 0 {
			what, met = fmt.Sprintf("%.0f more, at most %.0f", is-than, b.more), is-than <= b.more
		}
		fmt.Fprintf(tw, "%s\t%s / %s\t%s\t%s\n", b.metric, b.is, b.than, what, map[bool]string{true: "met", false: "MISSED"}[met])
	}
	tw.Flush()
	return text.String()
}

// TestDirect keeps the benchmark working: one short round, in which every figure comes
// about, and in which what is loaded is what the name says.
func TestDirect(t *testing.T) {
	w := newDirectWorld(t)
	f := newFigures(w.names(), directMetrics(), 1)
	w.round(t, 0, f, 20*time.Millisecond)
	for _, m := range f.Metrics {
		for _, s := range w.situations {
			if v := f.Values[m.Name][s.name]; (len(v) != 1 || v[0] <= 0) && !s.opensAlone {
				t.Errorf("%s, %s: %v, want one figure", m.Name, s.name, v)
			}
		}
	}
	for _, b := range directBars() {
		if len(f.Values[b.metric][b.is]) != 1 || len(f.Values[b.metric][b.than]) != 1 {
			t.Errorf("nothing to compare: %+v", b)
		}
	}
}
