package names

import (
	"bytes"
	"net/netip"
	"strings"
)

// hosts is a hosts file, hosts(5). Never changed once parsed.
type hosts struct {
	addrs map[string][]netip.Addr // in the order of the file
	names map[netip.Addr][]string
}

func parseHosts(text []byte) hosts {
	h := hosts{addrs: make(map[string][]netip.Addr), names: make(map[netip.Addr][]string)}
	for line := range bytes.Lines(text) {
		line, _, _ = bytes.Cut(line, []byte{'#'})
		fields := strings.Fields(string(line))
		if len(fields) < 2 {
			continue
		}
		addr, err := netip.ParseAddr(fields[0])
		if err != nil {
			continue
		}
		addr = addr.Unmap()
		for _, name := range fields[1:] {
			name, err := Normalize(name)
			if err != nil {
				continue
			}
			h.addrs[name] = append(h.addrs[name], addr)
			h.names[addr] = append(h.names[addr], name)
		}
	}
	return h
}
