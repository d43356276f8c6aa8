package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sshbroker/broker/control"
	"sshbroker/capture"
	"sshbroker/capture/service"
	"sshbroker/capture/service/client"
)

// What connector does.
const (
	connectorEnable  = "enable"
	connectorDisable = "disable"
	connectorStatus  = "status"
)

func (a *app) connectorCommand() *cobra.Command {
	actions := []string{connectorEnable, connectorDisable, connectorStatus}
	return &cobra.Command{
		Use:     "connector enable|disable|status",
		GroupID: groupSystem,
		Short:   "Turn capture for the whole system on or off, or show how it is",
		Long: `Turn capture for the whole system on or off, or show how ssh-captured is. While it is
on, the rules of the system broker decide about the connections of all users. Only
root and members of the administrators' group may turn it on or off.

status shows what is captured, who serves it, and with which foreign rules there were
conflicts; -v also the rules that the kernel carries out by itself, with counts. The
exit code is 3 when ssh-captured does not run.`,
		Example: `  ssh-broker-ctl connector status
  ssh-broker-ctl connector status -v -w
  ssh-broker-ctl connector enable && ssh-broker-ctl --system status`,
		ValidArgs: actions,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := exactly("enable, disable or status")(cmd, args); err != nil {
				return err
			}
			if !slices.Contains(actions, args[0]) {
				return usageError{fmt.Errorf("connector: %q is not one of %s", args[0], strings.Join(actions, ", "))}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return a.connector(cmd.Context(), args[0]) },
	}
}

func (a *app) connector(ctx context.Context, action string) error {
	c, err := dialCaptured(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	if action != connectorStatus {
		if err := switchSystem(ctx, c, action == connectorEnable); err != nil {
			return err
		}
	}
	s, err := c.Status(ctx)
	switch {
	case err != nil:
		return err
	case a.short:
		a.printJSON(s)
	case a.quiet:
	case action == connectorStatus:
		a.connectorStatus(s)
	default:
		a.field("connector", "%s", connectorText(s))
		a.hints(s)
	}
	return nil
}

// rulesWithin is how long a system broker may take that was started a moment ago.
const rulesWithin = 5 * time.Second

// switchSystem turns the capture on or off. A system broker that runs and has not given
// its rules yet is waited for: whoever has started it enables in the next line.
func switchSystem(ctx context.Context, c *client.Client, on bool) error {
	const pause = 50 * time.Millisecond
	for end := time.Now().Add(rulesWithin); ; {
		err := c.Connector(ctx, on)
		answer, ok := errors.AsType[*service.Error](err)
		if !ok || answer.Code != service.CodeNoSystem || time.Now().After(end) {
			return err
		}
		broker, berr := control.Dialer{Address: control.SystemAddress, AnyOwner: true}.Dial(ctx)
		if berr != nil {
			return err
		}
		broker.Close()
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
	}
}

func dialCaptured(ctx context.Context) (*client.Client, error) {
	return client.Dial(ctx, "", "ssh-broker-ctl "+control.Version())
}

// hintOf is what helps against an error of ssh-captured; "" where nothing is known to.
func hintOf(err error) string {
	const start = "as root: systemctl start ssh-captured, or run ssh-captured"
	var answer *service.Error
	switch {
	case errors.Is(err, client.ErrNotRunning):
		return start
	case !errors.As(err, &answer):
		return ""
	case answer.Hint != "":
		return answer.Hint
	}
	switch answer.Code {
	case service.CodeForbidden:
		return "only root, and members of the administrators' group that ssh-captured was started with, may do this"
	case service.CodeNoSystem:
		return noSystemBroker
	case service.CodeVersion:
		return "install ssh-captured and ssh-broker-ctl of the same version, and restart ssh-captured"
	case service.CodeStopping:
		return start
	}
	return ""
}

const noSystemBroker = "start the broker of the whole system: systemctl start ssh-broker-system, or ssh-broker --system"

// field prints one line of a status.
func (a *app) field(name, format string, args ...any) {
	a.printf("%-14s %s\n", name, fmt.Sprintf(format, args...))
}

func connectorText(s service.Status) string {
	switch {
	case !s.Enabled:
		return "disabled: only captures of single programs are in force"
	case s.Serving:
		return "enabled, the system broker is connected"
	case s.Policy == "open":
		return "enabled, WITHOUT A SYSTEM BROKER: connections that it should decide go out in clear"
	default:
		return "enabled, WITHOUT A SYSTEM BROKER: connections that it should decide wait"
	}
}

func (a *app) connectorStatus(s service.Status) {
	a.field("ssh-captured", "running, process %d, %s", s.PID, s.Program)
	a.field("since", "%s", a.time(s.Since))
	a.field("connector", "%s", connectorText(s))
	held := "held: connect() returns what is true"
	if !s.Held {
		held = "not held: this kernel cannot, so connect() succeeds before the far side has answered"
	}
	a.field("SYN", "%s; %d waiting", held, s.Waiting)
	a.field("crash policy", "%s", policyText(s))
	a.field("table", "ownership: %s; descriptors kept by: %s", s.Ownership, s.Keeper)
	a.field("programs", "%s", originsText(s.Origins))
	a.field("cgroups", "%s", cmp.Or(s.Hierarchy, "none: no cgroup2 is mounted, so ssh-capture cannot take --backend=cgroup"))
	if len(s.Carriers) > 0 {
		var uids []string
		for _, uid := range s.Carriers {
			uids = append(uids, strconv.FormatUint(uint64(uid), 10))
		}
		a.field("carriers", "own brokers of uid %s", strings.Join(uids, ", "))
	}
	a.conflicts(s)
	if len(s.Captures) > 0 {
		a.printf("\n")
		a.captureTable(s.Captures)
	}
	if a.verbose {
		a.ruleTable(s.Captures)
	}
	a.hints(s)
}

func policyText(s service.Status) string {
	switch s.Policy {
	case "closed":
		return "closed: without a broker, connections wait"
	case "open":
		return "open: without a broker, connections go out in clear"
	}
	return cmp.Or(s.Policy, "-")
}

func originsText(origins string) string {
	switch origins {
	case "bpf":
		return "found by BPF, in microseconds"
	case "proc":
		return "searched for in /proc, where a rule needs them"
	}
	return cmp.Or(origins, "-")
}

// conflicts names what foreign rules, or too many connections, have done to ours.
func (a *app) conflicts(s service.Status) {
	for _, c := range []struct {
		count uint64
		text  string
	}{
		{s.LostMark, "connections were dropped, as a foreign rule had taken our mark: look for rules that set or restore marks (nft list ruleset)"},
		{s.Diverted, "connections were dropped, as a foreign rule had diverted them first: look for dnat and redirect before ours (nft list ruleset)"},
		{s.Suppressed, "lines of the log of ssh-captured left out, as there were too many of a kind"},
		{s.Repairs, "times a foreign program removed our table; the last time it was gone for " + cmp.Or(s.LastGap, "an unknown time")},
	} {
		if c.count > 0 {
			a.field("CONFLICT", "%d %s", c.count, c.text)
		}
	}
	for _, c := range []struct {
		count uint64
		text  string
	}{
		{s.Metered, "connections were put off, as their user opened too many at once"},
		{s.Bounded, "connections were put off, as their user had too many waiting"},
		{s.Overruns, "times the packet queue was not read in time"},
		{s.Strangers, "connections straight to our listeners, reset"},
	} {
		if c.count > 0 {
			a.field("limits", "%d %s", c.count, c.text)
		}
	}
}

func (a *app) captureTable(captures []service.Capture) {
	t := a.newTable("CAPTURE", "OWNER", "BROKER", "WAITING", "BY KERNEL", "CGROUP")
	t.right(3, 4)
	for _, c := range captures {
		owner, broker := strconv.FormatUint(uint64(c.Owner), 10), "connected"
		if c.ID == service.System {
			owner = "-"
		}
		if !c.Served {
			broker = "NONE"
		}
		decided := uint64(0)
		for _, h := range c.Hits {
			decided += h.Count
		}
		t.add(c.ID, owner, broker, strconv.Itoa(c.Waiting), strconv.FormatUint(decided, 10), cmp.Or(c.Cgroup, "-"))
	}
	t.print(a)
}

// ruleTable shows the rules that the kernel carries out by itself.
func (a *app) ruleTable(captures []service.Capture) {
	t := a.newTable("CAPTURE", "RULE", "OUTCOME", "COUNT", "TO")
	t.right(1, 3)
	for _, c := range captures {
		counts, shown := map[hitKey]uint64{}, map[hitKey]bool{}
		for _, h := range c.Hits {
			counts[hitKey{h.Rule, h.Outcome}] += h.Count
		}
		add := func(rule int, outcome, to string) {
			name := strconv.Itoa(rule)
			if rule == 0 {
				name = "default"
			}
			k := hitKey{rule, outcome}
			count := ""
			switch {
			case outcome == capture.Ask.String():
				count = "-" // the broker decides those, and counts them
			case !shown[k]: // a rule of several parts has one count
				count = strconv.FormatUint(counts[k], 10)
			}
			shown[k] = true
			delete(counts, k)
			t.add(c.ID, name, outcome, count, to)
		}
		if c.Spec != nil {
			for _, r := range c.Spec.Rules {
				add(r.Number, r.Outcome.String(), destinations(r))
			}
			add(0, c.Spec.Rest.String(), "everything else")
		}
		for _, k := range slices.SortedFunc(maps.Keys(counts), hitKey.compare) {
			add(k.rule, k.outcome, "-")
		}
	}
	if len(t.rows) > 0 {
		a.printf("\n")
		t.print(a)
	}
}

type hitKey struct {
	rule    int
	outcome string
}

func (k hitKey) compare(other hitKey) int {
	last := func(rule int) int { return (rule - 1) & math.MaxInt } // what no rule names
	return cmp.Or(cmp.Compare(last(k.rule), last(other.rule)), cmp.Compare(k.outcome, other.outcome))
}

// destinations is what a compiled rule takes, for people.
func destinations(r capture.SpecRule) string {
	const most = 4
	list := func(all []string, every string) string {
		switch {
		case len(all) == 0:
			return every
		case len(all) > most:
			return fmt.Sprintf("%s and %d more", strings.Join(all[:most], ","), len(all)-most)
		}
		return strings.Join(all, ",")
	}
	var prefixes, ports []string
	for _, p := range r.Prefixes {
		prefixes = append(prefixes, p.String())
	}
	for _, p := range r.Ports {
		text := strconv.Itoa(int(p.Lo))
		if p.Hi != p.Lo {
			text += "-" + strconv.Itoa(int(p.Hi))
		}
		ports = append(ports, text)
	}
	return list(prefixes, "every address") + ", " + list(ports, "every port")
}

// hints say what is missing.
func (a *app) hints(s service.Status) {
	if s.Enabled && !s.Serving {
		a.printf("hint: %s\n", noSystemBroker)
	}
}
