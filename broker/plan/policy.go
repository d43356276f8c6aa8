package plan

import "sshbroker/filter"

// RefusesUDP tells whether datagrams of programs under rules should be refused:
// where what no rule names is tunneled, UDP in clear would go round that. It goes by
// the default action, or that of a rule without any condition, which stands for it.
func RefusesUDP(rules *filter.Set) bool {
	for i, r := range rules.Rules() {
		if !rules.InForce(i) {
			continue
		}
		anywhere := r.Host == nil || r.Host.Any()
		if r.Host == nil {
			anywhere = !r.Prefix.IsValid() && (r.Address == nil || r.Address.Any())
		}
		if anywhere && len(r.Ports) == 0 && r.Anyone() {
			return secures(r.Action)
		}
	}
	return secures(rules.Default())
}

// MayOpen tells whether the rules allow the crash policy "open": no flow that they
// tunnel may be left in clear by them, unless they say fallback-to-plain. It is asked of
// rules for other networks too, as the host may be there when it counts. Nil rules do not.
func MayOpen(rules *filter.Set) bool {
	if rules == nil || secures(rules.Default()) {
		return false
	}
	for _, r := range rules.Rules() {
		if secures(r.Action) && !r.FallbackToPlain {
			return false
		}
	}
	return true
}

// secures tells whether a's flows are not to go in clear; an action that is not
// known is taken for one of these.
func secures(a filter.Action) bool { return a != filter.Direct && a != filter.Block }
