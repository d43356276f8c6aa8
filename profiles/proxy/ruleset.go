package proxy

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"sshbroker/profiles"
)

// Kind is how a proxy is spoken to.
type Kind uint8

// The zero Kind uses no proxy.
const (
	Direct  Kind = iota
	SOCKS4       // names are resolved here, IPv4 only
	SOCKS4a      // the proxy resolves names
	SOCKS5       // RFC 1928; the proxy resolves names
	Connect      // HTTP CONNECT, RFC 9110 section 9.3.6; the proxy resolves names
)

var kinds = map[string]Kind{"direct": Direct, "socks": SOCKS4, "socks4": SOCKS4, "socks4a": SOCKS4a, "socks5": SOCKS5, "http-connect": Connect}

// String is the word of the grammar.
func (k Kind) String() string {
	return [...]string{"direct", "socks4", "socks4a", "socks5", "http-connect"}[k]
}

// Ruleset says which proxy leads to which server: the first rule that a server falls
// under counts; one that falls under none is reached straight. It is not changed after
// it was parsed.
type Ruleset []Rule

// Rule is one proxy and the servers that it is for.
type Rule struct {
	Kind           Kind
	Host           string // of the proxy
	Port           uint16
	User, Password string // "" for none

	conditions []condition // one must hold; none: every server
}

// condition is an address range or a pattern of names, and a range of ports.
type condition struct {
	lo, hi         netip.Addr // inclusive; not valid in a condition on names
	pattern        string     // lower case, with * and ?
	portLo, portHi uint16
}

// SyntaxError is what is wrong with a ruleset, and where in it.
type SyntaxError struct {
	Offset int // in bytes
	Msg    string
}

func (e *SyntaxError) Error() string {
	return fmt.Sprintf("proxy ruleset, byte %d: %s", e.Offset, e.Msg)
}

// Parse reads the grammar of proxy/@ruleset:
//
//	ruleset := rule (";" rule)*
//	rule    := "direct:///" [conds]
//	         | ("socks"|"socks4"|"socks4a"|"socks5"|"http-connect") "://" [user [":" password] "@"] server [":" port] "/" [conds]
//	conds   := cond ("," cond)*
//	cond    := (address | address "-" address | address "/" bits | name) [":" ports]
//
// White space around rules and conditions does not count. An empty ruleset means that
// no proxy is used; so does a semicolon at the end. socks4a, user and password, in
// which %XX stands for a byte, and IPv6 in brackets ("[fd00::1]", "[fd00::]/8",
// "[fd00::1]-[fd00::9]") are ours. Its error is a *SyntaxError.
func Parse(text string) (Ruleset, error) {
	var set Ruleset
	off := 0
	for part := range strings.SplitSeq(text, ";") {
		rule, err := parseRule(part, off)
		if err != nil {
			if strings.Contains(text, "@") {
				err.Msg = quoted.ReplaceAllString(err.Msg, `"..."`)
			}
			return nil, err
		}
		if rule != nil {
			set = append(set, *rule)
		}
		off += len(part) + 1
	}
	return set, nil
}

func parseRule(text string, off int) (*Rule, *SyntaxError) {
	trimmed := strings.TrimLeft(text, " ")
	off += len(text) - len(trimmed)
	trimmed = strings.TrimRight(trimmed, " ")
	if trimmed == "" {
		return nil, nil
	}
	word, rest, ok := strings.Cut(trimmed, "://")
	if !ok {
		return nil, &SyntaxError{off, fmt.Sprintf("%q has no ://", trimmed)}
	}
	kind, known := kinds[word]
	if !known {
		return nil, &SyntaxError{off, fmt.Sprintf("%q is not direct, socks, socks4, socks4a, socks5 or http-connect", word)}
	}
	server, conds, slash := strings.Cut(rest, "/")
	at := off + len(word) + len("://")
	rule := &Rule{Kind: kind}
	if kind == Direct {
		if !slash || server != "" {
			return nil, &SyntaxError{at, "direct is written direct:///, followed by its conditions"}
		}
	} else {
		if err := rule.server(server, at); err != nil {
			return nil, err
		}
		if !slash {
			return nil, &SyntaxError{at + len(server), "the server is not followed by /"}
		}
	}
	if conds == "" {
		return rule, nil
	}
	at += len(server) + 1
	for cond := range strings.SplitSeq(conds, ",") {
		c, msg := parseCondition(strings.TrimSpace(cond))
		if msg != "" {
			return nil, &SyntaxError{at, msg}
		}
		rule.conditions = append(rule.conditions, c)
		at += len(cond) + 1
	}
	return rule, nil
}

// quoted is what a message repeats of the text. Where an @ is anywhere in that, it may be
// of a password with a character that should have been written as %XX.
var quoted = regexp.MustCompile(`"(\\.|[^"\\])*"`)

// server reads [user[:password]@]host[:port] or the same with an address in brackets.
func (r *Rule) server(text string, off int) *SyntaxError {
	if i := strings.LastIndexByte(text, '@'); i >= 0 {
		if msg := r.account(text[:i]); msg != "" {
			return &SyntaxError{off, msg}
		}
		text, off = text[i+1:], off+i+1
	}
	r.Port = 1080
	if r.Kind == Connect {
		r.Port = 80
	}
	if text == "" {
		return &SyntaxError{off, "the proxy has no server"}
	}
	port, hasPort := "", false
	if rest, ok := strings.CutPrefix(text, "["); ok {
		inner, after, closed := strings.Cut(rest, "]")
		addr, err := netip.ParseAddr(inner)
		if !closed || err != nil || !addr.Is6() {
			return &SyntaxError{off, fmt.Sprintf("%q is not an IPv6 address in brackets", text)}
		}
		r.Host = inner
		if after != "" {
			if port, hasPort = strings.CutPrefix(after, ":"); !hasPort {
				return &SyntaxError{off, fmt.Sprintf("%q: only a port may follow the address", text)}
			}
		}
	} else {
		r.Host, port, hasPort = strings.Cut(text, ":")
	}
	if err := profiles.CheckHost(r.Host); err != nil {
		return &SyntaxError{off, err.Error()}
	}
	if hasPort {
		if r.Port = parsePort(port); r.Port == 0 {
			return &SyntaxError{off, fmt.Sprintf("%q is not a port", port)}
		}
	}
	return nil
}

// account reads user[:password] and returns what is wrong with it.
func (r *Rule) account(text string) string {
	user, password, given := strings.Cut(text, ":")
	var err, perr error
	r.User, err = url.PathUnescape(user)
	r.Password, perr = url.PathUnescape(password)
	const most = 255 // RFC 1929
	switch {
	case err != nil || perr != nil:
		return "user or password: % is not followed by two hexadecimal digits"
	case r.User == "":
		return "the user of the proxy is empty"
	case given && r.Password == "":
		return "the password of the proxy is empty"
	case given && (r.Kind == SOCKS4 || r.Kind == SOCKS4a):
		return "SOCKS4 knows a user and no password"
	case !given && r.Kind != SOCKS4 && r.Kind != SOCKS4a:
		return "the user of the proxy has no password"
	case len(r.User) > most || len(r.Password) > most:
		return fmt.Sprintf("user or password is longer than %d bytes", most)
	case strings.ContainsFunc(r.User+r.Password, func(c rune) bool { return c < ' ' || c == 0x7f }):
		return "user or password has a control character"
	case r.Kind == Connect && strings.Contains(r.User, ":"):
		return "the user of an HTTP proxy has a colon" // RFC 7617 section 2
	}
	return ""
}

// parseCondition returns what is wrong in msg.
func parseCondition(text string) (c condition, msg string) {
	if text == "" {
		return c, "a condition is empty"
	}
	what, ports, hasPorts := cutPorts(text)
	c.portLo, c.portHi = 1, 65535
	if hasPorts {
		lo, hi, isRange := strings.Cut(ports, "-")
		if !isRange {
			hi = lo
		}
		c.portLo, c.portHi = parsePort(lo), parsePort(hi)
		if c.portLo == 0 || c.portHi == 0 || c.portLo > c.portHi {
			return c, fmt.Sprintf("%q is not a port or a range of ports", ports)
		}
	}
	if what == "" {
		return c, "a condition names no host"
	}
	plain := strings.NewReplacer("[", "", "]", "").Replace(what)
	if p, err := netip.ParsePrefix(plain); err == nil {
		c.lo, c.hi = p.Masked().Addr(), last(p)
		return c, ""
	}
	if a, err := netip.ParseAddr(plain); err == nil {
		c.lo, c.hi = a, a
		return c, ""
	}
	if lo, hi, ok := strings.Cut(plain, "-"); ok {
		a, errA := netip.ParseAddr(lo)
		b, errB := netip.ParseAddr(hi)
		if errA == nil && errB == nil && a.BitLen() == b.BitLen() {
			if b.Less(a) {
				return c, fmt.Sprintf("range %q runs backwards", what)
			}
			c.lo, c.hi = a, b
			return c, ""
		}
	}
	for _, r := range what {
		if !profiles.IsHostRune(r) && r != '*' && r != '?' {
			return c, fmt.Sprintf("%q is not an address, a range, a prefix or a host pattern", what)
		}
	}
	c.pattern = strings.ToLower(what)
	return c, ""
}

// cutPorts cuts at the colon that is not inside brackets.
func cutPorts(text string) (what, ports string, found bool) {
	from := strings.LastIndexByte(text, ']') + 1
	i := strings.IndexByte(text[from:], ':')
	if i < 0 {
		return text, "", false
	}
	return text[:from+i], text[from+i+1:], true
}

// last is the highest address of a prefix.
func last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func parsePort(s string) uint16 {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return 0
	}
	return uint16(n)
}

// Address is host:port of the proxy.
func (r *Rule) Address() string { return net.JoinHostPort(r.Host, strconv.Itoa(int(r.Port))) }

// String names the proxy in messages; user and password are left out.
func (r *Rule) String() string {
	if r.Kind == Direct {
		return "direct"
	}
	return r.Kind.String() + "://" + r.Address()
}

// covers reports whether one of the conditions holds. addresses are those of the server,
// or is called for them where a condition asks.
func (r *Rule) covers(host string, port uint16, addresses func() []netip.Addr) bool {
	if len(r.conditions) == 0 {
		return true
	}
	for i := range r.conditions {
		if r.conditions[i].holds(host, port, addresses) {
			return true
		}
	}
	return false
}

func (c *condition) holds(host string, port uint16, addresses func() []netip.Addr) bool {
	if port < c.portLo || port > c.portHi {
		return false
	}
	if !c.lo.IsValid() {
		return wild(c.pattern, strings.ToLower(strings.TrimSuffix(host, ".")))
	}
	for _, a := range addresses() {
		a = a.Unmap().WithZone("")
		if a.BitLen() == c.lo.BitLen() && !a.Less(c.lo) && !c.hi.Less(a) {
			return true
		}
	}
	return false
}

// wild matches a whole name against a pattern in which * stands for any characters
// and ? for one. It takes time in proportion to the product of the two lengths.
func wild(pattern, name string) bool {
	p, n, star, resume := 0, 0, -1, 0
	for n < len(name) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, resume = p, n
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == name[n]):
			p++
			n++
		case star >= 0:
			resume++
			p, n = star+1, resume
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}
