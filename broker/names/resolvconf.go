package names

import (
	"bytes"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// resolvConf is what counts of a resolv.conf, resolv.conf(5). Never changed once parsed.
type resolvConf struct {
	servers  []netip.AddrPort
	timeout  time.Duration // for one try
	attempts int
}

const (
	maxServers = 8

	// A program's own resolver gives up or asks again after 5 s. It should have our
	// second server's answer by then.
	defaultTimeout  = 2 * time.Second
	maxTimeout      = 10 * time.Second
	defaultAttempts = 2
	maxAttempts     = 5
)

func parseResolvConf(text []byte) resolvConf {
	c := resolvConf{timeout: defaultTimeout, attempts: defaultAttempts}
	for line := range bytes.Lines(text) {
		fields := strings.Fields(string(line))
		if len(fields) < 2 || strings.ContainsAny(fields[0][:1], "#;") {
			continue
		}
		switch fields[0] {
		case "nameserver":
			if s, ok := parseServer(fields[1]); ok && len(c.servers) < maxServers && !slices.Contains(c.servers, s) {
				c.servers = append(c.servers, s)
			}
		case "options":
			for _, o := range fields[1:] {
				key, value, _ := strings.Cut(o, ":")
				n, err := strconv.Atoi(value)
				if err != nil || n < 1 {
					continue
				}
				switch key {
				case "timeout":
					c.timeout = min(time.Duration(min(n, 60))*time.Second, maxTimeout)
				case "attempts":
					c.attempts = min(n, maxAttempts)
				}
			}
		}
	}
	if len(c.servers) == 0 {
		c.servers = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 53)} // as glibc does
	}
	return c
}

// parseServer takes an address, or an address with a port.
func parseServer(text string) (netip.AddrPort, bool) {
	if a, err := netip.ParseAddr(text); err == nil {
		return netip.AddrPortFrom(a, 53), true
	}
	s, err := netip.ParseAddrPort(text)
	return s, err == nil && s.Port() != 0
}
