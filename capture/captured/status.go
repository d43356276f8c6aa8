package captured

import (
	"maps"
	"os"
	"slices"
	"time"

	"sshbroker/capture/nft"
	"sshbroker/capture/service"
)

// maxHits keeps a status within one packet: so many counts, and parts of rules.
const maxHits = 2000

// status says what c may know: who is no administrator sees own captures alone.
func (c *client) status(*service.Message, []*os.File) (*answer, error) {
	var rules nft.Counters
	st := &service.Status{
		PID: os.Getpid(), Program: c.Program, Since: c.since, Held: true, Keeper: c.Keep.Kind(), Origins: "proc",
		Ownership: nft.Unowned.String(), Policy: "closed", Repairs: c.repairs.Load(), Enabled: c.config.Enabled,
	}
	if c.table != nil {
		var err error
		if rules, err = c.table.Counters(); err != nil {
			c.Log.Warn("counters", "error", err)
		}
		st.Ownership = c.owned.String()
		if c.owned == nft.Owned {
			st.Policy = "open"
		}
	}
	st.LostMark, st.Diverted, st.Metered = rules.LostMark, rules.Diverted, rules.Metered
	counters := c.source.Counters()
	st.Waiting, st.Overruns, st.Strangers, st.Bounded = counters.Pending, counters.Overruns, counters.Strangers, counters.Bounded
	if c.Suppressed != nil {
		st.Suppressed = c.Suppressed()
	}
	if gap := time.Duration(c.gap.Load()); gap > 0 {
		st.LastGap = gap.String()
	}
	if c.tracker != nil {
		st.Origins = "bpf"
	}
	if c.tree != nil {
		st.Hierarchy = c.tree.Mount
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	left, parts := maxHits, maxHits
	for _, id := range slices.Sorted(maps.Keys(c.captures)) {
		h := c.captures[id]
		if h.leaf == nil {
			st.Serving = h.server != nil
		}
		if h.leaf == nil && !c.config.Enabled || !c.admin && (h.leaf == nil || h.owner != c.uid) {
			continue
		}
		row := service.Capture{ID: id, Owner: h.owner, Served: h.server != nil, Waiting: len(h.waiting), Hits: hits(rules, id, left)}
		left -= len(row.Hits)
		if h.leaf != nil {
			row.Cgroup = h.leaf.Path
		}
		if saved, ok := c.config.Captures[id]; ok && sizeOf(&saved.Spec) <= parts {
			parts -= sizeOf(&saved.Spec)
			row.Spec = &saved.Spec
		}
		st.Captures = append(st.Captures, row)
	}
	for _, uid := range slices.Sorted(maps.Keys(c.users)) {
		if c.users[uid].carrier != nil && (c.admin || uid == c.uid) {
			st.Carriers = append(st.Carriers, uid)
		}
	}
	return &answer{Message: service.Message{Status: st}}, nil
}

// hits are those of one capture's rules.
func hits(rules nft.Counters, id string, most int) (list []service.Hit) {
	for _, h := range rules.Hits {
		if h.Capture == id && len(list) < most {
			list = append(list, service.Hit{Rule: h.Rule, Outcome: h.Outcome.String(), Count: h.Count})
		}
	}
	return list
}
