package filter

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// Classes of errors about a rule, beside ErrPorts and ErrAction.
var (
	// ErrNoServer: an action that needs an SSH server, and nothing that names one.
	ErrNoServer = errors.New("no SSH server: neither a profile nor hostname-from-app")
	// ErrAddress: an address condition that cannot hold or is given twice.
	ErrAddress = errors.New("wrong address")
	// ErrOwner: an empty name among users or groups.
	ErrOwner = errors.New("empty user or group name")
)

// RuleError is an error about one rule.
type RuleError struct {
	Rule   int    // its number
	Source string // where it stands; may be empty
	Err    error
}

func (e *RuleError) Error() string {
	if e.Source == "" {
		return fmt.Sprintf("rule %d: %v", e.Rule, e.Err)
	}
	return fmt.Sprintf("%s: rule %d: %v", e.Source, e.Rule, e.Err)
}

func (e *RuleError) Unwrap() error { return e.Err }

// errs returns all that is wrong with r.
func (r *Rule) errs() []error {
	var errs []error
	if !r.Action.known() {
		errs = append(errs, fmt.Errorf("%w %v", ErrAction, r.Action))
	}
	if r.Action.secures() && r.Profile == "" && !r.HostnameFromApp {
		errs = append(errs, fmt.Errorf("%v: %w", r.Action, ErrNoServer))
	}
	for _, p := range r.Ports {
		if p.Lo == 0 || p.Lo > p.Hi {
			errs = append(errs, fmt.Errorf("%w: %v", ErrPorts, p))
		}
	}
	switch {
	case r.Prefix == netip.Prefix{}:
	case !r.Prefix.IsValid():
		errs = append(errs, fmt.Errorf("%w: %v", ErrAddress, r.Prefix))
	case r.Address != nil:
		errs = append(errs, fmt.Errorf("%w: both the pattern %q and the prefix %v", ErrAddress, r.Address, r.Prefix))
	case r.Prefix.Addr().Is4In6() && r.Prefix.Bits() < 96:
		errs = append(errs, fmt.Errorf("%w: %v holds IPv4 and other addresses", ErrAddress, r.Prefix))
	}
	if slices.Contains(r.Users, "") || slices.Contains(r.Groups, "") {
		errs = append(errs, ErrOwner)
	}
	return errs
}

// normal returns a copy of r that shares nothing that its maker may change, with
// the prefix in the form in which addresses are compared.
func (r Rule) normal() Rule {
	r.Ports = slices.Clone(r.Ports)
	r.Users = slices.Clone(r.Users)
	r.Groups = slices.Clone(r.Groups)
	if p := r.Prefix; p.IsValid() {
		if p.Addr().Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		r.Prefix = p.Masked()
	}
	return r
}
