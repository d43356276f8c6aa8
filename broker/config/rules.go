package config

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"sshbroker/broker/config/schema"
	"sshbroker/filter"
	"sshbroker/filter/egrep"
	"sshbroker/profiles"
)

// filterEngine is what the element filter-engine of one file says.
type filterEngine struct {
	pos           Pos
	rules         []rule
	defaultAction filter.Action
	pool4, pool6  netip.Prefix // pool6 is zero where IPv6 has none
	networks      []Network
	host          Host
}

// rule is one filter rule with what has to be checked once all profiles are known.
type rule struct {
	filter.Rule
	pos, profilePos Pos
	element         string
}

// The pools of pseudo addresses. 198.18.0.0/15 is set aside for benchmarks (RFC
// 2544) and routed nowhere; a pool that starts elsewhere is no larger.
const (
	pool4Bits, pool4MinBits = 15, 24
	pool6Bits, pool6MinBits = 64, 112
)

func defaultPool4() netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, 0, 0}), pool4Bits)
}

func (r *reader) filterEngine(n *schema.Node) *filterEngine {
	f := &filterEngine{pos: n.Pos, defaultAction: filter.Direct, pool4: defaultPool4(), host: r.host(n), networks: r.networks(n)}
	if n.Str("default-action") == "BLOCK" {
		f.defaultAction = filter.Block
	}
	r.pools(n, &f.pool4, &f.pool6)
	lookups := r.lookups(n)
	used := make(map[string]bool)
	for _, c := range n.Children {
		var made rule
		switch c.Name {
		case "rule":
			made = r.rule(c)
		case "filter":
			dns := lookups[c.Str("dns-id")]
			if id, given := c.Get("dns-id"); given && dns == nil {
				r.Fail(c.At("dns-id"), c.Name, schema.DidYouMean(id, keys(lookups), "define it: <dns id=\""+id+"\" .../>"), "there is no dns %q", id)
			}
			used[c.Str("dns-id")] = true
			made = r.legacyRule(c, dns)
		default:
			continue
		}
		made.Number = len(f.rules) + 1
		made.Source = fmt.Sprintf("%s:%d", c.Pos.File, c.Pos.Line)
		f.rules = append(f.rules, made)
	}
	for _, c := range n.All("dns") {
		if id, ok := c.Get("id"); ok && !used[id] {
			r.Warn(schema.General, c.Pos, c.Name, "", "no filter refers to dns %q: it matches nothing", id)
		}
	}
	return f
}

// pools reads where the pools start, as far as n says it.
func (r *reader) pools(n *schema.Node, pool4, pool6 *netip.Prefix) {
	if n.Str("ip-generate-start") != "" {
		*pool4 = r.pool(n, "ip-generate-start", netip.Addr.Is4, pool4Bits, pool4MinBits)
	}
	if n.Str("ip6-generate-start") != "" {
		*pool6 = r.pool(n, "ip6-generate-start", netip.Addr.Is6, pool6Bits, pool6MinBits)
	}
}

// pool returns the largest prefix that starts at the address given, up to the size of
// the default one. The address has to be the first of such a prefix, as the kernel's
// rules name the pool by it.
func (r *reader) pool(n *schema.Node, attr string, family func(netip.Addr) bool, largest, smallest int) netip.Prefix {
	addr, err := netip.ParseAddr(n.Str(attr))
	switch {
	case err != nil || !family(addr) || addr.Zone() != "" || addr.Is4In6():
		r.Fail(n.At(attr), n.Name, "", "%s: %q is not an address of that family", attr, n.Str(attr))
		return netip.Prefix{}
	case addr.IsUnspecified() || addr.IsLoopback() || addr.IsMulticast() || addr.IsLinkLocalUnicast():
		r.Fail(n.At(attr), n.Name, "", "%s: %s cannot be given to a program", attr, addr)
		return netip.Prefix{}
	}
	for bits := largest; bits <= smallest; bits++ {
		if p := netip.PrefixFrom(addr, bits); p.Masked() == p {
			return p
		}
	}
	r.Fail(n.At(attr), n.Name, "write "+netip.PrefixFrom(addr, smallest).Masked().Addr().String(),
		"%s: %s is not the first address of a block of at least %d bits", attr, addr, addr.BitLen()-smallest)
	return netip.Prefix{}
}

// lookup is one dns element: the conditions of the filters that refer to it.
type lookup struct {
	*schema.Node
	conditions rule
}

// lookups returns the dns elements by id.
func (r *reader) lookups(n *schema.Node) map[string]*lookup {
	networks := ids(n.All("network"))
	byID := make(map[string]*lookup)
	for _, c := range n.All("dns") {
		l := &lookup{Node: c}
		r.conditions(c, &l.conditions)
		id, ok := c.Get("id")
		if !ok {
			continue
		}
		if byID[id] != nil {
			r.Fail(c.At("id"), c.Name, "give each dns an id of its own", "there is a second dns %q", id)
			continue
		}
		byID[id] = l
		if network := c.Str("network-id"); network != "" && !networks[network] {
			r.Fail(c.At("network-id"), c.Name, schema.DidYouMean(network, keys(networks), ""), "there is no network %q", network)
		}
	}
	return byID
}

func keys[V any](m map[string]V) []string {
	list := make([]string, 0, len(m))
	for k := range m {
		list = append(list, k)
	}
	slices.Sort(list)
	return list
}

// rule reads one rule element.
func (r *reader) rule(n *schema.Node) rule {
	out := r.outcome(n)
	r.conditions(n, &out)
	out.Users = accounts(r.list(n, "users"), r.env.UserName)
	out.Groups = accounts(r.list(n, "groups"), r.env.GroupName)
	out.HostnameFromApp = n.Yes("hostname-from-app")
	out.UsernameFromApp = n.Yes("username-from-app")
	out.ShowServerBanner = n.Yes("show-sftp-server-banner")
	switch user := n.Str("username"); {
	case strings.HasPrefix(user, "/"), strings.HasPrefix(user, "~/"):
		if out.UsernameFile = r.path(user); !filepath.IsAbs(out.UsernameFile) {
			r.Fail(n.At("username"), n.Name, "write the whole path", "username: there is no home directory for %s", user)
		}
	case user != "":
		r.checkUser(n, "username", user)
		out.Username = user
	}
	if n.Yes("username-from-app") && out.Action != filter.FTPTunnel && out.Action != filter.FTPProxy && !n.Flawed {
		r.Warn(schema.General, n.At("username-from-app"), n.Name, "", "username-from-app has no effect but with FTP-TUNNEL and FTP-PROXY")
	}
	r.judge(n, &out, n)
	return out
}

// legacyRule joins a filter with the dns it refers to, nil where there is none, into
// the one rule that they stand for.
func (r *reader) legacyRule(n *schema.Node, dns *lookup) rule {
	out := r.outcome(n)
	if dns == nil {
		return out
	}
	c := &dns.conditions
	out.Application, out.Host, out.Address, out.Prefix, out.PseudoIP = c.Application, c.Host, c.Address, c.Prefix, c.PseudoIP
	out.Network = dns.Str("network-id")
	if !dns.Flawed {
		r.judge(n, &out, dns.Node)
	}
	return out
}

// outcome reads what rule and filter have in common: ports, and what becomes of a
// flow.
func (r *reader) outcome(n *schema.Node) rule {
	out := rule{pos: n.Pos, profilePos: n.At("profile-id"), element: n.Name}
	if ports := n.Str("ports"); ports != "" {
		var err error
		if out.Ports, err = filter.ParsePorts(ports); err != nil {
			r.Fail(n.At("ports"), n.Name, "", "%v", err)
			n.Flawed = true
		}
	}
	if action, ok := n.Get("action"); ok {
		var err error
		if out.Action, err = filter.ParseAction(action); err != nil {
			r.Fail(n.At("action"), n.Name, "", "%v", err)
			n.Flawed = true
		}
	}
	out.Profile = n.Str("profile-id")
	out.FallbackToPlain = n.Yes("fallback-to-plain")
	if out.Destination = n.Str("destination"); out.Destination != "" {
		if err := profiles.CheckHost(out.Destination); err != nil {
			r.Fail(n.At("destination"), n.Name, "write a name or an address", "destination: %v", err)
		}
	}
	if port, ok := n.Number("destination-port"); ok {
		out.DestinationPort = uint16(port)
	}
	return out
}

// conditions reads the patterns of a rule or dns.
func (r *reader) conditions(n *schema.Node, out *rule) {
	out.Application = r.pattern(n, "application", egrep.Options{})
	out.Host = r.pattern(n, "host", egrep.Options{IgnoreCase: true})
	out.PseudoIP = n.Yes("pseudo-ip")
	r.address(n, out)
	if n.Str("host") != "" && n.Str("ip-address") != "" {
		r.Warn(schema.General, n.At("ip-address"), n.Name, "take it out, or write two rules", "ip-address is ignored, because host is given")
	}
}

// pattern compiles a regular expression; nil where none is given.
func (r *reader) pattern(n *schema.Node, attr string, opts egrep.Options) *egrep.Pattern {
	text := n.Str(attr)
	if text == "" {
		return nil
	}
	p, err := egrep.Compile(text, opts)
	if err == nil {
		return p
	}
	n.Flawed = true
	if syntax, ok := errors.AsType[*egrep.SyntaxError](err); ok {
		r.Fail(n.Inside(attr, syntax.Offset), n.Name, "", "%s: %s", attr, syntax.Msg)
	} else {
		r.Fail(n.At(attr), n.Name, "", "%s: %v", attr, err)
	}
	return nil
}

// address reads ip-address: a prefix where it parses as one, else a pattern.
func (r *reader) address(n *schema.Node, out *rule) {
	text := n.Str("ip-address")
	if !strings.Contains(text, "/") || strings.ContainsFunc(text, func(c rune) bool {
		return !strings.ContainsRune("0123456789abcdefABCDEF.:/", c)
	}) {
		out.Address = r.pattern(n, "ip-address", egrep.Options{IgnoreCase: true})
		return
	}
	prefix, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		r.Fail(n.At("ip-address"), n.Name, "write it as 10.0.0.0/8 or fd00::/8, or a regular expression", "ip-address: %q is neither a prefix nor a textual address", text)
	case prefix.Addr().Is4In6():
		r.Fail(n.At("ip-address"), n.Name, "write the IPv4 prefix", "ip-address: %s: an IPv4 address inside IPv6 is matched as IPv4", prefix)
	case prefix.Masked() != prefix:
		r.Fail(n.At("ip-address"), n.Name, "write "+prefix.Masked().String(), "ip-address: %s has bits set after its first %d", prefix, prefix.Bits())
	default:
		out.Prefix = prefix
		return
	}
	n.Flawed = true
}

// list reads names with commas between them.
func (r *reader) list(n *schema.Node, attr string) []string {
	text, ok := n.Get(attr)
	if !ok || text == "" {
		return nil
	}
	var names []string
	for name := range strings.SplitSeq(text, ",") {
		name = strings.TrimSpace(name)
		if name == "" {
			r.Fail(n.At(attr), n.Name, "write names with one comma between them", "%s: a name is empty", attr)
			continue
		}
		names = append(names, name)
	}
	return names
}

// judge looks at a rule as a whole; conditions is the element that holds its
// patterns. What is flawed was reported and is not judged.
func (r *reader) judge(n *schema.Node, out *rule, conditions *schema.Node) {
	if n.Flawed {
		return
	}
	tunnels := out.Action != filter.Direct && out.Action != filter.Block
	if tunnels && out.Profile == "" && !out.HostnameFromApp {
		r.Fail(n.At("action"), n.Name, `add profile-id="..."`+hostnameHint(n),
			"%s has no server to go to: there is neither a profile nor the host that the program asked for", n.Str("action"))
	}
	if out.Action == filter.FTPTunnel || out.Action == filter.FTPProxy {
		r.Warn(schema.NotBuilt, n.At("action"), n.Name, "", "%s is not built yet: flows decided by this rule are refused", n.Str("action"))
	}
	if !tunnels && (out.Destination != "" || out.DestinationPort != 0) {
		r.Warn(schema.General, n.Pos, n.Name, "", "destination and destination-port have no effect with %s", n.Str("action"))
	}
	if !out.PseudoIP {
		return
	}
	switch at := conditions.At("pseudo-ip"); {
	case out.FallbackToPlain:
		r.Warn(schema.General, at, conditions.Name, "use one of the two", "with pseudo-ip, fallback-to-plain has no address to fall back to")
	case !tunnels:
		r.Warn(schema.General, at, conditions.Name, "", "pseudo-ip has no effect with %s", n.Str("action"))
	case out.Host == nil:
		r.Warn(schema.General, at, conditions.Name, "add the host pattern of the names", "pseudo-ip has no effect without host")
	}
}

// hostnameHint names the other cure, where the element has that attribute.
func hostnameHint(n *schema.Node) string {
	if !n.Knows("hostname-from-app") {
		return ""
	}
	return ` or hostname-from-app="yes"`
}
