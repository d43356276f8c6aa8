package top

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"sshbroker/broker/control"
)

// Reading is what the broker carries at one moment. No string in it has control
// characters.
type Reading struct {
	At          time.Time
	Flows       []control.ChannelRow
	Connections []control.ConnectionRow
}

// flow is one row.
type flow struct {
	control.ChannelRow
	up, down float64 // bytes a second since the reading before; at the first since its begin
	age      time.Duration
	problem  string // the last error; "" for none
}

// moved is what a flow had moved at a reading.
type moved struct{ up, down uint64 }

// flows are those of the last reading, as they are sorted and filtered. Not safe for
// concurrent use.
type flows struct {
	at     time.Time
	before map[uint64]moved // by id
	all    []*flow
	shown  []*flow // sorted, filtered
	up     float64 // of all
	down   float64

	connections int // that are connected
	sort        key
	reverse     bool
	filter      string
}

// take makes a reading the one that is shown.
func (f *flows) take(r Reading) {
	problems := map[uint64]string{} // by connection
	byProfile := map[string]string{}
	f.connections = 0
	for _, c := range r.Connections {
		problems[c.ID] = c.LastError
		if c.LastError != "" {
			byProfile[c.Profile] = c.LastError
		}
		if c.State == "connected" {
			f.connections++
		}
	}
	since := r.At.Sub(f.at).Seconds()
	now := make(map[uint64]moved, len(r.Flows))
	f.all, f.up, f.down = make([]*flow, 0, len(r.Flows)), 0, 0
	for _, row := range r.Flows {
		n := &flow{ChannelRow: row, age: max(0, r.At.Sub(row.Since)), problem: cmp.Or(row.Error, problems[row.Connection])}
		if n.problem == "" && row.Connection == 0 && row.Action == "TUNNEL" {
			n.problem = byProfile[row.Profile] // what it waits for
		}
		then, known := f.before[row.ID]
		span := since
		if !known || span <= 0 {
			then, span = moved{}, n.age.Seconds()
		}
		if span > 0 {
			n.up, n.down = rate(row.BytesUp, then.up, span), rate(row.BytesDown, then.down, span)
		}
		now[row.ID] = moved{row.BytesUp, row.BytesDown}
		f.up += n.up
		f.down += n.down
		f.all = append(f.all, n)
	}
	f.at, f.before = r.At, now
	f.arrange()
}

func rate(now, then uint64, seconds float64) float64 {
	if now < then { // the broker is another one
		return 0
	}
	return float64(now-then) / seconds
}

// arrange sorts and filters.
func (f *flows) arrange() {
	f.shown = f.shown[:0]
	words := strings.Fields(strings.ToLower(f.filter))
	for _, n := range f.all {
		if n.has(words) {
			f.shown = append(f.shown, n)
		}
	}
	less := columns[f.sort].compare
	slices.SortFunc(f.shown, func(a, b *flow) int {
		c := less(a, b)
		if f.reverse {
			c = -c
		}
		return cmp.Or(c, cmp.Compare(a.ID, b.ID))
	})
}

// has reports whether each of the words is in some field of the flow.
func (n *flow) has(words []string) bool {
	if len(words) == 0 {
		return true
	}
	all := strings.ToLower(strings.Join([]string{n.Owner, n.Program, n.Name, n.Dst, n.Rule, n.Action, n.Profile, n.State, n.Capture, n.problem}, "\n"))
	return !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(all, w) })
}

// index is where the flow of that id stands among those shown, -1 for nowhere.
func (f *flows) index(id uint64) int {
	return slices.IndexFunc(f.shown, func(n *flow) bool { return n.ID == id })
}
