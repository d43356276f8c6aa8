package main

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"

	"sshbroker/broker/config"
)

func (a *app) checkConfigCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "check-config FILE...",
		GroupID: groupConfig,
		Short:   "Say everything that is wrong with configuration files",
		Long: `Read each file as the broker would and list all problems, as file:line:col. No broker
is needed. Warnings are about what is read but has no effect, or not the one it
seems to have: rules that never decide, profiles that nothing uses, a "." in a
pattern that was meant as a dot, passwords that others can read. The exit code is 1
if any file has an error.`,
		Example: `  ssh-broker-ctl check-config ~/.ssh2/ssh-broker-config.xml
  ssh-broker-ctl check-config -s *.xml | jq 'select(.warning | not)'`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{fmt.Errorf("%s: FILE is missing; see %s --help", cmd.Name(), cmd.CommandPath())}
			}
			return nil
		},
		RunE: func(_ *cobra.Command, files []string) error {
			options := config.Options{GlobalFile: config.DefaultGlobalFile, Env: ownEnv()}
			bad := false
			for _, file := range files {
				problems := config.Check(file, options)
				bad = bad || len(problems.Errors()) > 0
				a.problems(file, problems)
			}
			if bad {
				return errSilent
			}
			return nil
		},
	}
}

// problemRow is a finding of check-config -s.
type problemRow struct {
	File    string `json:"file"`
	Line    int    `json:"line"`
	Col     int    `json:"col"`
	Element string `json:"element,omitempty"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
	Warning bool   `json:"warning"`
}

func (a *app) problems(file string, ps config.Problems) {
	for _, p := range ps {
		switch {
		case a.short:
			a.printJSON(problemRow{p.Pos.File, p.Pos.Line, p.Pos.Col, p.Element, p.Msg, p.Hint, p.Warning})
		case !p.Warning || !a.quiet:
			a.printf("%v\n", p)
		}
	}
	if a.short || a.quiet {
		return
	}
	switch errs, warns := len(ps.Errors()), len(ps.Warnings()); {
	case errs+warns == 0:
		a.printf("%s: good\n", file)
	case errs == 0:
		a.printf("%s: good, with %s\n", file, count(warns, "warning"))
	case warns == 0:
		a.printf("%s: %s\n", file, count(errs, "error"))
	default:
		a.printf("%s: %s, %s\n", file, count(errs, "error"), count(warns, "warning"))
	}
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return strconv.Itoa(n) + " " + what + "s"
}

// ownEnv is what variables in values stand for when a broker of ours reads a file.
func ownEnv() config.Env {
	env := config.Env{UID: os.Getuid(), GID: os.Getgid(), Environ: os.Environ(), UserName: userName, GroupName: groupName}
	env.User = strconv.Itoa(env.UID) // where it has no account
	if home, err := os.UserHomeDir(); err == nil {
		env.Home = filepath.Clean(home)
	}
	if u, err := user.Current(); err == nil {
		env.User = u.Username
	}
	env.Group = groupName(strconv.Itoa(env.GID))
	return env
}
