package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"sshbroker/broker/control"
)

func (a *app) listProfilesCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "list-profiles [NAME...]",
		GroupID: groupConfig,
		Short:   "List the profiles in force",
		Long: `List the profiles in force, or those of these names or ids: server, user, and how many
connections each has. -v adds what leads to the server.`,
		Example: `  ssh-broker-ctl list-profiles
  ssh-broker-ctl list-profiles -v paper`,
		RunE: func(cmd *cobra.Command, names []string) error {
			all, err := fetch[control.ProfileRow](cmd.Context(), a, control.OpProfiles, nil)
			if err != nil {
				return err
			}
			var rows []control.ProfileRow
			for _, r := range all {
				if len(names) == 0 || slices.Contains(names, r.ID) || r.Name != "" && slices.Contains(names, r.Name) {
					rows = append(rows, r)
				}
			}
			switch {
			case len(rows) == 0 && len(names) > 0:
				return fmt.Errorf("there is no profile %s", strings.Join(names, " or "))
			}
			list(a, rows, a.profileTable, "no profiles")
			return nil
		},
	}
}

func (a *app) profileTable(rows []control.ProfileRow) {
	t := a.newTable("ID", "NAME", "SERVER", "USER", "THROUGH", "CONNECTIONS")
	t.right(5)
	for _, r := range rows {
		servers := "as programs ask"
		if len(r.Servers) > 0 {
			servers = strings.Join(r.Servers, ", ")
		}
		t.add(r.ID, cmp.Or(r.Name, "-"), servers, cmp.Or(r.User, "-"), cmp.Or(r.Gateway, "-"), strconv.Itoa(r.Connected))
		if a.verbose {
			for _, note := range []struct {
				holds bool
				text  string
			}{{r.Proxy, "a proxy may lead to it"}, {r.Exclusive, "each channel has a connection of its own"},
				{r.Transports > 1 && !r.Exclusive, fmt.Sprintf("up to %d connections at a time", r.Transports)}, {r.Startup, "connected to from the broker's start on"}} {
				if note.holds {
					t.note(note.text)
				}
			}
		}
	}
	t.print(a)
}

func (a *app) connectionStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "connection-status ID",
		GroupID: groupFlows,
		Short:   "Show one connection to an SSH server",
		Long:    `Show all about one connection to an SSH server, with its channels.`,
		Example: `  ssh-broker-ctl connection-status 3`,
		Args:    exactly("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ids, err := readIDs(args)
			if err != nil {
				return err
			}
			return a.connectionStatus(cmd.Context(), ids[0])
		},
	}
}

func (a *app) connectionStatus(ctx context.Context, id uint64) error {
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	rows, err := rowsOf[control.ConnectionRow](ctx, c, control.OpConnections, nil)
	if err != nil {
		return err
	}
	channels, err := rowsOf[control.ChannelRow](ctx, c, control.OpChannels, nil)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(rows, func(r control.ConnectionRow) bool { return r.ID == id })
	if i < 0 {
		return fmt.Errorf("connection %d: no such connection", id)
	}
	below := slices.DeleteFunc(channels, func(r control.ChannelRow) bool { return r.Connection != id })
	if a.short {
		a.printJSON(connectionWithChannels{rows[i], append([]control.ChannelRow{}, below...)})
		return nil
	}
	a.verbose = true
	a.connectionTable(rows[i:i+1], map[uint64][]control.ChannelRow{id: below})
	return nil
}

func (a *app) listClientsCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "list-clients",
		GroupID: groupBroker,
		Short:   "List the programs that talk to the broker",
		Long:    `List the programs that are connected to the broker, such as ssh-capture, and what each asked for.`,
		Example: `  ssh-broker-ctl list-clients`,
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			rows, err := fetch[control.ClientRow](cmd.Context(), a, control.OpClients, nil)
			if err != nil {
				return err
			}
			t := a.newTable("ID", "PROGRAM", "UID", "OPERATION", "SINCE")
			t.right(0, 2)
			for _, r := range rows {
				if a.short {
					a.printJSON(r)
				}
				name := "?"
				if r.Program != "" {
					name = filepath.Base(r.Program)
				}
				t.add(id(r.ID), fmt.Sprintf("%s[%d]", name, r.PID), strconv.Itoa(r.UID), cmp.Or(r.Operation, "-"), a.time(r.Since))
			}
			if !a.short {
				t.print(a)
			}
			return nil
		},
	}
}

func (a *app) closeConnectionCommand() *cobra.Command {
	return a.onEach("close-connection", groupFlows, control.OpCloseConnection, "Close connections to SSH servers",
		`Close connections to SSH servers, by the ids of list-connections. What they carry is
reset; the next program that needs a server has it connected to again.`)
}

func (a *app) closeChannelCommand() *cobra.Command {
	return a.onEach("close-channel", groupFlows, control.OpCloseChannel, "Close captured connections",
		`Close captured connections, by the ids of list-channels: the program and the far side
see a reset. Those that are still being opened cannot be closed.`)
}

func (a *app) disconnectClientCommand() *cobra.Command {
	return a.onEach("disconnect-client", groupBroker, control.OpDisconnect, "Disconnect programs from the broker",
		`Disconnect programs from the broker, by the ids of list-clients. A capture goes on
without its ssh-capture.`)
}

// onEach is a command that does one operation on each of the things that it is given by
// their numbers.
func (a *app) onEach(name, group, op, short, long string) *cobra.Command {
	return &cobra.Command{
		Use: name + " ID...", GroupID: group, Short: short, Long: long,
		Example: "  ssh-broker-ctl " + name + " 3",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{fmt.Errorf("%s: ID is missing; see ssh-broker-ctl %s --help", name, name)}
			}
			_, err := readIDs(args)
			return err
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial(cmd.Context())
			if err != nil {
				return err
			}
			defer c.Close()
			ids, err := readIDs(args)
			failed := false
			for _, id := range ids {
				if err := c.Call(cmd.Context(), op, control.IDArgs{ID: id}, nil, nil, nil); err != nil {
					if errors.Is(err, control.ErrBrokerGone) {
						return err
					}
					a.report(fmt.Errorf("%s: %w", name, err))
					failed = true
				}
			}
			if failed {
				return errSilent
			}
			return err
		},
	}
}

// readIDs reads numbers from 1 on.
func readIDs(args []string) ([]uint64, error) {
	var ids []uint64
	for _, arg := range args {
		n, err := strconv.ParseUint(arg, 10, 64)
		if err != nil || n == 0 {
			return nil, usageError{fmt.Errorf("%q is not an id", arg)}
		}
		ids = append(ids, n)
	}
	return ids, nil
}
