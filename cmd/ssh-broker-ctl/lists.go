package main

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"sshbroker/broker/control"
)

func (a *app) listConnectionsCommand() *cobra.Command {
	var channels bool
	cmd := &cobra.Command{
		Use:     "list-connections",
		GroupID: groupFlows,
		Short:   "List the connections to SSH servers",
		Long: `List the connections to SSH servers, one line each. Many captured connections share
one: -c shows them below it. -v adds how the connection is secured.`,
		Example: `  ssh-broker-ctl list-connections
  ssh-broker-ctl list-connections -c -w
  ssh-broker-ctl list-connections -s | jq -r .server`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.listConnections(cmd.Context(), channels) },
	}
	cmd.Flags().BoolVarP(&channels, "show-channels", "c", false, "show the channels of each connection")
	return cmd
}

// connectionWithChannels is what list-connections -s -c prints.
type connectionWithChannels struct {
	control.ConnectionRow
	Channels []control.ChannelRow `json:"channel_rows"`
}

func (a *app) listConnections(ctx context.Context, channels bool) error {
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	rows, err := rowsOf[control.ConnectionRow](ctx, c, control.OpConnections, nil)
	if err != nil {
		return err
	}
	below := map[uint64][]control.ChannelRow{}
	if channels {
		all, err := rowsOf[control.ChannelRow](ctx, c, control.OpChannels, nil)
		if err != nil {
			return err
		}
		for _, ch := range all {
			below[ch.Connection] = append(below[ch.Connection], ch)
		}
	}
	switch {
	case a.short:
		for _, r := range rows {
			if channels {
				a.printJSON(connectionWithChannels{r, append([]control.ChannelRow{}, below[r.ID]...)})
			} else {
				a.printJSON(r)
			}
		}
	case len(rows) == 0:
		if !a.quiet {
			a.printf("no connections to SSH servers\n")
		}
	default:
		a.connectionTable(rows, below)
	}
	return nil
}

func (a *app) connectionTable(rows []control.ConnectionRow, below map[uint64][]control.ChannelRow) {
	t := a.newTable("ID", "SERVER", "USER", "PROFILE", "STATE", "CHANNELS", "UP", "DOWN", "SINCE")
	t.right(0, 5, 6, 7)
	for _, r := range rows {
		profile, state := cmp.Or(r.Profile, "-"), r.State
		if r.Number > 0 {
			profile += " #" + strconv.Itoa(r.Number)
		}
		if r.Bulk {
			state += ", bulk"
		}
		t.add(id(r.ID), r.Server, cmp.Or(r.User, "-"), profile, state, strconv.Itoa(r.Channels),
			size(r.BytesUp), size(r.BytesDown), a.time(r.Since))
		if r.LastError != "" {
			note := "last error: " + r.LastError
			if !r.RetryAt.IsZero() {
				note += "; next try " + a.time(r.RetryAt)
			}
			t.note(note)
		}
		if r.Note != "" {
			t.note(r.Note)
		}
		if a.verbose {
			if r.Version != "" {
				t.note("version " + r.Version)
			}
			if !r.Expires.IsZero() {
				t.note("our certificate expires " + a.time(r.Expires))
			}
			t.note(fmt.Sprintf("host key %s, cipher %s", cmp.Or(r.HostKey, "-"), cmp.Or(r.Cipher, "-")))
			if r.Via != "" {
				t.note("through profile " + r.Via)
			}
		}
		for _, ch := range below[r.ID] {
			t.note(fmt.Sprintf("channel %d: %s to %s, %s up, %s down, %s", ch.ID, program(ch), target(ch),
				size(ch.BytesUp), size(ch.BytesDown), ch.State))
		}
	}
	t.print(a)
}

func (a *app) listChannelsCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "list-channels",
		GroupID: groupFlows,
		Short:   "List the captured connections that are open",
		Long: `List the captured connections that the broker carries: the program, where it wanted
to go, the rule that decided, and the traffic. Connection "-" is carried without a
tunnel. -v adds the program's path and the addresses.`,
		Example: `  ssh-broker-ctl list-channels
  ssh-broker-ctl list-channels -s | jq -r 'select(.action == "DIRECT") | .dst'`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			rows, err := fetch[control.ChannelRow](cmd.Context(), a, control.OpChannels, nil)
			if err != nil {
				return err
			}
			list(a, rows, a.channelTable, "no captured connections")
			return nil
		},
	}
}

func (a *app) channelTable(rows []control.ChannelRow) {
	t := a.newTable("ID", "CONNECTION", "PROGRAM", "TO", "RULE", "ACTION", "STATE", "UP", "DOWN", "SINCE")
	t.right(0, 1, 7, 8)
	owned := slices.ContainsFunc(rows, func(r control.ChannelRow) bool { return r.Owner != "" })
	if owned {
		t.head = append(t.head, "USER")
	}
	for _, r := range rows {
		cells := []string{id(r.ID), id(r.Connection), program(r), target(r), cmp.Or(r.Rule, "-"), r.Action, r.State,
			size(r.BytesUp), size(r.BytesDown), a.time(r.Since)}
		if owned {
			cells = append(cells, cmp.Or(r.Owner, "-"))
		}
		t.add(cells...)
		if a.verbose {
			t.note(fmt.Sprintf("%s, capture %s, %s to %s, profile %s", cmp.Or(r.Program, "unknown program"),
				r.Capture, r.Src, r.Dst, cmp.Or(r.Profile, "-")))
		}
	}
	t.print(a)
}

func id(n uint64) string {
	if n == 0 {
		return "-"
	}
	return strconv.FormatUint(n, 10)
}

func program(r control.ChannelRow) string {
	if r.Program == "" {
		return "?"
	}
	return fmt.Sprintf("%s[%d]", filepath.Base(r.Program), r.PID)
}

// target is where the program wanted to go, by name where there is one.
func target(r control.ChannelRow) string {
	if r.Name == "" {
		return r.Dst
	}
	return r.Name + r.Dst[max(0, lastColon(r.Dst)):]
}

func lastColon(s string) int {
	for i := len(s) - 1; i >= 0; i-- {
		if s[i] == ':' {
			return i
		}
	}
	return len(s)
}
