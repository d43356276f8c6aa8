package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"sshbroker/broker/control"
	"sshbroker/broker/trial"
	"sshbroker/capture/leak"
)

// leakInside is the hidden command that makes the probes inside a capture.
const leakInside = "leak-inside"

func leakInsideCommand() *cobra.Command {
	return &cobra.Command{
		Use:    leakInside + " DESCRIPTOR",
		Short:  "Make the probes of leak-test",
		Hidden: true,
		Args:   exactly("DESCRIPTOR"),
		RunE:   func(_ *cobra.Command, args []string) error { return leak.Serve(args[0]) },
	}
}

type leakTestArgs struct {
	backend string
	udp     string
	close   bool
	probes  []string
	list    bool
}

func (a *app) leakTestCommand() *cobra.Command {
	var l leakTestArgs
	cmd := &cobra.Command{
		Use:     "leak-test [command options]",
		GroupID: groupSystem,
		Short:   "Prove that nothing gets out of a capture in clear",
		Long: `Prove that nothing gets out of a capture in clear. In a real capture by rules of its own,
whose tunnel is down, every way out is tried that a program might take, and from outside
it is watched what arrives. Each is tried without a capture just before, so that it is
known to be seen if it gets out.

The verdicts: held, caught as a flow that the rules judge; refused, nothing came out;
LEAK, it came out in clear; not possible, it does not work here without a capture either.
No test traffic leaves this host: it goes to addresses of the host's own, or to the
multicast groups of all hosts with a TTL of 0.

The rules, the broker and the servers of yours are not touched, and not tested: explain
tells what your rules make of a connection. The exit code is 1 if something leaks.`,
		Example: `  ssh-broker-ctl leak-test
  ssh-broker-ctl leak-test --close-sockets --backend namespace
  ssh-broker-ctl leak-test --backend none             each probe is seen where nothing holds it
  ssh-broker-ctl leak-test -s | jq -r 'select(.verdict == "LEAK") | .probe'`,
		Args: exactly(),
		PreRunE: func(*cobra.Command, []string) error {
			_, unknown := leak.Named(l.probes...)
			switch {
			case !slices.Contains([]string{"auto", "cgroup", "namespace", trial.NoBackend}, l.backend):
				return usageError{fmt.Errorf("leak-test: --backend %q: it is auto, cgroup, namespace or none", l.backend)}
			case l.udp != "refuse" && l.udp != "direct":
				return usageError{fmt.Errorf("leak-test: --udp %q: it is refuse or direct", l.udp)}
			case len(unknown) > 0:
				return usageError{fmt.Errorf("leak-test: there is no probe %s; see ssh-broker-ctl leak-test --list", strings.Join(unknown, ", "))}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if l.list {
				a.listProbes(l.probes)
				return nil
			}
			return a.leakTest(cmd.Context(), l)
		},
	}
	f := cmd.Flags()
	f.StringVar(&l.backend, "backend", "auto", "how to capture: `auto|cgroup|namespace|none`; none: not at all, to see that each probe is seen")
	f.StringVar(&l.udp, "udp", "refuse", "as the option of ssh-capture: `refuse|direct`")
	f.BoolVar(&l.close, "close-sockets", false, "as the option of ssh-capture, which --strict implies")
	f.StringSliceVar(&l.probes, "probe", nil, "make the `PROBE` alone; more than one by commas, or by this option again")
	f.BoolVar(&l.list, "list", false, "list the probes and make none")
	return cmd
}

func (a *app) listProbes(names []string) {
	probes, _ := leak.Named(names...)
	t := a.newTable("PROBE", "ABOUT", "WHAT")
	for _, p := range probes {
		if a.short {
			a.printJSON(leak.Finding{Probe: p.Name, What: p.What, Class: p.Class})
			continue
		}
		t.add(p.Name, string(p.Class), p.What)
	}
	if !a.short {
		t.print(a)
	}
}

// programs are those of ours that are installed with this one.
func programs() (trial.Programs, error) {
	capture, err := control.FindProgram("ssh-capture")
	if err != nil {
		return trial.Programs{}, err
	}
	return trial.Programs{Capture: capture}, nil
}

func (a *app) leakTest(ctx context.Context, l leakTestArgs) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	installed, err := programs()
	if err != nil {
		return err
	}
	probes, _ := leak.Named(l.probes...)
	count := map[leak.Verdict]int{}
	r := a.newReport("VERDICT", "PROBE", "WHAT")
	backend, err := trial.Leaks(ctx, trial.LeakOptions{
		Programs: installed, Inside: []string{self, leakInside}, Backend: l.backend, UDP: l.udp, CloseSockets: l.close, Probes: probes,
		Found: func(f leak.Finding) {
			count[f.Verdict]++
			if a.short {
				a.printJSON(f)
				return
			}
			notes := []string{}
			if a.verbose || f.Verdict == leak.Leaked {
				notes = append(notes, f.Detail)
			}
			if f.Cure != "" {
				notes = append(notes, "cure: "+f.Cure)
			}
			r.row(verdictColour(f.Verdict), notes, string(f.Verdict), f.Probe, f.What)
		},
	})
	if err != nil {
		return err
	}
	if !a.short && !a.quiet {
		a.printf("%d of %d leak, %d held, %d refused, %d not possible here; backend: %s\n", count[leak.Leaked], len(probes),
			count[leak.Held], count[leak.RefusedHere], count[leak.NotPossible], backend)
	}
	switch {
	case count[leak.Leaked] > 0:
		return errSilent
	case count[leak.Held]+count[leak.RefusedHere] == 0:
		return errors.New("leak-test: no probe is possible here, so nothing is proved")
	}
	return nil
}

func verdictColour(v leak.Verdict) colour {
	switch v {
	case leak.Leaked:
		return red
	case leak.NotPossible:
		return yellow
	}
	return green
}
