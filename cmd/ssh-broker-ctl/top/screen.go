package top

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/gdamore/tcell/v2"
	"golang.org/x/sys/unix"
)

// ErrTerminal says that the terminal cannot show a live view.
var ErrTerminal = errors.New("this terminal cannot show the table")

// Run shows a live view until the person leaves it or ctx ends, neither of which is an
// error.
func Run(ctx context.Context, from Source, o Options) error {
	f, err := newFlows(o)
	if err != nil {
		return err
	}
	if term := os.Getenv("TERM"); term == "" || term == "dumb" {
		return fmt.Errorf("%w: TERM is %q", ErrTerminal, term)
	}
	screen, err := tcell.NewScreen()
	if err == nil {
		err = screen.Init()
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrTerminal, err)
	}
	return run(ctx, screen, from, o.Every, f)
}

// mode is what the last line is for.
type mode int

const (
	browsing mode = iota
	filtering
	asking // whether a flow is to be closed
	helping
)

// view is the live view. It belongs to the goroutine of run.
type view struct {
	screen tcell.Screen
	*flows
	list []placed

	mode     mode
	line     int    // selected, of those shown
	id       uint64 // its flow
	first    int    // the first one on the screen
	follow   bool   // the selection stays with its flow, not at its line
	paused   bool
	details  bool
	previous string // the filter, while another one is typed
	victim   *flow  // that may be closed
	message  string
	failure  error // of the last reading
}

// answer is one of the source's, which is asked beside everything else.
type answer struct {
	reading Reading
	err     error
	cut     string // what was to be closed; "": a reading
}

func run(ctx context.Context, screen tcell.Screen, from Source, every time.Duration, f *flows) error {
	defer screen.Fini()
	v := &view{screen: screen, flows: f}
	events, quit := make(chan tcell.Event, 16), make(chan struct{})
	defer close(quit)
	go screen.ChannelEvents(events, quit)

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answers := make(chan answer, 1)
	ask := func(do func() answer) {
		go func() {
			select {
			case answers <- do():
			case <-ctx.Done():
			}
		}()
	}
	read := func() {
		ask(func() answer {
			r, err := from.Read(ctx)
			return answer{reading: r, err: err}
		})
	}
	read()
	var due <-chan time.Time // of the next reading; nil while one is under way
	for {
		v.draw()
		select {
		case <-ctx.Done():
			return nil
		case <-due:
			due = nil
			read()
		case a := <-answers:
			if a.cut == "" {
				due = time.After(every)
			}
			v.answered(a)
		case e := <-events:
			if e == nil {
				return nil // the terminal is gone
			}
			if done := v.event(e, func(n *flow) {
				what := fmt.Sprintf("%s to %s", program(n), target(n))
				ask(func() answer { return answer{cut: what, err: from.Cut(ctx, n.ID)} })
			}); done {
				return nil
			}
		}
	}
}

func (v *view) answered(a answer) {
	switch {
	case a.cut != "" && a.err != nil:
		v.message = fmt.Sprintf("%s: %v", a.cut, a.err)
	case a.cut != "":
		v.message = a.cut + " was closed"
	case a.err != nil:
		v.failure = a.err
	case v.paused:
		v.failure = nil
	default:
		v.failure = nil
		v.take(a.reading)
		v.settle()
	}
}

// settle keeps the selection where it belongs after rows have changed.
func (v *view) settle() {
	if v.follow {
		if i := v.index(v.id); i >= 0 {
			v.line = i
		}
	}
	v.choose(v.line)
}

// choose selects a line, as far as there is one.
func (v *view) choose(line int) {
	v.line = max(0, min(line, len(v.shown)-1))
	v.id = 0
	if len(v.shown) > 0 {
		v.id = v.shown[v.line].ID
	}
}

// event does what a key asks for. It reports whether the person is done.
func (v *view) event(e tcell.Event, kill func(*flow)) (done bool) {
	k, ok := e.(*tcell.EventKey)
	if !ok {
		if _, resized := e.(*tcell.EventResize); resized {
			v.screen.Sync()
		}
		return false
	}
	if k.Key() == tcell.KeyCtrlC {
		return true
	}
	if k.Key() == tcell.KeyCtrlZ {
		v.sleep()
		return false
	}
	v.message = ""
	switch v.mode {
	case filtering:
		v.typed(k)
	case asking:
		if k.Rune() == 'y' || k.Rune() == 'Y' {
			kill(v.victim)
			v.message = "closing ..."
		}
		v.mode, v.victim = browsing, nil
	case helping:
		v.mode = browsing
	default:
		return v.browse(k)
	}
	return false
}

// sleep gives the terminal back until the shell wakes us.
func (v *view) sleep() {
	if v.screen.Suspend() != nil {
		return
	}
	_ = unix.Kill(0, unix.SIGTSTP)
	if err := v.screen.Resume(); err != nil {
		v.failure = err
	}
}

// typed edits the filter.
func (v *view) typed(k *tcell.EventKey) {
	switch k.Key() {
	case tcell.KeyEnter:
		v.mode = browsing
	case tcell.KeyEscape:
		v.filter, v.mode = v.previous, browsing
	case tcell.KeyBackspace, tcell.KeyBackspace2:
		if r := []rune(v.filter); len(r) > 0 {
			v.filter = string(r[:len(r)-1])
		}
	case tcell.KeyCtrlU:
		v.filter = ""
	case tcell.KeyRune:
		v.filter += string(k.Rune())
	}
	v.arrange()
	v.settle()
}

func (v *view) browse(k *tcell.EventKey) (done bool) {
	page := max(1, v.rows()-1)
	switch k.Key() {
	case tcell.KeyUp:
		v.choose(v.line - 1)
	case tcell.KeyDown:
		v.choose(v.line + 1)
	case tcell.KeyPgUp:
		v.choose(v.line - page)
	case tcell.KeyPgDn:
		v.choose(v.line + page)
	case tcell.KeyHome:
		v.choose(0)
	case tcell.KeyEnd:
		v.choose(len(v.shown) - 1)
	case tcell.KeyLeft:
		v.sortBy(-1)
	case tcell.KeyRight:
		v.sortBy(1)
	case tcell.KeyEnter:
		v.details = !v.details
	case tcell.KeyCtrlL:
		v.screen.Sync()
	case tcell.KeyEscape:
		v.filter = ""
		v.arrange()
		v.settle()
	case tcell.KeyRune:
		return v.command(k.Rune())
	}
	return false
}

// sorts are the letters that sort by a column, as in top(1) where it has them.
var sorts = map[rune]key{'N': byID, 'U': byOwner, 'P': byProgram, 'T': byTarget, 'A': byAddress, 'L': byRule, 'C': byAction, 'O': byProfile,
	'G': byAge, 'I': byUp, 'D': byDown, 'S': byState, 'E': byProblem}

func (v *view) command(r rune) (done bool) {
	switch r {
	case 'q':
		return true
	case '<':
		v.sortBy(-1)
	case '>':
		v.sortBy(1)
	case 'R':
		v.reverse = !v.reverse
		v.arrange()
		v.settle()
	case '/':
		v.mode, v.previous = filtering, v.filter
	case 'F':
		v.follow = !v.follow
	case ' ', 'p':
		v.paused = !v.paused
	case '?', 'h':
		v.mode = helping
	case 'k':
		if len(v.shown) > 0 {
			v.mode, v.victim = asking, v.shown[v.line]
		}
	default:
		if k, ok := sorts[r]; ok {
			v.sort, v.reverse = k, columns[k].falling
			v.arrange()
			v.settle()
		}
	}
	return false
}

// sortBy takes the next column in a direction, of those on the screen.
func (v *view) sortBy(step int) {
	at := 0
	for i, p := range v.list {
		if p.key == v.sort {
			at = i
		}
	}
	if len(v.list) == 0 {
		return
	}
	v.sort = v.list[(at+step+len(v.list))%len(v.list)].key
	v.reverse = columns[v.sort].falling
	v.arrange()
	v.settle()
}

// The lines around the rows: title, state and heading above, one below.
const (
	above = 3
	below = 1
)

func (v *view) rows() int {
	_, height := v.screen.Size()
	rows := height - above - below
	if v.details {
		rows -= len(v.about())
	}
	return max(0, rows)
}

// draw shows everything.
func (v *view) draw() {
	width, height := v.screen.Size()
	v.screen.Clear()
	if v.mode == helping {
		for i, text := range help {
			v.put(i, text, tcell.StyleDefault)
		}
		v.screen.Show()
		return
	}
	rows := v.rows()
	if v.line < v.first {
		v.first = v.line
	}
	if v.line >= v.first+rows {
		v.first = v.line - rows + 1
	}
	v.first = max(0, min(v.first, len(v.shown)-rows))
	page := v.shown[v.first:min(len(v.shown), v.first+rows)]
	v.list = fit(page, width)

	v.put(0, v.title(), tcell.StyleDefault.Bold(true))
	v.put(1, v.state(), tcell.StyleDefault)
	heading := line(nil, v.list)
	v.put(2, heading+strings.Repeat(" ", max(0, width-len(heading))), tcell.StyleDefault.Reverse(true))
	for i, n := range page {
		style := tcell.StyleDefault
		text := line(n, v.list)
		mark := v.first+i == v.line
		if n.problem != "" {
			style = style.Foreground(tcell.ColorRed)
		}
		if mark {
			style = style.Reverse(true)
			_, used := cut(text, width)
			text += strings.Repeat(" ", max(0, width-used))
		}
		v.put(above+i, text, style)
	}
	if v.details {
		for i, text := range v.about() {
			v.put(above+rows+i, text, tcell.StyleDefault.Dim(true))
		}
	}
	v.put(height-1, v.bottom(), tcell.StyleDefault.Bold(v.mode != browsing || v.failure != nil))
	v.screen.Show()
}

// put writes one line, as much of it as there is room for.
func (v *view) put(y int, text string, style tcell.Style) {
	width, height := v.screen.Size()
	if y < 0 || y >= height {
		return
	}
	text, _ = cut(text, width)
	for x := 0; text != "" && x < width; {
		rest, n := v.screen.Put(x, y, text, style)
		if n == 0 || rest == text {
			break
		}
		text, x = rest, x+n
	}
}

// state says by what the table is what it is.
func (v *view) state() string {
	direction := "rising"
	if v.reverse {
		direction = "falling"
	}
	parts := []string{fmt.Sprintf("sorted by %s, %s", strings.ToLower(columns[v.sort].head), direction)}
	if v.filter != "" {
		parts = append(parts, fmt.Sprintf("%d with %q", len(v.shown), v.filter))
	}
	if v.follow {
		parts = append(parts, fmt.Sprintf("FOLLOWS %d", v.id))
	}
	if v.paused {
		parts = append(parts, "PAUSED")
	}
	return strings.Join(parts, "   ")
}

// bottom is the last line: what was asked or told, else which keys there are.
func (v *view) bottom() string {
	switch {
	case v.mode == filtering:
		return "filter: " + v.filter + "_"
	case v.mode == asking:
		return fmt.Sprintf("close %d, %s to %s? [y/N]", v.victim.ID, program(v.victim), target(v.victim))
	case v.message != "":
		return v.message
	case v.failure != nil:
		return "no reading, it is tried again: " + v.failure.Error()
	case v.at.IsZero():
		return "asking the broker ..."
	case len(v.all) == 0:
		return "no captured connections    q quit  ? help"
	}
	return "q quit  / filter  < > sort  R reverse  k close  F follow  p pause  Enter details  ? help"
}

// about is all of the selected flow.
func (v *view) about() []string {
	if len(v.shown) == 0 {
		return nil
	}
	n := v.shown[v.line]
	return []string{
		fmt.Sprintf("%d: %s[%d]  capture %s  from %s to %s", n.ID, n.Program, n.PID, n.Capture, n.Src, n.Dst),
		fmt.Sprintf("rule %s, %s  profile %s  connection %d  %s up, %s down since %s", n.Rule, n.Action, n.Profile, n.Connection,
			size(float64(n.BytesUp)), size(float64(n.BytesDown)), n.Since.Local().Format(time.DateTime)),
		"last error: " + columns[byProblem].text(n),
	}
}

var help = []string{
	"Captured connections, as ssh-broker carries them",
	"",
	"Up Down PgUp PgDn Home End   select",
	"Enter      all about the selected one",
	"< > Left Right   sort by the column before, after",
	"N U P T A L C O G I D S E    sort by id, user, program, to, address, rule, action,",
	"           profile, age, up, down, state, last error",
	"R          the other way round",
	"/          show those that have each of these words (Esc: all again)",
	"F          follow: the selection stays with its connection, wherever it is sorted to",
	"p Space    pause, go on",
	"k          close the selected one (asks first)",
	"Ctrl-L     draw anew        Ctrl-Z   to the shell        q Ctrl-C   leave",
	"",
	"Press a key to go back",
}
