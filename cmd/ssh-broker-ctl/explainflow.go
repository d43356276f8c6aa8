package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"sshbroker/broker/control"
)

// explainFlow tells what decided a connection that is open.
func (a *app) explainFlow(ctx context.Context, id uint64) error {
	rows, err := fetch[control.ExplainRow](ctx, a, control.OpExplain, control.ExplainArgs{Flow: id})
	if err != nil {
		return err
	}
	e := takeApart(rows)
	if e.flow == nil {
		return errors.New("explain: the broker answered without a connection")
	}
	if !a.short {
		a.flowExplained(e.flow)
	}
	switch {
	case a.short || e.result != nil:
		a.explained(rows, "  by the rules in force now:\n", e)
	case e.flow.Current > e.flow.Generation && e.flow.By == control.DecidedByRules && e.flow.Action != "":
		return errors.New("explain: the broker answered without a result")
	}
	return nil
}

func (a *app) flowExplained(f *control.ExplainFlow) {
	by := fmt.Sprintf("by rule %d, %s", f.Rule, f.Source)
	if f.Rule == 0 {
		by = "as no rule matched"
	}
	switch f.By {
	case control.DecidedByPlace:
		by = "as it goes to the capture's own addresses"
	case control.DecidedBySystem:
		by += ", of the broker of the whole system"
	}
	switch {
	case f.Action == "":
		a.printf("nothing is decided yet\n")
	default:
		a.printf("%s %s\n", f.Action, by)
	}
	field := a.explainField
	field("connection", fmt.Sprintf("%d, %s since %s", f.ID, f.State, a.time(f.Since)))
	field("program", cmp.Or(f.Program, "not known"))
	if f.PID > 0 {
		field("process", fmt.Sprint(f.PID))
	}
	field("user", cmp.Or(f.User, fmt.Sprint(f.UID)))
	field("groups", strings.Join(f.Groups, ", "))
	field("capture", f.Capture)
	field("from", f.Src)
	field("to", f.Dst)
	field("names", cmp.Or(strings.Join(f.Names, ", "), "none is known: rules by host looked at the address"))
	field("by name", f.Name)
	field("profile", f.Profile)
	field("server", f.Server)
	field("destination", f.Destination)
	field("note", f.Error)
	switch f.By {
	case control.DecidedByRules:
		age := "which is in force"
		if f.Current > f.Generation {
			age = fmt.Sprintf("now %d is in force", f.Current)
		}
		field("rules", fmt.Sprintf("of configuration %d; %s", f.Generation, age))
	case control.DecidedByOwn:
		field("rules", "of the capture's own, which no reload changes")
	}
}
