package explain

import (
	"sshbroker/broker"
	"sshbroker/broker/control"
)

// Live tells what decided a flow that is open, and, where p decides it otherwise now or
// is of a newer generation, what would become of it. p is the policy in force.
func Live(p *broker.Policy, f broker.FlowInfo) []control.ExplainRow {
	r := f.Record
	row := &control.ExplainFlow{
		ID: f.ID, Connection: f.Way, Capture: f.Capture, State: f.State, Since: f.Since,
		UID: r.UID, User: r.User, Groups: r.Groups, Program: r.Program, PID: r.PID,
		Src: r.Src.String(), Dst: r.Dst.String(), Names: r.Names, Name: r.Name,
		By: by(f.By), Generation: int(r.Generation), Action: r.Action, Rule: r.Rule, Source: r.RuleSource,
		Profile: r.Profile, Server: r.Server, Destination: r.Target, Error: r.Error,
	}
	rows := []control.ExplainRow{{Flow: row}}
	if p == nil {
		return rows
	}
	row.Current = p.Generation
	if f.By != broker.ByRules || r.Action == "" {
		return rows
	}
	now := ask(p, query{names: r.Names, dst: r.Dst, src: r.Src, program: r.Program, user: r.User, groups: r.Groups})
	result := now[len(now)-1].Result
	if p.Generation == row.Generation && result.Action == r.Action && result.Rule == r.Rule {
		return rows
	}
	return append(rows, now...)
}

// by is how the control protocol calls who decided.
func by(b broker.By) control.DecidedBy {
	switch b {
	case broker.ByOwn:
		return control.DecidedByOwn
	case broker.BySystem:
		return control.DecidedBySystem
	case broker.ByPlace:
		return control.DecidedByPlace
	}
	return control.DecidedByRules
}
