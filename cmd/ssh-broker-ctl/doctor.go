package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"sshbroker/broker/config"
	"sshbroker/broker/control"
	"sshbroker/broker/doctor"
	"sshbroker/broker/trial"
	"sshbroker/capture/service"
	"sshbroker/profiles/sshtun"
)

// connectInside is the hidden command that connects inside a capture.
const connectInside = "connect-inside"

func connectInsideCommand() *cobra.Command {
	return &cobra.Command{
		Use:    connectInside + " ADDRESS...",
		Short:  "Connect as doctor asks for it",
		Hidden: true,
		Args:   cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return trial.ConnectInside(cmd.OutOrStdout(), args...)
		},
	}
}

func (a *app) doctorCommand() *cobra.Command {
	var names []string
	var file string
	var servers bool
	cmd := &cobra.Command{
		Use:     "doctor [command options]",
		GroupID: groupSystem,
		Short:   "Look for what is wrong, and say what would help",
		Long: `Look for what is wrong on this host, and say what would help: what the kernel can do,
what is in force, what of others is in the way, whether a captured program is told what is
true, the clock, files, keys and certificates.

Each check does what it speaks of, in networks and captures of its own: nothing on the
host is changed, no server is contacted but with --servers, and a broker that runs is only
asked. Some can be made by root alone; what is not known is said to be, with the reason.
With --system it is about the broker of the whole system.

The exit code is 1 if something has failed, and 0 with warnings alone.`,
		Example: `  ssh-broker-ctl doctor
  sudo ssh-broker-ctl --system doctor
  ssh-broker-ctl doctor --check clock,keys
  ssh-broker-ctl doctor --servers --check servers
  ssh-broker-ctl doctor -s | jq -r 'select(.status == "FAILED") | .cure'`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			checks, err := checksNamed(names)
			if err != nil {
				return err
			}
			return a.doctor(cmd.Context(), checks, file, servers)
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&names, "check", nil, "make this `CHECK` alone; more than one by commas, or by this option again")
	f.StringVarP(&file, "config-file", "f", "", "judge this configuration `FILE` in place of the usual one")
	f.BoolVar(&servers, "servers", false, "contact the servers of the profiles as well, without logging in")
	return cmd
}

func checksNamed(names []string) ([]doctor.Check, error) {
	checks := doctor.Checks()
	if len(names) == 0 {
		return checks, nil
	}
	var known []string
	for _, c := range checks {
		known = append(known, c.Name)
	}
	for _, n := range names {
		if !slices.Contains(known, n) {
			return nil, usageError{fmt.Errorf("doctor: there is no check %q; there are %s", n, strings.Join(known, ", "))}
		}
	}
	return slices.DeleteFunc(checks, func(c doctor.Check) bool { return !slices.Contains(names, c.Name) }), nil
}

func (a *app) doctor(ctx context.Context, checks []doctor.Check, file string, servers bool) error {
	env, err := a.doctorEnv(file)
	if err != nil {
		return err
	}
	if servers {
		env.Server = new(sshtun.Connector).Certificate
	}
	count := map[doctor.Status]int{}
	r := a.newReport("STATUS", "CHECK", "WHAT")
	progress := a.newProgress()
	defer progress.end()
	err = doctor.Run(ctx, env, checks, func(c doctor.Check) { progress.begin(c.What) }, func(found doctor.Result) {
		progress.end()
		count[found.Status]++
		if a.short {
			a.printJSON(found)
			return
		}
		var notes []string
		if found.Cure != "" {
			notes = []string{"cure: " + found.Cure}
		}
		r.row(statusColour(found.Status), notes, string(found.Status), found.Check, found.Text)
	})
	if err != nil {
		return err
	}
	if !a.short && !a.quiet {
		a.printf("%d failed, %d warnings, %d unknown\n", count[doctor.Failed], count[doctor.Warning], count[doctor.Unknown])
	}
	if count[doctor.Failed] > 0 {
		return errSilent
	}
	return nil
}

func (a *app) doctorEnv(file string) (doctor.Env, error) {
	self, err := os.Executable()
	if err != nil {
		return doctor.Env{}, err
	}
	installed, err := programs()
	if err != nil {
		return doctor.Env{}, err
	}
	given := a.address
	options := config.Options{Env: ownEnv(), GlobalFile: a.globalFile, File: file}
	if a.system {
		given = control.SystemAddress
		options = config.Options{Env: options.Env, GlobalFile: a.globalFile, System: true}
		if file != "" {
			options.GlobalFile, options.File = "", file
		}
	}
	address, err := control.Address(given, a.getenv)
	if err != nil {
		return doctor.Env{}, err
	}
	var built time.Time
	if st, err := os.Stat(self); err == nil {
		built = st.ModTime()
	}
	return doctor.Env{Programs: installed, Connect: []string{self, connectInside}, Config: options, System: a.system,
		Address: address, AnyOwner: given != "", Captured: a.getenv(service.EnvSocket), Program: "ssh-broker-ctl " + control.Version(), Version: control.Version(), Built: built}, nil
}

func statusColour(s doctor.Status) colour {
	switch s {
	case doctor.OK:
		return green
	case doctor.Failed:
		return red
	case doctor.Warning, doctor.Unknown:
		return yellow
	}
	return noColour
}

// progress says on a terminal what takes its time, and takes it back.
type progress struct {
	app *app

	mu    sync.Mutex
	timer *time.Timer // guarded by mu; nil while nothing is under way
	shown bool        // guarded by mu
}

const progressAfter = 500 * time.Millisecond

// newProgress returns nil where nobody would see it.
func (a *app) newProgress() *progress {
	f, ok := a.err.(*os.File)
	if !ok || a.quiet || !term.IsTerminal(int(f.Fd())) || a.getenv("TERM") == "dumb" {
		return nil
	}
	return &progress{app: a}
}

func (p *progress) begin(what string) {
	if p == nil {
		return
	}
	p.end()
	p.mu.Lock()
	defer p.mu.Unlock()
	var timer *time.Timer
	timer = time.AfterFunc(progressAfter, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.timer == timer { // else it has ended meanwhile
			fmt.Fprintf(p.app.err, "… %s", what)
			p.shown = true
		}
	})
	p.timer = timer
}

// end may be called more than once.
func (p *progress) end() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.timer != nil {
		p.timer.Stop()
		p.timer = nil
	}
	if p.shown {
		fmt.Fprint(p.app.err, "\r\x1b[K")
		p.shown = false
	}
}
