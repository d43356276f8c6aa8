package main

import (
	"fmt"
	"os"
	"os/user"
	"slices"
	"strconv"

	"sshbroker/broker"
	"sshbroker/broker/config"
	"sshbroker/broker/control"
	"sshbroker/broker/explain"
)

// explainFile explains by the rules of a file, as a broker would that has read it.
func (a *app) explainFile(file string, flow control.ExplainArgs) ([]control.ExplainRow, error) {
	env := ownEnv()
	c, err := config.Load(config.Options{GlobalFile: a.globalFile, File: file, Env: env})
	if err != nil {
		return nil, err
	}
	if c.Filter == nil {
		return nil, &control.Error{Message: "there is no filter-engine in " + file,
			Hint: "without rules ssh-capture refuses to run, unless with --via or --allow-direct"}
	}
	login, groups := env.User, ownGroups()
	if flow.User != "" && flow.User != login {
		login = flow.User
		if groups, err = groupsOf(login); err != nil {
			return nil, fmt.Errorf("explain: %w", err)
		}
	}
	policy := &broker.Policy{Generation: 1, Rules: c.Filter, Profiles: c.Profiles, Defaults: c.Defaults}
	return explain.Flow(policy, flow, login, groups), nil
}

// groupsOf returns the names of the groups that an account is in.
func groupsOf(login string) ([]string, error) {
	u, err := user.Lookup(login)
	if err != nil {
		return nil, err
	}
	ids, err := u.GroupIds()
	if err != nil {
		return nil, err
	}
	return groupNames(ids), nil
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

func groupNames(ids []string) []string {
	var names []string
	for _, id := range ids {
		if g, err := user.LookupGroupId(id); err == nil && !slices.Contains(names, g.Name) {
			names = append(names, g.Name)
		}
	}
	return names
}
