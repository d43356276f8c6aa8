package nft

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// String renders the rule set in nft's language, for golden files and nft itself.
func (r Ruleset) String() string {
	var parts []string
	_, counters := r.refersTo()
	for i, name := range counters {
		if slices.Contains(counters[:i], name) {
			continue
		}
		parts = append(parts, fmt.Sprintf("\tcounter %s {\n\t}\n", name))
	}
	if r.meter.Rate != 0 {
		parts = append(parts, fmt.Sprintf("\tset %s {\n\t\ttype uid\n\t\tsize %d\n\t\tflags dynamic,timeout\n\t\ttimeout %ds\n\t}\n",
			r.meter.name(), meterUsers, meterTimeout))
	}
	for _, c := range r.Chains {
		var b strings.Builder
		fmt.Fprintf(&b, "\tchain %s {\n", c.name)
		if c.typ != "" {
			hook := map[uint32]string{unix.NF_INET_LOCAL_OUT: "output", unix.NF_INET_POST_ROUTING: "postrouting", unix.NF_INET_LOCAL_IN: "input"}[c.hook]
			fmt.Fprintf(&b, "\t\ttype %s hook %s priority %d; policy accept;\n", c.typ, hook, c.priority)
		}
		for _, rule := range c.rules {
			fmt.Fprintf(&b, "\t\t%s\n", rule)
		}
		parts = append(parts, b.String()+"\t}\n")
	}
	return fmt.Sprintf("table inet %s {\n%s}\n", r.Table, strings.Join(parts, "\n"))
}
