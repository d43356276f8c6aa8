package gwconfig

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"sshbroker/broker/gateway/policy"
)

// lintRole warns of a role that nobody can have.
func (r *reader) lintRole(o object, role *policy.Role) {
	if len(role.Emails) == 0 || len(role.EmailDomains) == 0 {
		return
	}
	if !slices.ContainsFunc(role.Emails, func(email string) bool {
		return slices.Contains(role.EmailDomains, email[strings.LastIndexByte(email, '@')+1:])
	}) {
		r.warn(o.get("emails"), "parts of a role are joined by AND; make two roles of it", "none of these has one of the email_domains, so nobody has the role")
	}
}

// lintUnused warns of roles and policies that nothing refers to.
func lintUnused[T any](r *reader, n *named[T]) {
	for _, name := range n.names {
		if !n.used[name] {
			r.warn(n.at[name], "remove it, or refer to it", "nothing refers to the %s %s", n.what, name)
		}
	}
}

func (r *reader) lintService(o object, spec *policy.Spec, taken *taken) {
	if spec.Permissive {
		if spec.AnyCertificate {
			r.warn(o.get("enforcement"), "", "permissive means nothing without a policy")
		} else {
			r.warn(o.get("enforcement"), "write enforcing once the log shows nothing unexpected", "what the policies refuse is only logged: everybody with a valid client certificate may use the service")
		}
	}
	if spec.AnyCertificate {
		r.warn(o.get("any_certificate"), "name a policy", "everybody with a valid client certificate may use the service")
	}
	if spec.Port != 0 && len(spec.ServerNames) > 0 {
		r.warn(o.get("tls_sni"), "", "at the service's own port %d any server name leads to it; these count at the addresses of listen only", spec.Port)
	}
	if spec.Port == 0 && len(spec.ServerNames) == 0 && !spec.Backend.HTTPConnect && !spec.Backend.Target.Host.IsZero() {
		r.warn(o.value, "add tls_sni or port", "only ssh-broker can reach the service: it has neither a server name nor a port for other TLS clients")
	}
	if port := spec.Client.Port; port != 0 {
		v := o.fields["client"]
		if at, ok := taken.local[port]; ok {
			r.warn(v, "suggest another port", "the port %d is suggested to clients at %d:%d already", port, at.Line, at.Col)
		} else {
			taken.local[port] = v.pos
		}
	}
}

func (r *reader) lintBackend(o object, b *policy.Backend) {
	if b.AllowAll {
		r.warn(o.get("allow_all"), "list what is needed in allow_patterns", "clients may reach every destination that the gateway can, but loopback, link-local and multicast addresses")
	}
	if len(b.Whitelist) > 0 && len(b.AllowPatterns) > 0 {
		r.warn(o.get("allow_patterns"), "move the names of whitelist here, as hostnames", "these are ignored, as there is a whitelist")
	}
	r.lintExclusions(o.get("exclude_patterns"), b)
	asked := func(name policy.Host, to policy.Host, port uint16) bool {
		patterns := b.AllowPatterns
		if len(b.Whitelist) > 0 {
			patterns = []policy.Pattern{{Hostnames: b.Whitelist}}
		}
		return len(patterns) == 0 || slices.ContainsFunc(patterns, func(p policy.Pattern) bool { return p.MayCover(name, to, port) })
	}
	if t := b.Target; !t.Host.IsZero() {
		if !asked(t.Host, cmp.Or(b.DNSOverrides[t.Host.String()], t.Host), t.Port) {
			r.warn(o.get("allow_patterns"), "remove the patterns, as the target is the only destination", "none of these has the target, so it is never reached")
		}
		return
	}
	for _, p := range r.pairs(o.get("dns_overrides")) {
		if name, err := policy.ParseHost(p.name); err == nil && !asked(name, b.DNSOverrides[name.String()], 0) {
			r.warn(p.key, "add the name to the hostnames of a pattern, and the address to its cidrs where it has some", "no pattern allows %s as it is asked for, with the address that it is replaced by", name)
		}
	}
}

// lintExclusions warns of exclusions by name that an address goes round.
func (r *reader) lintExclusions(v value, b *policy.Backend) {
	byAddress := b.AllowAll || slices.ContainsFunc(b.AllowPatterns, func(p policy.Pattern) bool { return len(p.Hostnames) == 0 })
	if !byAddress || len(b.Whitelist) > 0 {
		return
	}
	if slices.ContainsFunc(b.ExcludePatterns, func(p policy.Pattern) bool { return len(p.Hostnames) > 0 && len(p.CIDRs) == 0 }) {
		r.warn(v, "exclude its addresses as well, as a pattern of its own", "a host that is excluded by name stays reachable by its address, which other patterns allow")
	}
}

// lintHostname warns of entries of hostnames that cover less, or more, than they look like.
func (r *reader) lintHostname(v value, p policy.HostPattern, allows bool) {
	text := p.String()
	core := strings.Trim(text, "*")
	head, tail := strings.HasPrefix(text, "*"), strings.HasSuffix(text, "*")
	switch {
	case !head && !tail:
	case p.IsAny():
		if allows {
			r.warn(v, "name the domains, or leave hostnames out and list cidrs", "* alone allows every name there is")
		}
	case strings.Trim(core, "0123456789.:") == "":
		r.warn(v, "list the network in cidrs", "%s covers no address: a * stands for characters of names only", text)
	case head && !tail && policy.EndsInNumber(core):
		r.warn(v, "list the network in cidrs", "%s never matches: no name ends in a number", text)
	case allows && tail:
		r.warn(v, "end it with the domain", "%s allows names of any domain, as %sexample.net", text, strings.TrimPrefix(strings.TrimSuffix(text, "*"), "*"))
	case allows && !strings.HasPrefix(core, "."):
		r.warn(v, "write *."+core+", and "+core+" beside it where it is meant", "%s allows other domains that end alike, as not-%s", text, core)
	}
}

// lintPattern warns of a pattern that can never match, and of one for all addresses.
func (r *reader) lintPattern(o object, p *policy.Pattern, allows bool) {
	literal := func(h policy.HostPattern) bool { return h.Addr().IsValid() }
	if len(p.CIDRs) > 0 && len(p.Hostnames) > 0 && !slices.ContainsFunc(p.Hostnames, func(h policy.HostPattern) bool {
		return !literal(h) || slices.ContainsFunc(p.CIDRs, func(c netip.Prefix) bool { return c.Contains(h.Addr()) })
	}) {
		r.warn(o.get("hostnames"), "parts of a pattern are joined by AND; leave one of them out, or make two patterns", "none of these addresses is in cidrs, so the pattern never matches")
	}
	if allows && len(p.Hostnames) == 0 && slices.ContainsFunc(p.CIDRs, func(c netip.Prefix) bool { return c.Bits() == 0 }) {
		r.warn(o.get("cidrs"), "list the networks that are meant", "this allows every address, whatever name leads to it")
	}
}
