package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"sshbroker/broker/control"
	"sshbroker/cmd/ssh-broker-ctl/top"
)

// Bounds on the seconds between readings: fewer cost the broker more than its flows do.
const (
	minEvery = 0.1
	maxEvery = 24 * 3600
)

func (a *app) topCommand() *cobra.Command {
	var o top.Options
	var seconds float64
	var batch bool
	var rounds int
	cmd := &cobra.Command{
		Use:     "top",
		GroupID: groupFlows,
		Short:   "Show the captured connections as they live",
		Long: `Show the captured connections on the whole terminal, again and again: the program,
where it wanted to go, rule, profile, age, bytes a second, state, and the last error
of the way that carries it. The keys sort, filter, follow and close; ? lists them.

With -b it prints plain text, for files and other programs: rates are those since the
reading before, and in the first one since the connection began.`,
		Example: `  ssh-broker-ctl top
  ssh-broker-ctl top --filter curl --sort age
  ssh-broker-ctl top -b -n 2 -d 5 | tail -n +3`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if o.Every, err = interval("-d", seconds); err != nil {
				return err
			}
			if !slices.Contains(top.Columns(), o.Sort) {
				return usageError{fmt.Errorf("--sort %s: it is one of %s", o.Sort, strings.Join(top.Columns(), ", "))}
			}
			switch {
			case rounds < 0:
				return usageError{fmt.Errorf("-n %d: it is a number of readings", rounds)}
			case !batch && cmd.Flags().Changed("iterations"):
				return usageError{errors.New("-n goes with -b")}
			case a.short:
				return usageError{errors.New("top prints no JSON; list-channels -s --watch does")}
			case !batch && a.width == 0:
				return usageError{errors.New("standard output is no terminal: use -b")}
			}
			broker := &watched{app: a}
			defer broker.close()
			if batch {
				return top.Batch(cmd.Context(), broker, o, rounds, a.out)
			}
			if _, err := broker.Read(cmd.Context()); err != nil { // said where it can be read
				return err
			}
			err = top.Run(cmd.Context(), broker, o)
			if errors.Is(err, top.ErrTerminal) {
				return &control.Error{Message: err.Error(), Hint: "ssh-broker-ctl top -b prints plain text"}
			}
			return err
		},
	}
	cmd.Flags().Float64VarP(&seconds, "delay", "d", 2, "read every so many `SECONDS`")
	cmd.Flags().StringVar(&o.Filter, "filter", "", "show connections that have each of the words of this `TEXT`")
	cmd.Flags().StringVar(&o.Sort, "sort", top.DefaultSort, "sort by this `COLUMN`: "+strings.Join(top.Columns(), ", "))
	cmd.Flags().BoolVarP(&batch, "batch", "b", false, "print plain text")
	cmd.Flags().IntVarP(&rounds, "iterations", "n", 0, "with -b, print so `MANY` readings, then end")
	return cmd
}

// interval reads seconds that a person gave.
func interval(option string, seconds float64) (time.Duration, error) {
	if !(seconds >= minEvery && seconds <= maxEvery) {
		return 0, usageError{fmt.Errorf("%s %v: seconds from %v to %v", option, seconds, minEvery, maxEvery)}
	}
	return time.Duration(seconds * float64(time.Second)), nil
}

// watched is a broker that is asked again and again. One that has gone is looked for each
// time.
type watched struct {
	app *app

	mu   sync.Mutex // one call at a time
	conn *control.Client
}

func (w *watched) with(ctx context.Context, do func(*control.Client) error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.conn == nil {
		c, err := w.app.dial(ctx)
		if err != nil {
			return err
		}
		w.conn = c
	}
	err := do(w.conn)
	if answer := (*control.Error)(nil); err != nil && !errors.As(err, &answer) {
		w.conn.Close() // what follows is not known
		w.conn = nil
	}
	return err
}

// Read implements top.Source.
func (w *watched) Read(ctx context.Context) (r top.Reading, err error) {
	err = w.with(ctx, func(c *control.Client) error {
		var err error
		if r.Flows, err = rowsOf[control.ChannelRow](ctx, c, control.OpChannels, nil); err != nil {
			return err
		}
		r.At = time.Now()
		r.Connections, err = rowsOf[control.ConnectionRow](ctx, c, control.OpConnections, nil)
		return err
	})
	for i := range r.Flows {
		f := &r.Flows[i]
		for _, s := range []*string{&f.Owner, &f.Program, &f.Name, &f.Dst, &f.Src, &f.Rule, &f.Action, &f.Profile, &f.State, &f.Capture, &f.Error} {
			*s = oneLine(*s)
		}
	}
	for i := range r.Connections {
		r.Connections[i].LastError = oneLine(r.Connections[i].LastError)
	}
	return r, err
}

// Cut implements top.Source.
func (w *watched) Cut(ctx context.Context, id uint64) error {
	return w.with(ctx, func(c *control.Client) error {
		return c.Call(ctx, control.OpCloseChannel, control.IDArgs{ID: id}, nil, nil, nil)
	})
}

func (w *watched) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.conn != nil {
		w.conn.Close()
	}
}
