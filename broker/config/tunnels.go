package config

import (
	"fmt"
	"net/netip"
	"strings"

	"sshbroker/broker/config/schema"
	"sshbroker/profiles"
)

// Tunnel is a port of this host through which programs reach a destination, of
// static-tunnels or of a profile.
type Tunnel struct {
	Type       string // tcp, socks, socks-proxy, http-connect or http-connect-chain
	Listen     netip.AddrPort
	Host       string // where a tcp tunnel leads, as the server sees it
	Port       uint16
	Service    string // of the gateway behind Profile; a tcp tunnel to one has no Host and Port
	Profile    string // id; "" for socks-proxy and http-connect, which the rules judge
	AllowRelay bool   // other hosts and other users may use it
	Source     string // file:line
}

// tunnel is one element of a kind of tunnel.
type tunnel struct {
	Tunnel
	element                     string
	pos, profilePos, servicePos Pos
}

// staticTunnels reads the tunnels of one file that are open while the broker runs.
func (r *reader) staticTunnels(n *schema.Node) {
	for _, c := range n.Children {
		t, ok := r.tunnel(c)
		if !ok {
			continue
		}
		t.Profile, t.profilePos = c.Str("profile"), c.At("profile")
		switch judged := t.Type == "socks-proxy" || t.Type == "http-connect"; {
		case judged && t.Profile != "":
			other := map[string]string{"socks-proxy": "socks", "http-connect": "http-connect-chain"}[t.Type]
			r.Fail(t.profilePos, c.Name, `take it out, or write type="`+other+`"`, "profile: the filter rules decide where a %s tunnel goes", t.Type)
			t.Profile = ""
		case !judged && t.Profile == "":
			r.Fail(c.Pos, c.Name, `add profile="..."`, "a %s tunnel has no profile to go through", t.Type)
		}
		r.file.tunnels = append(r.file.tunnels, t)
	}
	r.takenTwice(r.file.tunnels)
}

// localTunnels reads those of a profile, which are open while it has a connection.
func (r *reader) localTunnels(n *schema.Node) []tunnel {
	var list []tunnel
	for _, c := range n.Children {
		if c.Name != "local-tunnel" {
			continue
		}
		t, ok := r.tunnel(c)
		switch {
		case !ok:
		case t.Type == "socks-proxy" || t.Type == "http-connect":
			r.Fail(c.At("type"), c.Name, "put it into static-tunnels", "a %s tunnel belongs to no profile: the filter rules decide where it goes", t.Type)
		default:
			list = append(list, t)
		}
	}
	r.takenTwice(list)
	return list
}

// tunnel reads what all tunnels have in common. What is wrong, or not built, is reported
// and not ok.
func (r *reader) tunnel(n *schema.Node) (t tunnel, ok bool) {
	if n.Flawed {
		return t, false
	}
	t.element, t.pos, t.Source = n.Name, n.Pos, fmt.Sprintf("%s:%d", n.Pos.File, n.Pos.Line)
	t.AllowRelay = n.Yes("allow-relay")
	switch t.Type = n.Str("type"); t.Type {
	case "", "local":
		t.Type = "tcp"
	case "ftp":
		r.Warn(schema.NotBuilt, n.At("type"), n.Name, "", "type ftp is not built yet: the port is not opened")
		return t, false
	}
	before := len(r.List)
	addr, err := ListenAddress(n.Str("listen-address"), t.AllowRelay)
	if err != nil {
		r.Fail(n.At("listen-address"), n.Name, "write an address of this host, such as 127.0.0.1, or * for all", "listen-address: %v", err)
	}
	port, _ := n.Number("listen-port")
	t.Listen = netip.AddrPortFrom(addr, uint16(port))
	t.Host = n.Str("dst-host")
	dst, _ := n.Number("dst-port")
	t.Port = uint16(dst)
	t.Service, t.servicePos = n.Str("service"), n.At("service")
	switch err := profiles.CheckHost(t.Service); {
	case t.Service == "":
	case t.Type == "socks-proxy" || t.Type == "http-connect":
		r.Fail(t.servicePos, n.Name, "take it out", "service: the filter rules decide where a %s tunnel goes", t.Type)
	case err != nil:
		r.Fail(t.servicePos, n.Name, "write the name as ssh-broker-ctl services has it", "service: %q is not the name of a service", t.Service)
	}
	switch {
	case t.Type == "tcp" && t.Service != "" && (t.Host != "" || t.Port != 0):
		r.Fail(n.Pos, n.Name, "take dst-host and dst-port out, or service", "the gateway knows where the service leads")
	case t.Type == "tcp" && t.Service != "":
	case t.Type != "tcp" && (t.Host != "" || t.Port != 0):
		r.Fail(n.Pos, n.Name, "take dst-host and dst-port out", "the program says where a %s tunnel leads", t.Type)
	case t.Type != "tcp":
	case t.Host == "" || t.Port == 0:
		r.Fail(n.Pos, n.Name, "add dst-host and dst-port, or the service of a gateway", "a tcp tunnel has no destination")
	default:
		if err := profiles.CheckHost(t.Host); err != nil {
			r.Fail(n.At("dst-host"), n.Name, "write a name or an address", "dst-host: %v", err)
		}
	}
	return t, len(r.List.Errors()) == len(Problems(r.List[:before]).Errors())
}

// ListenAddress is what a listen-address means: nothing is 127.0.0.1, and with relaying
// every address of this host, as * always is.
func ListenAddress(text string, relay bool) (netip.Addr, error) {
	switch {
	case text == "*", text == "" && relay:
		return netip.IPv6Unspecified(), nil // and with it IPv4
	case text == "", strings.EqualFold(text, "localhost"):
		return netip.AddrFrom4([4]byte{127, 0, 0, 1}), nil
	}
	addr, err := netip.ParseAddr(strings.Trim(text, "[]"))
	if err != nil {
		return netip.Addr{}, fmt.Errorf("%q is not an address", text)
	}
	return addr, nil
}

// takenTwice finds two tunnels of one list with the same port.
func (r *reader) takenTwice(list []tunnel) {
	first := make(map[netip.AddrPort]Pos)
	for _, t := range list {
		if at, twice := first[t.Listen]; twice {
			r.Fail(t.pos, t.element, "choose another port", "there is a second tunnel at %s, the first is at %d:%d", t.Listen, at.Line, at.Col)
			continue
		}
		first[t.Listen] = t.pos
	}
}

// checkTunnels looks for tunnels whose profile does not exist, or leads to no gateway and
// is to have a service.
func (m *merged) checkTunnels() {
	for _, f := range m.files {
		for _, t := range f.tunnels {
			switch p := m.profiles[t.Profile]; {
			case t.Profile == "":
			case p == nil:
				f.Fail(t.profilePos, t.element, m.profileHint(t.Profile), "profile: there is no profile %q", t.Profile)
			default:
				f.checkService(t, p)
			}
		}
	}
	for _, id := range m.order {
		p := m.profiles[id]
		for _, t := range p.tunnels {
			p.file.checkService(t, p)
		}
	}
}

// checkService looks for a service where there is no gateway that could have it.
func (f *file) checkService(t tunnel, p *mergedProfile) {
	if t.Service != "" && (p.protocol != profiles.TLS || p.tls.Proxy) {
		f.Fail(t.servicePos, t.element, "take it out, or name a profile of protocol tls for an ssh-gateway", "service: the profile %q leads to no gateway, which alone has services", p.id)
	}
}

// tunnels are those of all files. A user's takes the place of a global one at its port.
func (m *merged) tunnels() []Tunnel {
	var list []Tunnel
	at := make(map[netip.AddrPort]int)
	for _, f := range m.files {
		for _, t := range f.tunnels {
			if i, taken := at[t.Listen]; taken {
				list[i] = t.Tunnel
				continue
			}
			at[t.Listen] = len(list)
			list = append(list, t.Tunnel)
		}
	}
	return list
}

// localTunnels are those of all profiles that count.
func (m *merged) localTunnels() []Tunnel {
	var list []Tunnel
	for _, id := range m.order {
		for _, t := range m.profiles[id].tunnels {
			t.Profile = id
			list = append(list, t.Tunnel)
		}
	}
	return list
}
