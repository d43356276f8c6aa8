package eventlog

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(journalChild); dir != "" {
		os.Exit(runJournalChild())
	}
	goleak.VerifyTestMain(m)
}

const patience = 20 * time.Second

// eventually polls what no event tells.
func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

// said keeps what a Log says of itself.
type said struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *said) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

func (s *said) count(part string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Count(s.text.String(), part)
}

func open(t testing.TB, o Options) (*Log, *said) {
	t.Helper()
	s := &said{}
	o.Logger = slog.New(slog.NewTextHandler(s, nil))
	o.Strict = true
	if o.RetryEvery == 0 {
		o.RetryEvery = 2 * time.Millisecond
	}
	l := New(o)
	t.Cleanup(l.Close)
	return l, s
}

func toFile(path string) Routing { return Routing{Targets: []Target{{File, path}}} }

func lines(t testing.TB, path string) []string {
	t.Helper()
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	if len(text) > 0 && text[len(text)-1] != '\n' {
		t.Fatalf("%s ends in %q", path, text[max(0, len(text)-80):])
	}
	return slices.Collect(strings.Lines(string(text)))
}

// numbers are the values of Count in lines of Broker_stopped.
func numbers(t testing.TB, path string) []int {
	t.Helper()
	var list []int
	for _, line := range lines(t, path) {
		_, text, _ := strings.Cut(line, ", Count: ")
		n, err := strconv.Atoi(strings.TrimSpace(text))
		if err != nil {
			t.Fatalf("%s: %q", path, line)
		}
		list = append(list, n)
	}
	return list
}

func numbered(l *Log, n int) { l.Raise(BrokerStopped, ArgCount.Is(strconv.Itoa(n))) }

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.log")
	l, _ := open(t, Options{})
	l.Apply(toFile(path))
	l.Raise(ConnectorFilterRule, ArgRule.Is("3"), ArgProgram.Is("/usr/bin/x y"))
	l.Close()
	got := lines(t, path)
	if want := prefix + "normal.informational: 20200 Connector_filter_rule, Rule: 3, Program: \"/usr/bin/x y\"\n"; len(got) != 1 || !strings.HasSuffix(got[0], want) {
		t.Fatalf("got %q, want ...%q", got, want)
	}
	if _, err := time.Parse(time.RFC3339Nano, strings.Fields(got[0])[0]); err != nil {
		t.Error(err)
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}

	l, _ = open(t, Options{})
	l.Apply(toFile(path))
	numbered(l, 1)
	l.Close()
	numbered(l, 2) // nobody listens any more
	if all := lines(t, path); len(all) != 2 || all[0] != got[0] {
		t.Errorf("after another start: %q", all)
	}
	l.Close()
}

func TestNothingIsLoggedByDefault(t *testing.T) {
	l, _ := open(t, Options{})
	for _, r := range []Routing{{}, {Targets: []Target{{Type: Nowhere}}}, {Rules: []Rule{{Names: []string{"x"}}}}} {
		l.Apply(r)
		for _, e := range Events() {
			if l.Enabled(e) {
				t.Errorf("%v is logged", e)
			}
		}
		if s := l.Stats(); len(s) > 0 {
			t.Errorf("targets %v", s)
		}
	}
	var none *Log
	none.Apply(toFile("/nonexistent"))
	none.Reopen()
	none.Raise(BrokerStarted)
	none.Close()
	if none.Enabled(BrokerStarted) || none.Stats() != nil {
		t.Error("a nil Log logs")
	}
}

// Where an event is not logged it costs nothing but a look.
func TestDisabledDoesNotAllocate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "e.log")
	l, _ := open(t, Options{})
	l.Apply(Routing{Targets: []Target{{File, path}}, Rules: []Rule{{Names: []string{"Connector_filter_rule"}, Facility: Discard}}})
	var none *Log
	for _, l := range []*Log{l, none, New(Options{})} {
		if n := testing.AllocsPerRun(1000, func() {
			if l.Enabled(ConnectorFilterRule) {
				l.Raise(ConnectorFilterRule, ArgRule.Is(strconv.Itoa(1234567)))
			}
		}); n != 0 {
			t.Errorf("%v allocations", n)
		}
	}
}

func TestRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.log")
	l, _ := open(t, Options{})
	l.Apply(toFile(path))
	for i, reopen := range []func(){l.Reopen, func() { l.Apply(toFile(path)) }} {
		numbered(l, 2*i)
		eventually(t, "written", func() bool { return len(lines(t, path)) == 1 })
		old := fmt.Sprintf("%s.%d", path, i)
		if err := os.Rename(path, old); err != nil {
			t.Fatal(err)
		}
		reopen()
		numbered(l, 2*i+1)
		eventually(t, "a new file", func() bool { return len(lines(t, path)) == 1 })
		if got := append(numbers(t, old), numbers(t, path)...); !slices.Equal(got, []int{2 * i, 2*i + 1}) {
			t.Errorf("got %v", got)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		l.Reopen()
	}
}

// Every event goes by one routing, the one before or the one after a change, and none is
// lost between.
func TestApplyLosesNothing(t *testing.T) {
	dir := t.TempDir()
	a, b, c := filepath.Join(dir, "a"), filepath.Join(dir, "b"), filepath.Join(dir, "c")
	routings := []Routing{
		{Targets: []Target{{File, a}, {File, c}}},
		{Targets: []Target{{File, b}, {File, c}}},
	}
	l, _ := open(t, Options{})
	l.Apply(routings[0])
	const workers, each = 8, burst / 8
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				numbered(l, w*each+i)
			}
		})
	}
	stop := make(chan struct{})
	changed := make(chan struct{})
	go func() {
		defer close(changed)
		for i := 1; ; i++ {
			select {
			case <-stop:
				return
			default:
				l.Apply(routings[i%2])
			}
		}
	}()
	wg.Wait()
	close(stop)
	<-changed
	l.Close()
	want := make([]int, workers*each)
	for i := range want {
		want[i] = i
	}
	for what, got := range map[string][]int{"in a or b": append(numbers(t, a), numbers(t, b)...), "in c": numbers(t, c)} {
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s: %d events, %d expected, or not those", what, len(got), len(want))
		}
	}
}

// A target that stays keeps its counts, and one that goes is no longer shown.
func TestStatsOverApply(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	l, _ := open(t, Options{})
	l.Apply(Routing{Targets: []Target{{File, b}, {File, a}}})
	numbered(l, 1)
	eventually(t, "both", func() bool { return len(lines(t, a)) == 1 && len(lines(t, b)) == 1 })
	l.Apply(toFile(a))
	numbered(l, 2)
	eventually(t, "a", func() bool { return len(lines(t, a)) == 2 })
	eventually(t, "counts", func() bool {
		s := l.Stats()
		return len(s) == 1 && s[0] == TargetStats{Target: Target{File, a}, Written: 2}
	})
	if n := len(lines(t, b)); n != 1 {
		t.Errorf("%d lines in the file that is no target any more", n)
	}
}

// filled raises events until one is lost, and returns how many that were.
func filled(t *testing.T, l *Log) (raised int) {
	t.Helper()
	long := strings.Repeat("x", maxValue)
	for l.Stats()[0].Lost == 0 {
		if raised++; raised == 10*burst {
			t.Fatal("nothing is lost")
		}
		l.limits[BrokerStopping].last = time.Time{} // there is no other limit here
		l.Raise(BrokerStopping, ArgText.Is(long), ArgPID.Is(strconv.Itoa(raised)))
	}
	return raised
}

// While a file cannot be written nobody waits; the log says so once, counts what is lost,
// and says in the file itself that there is a gap.
func TestFileThatFails(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "later")
	path := filepath.Join(dir, "events.log")
	l, said := open(t, Options{})
	l.Apply(toFile(path))
	eventually(t, "the failure is known before the first event", func() bool { return l.Stats()[0].Failing != nil })
	raised := filled(t, l)
	s := l.Stats()[0]
	if s.Written != 0 || s.Pending == 0 || s.Lost != 1 || s.Failures == 0 {
		t.Errorf("%+v", s)
	}
	eventually(t, "several attempts", func() bool { return l.Stats()[0].Failures > 3 })
	if n := said.count("events cannot be logged"); n != 1 {
		t.Errorf("it was said %d times", n)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	eventually(t, "recovery", func() bool { return l.Stats()[0].Failing == nil && l.Stats()[0].Written > 0 })
	eventually(t, "word of it", func() bool { return said.count("events can be logged again") == 1 })
	l.Close()
	got := lines(t, path)
	if len(got) != raised { // one was lost, one tells of that
		t.Errorf("%d lines, %d raised", len(got), raised)
	}
	if want := "20010 Log_events_lost, Target: \"file " + path + "\", Count: 1\n"; !strings.HasSuffix(got[len(got)-1], want) {
		t.Errorf("the last line is %q", got[len(got)-1])
	}
}

func TestFullDisk(t *testing.T) {
	l, said := open(t, Options{})
	l.Apply(toFile("/dev/full"))
	numbered(l, 1)
	eventually(t, "failure", func() bool { return errors.Is(l.Stats()[0].Failing, syscall.ENOSPC) })
	l.Close()
	if said.count("events are lost") != 1 {
		t.Error("nothing was said of what was given up")
	}
}

// A line that was cut short by a full disk is ended, and the rest is written again.
func TestPartialWrite(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	f := &file{f: w}
	defer f.close()
	var entries []*entry
	for i := range 1000 {
		entries = append(entries, &entry{event: BrokerStopped, severity: Notice, facility: Normal, text: fmt.Sprintf("%d %s", i, strings.Repeat("x", 200))})
	}
	if err := w.SetWriteDeadline(time.Now().Add(50 * time.Millisecond)); err != nil { // the pipe is full long before
		t.Fatal(err)
	}
	n, err := f.write(entries)
	if err == nil || n == 0 || n == len(entries) || !f.torn {
		t.Fatalf("%d entries, torn %t, %v", n, f.torn, err)
	}
	if err := w.SetWriteDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	read := make(chan string)
	go func() {
		var all bytes.Buffer
		_, _ = all.ReadFrom(r)
		read <- all.String()
	}()
	again, err := f.write(entries[n:])
	if err != nil || again != len(entries)-n {
		t.Fatalf("%d more, %v", again, err)
	}
	f.close()
	next, cuts := 0, 0
	for line := range strings.Lines(<-read) {
		if strings.HasSuffix(line, fmt.Sprintf("notice: %d %s\n", next, strings.Repeat("x", 200))) {
			next++
		} else {
			cuts++
		}
	}
	if next != len(entries) || cuts > 1 {
		t.Errorf("%d of %d whole lines in order, %d others", next, len(entries), cuts)
	}
}

func TestFilesThatAreRefused(t *testing.T) {
	dir := t.TempDir()
	link, fifo, other := filepath.Join(dir, "link"), filepath.Join(dir, "fifo"), filepath.Join(dir, "other")
	if err := errors.Join(os.Symlink(other, link), syscall.Mkfifo(fifo, 0o600)); err != nil {
		t.Fatal(err)
	}
	refused := map[string]string{link: "", fifo: "", dir: "", filepath.Join(dir, "no/such"): "no such file"}
	if os.Geteuid() == 0 {
		if err := errors.Join(os.WriteFile(other, nil, 0o600), os.Chown(other, 65534, 65534)); err != nil {
			t.Fatal(err)
		}
		refused[other] = "belongs to user 65534"
	}
	for path, want := range refused {
		f := &file{path: path}
		if _, err := f.write([]*entry{{text: "x"}}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
		f.close()
		if err := CheckFile(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("CheckFile(%s): %v", path, err)
		}
	}
	for _, path := range []string{filepath.Join(dir, "new"), "/dev/null"} {
		if err := CheckFile(path); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "new")); err == nil {
		t.Error("CheckFile made the file")
	}
}

func TestLimiter(t *testing.T) {
	var l limiter
	now := time.Unix(1, 0)
	none := func(uint64) {}
	for i := range burst {
		if !l.take(now, none) {
			t.Fatalf("event %d is suppressed", i)
		}
	}
	if l.take(now, none) {
		t.Error("one more than the burst")
	}
	for range perSecond / 2 {
		if !l.take(now.Add(time.Second/2), none) {
			t.Fatal("too few later")
		}
	}
	if l.take(now.Add(time.Second/2), none) || l.take(now, none) {
		t.Error("one more later, or with a clock that goes back")
	}
	if n := l.collect(); n != 3 {
		t.Errorf("%d suppressed", n)
	}
}

// Who makes an event happen very often is held off, others are not, and how many were left
// out is told.
func TestFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "events.log")
		l, _ := open(t, Options{})
		l.Apply(toFile(path))
		for i := range burst + 500 {
			numbered(l, i)
		}
		l.Raise(BrokerStarted, ArgVersion.Is("1"))
		synctest.Wait()
		if n := len(lines(t, path)); n != burst+1 {
			t.Errorf("%d lines", n)
		}
		time.Sleep(suppressedEvery)
		synctest.Wait()
		got := lines(t, path)
		if want := "warning: 20011 Log_events_suppressed, Suppressed-event: Broker_stopped, Count: 500\n"; !strings.HasSuffix(got[len(got)-1], want) {
			t.Errorf("the last line is %q", got[len(got)-1])
		}
		for range 3 * burst {
			numbered(l, 0)
		}
		l.Close() // tells of the rest
		if got := lines(t, path); !strings.Contains(got[len(got)-1], "Log_events_suppressed") {
			t.Errorf("the last line is %q", got[len(got)-1])
		}
	})
}

func BenchmarkDisabled(b *testing.B) {
	l, _ := open(b, Options{})
	b.ReportAllocs()
	for b.Loop() {
		if l.Enabled(ConnectorFilterRule) {
			l.Raise(ConnectorFilterRule, ArgRule.Is("1"))
		}
	}
}

// BenchmarkEnabled is what an event costs whoever raises it; beyond the rate it is
// suppressed, so the limit is taken away.
func BenchmarkEnabled(b *testing.B) {
	path := filepath.Join(b.TempDir(), "e.log")
	l, _ := open(b, Options{})
	l.Apply(toFile(path))
	b.ReportAllocs()
	for b.Loop() {
		l.limits[ConnectorFilterRule].tokens = burst
		l.Raise(ConnectorFilterRule, ArgFlow.Is("1"), ArgUsername.Is("ann"), ArgProgram.Is("/usr/bin/curl"), ArgSrc.Is("192.0.2.1:40000"),
			ArgDst.Is("192.0.2.2:443"), ArgRule.Is("3"), ArgRuleSource.Is("/etc/ssh2/ssh-broker-config.xml:12"), ArgAction.Is("TUNNEL"))
	}
}
