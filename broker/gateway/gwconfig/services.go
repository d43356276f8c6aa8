package gwconfig

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"sshbroker/broker/gateway/policy"
)

// services reads the services, and the roles and policies that they are for.
func (r *reader) services(c *Config, o object) {
	roles := r.roles(o.get("roles"))
	policies := r.policies(o.get("policies"), roles)
	taken := &taken{
		services: newNamed[policy.Service]("service", "services"),
		names:    make(map[string]Pos), ports: make(map[uint16]Pos), local: make(map[uint16]Pos),
	}
	var specs []policy.Spec
	var at []value
	for _, v := range r.list(o.get("services")) {
		o, ok := r.object(v, nil)
		if !ok {
			continue
		}
		before := r.wrong
		spec := r.service(c, o, policies, taken)
		taken.services.add(r, v, spec.Name, nil)
		if r.wrong == before {
			specs, at = append(specs, spec), append(at, v)
		}
	}
	lintUnused(r, roles)
	lintUnused(r, policies)
	if r.wrong > 0 {
		return
	}
	self := c.self(specs)
	for i, spec := range specs {
		spec.Self = self
		service, err := policy.New(spec)
		if err != nil {
			r.fail(at[i], "", "%v", err)
			continue
		}
		c.Services = append(c.Services, service)
	}
}

// taken is what two services cannot both have.
type taken struct {
	services *named[policy.Service]
	names    map[string]Pos // of tls_sni
	ports    map[uint16]Pos // of listeners
	local    map[uint16]Pos // of clients; only a warning
}

func (r *reader) service(c *Config, o object, policies *named[policy.Policy], taken *taken) policy.Spec {
	spec := policy.Spec{
		Name:           r.ident(o.get("name")),
		Description:    r.text(o.get("description")),
		Kind:           r.ident(o.get("kind")),
		ServerNames:    r.serverNames(c, o.get("tls_sni"), taken),
		Port:           r.ownPort(c, o.get("port"), taken),
		AnyCertificate: r.yes(o.get("any_certificate")),
		Permissive:     r.choice(o.get("enforcement")) == "permissive",
	}
	client := r.section(o, "client")
	spec.Client = policy.Client{Port: r.port(client.get("port")), AllowOverride: r.yes(client.get("allow_override"))}
	if backend, ok := r.object(o.get("backend"), nil); ok {
		spec.Backend = r.backend(backend)
	}
	refers := o.get("policy")
	for _, v := range r.oneOrMore(refers) {
		if p := policies.find(r, v); p != nil {
			spec.Policies = append(spec.Policies, p)
		}
	}
	switch {
	case spec.AnyCertificate && refers.given():
		r.fail(o.get("any_certificate"), "remove one of the two", "it contradicts policy: a policy is for some, any_certificate for all")
	case !spec.AnyCertificate && !refers.given() && !o.misspelt:
		r.fail(o.value, "add policy: with the name of one, or any_certificate: true to mean everybody with a valid client certificate", "the service has no policy, so nobody could use it")
	}
	r.lintService(o, &spec, taken)
	return spec
}

func (r *reader) serverNames(c *Config, v value, taken *taken) []string {
	var list []string
	for _, v := range r.oneOrMore(v) {
		text := r.text(v)
		if text == "" {
			continue
		}
		host, err := policy.ParseHost(text)
		switch {
		case strings.Contains(text, "*"):
			r.fail(v, "list the names", "%q has a *, and has to be one name", text)
			continue
		case err != nil:
			r.fail(v, "", "%v", err)
			continue
		case host.Addr().IsValid():
			r.fail(v, "write a name; a service that is reached by an address needs a port of its own", "TLS has no server name for the address %s", host)
			continue
		}
		name := host.String()
		if at, ok := taken.names[name]; ok {
			r.fail(v, "one name leads to one service: remove one of them", "the name %s is taken at %d:%d", name, at.Line, at.Col)
			continue
		}
		taken.names[name] = v.pos
		c.names = append(c.names, serverName{name, v})
		list = append(list, name)
	}
	return list
}

func (r *reader) ownPort(c *Config, v value, taken *taken) uint16 {
	port := r.port(v)
	if port == 0 {
		return 0
	}
	if at, ok := taken.ports[port]; ok {
		r.fail(v, "one port leads to one service: choose another, or give the services names with tls_sni", "port %d is taken at %d:%d", port, at.Line, at.Col)
	} else if slices.ContainsFunc(c.Listen, func(l netip.AddrPort) bool { return l.Port() == port }) {
		r.fail(v, "choose another, or remove it: all services are served there too", "port %d is the gateway's own, of listen", port)
	}
	taken.ports[port] = v.pos
	return port
}

// self is where the gateway listens: a service is never to lead there by a name.
func (c *Config) self(specs []policy.Spec) policy.Self {
	self := policy.Self{Listeners: slices.Clone(c.Listen), Local: isLocal}
	for i := range specs {
		if port := specs[i].Port; port != 0 {
			for _, l := range c.Listen {
				self.Listeners = append(self.Listeners, netip.AddrPortFrom(l.Addr(), port))
			}
		}
	}
	if a, err := netip.ParseAddrPort(c.Metrics.Address); err == nil && c.Metrics.Network == "tcp" {
		self.Listeners = append(self.Listeners, a)
	}
	return self
}

// isLocal tells whether an address is one of this machine's now; where that cannot be said
// it is.
func isLocal(addr netip.Addr) bool {
	all, err := net.InterfaceAddrs()
	return err != nil || slices.ContainsFunc(all, func(a net.Addr) bool {
		n, ok := a.(*net.IPNet)
		if !ok {
			return false
		}
		ip, ok := netip.AddrFromSlice(n.IP)
		return ok && ip.Unmap() == addr
	})
}

func (r *reader) backend(o object) policy.Backend {
	before := r.wrong
	b := policy.Backend{
		Target:          r.target(o.get("target")),
		HTTPConnect:     r.yes(o.get("http_connect")),
		DNSOverrides:    r.overrides(o.get("dns_overrides")),
		AllowAll:        r.yes(o.get("allow_all")),
		ExcludePatterns: r.patterns(o.get("exclude_patterns"), false),
	}
	// Objects of Banyan's have these two as empty lists where they are not used.
	if v := o.get("whitelist"); !emptyList(v) {
		b.Whitelist = parsed(r, v, "write a name, or one with a * at its beginning", parseWhitelisted, r.allowedName)
	}
	if v := o.get("allow_patterns"); !emptyList(v) {
		b.AllowPatterns = r.patterns(v, true)
	}
	if r.wrong > before {
		return b
	}
	lists, fixed := len(b.Whitelist)+len(b.AllowPatterns) > 0, b.Target != (policy.Target{})
	if !o.get("http_connect").given() {
		b.HTTPConnect = !fixed
	}
	switch {
	case fixed && b.HTTPConnect:
		r.fail(o.get("http_connect"), "remove the name of the target, or write http_connect: false", "the client cannot name the destination where there is a target")
	case !fixed && !b.HTTPConnect && o.get("http_connect").given():
		r.fail(o.get("target"), "add target: with name and port, or write http_connect: true", "there is no target, and clients may not name a destination")
	case !fixed && !lists && !b.AllowAll:
		r.fail(o.value, "list destinations in allow_patterns, or name a target; Banyan would allow everything here, which allow_all: true means",
			"no destination is allowed: allow_patterns and whitelist are empty")
	case b.AllowAll && (lists || fixed):
		r.fail(o.get("allow_all"), "remove one of the two", "it contradicts the target or the patterns beside it, which allow some destinations")
	}
	r.lintBackend(o, &b)
	return b
}

func parseWhitelisted(text string) (policy.HostPattern, error) {
	if len(text) > 1 && strings.HasSuffix(text, "*") {
		return policy.HostPattern{}, fmt.Errorf("%q ends in *, which a whitelist does not have", text)
	}
	return policy.ParseHostPattern(text)
}

// target reads a fixed destination; zero where name is empty or missing, as Banyan writes it.
func (r *reader) target(v value) policy.Target {
	o, ok := r.object(v, nil)
	if !ok {
		return policy.Target{}
	}
	for _, name := range []string{"tls", "tls_insecure", "client_certificate"} {
		if v := o.get(name); r.yes(v) {
			r.fail(v, "let the client speak TLS to the destination, through the gateway", "the gateway does not speak TLS to destinations: it hands on the bytes as they come")
		}
	}
	name, port := o.get("name"), o.get("port")
	if empty(name) && empty(port) {
		return policy.Target{}
	}
	switch {
	case (empty(name) || empty(port)) && o.misspelt:
		return policy.Target{}
	case empty(name):
		r.fail(o.value, "add the name or address of the host", "the target has a port and no name")
		return policy.Target{}
	case empty(port):
		r.fail(o.value, "add the port", "the target has a name and no port")
		return policy.Target{}
	}
	text := r.text(name)
	t := policy.Target{Port: r.port(port)}
	if text == "" {
		return t
	}
	host, err := policy.ParseHost(text)
	switch {
	case strings.Contains(text, "{{"):
		r.fail(name, "write one service for each name", "templates in the name of a target are not read")
	case err != nil:
		r.fail(name, "", "%v", err)
	case host.String() == "localhost":
		r.fail(name, "write 127.0.0.1 or ::1", "a name does not lead to loopback addresses")
	}
	t.Host = host
	return t
}

// empty tells whether nothing is said, or "".
func empty(v value) bool {
	return !v.given() || v.node.Tag == "!!str" && v.node.Value == ""
}

func (r *reader) overrides(v value) map[string]policy.Host {
	all, seen := make(map[string]policy.Host), make(map[policy.Host]bool)
	for _, p := range r.pairs(v) {
		name, err := policy.ParseHost(p.name)
		switch {
		case err != nil:
			r.fail(p.key, "", "%v", err)
			continue
		case name.Addr().IsValid():
			r.fail(p.key, "write a name; what is asked for by address is not replaced", "%s is an address", name)
			continue
		}
		if seen[name] {
			r.fail(p.key, "remove one of them", "the name %s stands here in two spellings", name)
			continue
		}
		seen[name] = true
		if !p.value.given() {
			continue
		}
		text := r.text(p.value)
		if text == "" {
			continue
		}
		host, err := policy.ParseHost(text)
		if err != nil {
			r.fail(p.value, "write a name or an address, without a port", "%v", err)
			continue
		}
		all[name.String()] = host
	}
	return all
}

func (r *reader) allowedName(v value, p policy.HostPattern) { r.lintHostname(v, p, true) }

func (r *reader) refusedName(v value, p policy.HostPattern) { r.lintHostname(v, p, false) }

// patterns reads a list of patterns, which allow or refuse destinations.
func (r *reader) patterns(v value, allows bool) []policy.Pattern {
	lint := r.refusedName
	if allows {
		lint = r.allowedName
	}
	var list []policy.Pattern
	for _, v := range r.list(v) {
		o, ok := r.object(v, nil)
		if !ok {
			continue
		}
		p := policy.Pattern{
			Hostnames: parsed(r, o.get("hostnames"), "write a name, an address, or a name with * at its beginning or end", policy.ParseHostPattern, lint),
			CIDRs:     parsed(r, o.get("cidrs"), "write it as 10.10.34.0/24 or 2001:db8::/32", parseCIDR),
			Ports:     r.ports(o.get("ports")),
		}
		if len(o.fields) == 0 && len(o.node.Content) == 0 {
			r.fail(v, "add hostnames, cidrs or ports, or remove it", "the pattern is empty")
		}
		r.lintPattern(o, &p, allows)
		list = append(list, p)
	}
	return list
}

// parseCIDR takes only what has one meaning: no bits behind the mask, no IPv4 in IPv6.
func parseCIDR(text string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(text); err == nil {
		addr = addr.Unmap().WithZone("")
		return netip.Prefix{}, &curedError{fmt.Sprintf("%q is an address", text), fmt.Sprintf("as a CIDR it is %s/%d", addr, addr.BitLen())}
	}
	p, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		return p, fmt.Errorf("%q is not a CIDR", text)
	case p.Addr().Is4In6():
		return p, &curedError{fmt.Sprintf("%q is an IPv4 network in IPv6", text), "write the IPv4 network"}
	case p.Masked() != p:
		return p, &curedError{fmt.Sprintf("%q has bits behind the mask", text), fmt.Sprintf("the network is %s, the address %s/%d", p.Masked(), p.Addr(), p.Addr().BitLen())}
	}
	return p, nil
}

func (r *reader) ports(v value) []policy.PortRange {
	o, ok := r.object(v, nil)
	if !ok {
		return nil
	}
	if len(o.node.Content) == 0 {
		r.fail(v, "add port_list or port_ranges, or remove it for all ports", "ports is empty")
	}
	var list []policy.PortRange
	for _, v := range r.list(o.get("port_list")) {
		port := r.port(v)
		list = append(list, policy.PortRange{Min: port, Max: port})
	}
	for _, v := range r.list(o.get("port_ranges")) {
		o, ok := r.object(v, map[string]string{"Min": "min", "Max": "max"})
		if !ok {
			continue
		}
		low, high := r.port(o.get("min")), r.port(o.get("max"))
		if low > high && high != 0 {
			r.fail(v, fmt.Sprintf("write min: %d, max: %d", high, low), "the range %d to %d is the wrong way round", low, high)
		}
		list = append(list, policy.PortRange{Min: low, Max: high})
	}
	return list
}
