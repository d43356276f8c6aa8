package doctor

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"sshbroker/broker/config"
	"sshbroker/broker/control"
	"sshbroker/capture/service"
)

func (v *visit) configuration(context.Context) []Result {
	c, err := v.configured()
	var problems config.Problems
	switch {
	case errors.As(err, &problems):
		var list []Result
		for _, p := range problems {
			list = append(list, problem(Failed, p))
		}
		return list
	case err != nil:
		return failed("make the file readable for the broker", "%v", err)
	}
	var list []Result
	for _, p := range c.Warnings {
		list = append(list, problem(Warning, p))
	}
	switch {
	case len(c.Files) == 0:
		return skipped("there is no configuration: ssh-capture --via and -f have rules of their own")
	case !c.FilterPresent:
		return append(list, warning("write rules (man ssh-broker-config), or use --via", "no file has the element filter-engine: ssh-capture starts nothing without --via, -f or --allow-direct")...)
	}
	return or(list, "%s: good, %d rules, %d profiles", strings.Join(c.Files, ", "), len(c.Filter.Rules()), len(c.Profiles))
}

func problem(s Status, p config.Problem) Result {
	cure := cmp.Or(p.Hint, "see the element in man ssh-broker-config, and try with ssh-broker-ctl check-config")
	p.Hint = ""
	return Result{Status: s, Text: p.String(), Cure: cure}
}

func (v *visit) broker(ctx context.Context) []Result {
	c, err := v.dial(ctx)
	switch {
	case errors.Is(err, control.ErrNoBroker) && v.System:
		return failed("systemctl start ssh-broker-system, or ssh-broker --system", "the broker of the whole system is not running")
	case errors.Is(err, control.ErrNoBroker):
		return skipped("no broker is running; ssh-capture starts one by itself")
	case err != nil:
		return failed("ssh-broker-ctl status tells more; stop what is there by its process id, and start ssh-broker again", "it does not answer: %v", err)
	}
	defer c.Close()
	var row control.StatusRow
	err = c.Call(ctx, control.OpStatus, nil, nil, func(b json.RawMessage) error { return json.Unmarshal(b, &row) }, nil)
	if err != nil {
		return failed("ssh-broker-ctl status tells more", "it does not say how it is: %v", err)
	}
	return or(v.judgeBroker(row), "running, process %d, %d captures, %d connections", row.PID, row.Captures, row.FlowsLive)
}

func (v *visit) judgeBroker(row control.StatusRow) (list []Result) {
	add := func(r []Result) { list = append(list, r...) }
	if row.Version != v.Version {
		add(warning("ssh-broker-ctl stop; the next ssh-capture starts the one that is installed", "the broker is of version %s, and this program of %s", row.Version, v.Version))
	}
	if row.ConfigDigest != "" && len(row.ConfigFiles) > 0 {
		now, err := config.Digest(row.ConfigFiles...)
		switch {
		case err != nil:
			add(warning("make the files readable, or reload without them", "its configuration cannot be read any more: %v", err))
		case hex.EncodeToString(now[:]) != row.ConfigDigest:
			add(warning("ssh-broker-ctl check-config, then ssh-broker-ctl reload", "its configuration was changed after it was read"))
		}
	}
	if row.Audit.Error != "" || row.Audit.Failed > 0 {
		add(failed("make room, or the file writable: "+row.Audit.Path, "the audit record does not keep up: %d records wait, %d are lost%s", row.Audit.Pending, row.Audit.Failed, because(row.Audit.Error)))
	}
	for _, t := range row.Log {
		if t.Error != "" || t.Lost > 0 {
			add(warning("see the element logging of its configuration", "events to %s do not get there: %d wait, %d are lost%s", t.Target, t.Pending, t.Lost, because(t.Error)))
		}
	}
	for _, e := range row.ListenerErrors {
		add(failed("see which program has the port: ss -ltnp", "a listener is not open: %s", e))
	}
	if row.PlaceError != "" {
		add(warning("see the element networks of its configuration", "it is not known of some network whether this host is on it: %s", row.PlaceError))
	}
	if row.Captured != nil && row.Captured.Error != "" && !row.Captured.Connected {
		add(warning("see the check ssh-captured", "it is not connected to ssh-captured: %s", row.Captured.Error))
	}
	return list
}

func because(text string) string {
	if text == "" {
		return ""
	}
	return ": " + text
}

func (v *visit) sshCaptured(ctx context.Context) []Result {
	s, err := v.captured(ctx)
	var answer *service.Error
	switch {
	case errors.As(err, &answer) && answer.Code == service.CodeVersion:
		return failed("install both of the same version, and restart ssh-captured", "%v", err)
	case err != nil:
		return failed("systemctl status ssh-captured; its log says more", "it does not answer: %v", err)
	case s == nil && v.System:
		return failed("systemctl start ssh-captured, or run ssh-captured as root", "it is not running, so nothing is captured for the whole system")
	case s == nil:
		return skipped("it is not running: captures are by namespace")
	}
	return or(judgeCaptured(*s), "running, process %d; %s; policy %s, table: %s, keeper: %s", s.PID, capturesText(s.Captures), s.Policy, s.Ownership, s.Keeper)
}

// capturesText is what is captured, and by how many rules that the kernel carries out.
func capturesText(captures []service.Capture) string {
	const most = 4
	var list []string
	for _, c := range captures[:min(most, len(captures))] {
		text := fmt.Sprintf("%s of uid %d", c.ID, c.Owner)
		if c.ID == service.System {
			text = "the whole system"
		}
		if c.Spec != nil {
			text += fmt.Sprintf(" by %d rules", len(c.Spec.Rules))
		}
		list = append(list, text)
	}
	switch more := len(captures) - most; {
	case len(captures) == 0:
		return "no captures"
	case more > 0:
		list = append(list, fmt.Sprintf("%d more", more))
	}
	return "captures: " + strings.Join(list, ", ")
}

func judgeCaptured(s service.Status) (list []Result) {
	add := func(r []Result) { list = append(list, r...) }
	if s.Enabled && !s.Serving {
		what := "wait"
		if s.Policy == "open" {
			what = "go out in clear"
		}
		add(failed("systemctl start ssh-broker-system, or ssh-broker-ctl connector disable", "capture for the whole system is on, and its broker is not there: connections that it should decide %s", what))
	}
	for _, c := range s.Captures {
		if !c.Served && c.ID != service.System {
			add(failed("end its programs, or see why ssh-capture starts no broker for it", "capture %s of uid %d has no broker: its connections wait", c.ID, c.Owner))
		}
	}
	if s.Keeper == "none" {
		add(warning("start it without --no-keeper, or from its unit", "nobody keeps its sockets: connections wait longer when it dies"))
	}
	for _, c := range []struct {
		count      uint64
		text, cure string
	}{
		{s.LostMark, "connections were dropped, as a foreign rule had taken our mark", "see the check foreign-rules as root"},
		{s.Diverted, "connections were dropped, as a foreign rule had diverted them first", "see the check foreign-rules as root"},
		{s.Repairs, "times a foreign program removed its table", "have that program leave the table inet ssh_captured alone: \"nft flush ruleset\" in /etc/nftables.conf is one"},
		{s.Overruns, "times the packet queue was not read in time", "the machine is short of processor time"},
	} {
		if c.count > 0 {
			add(warning(c.cure, "%d %s", c.count, c.text))
		}
	}
	return list
}
