package config

import (
	"fmt"
	"strings"

	"sshbroker/broker/config/schema"
	"sshbroker/profiles"
)

// profile is one profile element, before defaults and gateways.
type profile struct {
	settings
	id, name   string
	host       string
	port       uint16
	gateway    string // id; "" for none
	pos        Pos
	gatewayPos Pos
}

// profiles reads the profiles of one file. Those that are wrong in themselves are
// kept, so that rules naming them are not called wrong too.
func (r *reader) profiles(n *schema.Node) {
	seen := make(map[string]Pos)
	names := make(map[string]Pos)
	for _, c := range n.Children {
		p := r.profile(c)
		if id, ok := c.Get("id"); ok {
			if first, twice := seen[id]; twice {
				r.Fail(c.At("id"), c.Name, "give each profile an id of its own", "there is a second profile %q, the first is at %d:%d", id, first.Line, first.Col)
				continue
			}
			seen[id] = c.At("id")
		}
		if first, twice := names[p.name]; twice && p.name != "" {
			r.Warn(schema.General, c.At("name"), c.Name, "", "there is a second profile with the name %q, the first is at %d:%d", p.name, first.Line, first.Col)
		} else {
			names[p.name] = c.At("name")
		}
		r.file.profiles = append(r.file.profiles, p)
	}
}

func (r *reader) profile(n *schema.Node) profile {
	p := profile{
		settings: r.settings(n),
		id:       n.Str("id"),
		name:     n.Str("name"),
		host:     n.Str("host"),
		port:     22,
		gateway:  n.Str("gateway-profile"),
		pos:      n.Pos, gatewayPos: n.At("gateway-profile"),
	}
	if port, ok := n.Number("port"); ok {
		p.port = uint16(port)
	}
	if id, ok := n.Get("id"); ok && strings.TrimSpace(id) == "" {
		r.Fail(n.At("id"), n.Name, "", "id is empty")
	}
	if p.host != "" && p.host != "*" {
		if err := profiles.CheckHost(p.host); err != nil {
			hint := "write a name, an address, or * for the host that the program asked for"
			if user, host, ok := strings.Cut(p.host, "@"); ok {
				hint = fmt.Sprintf("write host=%q user=%q", host, user)
			}
			r.Fail(n.At("host"), n.Name, hint, "%v", err)
		}
	}
	if p.gateway != "" && p.proxy != nil && *p.proxy != "" {
		r.Warn(schema.General, n.Child("proxy").Pos, "proxy", "", "the proxy of a profile with a gateway-profile is not used")
	}
	return p
}
