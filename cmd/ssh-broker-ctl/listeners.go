package main

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"sshbroker/broker/control"
)

func (a *app) listListenersCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "list-tunnel-listeners",
		GroupID: groupFlows,
		Short:   "List the ports of static tunnels and SOCKS servers",
		Long: `List the ports through which programs reach the broker by themselves: those of
static-tunnels, of profiles that have a connection, and those opened by
open-tunnel-listener. -v adds who wanted each.`,
		Example: `  ssh-broker-ctl list-tunnel-listeners
  ssh-broker-ctl list-tunnel-listeners -s | jq -r 'select(.open | not) | .error'`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			rows, err := fetch[control.ListenerRow](cmd.Context(), a, control.OpListeners, nil)
			if err != nil {
				return err
			}
			list(a, rows, a.listenerTable, "no listeners")
			return nil
		},
	}
}

func (a *app) listenerTable(rows []control.ListenerRow) {
	t := a.newTable("ID", "TYPE", "LISTEN", "TO", "THROUGH", "FOR", "LIVE", "ALL", "SINCE")
	t.right(0, 6, 7)
	for _, r := range rows {
		through, users := "the rules decide", "its user"
		if r.Type != "socks-proxy" && r.Type != "http-connect" {
			through = cmp.Or(r.Profile, r.Server)
		}
		if r.Relay {
			users = "everybody"
		}
		to := cmp.Or(r.Destination, "-")
		if r.Service != "" {
			to = "service " + r.Service
		}
		t.add(id(r.ID), r.Type, r.Listen, to, through, users, strconv.Itoa(r.Live), strconv.FormatUint(r.Accepted, 10), a.time(r.Since))
		if !r.Open {
			t.note("not open: " + cmp.Or(r.Error, "it is about to be"))
		}
		if r.Refused > 0 {
			t.note(fmt.Sprintf("%d connections were refused: of other users or hosts, or without a request", r.Refused))
		}
		if a.verbose {
			t.note("wanted by " + r.Source)
		}
	}
	t.print(a)
}

func (a *app) openListenerCommand() *cobra.Command {
	var kind, service string
	var relay bool
	cmd := &cobra.Command{
		Use:     "open-tunnel-listener [command options] [ADDRESS:]PORT [[USER@]SERVER[#PORT] [HOST PORT]]",
		GroupID: groupFlows,
		Short:   "Open a port whose connections are tunneled",
		Long: `Open a port whose connections are tunneled, until close-tunnel-listener or the
broker's end. SERVER is the id or the name of a profile, or a host. Type tcp leads all
connections to HOST PORT, as SERVER sees it; of types socks and http-connect-chain
programs say where they want to go; of types socks-proxy and http-connect they do and
the filter rules decide, so there is no SERVER.

With --service SERVER is a profile for an ssh-gateway, and of the services that it
offers (see ssh-broker-ctl services) the one of that name is used. Type tcp then has no
HOST PORT.

Without an ADDRESS it is 127.0.0.1, and with --allow-relay every address of this host.
Port 0 is any. Only programs of the broker's user get in, unless with --allow-relay.`,
		Example: `  ssh-broker-ctl open-tunnel-listener 1143 paper imap.example.com 143
  ssh-broker-ctl open-tunnel-listener 1080 me@bastion#2222 --type socks
  ssh-broker-ctl open-tunnel-listener 127.0.0.1:3128 --type http-connect
  ssh-broker-ctl open-tunnel-listener 15432 office --service db`,
		Args: func(_ *cobra.Command, args []string) error {
			want, form := 1, "[ADDRESS:]PORT"
			switch kind {
			case "tcp", "local":
				if service != "" {
					want, form = 2, "[ADDRESS:]PORT SERVER"
					break
				}
				want, form = 4, "[ADDRESS:]PORT [USER@]SERVER[#PORT] HOST PORT"
			case "socks", "http-connect-chain":
				want, form = 2, "[ADDRESS:]PORT [USER@]SERVER[#PORT]"
			case "socks-proxy", "http-connect":
				if service != "" {
					return usageError{fmt.Errorf("open-tunnel-listener: --type %s: the rules decide, --service does not go with it", kind)}
				}
			case "ftp":
				return usageError{errors.New("open-tunnel-listener: type ftp is not built yet")}
			default:
				return usageError{fmt.Errorf("open-tunnel-listener: --type %s: it is one of tcp, socks, socks-proxy, http-connect, http-connect-chain", kind)}
			}
			if len(args) != want {
				return usageError{fmt.Errorf("open-tunnel-listener: --type %s takes: %s", kind, form)}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			o := control.OpenListenerArgs{Type: kind, Listen: args[0], Relay: relay, Service: service}
			if !strings.Contains(o.Listen, ":") {
				o.Listen = ":" + o.Listen
			}
			var err error
			if len(args) > 1 {
				if o.User, o.Server, o.ServerPort, err = readServer(args[1]); err != nil {
					return usageError{err}
				}
			}
			if len(args) > 2 {
				o.Host = args[2]
				if o.Port, err = readPort(args[3]); err != nil {
					return usageError{err}
				}
			}
			row, err := one[control.ListenerRow](cmd.Context(), a, control.OpOpenListener, o)
			switch {
			case err != nil:
				return err
			case a.short:
				a.printJSON(row)
			case !a.quiet:
				a.printf("listener %d at %s\n", row.ID, row.Listen)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&kind, "type", "tcp", "what is spoken at the port: `tcp|socks|socks-proxy|http-connect|http-connect-chain`")
	cmd.Flags().StringVar(&service, "service", "", "the `NAME` of a service of the gateway")
	cmd.Flags().BoolVar(&relay, "allow-relay", false, "let other users and other hosts use it")
	return cmd
}

// readServer reads [user@]server[#port].
func readServer(text string) (user, server string, port uint16, err error) {
	server = text
	if i := strings.LastIndexByte(server, '@'); i >= 0 {
		user, server = server[:i], server[i+1:]
		if user == "" {
			return "", "", 0, fmt.Errorf("%q names no user before the @", text)
		}
	}
	server, service, given := strings.Cut(server, "#")
	if given {
		port, err = readPort(service)
	}
	if err == nil && server == "" {
		err = fmt.Errorf("%q names no server", text)
	}
	return user, server, port, err
}

// readPort reads a number or the name of a service.
func readPort(text string) (uint16, error) {
	n, err := net.LookupPort("tcp", text)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is not a port", text)
	}
	return uint16(n), nil
}

func (a *app) closeListenerCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "close-tunnel-listener ID|[ADDRESS]:PORT...",
		GroupID: groupFlows,
		Short:   "Close ports of tunnels",
		Long: `Close ports of tunnels, each given by the id that list-tunnel-listeners shows or by its
address, without which it is 127.0.0.1. Connections that came through one go on. A port
of the configuration stays closed until its tunnel is changed or the broker is started
again.`,
		Example: `  ssh-broker-ctl close-tunnel-listener 3
  ssh-broker-ctl close-tunnel-listener :1080 192.0.2.1:1143`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{errors.New("close-tunnel-listener: ID is missing; see ssh-broker-ctl list-tunnel-listeners")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial(cmd.Context())
			if err != nil {
				return err
			}
			defer c.Close()
			failed := false
			for _, arg := range args {
				o := control.CloseListenerArgs{Listen: arg}
				if n, err := strconv.ParseUint(arg, 10, 64); err == nil {
					o = control.CloseListenerArgs{ID: n}
				}
				if err := c.Call(cmd.Context(), control.OpCloseListener, o, nil, nil, nil); err != nil {
					a.report(fmt.Errorf("close-tunnel-listener %s: %w", arg, err))
					failed = true
				}
			}
			if failed {
				return errSilent
			}
			return nil
		},
	}
}
