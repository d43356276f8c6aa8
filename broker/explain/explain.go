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

// Flow runs the decision that a flow would get, by the same code, and tells of
// every rule on the way. The last row is the result.
func Flow(p *broker.Policy, args control.ExplainArgs, user string, groups []string) []control.ExplainRow {
	flow := filter.Flow{Port: args.Port, User: user, Groups: groups, Program: func() string { return args.Program }}
	if addr, err := netip.ParseAddr(args.Host); err == nil {
		flow.Addr = addr
	} else {
		flow.Names = []string{args.Host}
	}
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
		profile, dst, err := p.Way(d, capture.Flow{Dst: netip.AddrPortFrom(flow.Addr, flow.Port)})
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
