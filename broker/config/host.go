package config

import (
	"strconv"
	"strings"

	"sshbroker/broker/config/schema"
)

// CrashPolicy is what becomes of the flows that need a broker while there is none.
type CrashPolicy uint8

// The zero CrashPolicy leaves it to what the rules are.
const (
	CrashByRules CrashPolicy = iota
	CrashClosed              // they wait
	CrashOpen                // they go out in clear
)

// Host is what a configuration says of captures beside their rules.
type Host struct {
	CrashPolicy CrashPolicy

	// The rest counts for the broker of a whole host.

	CaptureRoot  bool      // root's flows as well
	CaptureUsers []IDRange // whose flows; empty: those of ordinary accounts
	UserBrokers  bool      // a user's own broker may carry that user's flows
}

// IDRange is one inclusive range of uids.
type IDRange struct{ Lo, Hi uint32 }

// host reads what the element filter-engine says beside its rules.
func (r *reader) host(n *schema.Node) Host {
	brokers, given := n.Get("user-brokers")
	h := Host{CaptureRoot: n.Yes("capture-root"), UserBrokers: !given || brokers == "yes"}
	switch n.Str("crash-policy") {
	case "closed":
		h.CrashPolicy = CrashClosed
	case "open":
		h.CrashPolicy = CrashOpen
	}
	for _, text := range r.list(n, "capture-users") {
		ids, ok := parseIDs(text)
		switch {
		case !ok:
			r.Fail(n.At("capture-users"), n.Name, "write it as 1000-60000 or 1000,1005", "capture-users: %q is neither a uid nor a range of uids", text)
		case ids.Lo == 0:
			r.Fail(n.At("capture-users"), n.Name, `write capture-root="yes"`, "capture-users: %q has root, uid 0, in it", text)
		default:
			h.CaptureUsers = append(h.CaptureUsers, ids)
		}
	}
	return h
}

// parseIDs reads a uid, or two with a hyphen between them.
func parseIDs(text string) (IDRange, bool) {
	lo, hi, isRange := strings.Cut(text, "-")
	if !isRange {
		hi = lo
	}
	a, errA := strconv.ParseUint(strings.TrimSpace(lo), 10, 32)
	b, errB := strconv.ParseUint(strings.TrimSpace(hi), 10, 32)
	const nobody = 1<<32 - 1 // (uid_t)-1 is none
	return IDRange{uint32(a), uint32(b)}, errA == nil && errB == nil && a <= b && b < nobody
}

// accounts adds the names of those accounts that list gives by their number, as it is
// the name that flows are known by. An account without one is known by its number.
func accounts(list []string, name func(id string) string) []string {
	for _, id := range list[:len(list):len(list)] {
		if _, err := strconv.ParseUint(id, 10, 32); err != nil || name == nil {
			continue
		}
		if known := name(id); known != "" && known != id {
			list = append(list, known)
		}
	}
	return list
}
