package gwconfig

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"sshbroker/broker/config/schema"
	"sshbroker/broker/gateway/policy"
	"sshbroker/broker/regular"
)

// What is found in a file is reported in the types of package schema, under these names.
type (
	Pos      = schema.Pos
	Problem  = schema.Problem
	Problems = schema.Problems
)

// Config is a good configuration. Nobody changes it after it is returned. Paths of files
// are absolute where the path of the configuration is.
type Config struct {
	Listen       []netip.AddrPort // at least one; an unspecified IPv6 address is for IPv4 too
	Certificates []KeyPair        // the gateway's own, at least one
	ClientCAs    []string         // PEM files with the CAs of clients, at least one
	CRLs         []string         // PEM or DER files with their revocation lists
	Metrics      Metrics
	Audit        Audit
	Limits       Limits
	Services     []*policy.Service // at least one, in the order of the file

	// Warnings is what was hardly meant so, in the order of the file.
	Warnings Problems

	certificates []value // where Certificates stand, for Check
	clientCAs    []value
	crls         []value
	names        []serverName
}

// KeyPair is a certificate, with its chain, and its key, each in a PEM file.
type KeyPair struct{ Certificate, Key string }

// Metrics is where they are served; zero: nowhere.
type Metrics struct{ Network, Address string } // "unix" and a path, or "tcp" and a loopback address with port

// Audit is where the audit record goes.
type Audit struct {
	File     string
	Required bool // without it no flow begins
}

// Limits bound what clients can take. Numbers are at least 1.
type Limits struct {
	Connections       int // of clients at a time
	Handshakes        int // under way at a time
	Flows             int // at a time
	FlowsPerIdentity  int // at a time
	ConnectsPerSecond int // connections and flows that one identity may begin in a second
	Reserve           int // file descriptors that stay free

	Handshake time.Duration // for TLS, and for a request after it
	Dial      time.Duration // to a destination: looking it up and connecting
	Idle      time.Duration // after which a flow without a byte ends; 0: never
	Drain     time.Duration // for flows to end by themselves when the gateway is told to end
}

// serverName is a name of a service that certificates of the gateway have to cover.
type serverName struct {
	name string
	at   value
}

// Load reads a configuration file. The error is Problems, or that of the system where the
// file cannot be read.
func Load(path string) (*Config, error) {
	data, info, err := regular.Read(path, maxSize+1)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o002 != 0 {
		return nil, Problems{{Pos: Pos{File: path}, Msg: fmt.Sprintf("the file has the mode %04o: everybody may write it", mode), Hint: "chmod o-w " + path}}
	}
	return Parse(path, data)
}

// Parse is Load for the content of a file. Its name is for messages, for relative paths in
// it, and tells JSON by its ending .json. The error is Problems.
func Parse(name string, data []byte) (*Config, error) {
	r := &reader{name: name, dir: filepath.Dir(name)}
	root, err := document(name, data)
	if err != nil {
		syntax := err.(*syntaxError)
		return nil, Problems{{Pos: syntax.pos, Msg: syntax.msg, Hint: syntax.hint}}
	}
	c := r.config(r.value(root, "", ""))
	if r.wrong > 0 {
		return nil, r.Sorted().Errors()
	}
	c.Warnings = r.Sorted()
	return c, nil
}

func (r *reader) config(v value) *Config {
	c := &Config{}
	o, ok := r.object(v, nil)
	if !ok {
		return nil
	}
	c.Listen = r.listen(o.get("listen"))
	c.certificates = r.list(o.get("certificates"))
	for _, v := range c.certificates {
		if pair, ok := r.object(v, nil); ok {
			c.Certificates = append(c.Certificates, KeyPair{r.file(pair.get("certificate")), r.file(pair.get("key"))})
		}
	}
	c.clientCAs = r.oneOrMore(o.get("client_ca"))
	c.ClientCAs = each(c.clientCAs, r.file)
	c.crls = r.oneOrMore(o.get("crl"))
	c.CRLs = each(c.crls, r.file)
	c.Metrics = r.metrics(o.get("metrics"))
	audit := r.section(o, "audit")
	c.Audit = Audit{File: r.file(audit.get("file")), Required: r.yes(audit.get("required"))}
	c.Limits = r.limits(r.section(o, "limits"))
	r.services(c, o)
	return c
}

// section is a mapping whose keys all have defaults, so that it may be left out.
func (r *reader) section(o object, name string) object {
	v := o.get(name)
	section, _ := r.object(v, nil)
	return section
}

func each[T any](list []value, read func(value) T) []T {
	var all []T
	for _, v := range list {
		all = append(all, read(v))
	}
	return all
}

func (r *reader) listen(v value) []netip.AddrPort {
	var list []netip.AddrPort
	first := make(map[netip.AddrPort]Pos)
	for _, v := range r.oneOrMore(v) {
		text := r.text(v)
		if text == "" {
			continue
		}
		full := text
		if strings.HasPrefix(text, ":") {
			full = "[::]" + text
		}
		a, err := netip.ParseAddrPort(full)
		if err != nil || a.Port() == 0 {
			r.fail(v, `write ADDRESS:PORT, as "0.0.0.0:8443", "[2001:db8::1]:8443", or ":8443" for all addresses`, "%q is not an address with a port", text)
			continue
		}
		if at, ok := first[a]; ok {
			r.fail(v, "remove one of them", "the gateway listens there already, by %d:%d", at.Line, at.Col)
			continue
		}
		first[a] = v.pos
		list = append(list, a)
	}
	return list
}

func (r *reader) metrics(v value) Metrics {
	text := r.text(v)
	if path, ok := strings.CutPrefix(text, "unix:"); ok && path != "" {
		if !filepath.IsAbs(path) {
			path = filepath.Join(r.dir, path)
		}
		return Metrics{"unix", path}
	}
	a, err := netip.ParseAddrPort(text)
	switch {
	case text == "":
		return Metrics{}
	case err != nil || a.Port() == 0:
		r.fail(v, "write unix:/run/ssh-gateway/metrics.sock or 127.0.0.1:9464", "%q is neither unix: with a file nor an address with a port", text)
		return Metrics{}
	case !a.Addr().IsLoopback():
		r.fail(v, "write 127.0.0.1 or [::1], or a Unix socket: the metrics have no login", "%s is not a loopback address", a.Addr())
		return Metrics{}
	}
	return Metrics{"tcp", a.String()}
}

const (
	many = 1 << 20
	day  = 24 * time.Hour
)

func (r *reader) limits(o object) Limits {
	return Limits{
		Connections:       r.number(o.get("connections"), 1, many),
		Handshakes:        r.number(o.get("handshakes"), 1, many),
		Flows:             r.number(o.get("flows"), 1, many),
		FlowsPerIdentity:  r.number(o.get("flows_per_identity"), 1, many),
		ConnectsPerSecond: r.number(o.get("connects_per_second"), 1, many),
		Reserve:           r.number(o.get("reserve"), 1, many),
		Handshake:         r.duration(o.get("handshake_timeout"), time.Second, 10*time.Minute),
		Dial:              r.duration(o.get("dial_timeout"), time.Second, 10*time.Minute),
		Idle:              r.duration(o.get("idle_timeout"), 0, 365*day),
		Drain:             r.duration(o.get("drain_timeout"), 0, day),
	}
}
