package gwconfig

import (
	"slices"
	"strings"
)

// Key is one row of the table of all keys, which the reader, the manual page and the tests
// share. A default is in force as it stands here.
type Key struct {
	Path     string // as services[].backend.target.port
	Type     string // what may stand there
	Default  string // "" where there is none
	Required bool
}

// Name is the last part of the path.
func (k Key) Name() string { return k.Path[strings.LastIndexByte(k.Path, '.')+1:] }

// Parent is the path of what holds the key; "" for the file itself.
func (k Key) Parent() string { return k.Path[:max(strings.LastIndexByte(k.Path, '.'), 0)] }

// keys is the table, in the order of the manual page.
var keys = slices.Concat([]Key{
	{Path: "listen", Type: "ADDRESS:PORT, or a list of them", Required: true},
	{Path: "certificates", Type: "list", Required: true},
	{Path: "certificates[].certificate", Type: "file", Required: true},
	{Path: "certificates[].key", Type: "file", Required: true},
	{Path: "client_ca", Type: "file, or a list of files", Required: true},
	{Path: "crl", Type: "file, or a list of files"},
	{Path: "metrics", Type: "unix:FILE | LOOPBACK:PORT"},
	{Path: "audit", Type: "mapping"},
	{Path: "audit.file", Type: "file", Default: "/var/log/ssh-gateway/audit.jsonl"},
	{Path: "audit.required", Type: "true | false", Default: "false"},

	{Path: "limits", Type: "mapping"},
	{Path: "limits.connections", Type: "number", Default: "4096"},
	{Path: "limits.handshakes", Type: "number", Default: "256"},
	{Path: "limits.flows", Type: "number", Default: "16384"},
	{Path: "limits.flows_per_identity", Type: "number", Default: "2048"},
	{Path: "limits.connects_per_second", Type: "number", Default: "100"},
	{Path: "limits.reserve", Type: "number", Default: "64"},
	{Path: "limits.handshake_timeout", Type: "duration", Default: "10s"},
	{Path: "limits.dial_timeout", Type: "duration", Default: "10s"},
	{Path: "limits.idle_timeout", Type: "duration", Default: "0s"},
	{Path: "limits.drain_timeout", Type: "duration", Default: "30s"},

	{Path: "services", Type: "list", Required: true},
	{Path: "services[].name", Type: "name", Required: true},
	{Path: "services[].description", Type: "text"},
	{Path: "services[].kind", Type: "name", Default: "tcp"},
	{Path: "services[].tls_sni", Type: "name of a host, or a list of them"},
	{Path: "services[].port", Type: "port"},
	{Path: "services[].client", Type: "mapping"},
	{Path: "services[].client.port", Type: "port"},
	{Path: "services[].client.allow_override", Type: "true | false", Default: "true"},
	{Path: "services[].policy", Type: "name, or a list of names"},
	{Path: "services[].any_certificate", Type: "true | false", Default: "false"},
	{Path: "services[].enforcement", Type: "enforcing | permissive", Default: "enforcing"},
	{Path: "services[].backend", Type: "mapping", Required: true},
	{Path: "services[].backend.target", Type: "mapping"},
	{Path: "services[].backend.target.name", Type: "name or address of a host"},
	{Path: "services[].backend.target.port", Type: "port"},
	{Path: "services[].backend.target.tls", Type: "false", Default: "false"},
	{Path: "services[].backend.target.tls_insecure", Type: "false", Default: "false"},
	{Path: "services[].backend.target.client_certificate", Type: "false", Default: "false"},
	{Path: "services[].backend.http_connect", Type: "true | false"},
	{Path: "services[].backend.dns_overrides", Type: "mapping of names to names or addresses"},
	{Path: "services[].backend.whitelist", Type: "list of names"},
	{Path: "services[].backend.allow_all", Type: "true | false", Default: "false"},
},
	pattern("services[].backend.allow_patterns"),
	pattern("services[].backend.exclude_patterns"),
	[]Key{
		{Path: "roles", Type: "list"},
		{Path: "roles[].name", Type: "name", Required: true},
		{Path: "roles[].emails", Type: "list of e-mail addresses"},
		{Path: "roles[].email_domains", Type: "list of domains"},
		{Path: "roles[].uris", Type: "list of URIs"},
		{Path: "roles[].groups", Type: "list"},
		{Path: "roles[].issuers", Type: "list of distinguished names"},
		{Path: "policies", Type: "list"},
		{Path: "policies[].name", Type: "name", Required: true},
		{Path: "policies[].roles", Type: "list of names", Required: true},
	},
	pattern("policies[].allow"),
	pattern("policies[].deny"),
)

// pattern is the rows of a list of patterns.
func pattern(path string) []Key {
	return []Key{
		{Path: path, Type: "list of patterns"},
		{Path: path + "[].hostnames", Type: "list of names, with * at the beginning or end"},
		{Path: path + "[].cidrs", Type: "list of CIDRs"},
		{Path: path + "[].ports", Type: "mapping"},
		{Path: path + "[].ports.port_list", Type: "list of ports"},
		{Path: path + "[].ports.port_ranges", Type: "list"},
		{Path: path + "[].ports.port_ranges[].min", Type: "port", Required: true},
		{Path: path + "[].ports.port_ranges[].max", Type: "port", Required: true},
	}
}

// table has the rows by path, children those below a path in order.
var table, children = index()

func index() (map[string]Key, map[string][]Key) {
	byPath, below := make(map[string]Key), make(map[string][]Key)
	for _, k := range keys {
		byPath[k.Path] = k
		below[k.Parent()] = append(below[k.Parent()], k)
	}
	return byPath, below
}

// Keys returns the table, for documents and tests.
func Keys() []Key { return slices.Clone(keys) }
