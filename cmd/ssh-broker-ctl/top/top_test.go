package top

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gdamore/tcell/v2"
	"github.com/rivo/uniseg"
	"go.uber.org/goleak"

	"sshbroker/broker/control"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// three flows: one through a connection that is well, one that waits for a server, one in
// clear after its tunnel has failed.
func three(after time.Duration, up, down uint64) Reading {
	return Reading{At: start.Add(after), Connections: []control.ConnectionRow{{ID: 7, Profile: "gw", State: "connected"}, {ID: 8, Profile: "paper", State: "resting", LastError: "connection refused"}},
		Flows: []control.ChannelRow{
			{ID: 1, Connection: 7, Program: "/usr/bin/curl", PID: 100, Name: "db.internal", Dst: "198.18.0.5:443", Rule: "3 (rules.xml:9)", Action: "TUNNEL", Profile: "gw", Since: start.Add(-10 * time.Second), BytesUp: 1000 + up, BytesDown: 5000 + down, State: "admitted"},
			{ID: 2, Program: "/usr/bin/git", PID: 101, Dst: "10.0.0.7:9418", Rule: "12 (rules.xml:30)", Action: "TUNNEL", Profile: "paper", Since: start.Add(-2 * time.Second), State: "decided"},
			{ID: 3, Program: "/usr/bin/ftp", PID: 102, Dst: "[2001:db8::1]:21", Rule: "default", Action: "DIRECT", Since: start.Add(-time.Hour), BytesUp: 7200, State: "admitted", Error: "tunnel failed"},
		}}
}

// board is a live view on a terminal that is none.
type board struct {
	t      *testing.T
	screen *seen
	source *source
	ended  chan error
	cancel context.CancelFunc
}

// seen is a terminal that is none, with what it shows as text.
type seen struct {
	tcell.SimulationScreen
	mu   sync.Mutex
	text []string
}

// Show implements tcell.Screen.
func (s *seen) Show() {
	s.SimulationScreen.Show()
	cells, width, height := s.GetContents()
	list := make([]string, height)
	for y := range height {
		var line strings.Builder
		for x := 0; x < width; {
			text := string(cells[y*width+x].Runes)
			line.WriteString(text)
			x += max(1, uniseg.StringWidth(text))
		}
		list[y] = strings.TrimRight(line.String(), " \x00")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text = list
}

// source is a broker that says what it is told to.
type source struct {
	mu      sync.Mutex
	reading Reading
	next    func(n int) Reading // in place of reading
	err     error
	cut     []uint64
	cutErr  error
	asked   int
}

func (s *source) Read(context.Context) (Reading, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	if s.next != nil {
		return s.next(s.asked), s.err
	}
	return s.reading, s.err
}

func (s *source) Cut(_ context.Context, id uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cut = append(s.cut, id)
	return s.cutErr
}

func (s *source) set(r Reading, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reading, s.err = r, err
}

func open(t *testing.T, width, height int, o Options, r Reading) *board {
	t.Helper()
	f, err := newFlows(o)
	if err != nil {
		t.Fatal(err)
	}
	b := &board{t: t, screen: &seen{SimulationScreen: tcell.NewSimulationScreen("UTF-8"), text: make([]string, 4)}, source: &source{reading: r}, ended: make(chan error, 1)}
	if err := b.screen.Init(); err != nil {
		t.Fatal(err)
	}
	b.screen.SetSize(width, height)
	ctx, cancel := context.WithCancel(context.Background())
	b.cancel = cancel
	go func() { b.ended <- run(ctx, b.screen, b.source, time.Millisecond, f) }()
	t.Cleanup(func() {
		cancel()
		if err := b.end(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// end waits for the end.
func (b *board) end() error {
	select {
	case err := <-b.ended:
		b.ended <- nil
		return err
	case <-time.After(20 * time.Second):
		b.t.Fatal("it does not end")
		return nil
	}
}

// lines is what a person sees.
func (b *board) lines() []string {
	b.screen.mu.Lock()
	defer b.screen.mu.Unlock()
	return b.screen.text
}

// sees waits until the terminal shows each of the texts, and none that begins with "-".
func (b *board) sees(texts ...string) []string {
	b.t.Helper()
	var lines []string
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		lines = b.lines()
		all := strings.Join(lines, "\n")
		if !slices.ContainsFunc(texts, func(s string) bool {
			if absent, ok := strings.CutPrefix(s, "-"); ok {
				return strings.Contains(all, absent)
			}
			return !strings.Contains(all, s)
		}) {
			return lines
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("%q is not so in\n%s", texts, all)
		}
	}
}

func (b *board) keys(keys string) {
	for _, r := range keys {
		b.screen.InjectKey(tcell.KeyRune, r, tcell.ModNone)
	}
}

func (b *board) key(k tcell.Key) { b.screen.InjectKey(k, 0, tcell.ModNone) }

func TestShows(t *testing.T) {
	b := open(t, 150, 12, Options{}, three(0, 0, 0))
	lines := b.sees("curl[100]", "db.internal:443", "198.18.0.5", "gw", "3 flows, 1 of them being opened", "1 connections", "sorted by down/s, falling",
		"connection refused", "tunnel failed", "[2001:db8::1]:21", "default", "1h00", "decided")
	if !strings.Contains(lines[2], "PROGRAM") || !strings.Contains(lines[2], "LAST ERROR") {
		t.Errorf("heading %q", lines[2])
	}
	if !strings.Contains(lines[3], "500 B") || !strings.Contains(lines[3], "100 B") { // since they began
		t.Errorf("rates %q", lines[3])
	}
	b.source.mu.Lock()
	b.source.next = func(n int) Reading {
		return three(time.Duration(n)*2*time.Second, 4000*uint64(n), 2_000_000*uint64(n))
	}
	b.source.mu.Unlock()
	b.sees("1.0 MB", "2.0 kB")
	b.keys("q")
	if err := b.end(); err != nil {
		t.Error(err)
	}
}

// first is the program of the first row.
func (b *board) firstIs(program string) {
	b.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !b.has(3, program); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			b.t.Fatalf("first is not %s:\n%s", program, strings.Join(b.lines(), "\n"))
		}
	}
}

func (b *board) has(line int, text string) bool {
	lines := b.lines()
	return len(lines) > line && strings.Contains(lines[line], text)
}

func TestSort(t *testing.T) {
	b := open(t, 150, 12, Options{Sort: "program"}, three(0, 0, 0))
	b.firstIs("curl")
	b.keys("R")
	b.firstIs("git")
	b.keys("G") // the oldest first
	b.firstIs("ftp")
	b.keys("N")
	b.firstIs("curl")
	b.keys("L") // by number, not by digits: 0 (default), 3, 12
	b.sees("sorted by rule")
	b.keys("R")
	b.firstIs("git")
	b.key(tcell.KeyRight)
	b.sees("sorted by action, rising")
	b.keys("<")
	b.sees("sorted by rule, rising")
	for range endOfKeys { // round and round
		b.keys(">")
	}
	if _, err := newFlows(Options{Sort: "colour"}); err == nil {
		t.Error("a column that does not exist")
	}
	if len(Columns()) != int(endOfKeys) {
		t.Error("columns without a name")
	}
}

func TestFilter(t *testing.T) {
	b := open(t, 150, 12, Options{Filter: "TUNNEL curl"}, three(0, 0, 0))
	b.sees("curl[100]", "-git[101]", "1 with")
	b.key(tcell.KeyEscape)
	b.sees("git[101]")
	b.keys("/nobodyx")
	b.sees("filter: nobodyx_", "-git[101]", "-curl[100]")
	for range len("nobodyx") {
		b.key(tcell.KeyBackspace2)
	}
	b.keys("refused")
	b.sees("git[101]", "-curl[100]")
	b.key(tcell.KeyEscape) // as it was
	b.sees("git[101]", "curl[100]")
	b.keys("/qk") // are letters then
	b.key(tcell.KeyEnter)
	b.sees(`0 with "qk"`)
	b.keys("k") // nothing is selected
	b.sees("-[y/N]")
}

func TestKill(t *testing.T) {
	b := open(t, 150, 12, Options{Sort: "id"}, three(0, 0, 0))
	b.firstIs("curl")
	b.keys("k")
	b.sees("close 1, curl[100] to db.internal:443? [y/N]")
	b.keys("n")
	b.sees("-[y/N]")
	b.key(tcell.KeyDown)
	b.keys("k")
	b.sees("close 2, git[101]")
	b.keys("y")
	b.sees("git[101] to 10.0.0.7:9418 was closed")
	b.source.mu.Lock()
	if !slices.Equal(b.source.cut, []uint64{2}) {
		t.Errorf("closed %v", b.source.cut)
	}
	b.source.cutErr = errors.New("no such flow is carried")
	b.source.mu.Unlock()
	b.keys("ky")
	b.sees("no such flow is carried")
}

// TestFollow: the selection stays with its flow with F, at its line without.
func TestFollow(t *testing.T) {
	later := three(time.Second, 0, 0)
	later.Flows[1].Program = "/usr/bin/apt" // comes first
	b := open(t, 150, 12, Options{Sort: "program"}, three(0, 0, 0))
	b.firstIs("curl")
	b.key(tcell.KeyEnter)
	b.sees("1: /usr/bin/curl[100]")
	b.source.set(later, nil)
	b.firstIs("apt")
	b.sees("2: /usr/bin/apt[101]") // what is at the first line now
	b.keys("F")
	b.sees("FOLLOWS 2")
	b.source.set(three(3*time.Second, 0, 0), nil)
	b.firstIs("curl")
	b.sees("2: /usr/bin/git[101]", "rule 12 (rules.xml:30), TUNNEL", "last error: connection refused")
	gone := three(4*time.Second, 0, 0)
	gone.Flows = gone.Flows[:1]
	b.source.set(gone, nil)
	b.sees("1: /usr/bin/curl[100]")
}

func TestPauseAndHelp(t *testing.T) {
	b := open(t, 100, 24, Options{}, three(0, 0, 0))
	b.sees("git[101]")
	b.keys("p")
	b.sees("PAUSED")
	b.source.set(Reading{At: start}, nil)
	asked := b.source.readings()
	b.waitReadings(asked + 3)
	b.sees("git[101]")
	b.keys(" ")
	b.sees("-git[101]", "no captured connections")
	b.keys("?")
	b.sees("Press a key to go back")
	b.keys("x")
	b.sees("-Press a key", "no captured connections")
}

func (s *source) readings() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

func (b *board) waitReadings(n int) {
	b.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); b.source.readings() < n; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			b.t.Fatal("it does not read any more")
		}
	}
}

// TestBrokerGoes: what was known stays, and it is asked for again.
func TestBrokerGoes(t *testing.T) {
	b := open(t, 100, 12, Options{}, three(0, 0, 0))
	b.sees("git[101]")
	b.source.set(Reading{}, errors.New("no broker is running"))
	b.sees("no reading, it is tried again: no broker is running", "git[101]")
	b.source.set(three(time.Second, 0, 0), nil)
	b.sees("-no reading")
}

// TestSizes: at every size there is what there is room for, and nothing breaks.
func TestSizes(t *testing.T) {
	b := open(t, 150, 12, Options{Sort: "id"}, three(0, 0, 0))
	b.sees("curl[100]", "LAST ERROR")
	b.screen.SetSize(60, 12)
	b.resized(60, 12)
	b.sees("curl[100]", "db.internal:443", "UP/S", "DOWN/S", "STATE", "-LAST ERROR", "-ADDRESS")
	b.screen.SetSize(24, 12)
	b.resized(24, 12)
	b.sees("curl[1", "db.int", "-STATE")
	for _, size := range [][2]int{{1, 1}, {2, 3}, {5, 4}, {10, 2}, {300, 80}, {150, 5}} {
		b.screen.SetSize(size[0], size[1])
		b.resized(size[0], size[1])
		b.key(tcell.KeyDown)
		b.key(tcell.KeyPgDn)
		b.key(tcell.KeyEnter)
		b.keys("k")
		b.keys("n")
		b.waitReadings(b.source.readings() + 2)
	}
	b.resized(150, 12)
}

func (b *board) resized(width, height int) {
	if err := b.screen.PostEvent(tcell.NewEventResize(width, height)); err != nil {
		b.t.Fatal(err)
	}
}

// TestWide: characters of two cells and of none are counted as what they take.
func TestWide(t *testing.T) {
	r := three(0, 0, 0)
	r.Flows[0].Name, r.Flows[0].Program = "数据库.例え", "/opt/cafe\u0301"
	r.Flows[1].Program = "/opt/" + strings.Repeat("e\u0301", 300)
	b := open(t, 150, 12, Options{Sort: "id"}, r)
	lines := b.sees("数据库.例え:443")
	for i, want := range []string{"198.18.0.5", "10.0.0.7"} {
		at := uniseg.StringWidth(lines[2][:strings.Index(lines[2], "ADDRESS")])
		before, _, ok := strings.Cut(lines[3+i][strings.Index(lines[3+i], "]")+1:], want+" ")
		whole := lines[3+i][:strings.LastIndex(lines[3+i], want+" ")]
		if !ok || uniseg.StringWidth(whole) != at {
			t.Errorf("%q: column at %d, want %d (%q)", lines[3+i], uniseg.StringWidth(whole), at, before)
		}
	}
	for _, s := range []string{"", "a", "ab", "数据", "e\u0301", "👩‍👩‍👧x"} {
		for width := range 6 {
			got, used := cut(s, width)
			if used > width || used != uniseg.StringWidth(got) {
				t.Errorf("cut(%q, %d) = %q, %d", s, width, got, used)
			}
		}
	}
}

func many(n int) Reading {
	r := Reading{At: start}
	for i := range n {
		r.Flows = append(r.Flows, control.ChannelRow{ID: uint64(i + 1), Program: fmt.Sprintf("/usr/bin/p%d", i%100), PID: i, Dst: fmt.Sprintf("10.0.%d.%d:443", i/256, i%256),
			Rule: "1 (a:1)", Action: "TUNNEL", Profile: "gw", Since: start.Add(-time.Minute), BytesDown: uint64(i) * 60, State: "admitted"})
	}
	return r
}

func TestTenThousand(t *testing.T) {
	b := open(t, 120, 40, Options{}, many(10000))
	b.sees("10000 flows", "10.0.39.15:443")
	b.key(tcell.KeyEnd)
	b.sees("10.0.0.0:443")
	b.keys("/10.0.7.7:")
	b.sees("1 with")
}

func TestBatch(t *testing.T) {
	var out bytes.Buffer
	s := &source{reading: three(0, 0, 0)}
	if err := Batch(t.Context(), s, Options{Every: time.Millisecond, Sort: "id", Filter: "tunnel"}, 2, &out); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(out.String(), "\n")
	if s.asked != 2 || strings.Count(out.String(), "PROGRAM") != 2 || strings.Contains(out.String(), "\x1b") ||
		!strings.HasPrefix(strings.TrimSpace(lines[2]), "1  curl[100]") || !strings.Contains(lines[4], "tunnel failed") || lines[5] != "" {
		t.Errorf("%q", lines)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Batch(ctx, s, Options{Every: time.Hour}, 0, &out); err != nil {
		t.Errorf("interrupted: %v", err)
	}
	if err := Batch(t.Context(), &source{err: errors.New("gone")}, Options{}, 1, &out); err == nil {
		t.Error("a broker that does not answer")
	}
	if err := Batch(t.Context(), s, Options{}, 1, full{}); !errors.Is(err, errFull) {
		t.Errorf("a full disk: %v", err)
	}
}

var errFull = errors.New("no space")

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errFull }

func BenchmarkTenThousand(b *testing.B) {
	f, err := newFlows(Options{})
	if err != nil {
		b.Fatal(err)
	}
	screen := tcell.NewSimulationScreen("UTF-8")
	if err := screen.Init(); err != nil {
		b.Fatal(err)
	}
	defer screen.Fini()
	screen.SetSize(120, 40)
	v, r := &view{screen: screen, flows: f}, many(10000)
	for b.Loop() {
		v.take(r)
		v.settle()
		v.draw()
	}
}
