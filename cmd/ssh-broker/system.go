package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"

	"sshbroker/broker/control"
)

// Where the broker of the whole system has its things, beside control.SystemAddress.
const (
	systemAuditFile = "/var/log/ssh-broker-system/audit.jsonl"
	systemStateDir  = "/var/lib/ssh-broker-system"
)

// checkSystem refuses options that do not go with --system, or not without it.
func (o *options) checkSystem() error {
	switch {
	case o.system && o.onDemand:
		return errors.New("--system and --run-on-demand: the broker of the whole system stays until it is stopped")
	case !o.system && o.stateDir != "":
		return errors.New("--state-dir is for --system: other brokers have their state beside their socket")
	case !o.system && o.adminGroup != "":
		return errors.New("--admin-group is for --system: other brokers obey their own user and root alone")
	}
	return nil
}

// systemPlaces fills in the files of --system that no option names, and says which
// directory is missing.
func (o *options) systemPlaces(address string) error {
	dir, err := filepath.Abs(cmp.Or(o.stateDir, systemStateDir))
	if err != nil {
		return err
	}
	o.stateDir, o.auditFile = dir, cmp.Or(o.auditFile, systemAuditFile)
	var problems []error
	hint := ""
	for _, dir := range []struct{ path, mode, what string }{
		{filepath.Dir(address), "0755", "socket"},
		{o.stateDir, "0700", "state"},
		{filepath.Dir(o.auditFile), "0700", "audit record"},
	} {
		info, err := os.Stat(dir.path)
		switch {
		case err == nil && info.IsDir():
			continue
		case err == nil:
			problems = append(problems, fmt.Errorf("directory for the %s: %s is no directory", dir.what, dir.path))
		case errors.Is(err, fs.ErrNotExist):
			problems = append(problems, fmt.Errorf("directory for the %s: %s does not exist", dir.what, dir.path))
			if hint != "" {
				hint += " && "
			}
			hint += fmt.Sprintf("install -d -m %s -o %s %s", dir.mode, account(), dir.path)
		default:
			problems = append(problems, fmt.Errorf("directory for the %s: %w", dir.what, err))
		}
	}
	if len(problems) == 0 {
		return nil
	}
	if hint != "" {
		hint = "as root: " + hint + "; or start ssh-broker-system.service, which makes them"
	}
	return &control.Error{Message: errors.Join(problems...).Error(), Hint: hint}
}

// account is the name of whom this process runs as, or its number.
func account() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return strconv.Itoa(os.Getuid())
}

// admins is the gid of --admin-group, 0 without one.
func (o *options) admins() (int, error) {
	if o.adminGroup == "" {
		return 0, nil
	}
	if gid, err := strconv.ParseUint(o.adminGroup, 10, 31); err == nil {
		return int(gid), nil
	}
	g, err := user.LookupGroup(o.adminGroup)
	if err != nil {
		return 0, &control.Error{Message: "--admin-group: " + err.Error(), Hint: "as root: groupadd --system " + o.adminGroup}
	}
	return strconv.Atoi(g.Gid)
}
