package main

import (
	"cmp"
	"errors"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"sshbroker/broker/control"
)

func (a *app) servicesCommand() *cobra.Command {
	var profile string
	cmd := &cobra.Command{
		Use:     "services [--profile PROFILE]",
		GroupID: groupFlows,
		Short:   "List what gateways offer",
		Long: `Ask the ssh-gateway behind each profile of protocol tls, or behind one, which services
our certificate may use there. A service leads to a destination of its own, or to
those that the program names by HTTP CONNECT.

PORT is the one at which the gateway's administrator would have it offered here;
"any" and a port with "or another" leave it to you. LISTEN is where it is already. -v
adds the command that opens a port for it.`,
		Example: `  ssh-broker-ctl services -v
  ssh-broker-ctl services --profile office -s | jq -r .name`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			rows, err := fetch[control.ServiceRow](cmd.Context(), a, control.OpServices, control.ServicesArgs{Profile: profile})
			if err != nil {
				return err
			}
			good := slices.DeleteFunc(slices.Clone(rows), func(r control.ServiceRow) bool { return r.Error != "" })
			if len(good) > 0 || len(rows) == 0 {
				list(a, good, a.serviceTable, "no services are offered")
			}
			for _, r := range rows {
				if r.Error != "" {
					a.report(errors.New(r.Error))
				}
			}
			if len(good) < len(rows) {
				return errSilent
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&profile, "profile", "", "the id or the name of a `PROFILE`")
	return cmd
}

func (a *app) serviceTable(rows []control.ServiceRow) {
	t := a.newTable("PROFILE", "SERVICE", "KIND", "TO", "PORT", "LISTEN", "DESCRIPTION")
	for _, r := range rows {
		port := "any"
		switch {
		case r.Port != 0 && r.Overridable:
			port = strconv.Itoa(int(r.Port)) + " or another"
		case r.Port != 0:
			port = strconv.Itoa(int(r.Port))
		}
		t.add(r.Profile, r.Name, r.Kind, cmp.Or(r.Target, strings.Join(r.Hosts, ", "), "-"), port,
			cmp.Or(strings.Join(r.Listen, ", "), "-"), cmp.Or(r.Description, "-"))
		if a.verbose && len(r.Open) > 0 {
			t.note("ssh-broker-ctl " + strings.Join(r.Open, " "))
		}
	}
	t.print(a)
}
