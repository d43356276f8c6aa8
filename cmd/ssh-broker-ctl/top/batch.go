package top

import (
	"context"
	"fmt"
	"io"
	"time"
)

// Source is a broker.
type Source interface {
	Read(ctx context.Context) (Reading, error)
	Cut(ctx context.Context, id uint64) error // closes a flow
}

// Options of both views.
type Options struct {
	Every  time.Duration // between readings
	Filter string
	Sort   string // a column, as Columns lists them; "": by the bytes down
}

// DefaultSort is the column that tables are sorted by.
const DefaultSort = "down"

// Columns are the names of those that Options.Sort may be, which are the heads in small
// letters.
func Columns() []string {
	return []string{"id", "user", "program", "to", "address", "rule", "action", "profile", "age", "up", "down", "state", "error"}
}

// newFlows has nothing read yet.
func newFlows(o Options) (*flows, error) {
	if o.Sort == "" {
		o.Sort = DefaultSort
	}
	for k, name := range Columns() {
		if name == o.Sort {
			return &flows{sort: key(k), reverse: columns[k].falling, filter: o.Filter}, nil
		}
	}
	return nil, fmt.Errorf("there is no column %q", o.Sort)
}

// Batch prints n readings as text, 0 for readings until ctx ends, which is no error.
func Batch(ctx context.Context, from Source, o Options, n int, w io.Writer) error {
	f, err := newFlows(o)
	if err != nil {
		return err
	}
	for i := 0; n == 0 || i < n; i++ {
		if i > 0 {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(o.Every):
			}
			if _, err := fmt.Fprintln(w); err != nil {
				return err
			}
		}
		r, err := from.Read(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		f.take(r)
		if err := f.print(w); err != nil {
			return err
		}
	}
	return nil
}

// print writes what is shown, without a bound on its width.
func (f *flows) print(w io.Writer) error {
	if _, err := fmt.Fprintln(w, f.title()); err != nil {
		return err
	}
	list := fit(f.shown, 0)
	if _, err := fmt.Fprintln(w, line(nil, list)); err != nil {
		return err
	}
	for _, n := range f.shown {
		if _, err := fmt.Fprintln(w, line(n, list)); err != nil {
			return err
		}
	}
	return nil
}

// title is the line above the table.
func (f *flows) title() string {
	opening := 0
	for _, n := range f.all {
		if n.State == "arrived" || n.State == "decided" || n.State == "opened" {
			opening++
		}
	}
	return fmt.Sprintf("ssh-broker %s  %d flows, %d of them being opened  %d connections  up %s/s  down %s/s",
		f.at.Local().Format(time.TimeOnly), len(f.all), opening, f.connections, size(f.up), size(f.down))
}
