package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// watchable gives a command that prints a list the option --watch.
func (a *app) watchable(cmd *cobra.Command) *cobra.Command {
	var seconds float64
	cmd.Flags().Float64Var(&seconds, "watch", 0, "print it again every so many `SECONDS`, until interrupted")
	cmd.Flags().Lookup("watch").NoOptDefVal = "2"
	do := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !cmd.Flags().Changed("watch") {
			return do(cmd, args)
		}
		every, err := interval("--watch", seconds)
		if err != nil {
			return err
		}
		return a.watch(cmd.Context(), every, cmd.Name(), func() error { return do(cmd, args) })
	}
	return cmd
}

// The terminal is left as it is but for these: to the corner, clear what is right of the
// line, and what is below.
const (
	home       = "\x1b[H"
	clearRight = "\x1b[K\n"
	clearBelow = "\x1b[J"
)

// watch prints what do prints until ctx ends. On a terminal each time takes the place of
// the one before; elsewhere they follow each other, with a blank line between tables.
func (a *app) watch(ctx context.Context, every time.Duration, name string, do func() error) error {
	out := a.out
	defer func() { a.out = out }()
	screen := a.width > 0 && !a.short && a.getenv("TERM") != "dumb"
	for first := true; ; first = false {
		var text bytes.Buffer
		a.out, a.width = &output{w: &text}, terminalWidth(out.w)
		err := do()
		a.out = out
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && first:
			return err
		case err != nil && !screen:
			a.report(err)
		case err != nil: // the next one may be better
			text.Reset()
			a.out = &output{w: &text}
			a.line("ssh-broker-ctl: " + oneLine(err.Error()))
			a.out = out
		}
		switch {
		case screen:
			fmt.Fprint(out, a.page(out, fmt.Sprintf("%s every %v  %s\n\n%s", name, every, time.Now().Format(time.TimeOnly), text.String()), first))
		case !first && !a.short:
			fmt.Fprintf(out, "\n%s", text.String())
		default:
			fmt.Fprint(out, text.String())
		}
		if out.err != nil {
			return nil // it is reported
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(every):
		}
	}
}

// page is text for a terminal from its first line on, as much as there is room for.
func (a *app) page(out *output, text string, first bool) string {
	height := 24
	if f, ok := out.w.(*os.File); ok {
		if _, h, err := term.GetSize(int(f.Fd())); err == nil && h > 2 {
			height = h
		}
	}
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	if left := len(lines) - (height - 1); left > 0 {
		lines = append(lines[:height-2], fmt.Sprintf("... and %d lines more", left+1))
	}
	start := home
	if first {
		start += clearBelow
	}
	return start + strings.Join(lines, clearRight) + clearRight + clearBelow
}
