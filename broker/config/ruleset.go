package config

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"sshbroker/broker/config/schema"
	"sshbroker/profiles"
)

// rulesetError is what is wrong with a proxy ruleset, and where in it.
type rulesetError struct {
	offset int // in bytes
	msg    string
}

// checkRuleset holds text against the grammar of proxy/@ruleset:
//
//	ruleset := rule (";" rule)*
//	rule    := "direct:///" [conds]
//	         | ("socks"|"socks4"|"socks5"|"http-connect") "://" server[":"port] "/" [conds]
//	conds   := cond ("," cond)*
//	cond    := (address | address "-" address | address "/" bits | name) [":" ports]
//
// White space around rules and conditions does not count. An empty ruleset means that
// no proxy is used; so does a semicolon at the end.
func checkRuleset(text string) *rulesetError {
	off := 0
	for rule := range strings.SplitSeq(text, ";") {
		if err := checkProxyRule(rule, off); err != nil {
			return err
		}
		off += len(rule) + 1
	}
	return nil
}

func checkProxyRule(rule string, off int) *rulesetError {
	trimmed := strings.TrimLeft(rule, " ")
	off += len(rule) - len(trimmed)
	trimmed = strings.TrimRight(trimmed, " ")
	if trimmed == "" {
		return nil
	}
	kind, rest, ok := strings.Cut(trimmed, "://")
	if !ok {
		return &rulesetError{off, fmt.Sprintf("%q has no ://", trimmed)}
	}
	server, conds, slash := strings.Cut(rest, "/")
	serverAt := off + len(kind) + len("://")
	switch kind {
	case "direct":
		if !slash || server != "" {
			return &rulesetError{serverAt, "direct is written direct:///, followed by its conditions"}
		}
	case "socks", "socks4", "socks5", "http-connect":
		if msg := checkProxyServer(server); msg != "" {
			return &rulesetError{serverAt, msg}
		}
		if !slash {
			return &rulesetError{serverAt + len(server), "the server is not followed by /"}
		}
	default:
		return &rulesetError{off, fmt.Sprintf("%q is not direct, socks, socks4, socks5 or http-connect", kind)}
	}
	if conds == "" {
		return nil
	}
	at := serverAt + len(server) + 1
	for cond := range strings.SplitSeq(conds, ",") {
		if msg := checkProxyCondition(strings.TrimSpace(cond)); msg != "" {
			return &rulesetError{at, msg}
		}
		at += len(cond) + 1
	}
	return nil
}

// checkProxyServer returns what is wrong with host[:port] or [address]:port.
func checkProxyServer(server string) string {
	if server == "" {
		return "the proxy has no server"
	}
	host, port, hasPort := server, "", false
	if rest, ok := strings.CutPrefix(server, "["); ok {
		inner, after, closed := strings.Cut(rest, "]")
		addr, err := netip.ParseAddr(inner)
		if !closed || err != nil || !addr.Is6() {
			return fmt.Sprintf("%q is not an IPv6 address in brackets", server)
		}
		host = inner
		if after != "" {
			if port, hasPort = strings.CutPrefix(after, ":"); !hasPort {
				return fmt.Sprintf("%q: only a port may follow the address", server)
			}
		}
	} else {
		host, port, hasPort = strings.Cut(server, ":")
	}
	if err := profiles.CheckHost(host); err != nil {
		return err.Error()
	}
	if hasPort && !isPort(port) {
		return fmt.Sprintf("%q is not a port", port)
	}
	return ""
}

func checkProxyCondition(cond string) string {
	if cond == "" {
		return "a condition is empty"
	}
	what, ports, hasPorts := strings.Cut(cond, ":")
	if hasPorts {
		lo, hi, isRange := strings.Cut(ports, "-")
		if !isRange {
			hi = lo
		}
		if !isPort(lo) || !isPort(hi) || portNumber(lo) > portNumber(hi) {
			return fmt.Sprintf("%q is not a port or a range of ports", ports)
		}
	}
	if _, err := netip.ParsePrefix(what); err == nil {
		return ""
	}
	if lo, hi, ok := strings.Cut(what, "-"); ok {
		a, errA := netip.ParseAddr(lo)
		b, errB := netip.ParseAddr(hi)
		if errA == nil && errB == nil {
			if b.Less(a) {
				return fmt.Sprintf("range %q runs backwards", what)
			}
			return ""
		}
	}
	for _, r := range what {
		if !isHostRune(r) && r != '*' && r != '?' {
			return fmt.Sprintf("%q is not an address, a range, a prefix or a host pattern", what)
		}
	}
	if what == "" {
		return "a condition names no host"
	}
	return ""
}

func isPort(s string) bool { n := portNumber(s); return n >= 1 && n <= schema.MaxPort }

func portNumber(s string) uint64 {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return 0
	}
	return n
}

func isHostRune(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.'
}
