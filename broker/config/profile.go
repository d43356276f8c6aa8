package config

import (
	"fmt"
	"strconv"
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
	more       []profiles.Server // that stand in for host
	gateway    string            // id; "" for none
	tunnels    []tunnel
	startup    bool // connected to when the broker starts
	protocol   profiles.Protocol
	tls        profiles.TLSSettings
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
		startup:  n.Yes("connect-on-startup"),
		pos:      n.Pos, gatewayPos: n.At("gateway-profile"),
	}
	r.tls(n, &p)
	if port, ok := n.Number("port"); ok {
		p.port = uint16(port)
	}
	if id, ok := n.Get("id"); ok && strings.TrimSpace(id) == "" {
		r.Fail(n.At("id"), n.Name, "", "id is empty")
	}
	r.hosts(n, &p)
	if t := n.Child("tunnels"); t != nil {
		p.tunnels = r.localTunnels(t)
	}
	if p.startup && (p.host == "" || p.host == "*") {
		r.Fail(n.At("connect-on-startup"), n.Name, "name the host, or take connect-on-startup out", "connect-on-startup: the profile names no host to connect to")
	}
	if p.gateway != "" && p.proxy != nil && *p.proxy != "" {
		r.Warn(schema.General, n.Child("proxy").Pos, "proxy", "", "the proxy of a profile with a gateway-profile is not used")
	}
	return p
}

// maxHosts bounds the servers of one profile.
const maxHosts = 16

// hosts reads host: one server, or several with commas between them, each with a port of
// its own or that of the profile. The first is the profile's host, the others stand in.
func (r *reader) hosts(n *schema.Node, p *profile) {
	if p.host == "" || p.host == "*" {
		return
	}
	list, port := strings.Split(p.host, ","), p.port
	if len(list) > maxHosts {
		r.Fail(n.At("host"), n.Name, "", "host: %d servers, at most %d", len(list), maxHosts)
		return
	}
	for i, text := range list {
		s := profiles.Server{Host: strings.TrimSpace(text), Port: port}
		var err error
		if len(list) > 1 {
			s, err = hostPort(s.Host, port)
		}
		if err == nil {
			err = profiles.CheckHost(s.Host)
		}
		switch {
		case err != nil && len(list) == 1:
			hint := "write a name, an address, or * for the host that the program asked for"
			if user, host, ok := strings.Cut(p.host, "@"); ok {
				hint = fmt.Sprintf("write host=%q user=%q", host, user)
			}
			r.Fail(n.At("host"), n.Name, hint, "%v", err)
		case err != nil:
			r.Fail(n.At("host"), n.Name, `write the servers as "a,b:2222,[fd00::1]:2222"`, "%v", err)
		case i == 0:
			p.host, p.port = s.Host, s.Port
		default:
			p.more = append(p.more, s)
		}
	}
}

// hostPort reads host, host:port, an address, or [address]:port.
func hostPort(text string, port uint16) (profiles.Server, error) {
	s := profiles.Server{Host: text, Port: port}
	service, given := "", false
	if rest, ok := strings.CutPrefix(text, "["); ok {
		inner, after, closed := strings.Cut(rest, "]")
		if !closed || after != "" && after[0] != ':' {
			return s, fmt.Errorf("host %q: an address in brackets is written [address] or [address]:port", text)
		}
		s.Host = inner
		service, given = strings.CutPrefix(after, ":")
	} else if strings.Count(text, ":") == 1 {
		s.Host, service, given = strings.Cut(text, ":")
	}
	if given {
		n, err := strconv.ParseUint(service, 10, 16)
		if err != nil || n == 0 {
			return s, fmt.Errorf("host %q: %q is not a port", text, service)
		}
		s.Port = uint16(n)
	}
	return s, nil
}
