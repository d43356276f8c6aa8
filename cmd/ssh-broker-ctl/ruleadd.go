package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"sshbroker/broker/config/edit"
	"sshbroker/broker/config/schema"
)

// attributeUsage is what the help says of the attributes of a rule. One that the schema
// has and this list has not is an option all the same.
var attributeUsage = map[string]string{
	"application":             "programs: a `PATTERN` for their path or base name",
	"host":                    "hosts: a `PATTERN` for the name that was asked for, else the address",
	"ip-address":              "addresses: a prefix such as 10.0.0.0/8, or a `PATTERN`",
	"users":                   "login `NAMES` of who connects, with commas between them",
	"groups":                  "`NAMES` of groups of who connects, with commas between them",
	"pseudo-ip":               "programs get a made-up address for the name, which the server resolves",
	"ports":                   "`PORTS` such as 443 or 80,8000-8099; * is all",
	"action":                  "what becomes of the connection: `ACTION`",
	"profile-id":              "the `ID` of the profile to tunnel by; --profile is the same",
	"destination":             "connect to this `HOST` in place of the one asked for",
	"destination-port":        "connect to this `PORT` in place of the one asked for",
	"username":                "log in to the server as `NAME`",
	"hostname-from-app":       "the SSH server is the host that the program asked for",
	"username-from-app":       "log in by the name that the program gives, for FTP",
	"fallback-to-plain":       "go in clear if the tunnel fails, but never after a host key was refused",
	"show-sftp-server-banner": "show the banner of the SFTP server, for FTP",
}

func (a *app) ruleAddCommand() *cobra.Command {
	var r ruleFile
	var at, before, after int
	values := map[string]*string{}
	cmd := &cobra.Command{
		Use:   "add --action ACTION [options]",
		Short: "Add a rule",
		Long: `Add a rule, by default behind all others. Its options are the attributes of the element
rule, explained in ssh-broker-config(5). Where the file has no filter-engine yet, one is
made.

The first rule whose conditions all hold decides: a rule behind one that takes every
connection never does, of which you are warned.`,
		Example: `  ssh-broker-ctl rule add --host '(.*\.)?internal' --pseudo-ip --action TUNNEL --profile-id bastion
  ssh-broker-ctl rule add --ip-address 10.0.0.0/8 --ports 25 --users alice --action BLOCK --before 1
  ssh-broker-ctl rule add -f new.xml --create --action DIRECT`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var attrs []edit.Attr
			for _, attr := range schema.Attributes("rule") {
				if cmd.Flags().Changed(attr.Name) {
					attrs = append(attrs, edit.Attr{Name: attr.Name, Value: *values[attr.Name]})
				} else if attr.Required {
					return usageError{fmt.Errorf("add: --%s is missing: it is one of %s", attr.Name, strings.Join(attr.Values, ", "))}
				}
			}
			given := 0
			for _, n := range []struct {
				name  string
				value int
			}{{"at", at}, {"before", before}, {"after", after}} {
				if !cmd.Flags().Changed(n.name) {
					continue
				}
				if given++; n.value < 1 {
					return usageError{fmt.Errorf("--%s %d: the first rule has the number 1", n.name, n.value)}
				}
			}
			if given > 1 {
				return usageError{errors.New("add: --at, --before and --after: use one of them")}
			}
			return a.editRules(cmd.Context(), r, func(t *edit.Text) (ruleChange, error) {
				return addRule(t, attrs, at, before, after)
			})
		},
	}
	f := cmd.Flags()
	for _, attr := range schema.Attributes("rule") {
		usage := attributeUsage[attr.Name]
		if usage == "" {
			usage = "the attribute " + attr.Name
		}
		switch {
		case attr.YesNo:
			usage += ": `yes|no`"
		case len(attr.Values) > 0:
			usage += ", one of " + strings.Join(attr.Values, ", ")
		}
		values[attr.Name] = f.String(attr.Name, "", usage)
		if attr.YesNo {
			f.Lookup(attr.Name).NoOptDefVal = "yes"
		}
		if attr.Values != nil {
			_ = cmd.RegisterFlagCompletionFunc(attr.Name, cobra.FixedCompletions(attr.Values, cobra.ShellCompDirectiveNoFileComp)) // the flag is there
		}
	}
	f.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		if name == "profile" {
			name = "profile-id"
		}
		return pflag.NormalizedName(name)
	})
	f.IntVar(&at, "at", 0, "make it the rule of number `N`")
	f.IntVar(&before, "before", 0, "put it before rule `N` and the comments above that")
	f.IntVar(&after, "after", 0, "put it behind rule `N`")
	f.BoolVar(&r.create, "create", false, "make the file if it does not exist, for its owner alone")
	r.flags(f)
	return cmd
}

// addRule puts a rule where the options say: behind the last where all are 0.
func addRule(t *edit.Text, attrs []edit.Attr, at, before, after int) (ruleChange, error) {
	number := len(t.Rules()) + 1
	place := edit.Place{Before: before, Behind: after}
	switch {
	case at > 0 && at < number:
		place.Before, number = at, at
	case at > number:
		return ruleChange{}, fmt.Errorf("--at %d: the rule behind the last would have the number %d", at, number)
	case before > 0:
		number = before
	case after > 0:
		number = after + 1
	}
	text, err := t.Add(attrs, place)
	return ruleChange{text: text, to: number, what: "added"}, err
}
