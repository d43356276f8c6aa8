package broker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"sshbroker/broker/audit"
	"sshbroker/filter"
	"sshbroker/profiles"
)

// Requester is an attempt of a program that connected to us and said itself where it
// wants to go.
type Requester interface{ Request() Request }

// Request is where a program wants to go that connected to us.
type Request struct {
	Host string // a name or an address
	Port uint16
	// Service is one of those of the gateway that Way or Profile leads to, "" for none;
	// one with a destination of its own needs no Host and Port.
	Service string

	// Judged has the rules decide; else it goes through Way, or where that is nil through
	// the profile of that id.
	Judged  bool
	Profile string
	Way     *profiles.Profile

	// Stranger is a program of another host, or of another user than the broker's. The
	// loopback of this host is not for it.
	Stranger bool
}

// unknownAddress stands for that of a name which was not or could not be looked up: the
// conditions hold that take every address.
var unknownAddress = netip.IPv4Unspecified()

// Address is the destination as far as an address can say it.
func (r Request) Address() netip.AddrPort {
	if a, err := netip.ParseAddr(r.Host); err == nil {
		return netip.AddrPortFrom(a.Unmap().WithZone(""), r.Port)
	}
	return netip.AddrPortFrom(unknownAddress, r.Port)
}

// name is the one that was asked for, "" for an address.
func (r Request) name() string {
	if _, err := netip.ParseAddr(r.Host); err == nil {
		return ""
	}
	return r.Host
}

// spoken is the Names of a flow whose program said the name.
type spoken string

func (s spoken) Lookup(netip.Addr) []string           { return []string{string(s)} }
func (s spoken) Asked(_ netip.Addr, name string) bool { return name == string(s) }
func (spoken) IsPool(netip.Addr) bool                 { return false }
func (spoken) Hold(netip.Addr) func()                 { return func() {} }

// requests takes note of what the program has asked for, if it has.
func (f *flow) requests() {
	a, ok := f.a.(Requester)
	if !ok {
		return
	}
	r := a.Request()
	f.requested, f.names = &r, nameless{}
	if name := r.name(); name != "" {
		f.names = spoken(name)
	}
}

var errNoRules = errors.New("there is no filter-engine in any configuration file: it would go out in clear")

// comply serves a program that has said where it wants to go.
func (f *flow) comply(ctx context.Context, r *Request) {
	if r.Judged {
		if f.policy != nil && f.policy.NoRules {
			f.refuse(audit.Blocked, errNoRules)
			return
		}
		if name := r.name(); name != "" && (r.Stranger || f.policy != nil && addressCounts(f.policy.Rules, name)) {
			f.look(ctx, name)
		}
		f.judge(ctx)
		return
	}
	f.mu.Lock()
	f.rec.Action = filter.Tunnel.String()
	f.rec.Decision = time.Since(f.at.Arrived)
	f.mu.Unlock()
	f.decided()
	p := r.Way
	if p == nil && f.policy != nil {
		p = f.policy.Profiles[r.Profile]
	}
	if p == nil {
		f.refuse(audit.ProfileError, fmt.Errorf("there is no profile %q: %w", r.Profile, profiles.ErrSetup))
		return
	}
	if r.Service != "" && !p.HasServices() {
		f.refuse(audit.ProfileError, fmt.Errorf("service %s: profile %q leads to no ssh-gateway: %w", r.Service, p.Label(), profiles.ErrSetup))
		return
	}
	dst := profiles.Destination{Host: r.Host, Port: r.Port, Service: r.Service, Origin: f.at.Src}
	f.through(ctx, p.For(r.Host, "", false), dst, false)
}

// addressCounts tells whether the address behind a name is needed to decide. It is not
// where a rule has the name go to the SSH server unresolved.
func addressCounts(rules *filter.Set, name string) bool {
	if rules.Pseudo(name) {
		return false
	}
	return slices.ContainsFunc(rules.Rules(), func(r filter.Rule) bool {
		return r.Host == nil && (r.Prefix.IsValid() || r.Address != nil && !r.Address.Any())
	})
}

// lookTime is how long a name may take to be looked up.
const lookTime = 5 * time.Second

// look finds the address behind a name, the first that the resolver gives. It is the one
// that the rules judge, and that is dialled in clear.
func (f *flow) look(ctx context.Context, name string) {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	list, err := f.Resolve(ctx, name)
	if err == nil && len(list) == 0 {
		err = errors.New("it has no address")
	}
	if f.lookErr = err; err != nil {
		return
	}
	f.at.Dst = netip.AddrPortFrom(list[0].Unmap().WithZone(""), f.at.Dst.Port())
	f.mu.Lock()
	f.rec.Dst = f.at.Dst
	f.mu.Unlock()
}

// plainly says why what was asked for is not reached in clear.
func (f *flow) plainly() (audit.Reason, error) {
	addr := f.at.Dst.Addr()
	switch {
	case f.lookErr != nil:
		return audit.NameNotFound, fmt.Errorf("look up %s: %w", f.requested.Host, f.lookErr)
	case f.requested.Stranger && (addr.IsLoopback() || addr.IsUnspecified() || addr.IsLinkLocalUnicast()):
		return audit.Blocked, fmt.Errorf("%v is not for programs of other hosts and users", addr)
	}
	return audit.Unset, nil
}

func resolve(ctx context.Context, name string) ([]netip.Addr, error) {
	return net.DefaultResolver.LookupNetIP(ctx, "ip", name)
}
