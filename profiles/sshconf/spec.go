package sshconf

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"sshbroker/profiles"
)

// spec is a server as a person names it. Port 0 and User "" are not given.
type spec struct {
	user string
	host string
	port uint16
}

// parseSpec reads [user@]host[:port]. An IPv6 address with a port stands in brackets.
func parseSpec(s string) (spec, error) {
	var out spec
	rest := strings.TrimPrefix(s, "ssh://")
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		out.user, rest = rest[:i], rest[i+1:]
		if err := profiles.CheckUser(out.user); err != nil {
			return spec{}, err
		}
	}
	host, port, given := rest, "", false
	switch {
	case strings.HasPrefix(rest, "["):
		inner, after, ok := strings.Cut(rest[1:], "]")
		if !ok || (after != "" && after[0] != ':') {
			return spec{}, fmt.Errorf("%q: an address in brackets is written [address] or [address]:port", s)
		}
		host = inner
		if after != "" {
			port, given = after[1:], true
		}
	case strings.Count(rest, ":") == 1:
		host, port, given = strings.Cut(rest, ":")
	case strings.Contains(rest, ":"):
		if _, err := netip.ParseAddr(rest); err != nil {
			return spec{}, fmt.Errorf("%q has several colons and is no IPv6 address", s)
		}
	}
	if given {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return spec{}, fmt.Errorf("%q: port %q is not a number from 1 to 65535", s, port)
		}
		out.port = uint16(n)
	}
	if err := profiles.CheckHost(host); err != nil {
		return spec{}, err
	}
	out.host = host
	return out, nil
}
