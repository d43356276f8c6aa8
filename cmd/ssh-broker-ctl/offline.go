package main

import (
	"cmp"
	"fmt"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"sshbroker/broker"
	"sshbroker/broker/config"
	"sshbroker/broker/control"
	"sshbroker/broker/explain"
	"sshbroker/broker/location"
	"sshbroker/filter"
)

// explainFile explains by the rules of a file, as a broker would that has read it.
func (a *app) explainFile(file string, flow control.ExplainArgs) ([]control.ExplainRow, error) {
	env := ownEnv()
	options := config.Options{GlobalFile: a.globalFile, File: file, Env: env}
	if a.system {
		options = config.Options{GlobalFile: file, System: true, Env: env}
	}
	c, err := config.Load(options)
	if err != nil {
		return nil, err
	}
	return explainConfig(c, env, flow)
}

// explainConfig explains by a configuration.
func explainConfig(c *config.Config, env config.Env, flow control.ExplainArgs) ([]control.ExplainRow, error) {
	if c.Filter == nil {
		return nil, &control.Error{Message: "there is no filter-engine in " + strings.Join(c.Files, " or "),
			Hint: "without rules ssh-capture refuses to run, unless with --via or --allow-direct"}
	}
	login, groups := env.User, ownGroups()
	if flow.User != "" && flow.User != login {
		var err error
		login, groups, err = accountNamed(flow.User)
		if err != nil && len(flow.Groups) == 0 {
			return nil, fmt.Errorf("explain: %w", err)
		}
	}
	place := location.Look(location.Files{Hosts: "/etc/hosts", Resolv: "/etc/resolv.conf"})
	on := config.Presences(c.Networks, place.On)
	rules := c.Filter.At(func(network string) filter.Presence { return on[network] })
	policy := &broker.Policy{Generation: 1, Rules: rules, Profiles: c.Profiles, Defaults: c.Defaults}
	return explain.Flow(policy, flow, login, groups), nil
}

// accountNamed finds an account by its login name, or its uid in figures, and the names
// of the groups that it is in. With an error the name is that asked for.
func accountNamed(name string) (login string, groups []string, err error) {
	u, err := user.Lookup(name)
	if err != nil {
		byID, idErr := user.LookupId(name)
		if idErr != nil {
			return name, nil, err
		}
		u = byID
	}
	ids, err := u.GroupIds()
	return u.Username, groupNames(ids), err
}

// ownGroups does not fail: in a container the process may have no account.
func ownGroups() []string {
	ids := []string{strconv.Itoa(os.Getegid())}
	more, _ := os.Getgroups()
	for _, id := range more {
		ids = append(ids, strconv.Itoa(id))
	}
	return groupNames(ids)
}

// groupNames are the names of groups, in figures where they have none, as a broker has
// them.
func groupNames(ids []string) []string {
	var names []string
	for _, id := range ids {
		if name := cmp.Or(groupName(id), id); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// userName and groupName find the name of an account by its number, "" where it has
// none.

func userName(id string) string {
	u, err := user.LookupId(id)
	if err != nil {
		return ""
	}
	return u.Username
}

func groupName(id string) string {
	g, err := user.LookupGroupId(id)
	if err != nil {
		return ""
	}
	return g.Name
}
