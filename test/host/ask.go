package host

import (
	"context"
	"encoding/json"
	"path/filepath"

	"sshbroker/broker/control"
	"sshbroker/test/netns"
)

// BrokerSocket is where a user's own broker listens.
func BrokerSocket(u *netns.User) string { return filepath.Join("/tmp", "ssh-"+u.Name, "ssh-broker") }

// Ask has a user's own broker do one thing that takes no arguments and returns the rows;
// false where there is no broker just now.
func Ask[Row any](ctx context.Context, u *netns.User, op string) (rows []Row, ok bool) {
	c, err := control.Dialer{Address: BrokerSocket(u), AnyOwner: true}.Dial(ctx)
	if err != nil {
		return nil, false
	}
	defer c.Close()
	err = c.Call(ctx, op, nil, nil, func(b json.RawMessage) error {
		var row Row
		err := json.Unmarshal(b, &row)
		rows = append(rows, row)
		return err
	}, nil)
	return rows, err == nil
}
