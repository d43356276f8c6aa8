package explain

import (
	"net"
	"net/netip"
	"strconv"

	"sshbroker/broker"
	"sshbroker/broker/control"
	"sshbroker/capture"
	"sshbroker/filter"
)

// Flow runs the decision that a flow of a user would get, by the same code, and tells
// of every rule on the way. The last row is the result.
func Flow(p *broker.Policy, args control.ExplainArgs, user string, groups []string) []control.ExplainRow {
	q := query{names: args.Names, program: args.Program, user: user, groups: groups}
	addr, err := netip.ParseAddr(args.Host)
	if err != nil {
		q.names = append([]string{args.Host}, args.Names...)
	}
	if len(args.Groups) > 0 {
		q.groups = args.Groups
	}
	q.dst = netip.AddrPortFrom(addr, args.Port)
	return ask(p, q)
}

// query is a flow that is asked about. What is not known is zero.
type query struct {
	names    []string
	dst, src netip.AddrPort
	program  string
	user     string
	groups   []string
}

func ask(p *broker.Policy, q query) []control.ExplainRow {
	flow := filter.Flow{Names: q.names, Addr: q.dst.Addr(), Port: q.dst.Port(), User: q.user, Groups: q.groups,
		Program: func() string { return q.program }}
	var rows []control.ExplainRow
	d := p.Rules.Explain(&flow, func(s filter.Step) {
		step := &control.ExplainStep{Rule: s.Rule.Number, Source: s.Rule.Source, Matched: s.Matched}
		if !s.Matched {
			step.Condition, step.Value, step.Pattern = s.Failed.String(), s.Value, s.Pattern
		}
		rows = append(rows, control.ExplainRow{Step: step})
	})
	result := &control.ExplainResult{Action: d.Action.String()}
	if r := d.Rule; r != nil {
		result.Rule, result.Source, result.Fallback = r.Number, r.Source, r.FallbackToPlain
	}
	switch d.Action {
	case filter.Tunnel:
		profile, dst, err := p.Way(d, capture.Flow{Src: q.src, Dst: q.dst})
		if err != nil {
			result.Note = err.Error()
			break
		}
		result.Profile, result.User = profile.ID, profile.User
		result.Server = net.JoinHostPort(profile.Host, strconv.Itoa(int(profile.Port)))
		result.Destination = net.JoinHostPort(dst.Host, strconv.Itoa(int(dst.Port)))
	case filter.FTPTunnel, filter.FTPProxy:
		result.Note = "this action is not built yet: the flow is refused"
	}
	return append(rows, control.ExplainRow{Result: result})
}
