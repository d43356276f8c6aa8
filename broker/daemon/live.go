package daemon

import (
	"encoding/hex"
	"fmt"
	"slices"

	"sshbroker/broker"
	"sshbroker/broker/control"
	"sshbroker/broker/explain"
)

// sum is the digest of the files as text.
func (l *loaded) sum() string { return hex.EncodeToString(l.digest[:]) }

// explainLive tells of a flow that is open.
func (d *Daemon) explainLive(call *control.Call, args control.ExplainArgs) error {
	flows := d.broker.Flows()
	i := slices.IndexFunc(flows, func(f broker.FlowInfo) bool { return f.ID == args.Flow })
	if i < 0 {
		return &control.Error{Message: fmt.Sprintf("no captured connection of number %d is open", args.Flow),
			Hint: "list-channels has those that are open; the audit record has those that have ended"}
	}
	for _, row := range explain.Live(d.broker.Policy(), flows[i]) {
		if err := call.Send(row); err != nil {
			return err
		}
	}
	return nil
}
