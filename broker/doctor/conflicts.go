package doctor

import (
	"context"
	"errors"
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"

	"sshbroker/capture/probe"
)

func (v *visit) foreignRules(ctx context.Context) []Result {
	conflicts, err := probe.Conflicts()
	switch {
	case errors.Is(err, fs.ErrPermission):
		return unknown("only root sees the rules of others: sudo ssh-broker-ctl doctor")
	case err != nil:
		return unknown("%v", err)
	}
	// Captures by namespace have rules to themselves.
	s, _ := v.captured(ctx)
	judge := warning
	harm := " when ssh-captured runs"
	if s != nil {
		judge, harm = failed, ""
	}
	var list []Result
	for _, c := range conflicts {
		switch c.Trouble {
		case probe.TakesMark:
			list = append(list, judge("move that chain before priority -145 or behind -99, or have it keep the bits 0x00f00000 of marks",
				"%s: it writes marks between our decision and its execution; connections may be dropped%s", c.Where, harm)...)
		case probe.Diverts:
			list = append(list, judge("give that chain the usual priority of dstnat, -100",
				"%s: it diverts connections before we do; they may be dropped%s", c.Where, harm)...)
		case probe.Drops:
			list = append(list, warning("accept what goes over the loopback device: nft add rule ... iif lo accept, oif lo accept",
				"%s: it drops by policy, and no rule of it names a device; what we redirect to the loopback device may be dropped%s", c.Where, harm)...)
		case probe.Invisible:
			list = append(list, warning("look with iptables-legacy-save; iptables-nft-restore moves them to nftables",
				"%s: its rules are not seen by nftables, so nobody can say what they do to ours", c.Where)...)
		}
	}
	return or(list, "no rules of others are in the way")
}

func (v *visit) routingMarks(context.Context) []Result {
	policies, err := probe.Policies()
	if err != nil {
		return unknown("%v", err)
	}
	var list []Result
	for _, p := range policies {
		if p.Overlaps {
			list = append(list, warning("have the VPN use other bits of the mark than 0x00f00000", "%s: it looks at bits of the mark that are ours; a connection may go another way", p.Text)...)
		}
	}
	return or(list, "%d routing policies go by marks, none by bits of ours", len(policies))
}

func (v *visit) reversePath(context.Context) []Result {
	strict, err := probe.StrictPaths(v.Sys)
	if err != nil {
		return unknown("%v", err)
	}
	policies, err := probe.Policies()
	if err != nil {
		return unknown("%v", err)
	}
	var byMark []string
	for _, p := range policies {
		if p.Family == unix.AF_INET {
			byMark = append(byMark, p.Text)
		}
	}
	if len(strict) == 0 || len(byMark) == 0 {
		return fine("no answers are dropped for the way that they come by")
	}
	return warning("sysctl -w net.ipv4.conf.all.src_valid_mark=1, or rp_filter=2 for these devices",
		"answers that come by %s are dropped where the way back depends on a mark: %s", strings.Join(strict, ", "), strings.Join(byMark, "; "))
}

// Shares of the table of tracked connections, in percent, from which on it is nearly full.
const (
	nearlyFull = 80
	asGoodAs   = 95
)

func (v *visit) tracking(context.Context) []Result {
	count, most, ok, err := probe.Tracked(v.Sys)
	const cure = "sysctl -w net.netfilter.nf_conntrack_max=… to twice as many, and look at who has them: conntrack -L"
	switch {
	case err != nil:
		return unknown("%v", err)
	case !ok:
		return skipped("this host does not track connections")
	case most > 0 && count >= most*asGoodAs/100:
		return failed(cure, "%d of %d connections are tracked: new ones are about to be dropped", count, most)
	case most > 0 && count >= most*nearlyFull/100:
		return warning(cure, "%d of %d connections are tracked", count, most)
	}
	return fine("%d of %d connections are tracked", count, most)
}
