package schema

import "strings"

// The schema: every element and attribute of ssh-broker-config.xml, in one table.
// The DTD in etc/ is written from it, and the checker reads nothing else. Sources are
// ssh-broker-config(5) of 2014, which names the elements, and the published DTD of
// Client 5.2 and z/OS 6.0, which fixes an order; where no order is published, any is
// accepted.

// occurs says how often a child may stand in its parent.
type occurs uint8

const (
	atMostOnce occurs = iota
	anyNumber
)

type child struct {
	name   string
	occurs occurs
}

// kind is what the value of an attribute must look like.
type kind uint8

const (
	text    kind = iota // anything, variables expanded
	literal             // anything, taken as it stands
	pattern             // a regular expression, taken as it stands, compiled later
	yesNo               // in any case
	enum                // one of values, in any case
	number              // decimal, from min to max
)

// attribute is one attribute of an element. Its default is documentation: it is
// written into the DTD as a comment and merged by the code that owns the setting.
type attribute struct {
	name     string
	kind     kind
	values   []string
	min, max uint64
	required bool
	mayEmpty bool   // enum, number: "" means absent, as older files write it
	def      string // default, for people

	status Kind     // General: acted on
	quiet  []string // values that ask for nothing, and so need no remark
}

// element is one element, wherever it stands.
type element struct {
	name     string
	ordered  bool // the children must come in the order of the table
	children []child
	attrs    []attribute
	text     bool // may hold character data
	open     bool // anything may stand in it: nothing is published about it

	status Kind // General: acted on; else said of the element as a whole
}

func (e *element) child(name string) (index int, ok bool) {
	for i, c := range e.children {
		if c.name == name {
			return i, true
		}
	}
	return 0, false
}

func (e *element) attr(name string) *attribute {
	for i := range e.attrs {
		if e.attrs[i].name == name {
			return &e.attrs[i]
		}
	}
	return nil
}

func (e *element) childNames() []string {
	names := make([]string, len(e.children))
	for i, c := range e.children {
		names[i] = c.name
	}
	return names
}

func (e *element) attrNames() []string {
	names := make([]string, len(e.attrs))
	for i, a := range e.attrs {
		names[i] = a.name
	}
	return names
}

// one and many write lists of children.
func one(names string) []child  { return childList(names, atMostOnce) }
func many(names string) []child { return childList(names, anyNumber) }

func childList(names string, o occurs) []child {
	var list []child
	for n := range strings.FieldsSeq(names) {
		list = append(list, child{n, o})
	}
	return list
}

func join(lists ...[]child) []child {
	var all []child
	for _, l := range lists {
		all = append(all, l...)
	}
	return all
}

const (
	MaxPort = 65535
	// maxTransports bounds the connections of one profile: sshd refuses at random from ten
	// unfinished logins on, and more than a few spread nothing further.
	maxTransports = 16

	maxSeconds = 100 * 365 * 24 * 3600 // a century: nobody means more, and a time.Duration holds it
	maxCount   = 1 << 62
)

const RootName = "secsh-broker"

// enable is the only attribute of many a switch.
func enable(def string, status Kind) []attribute {
	return []attribute{{name: "enable", kind: yesNo, def: def, status: status, quiet: []string{def}}}
}

// enableRequired is that of switches whose bare form could mean either.
var enableRequired = []attribute{{name: "enable", kind: yesNo, required: true}}

// nameOnly is the only attribute of the members of lists.
var nameOnly = []attribute{{name: "name", required: true}}

// seconds is the only attribute of timeouts.
func seconds(def string) []attribute {
	return []attribute{{name: "time", kind: number, max: maxSeconds, def: def}, {name: "type", kind: enum, values: []string{"connection"}}}
}

// schema is never changed.
var schema = []element{
	{name: RootName, ordered: true,
		children: one("general default-settings profiles static-tunnels gui filter-engine logging"),
		attrs:    []attribute{{name: "version", kind: literal}}},

	// general

	{name: "general",
		children: join(one("crypto-lib cert-validation key-stores strict-host-key-checking host-key-always-ask accept-unknown-host-keys"),
			many("known-hosts"), one("user-config-directory file-access-control protocol-parameters metrics extended"))},
	{name: "crypto-lib", attrs: []attribute{{name: "mode", kind: enum, values: []string{"standard", "fips"}, def: "standard"}}},
	{name: "cert-validation", status: NotActedOn,
		children: join(many("ldap-server ocsp-responder crl-prefetch"), one("dod-pki"), many("ca-certificate key-store")),
		attrs: []attribute{
			{name: "end-point-identity-check", kind: enum, values: []string{"yes", "no", "ask"}, def: "yes"},
			{name: "default-domain"},
			{name: "http-proxy-url"},
			{name: "socks-server-url"},
			{name: "max-path-length", kind: number, max: maxCount, def: "10"},
			{name: "cache-size", kind: number, max: maxCount, def: "300"},
			{name: "max-crl-size", kind: number, max: maxCount, def: "50"},
			{name: "max-ldap-response-length", kind: number, min: 1, max: 512, def: "50"},
			{name: "external-search-timeout", kind: number, max: maxSeconds, def: "60"},
			{name: "ldap-idle-timeout", kind: number, max: maxSeconds, def: "30"},
		}},
	{name: "ldap-server", attrs: []attribute{{name: "address", required: true}, {name: "port", kind: number, min: 1, max: MaxPort, def: "389"}}},
	{name: "ocsp-responder", attrs: []attribute{{name: "url", required: true}, {name: "validity-period", kind: number, max: maxSeconds, def: "0"}}},
	{name: "crl-prefetch", attrs: []attribute{{name: "url", required: true}, {name: "interval", kind: number, max: maxSeconds, def: "3600"}}},
	{name: "dod-pki", attrs: enable("no", General)},
	{name: "ca-certificate", text: true,
		attrs: []attribute{{name: "name", required: true}, {name: "file"}, {name: "disable-crls", kind: yesNo, def: "no"}, {name: "use-expired-crls", kind: number, max: maxSeconds, def: "0"}}},
	{name: "key-stores", children: many("key-store user-keys identification")},
	{name: "key-store",
		attrs: []attribute{{name: "type", kind: enum, values: []string{"software", "pkcs11", "mscapi", "entrust", "zos-saf"}, required: true}, {name: "init"}}},
	{name: "user-keys",
		attrs: []attribute{{name: "directory", def: "~/.ssh2"}, {name: "passphrase-timeout", kind: number, max: maxSeconds, def: "0"}, {name: "passphrase-idle-timeout", kind: number, max: maxSeconds, def: "0"}}},
	{name: "identification",
		attrs: []attribute{{name: "file", def: "~/.ssh2/identification"}, {name: "base-path", def: "~/.ssh2"}, {name: "passphrase-timeout", kind: number, max: maxSeconds, def: "0"}, {name: "passphrase-idle-timeout", kind: number, max: maxSeconds, def: "0"}}},
	{name: "strict-host-key-checking", attrs: enableRequired},
	{name: "host-key-always-ask", attrs: enableRequired},
	{name: "accept-unknown-host-keys", attrs: enableRequired},
	{name: "user-config-directory", attrs: []attribute{{name: "path", kind: literal, def: "%USER_CONFIG_DIRECTORY%"}}},
	{name: "file-access-control", attrs: enable("no", General)},
	{name: "protocol-parameters", status: NotActedOn, attrs: []attribute{{name: "threads", kind: number, max: maxCount, def: "0"}}},
	{name: "known-hosts",
		attrs: []attribute{{name: "path"}, {name: "directory"}, {name: "file"}, {name: "filename-format", kind: enum, values: []string{"hash", "plain", "default"}, def: "hash"}}},
	{name: "metrics",
		attrs: []attribute{{name: "socket"}, {name: "listen"}, {name: "textfile"}, {name: "interval", kind: number, min: 1, max: 3600, def: "15"}}},
	{name: "extended", open: true, status: NotActedOn},

	// default-settings, and what profiles share with it

	{name: "default-settings", ordered: true,
		children: one(`ciphers macs kexs hostkey-algorithms rekey authentication-methods hostbased-default-domain compression proxy
			idle-timeout tcp-connect-timeout keepalive-interval exclusive-connection server-banners forwards extended remote-environment
			server-authentication-methods authentication-success-message sftpg3-mode terminal-selection terminal-bell
			close-window-on-disconnect quiet-mode checksum address-family`),
		attrs: []attribute{{name: "user", def: "%USERNAME%"}, {name: "transports", kind: number, min: 1, max: maxTransports, def: "1"}}},
	{name: "ciphers", children: many("cipher")},
	{name: "cipher", attrs: nameOnly},
	{name: "macs", children: many("mac")},
	{name: "mac", attrs: nameOnly},
	{name: "kexs", children: many("kex")},
	{name: "kex", attrs: nameOnly},
	{name: "hostkey-algorithms", children: many("hostkey-algorithm")},
	{name: "hostkey-algorithm", attrs: nameOnly},
	{name: "rekey", attrs: []attribute{{name: "bytes", kind: number, max: maxCount, def: "1000000000"}}},
	{name: "authentication-methods",
		children: join(one("auth-hostbased auth-password auth-publickey auth-gssapi auth-keyboard-interactive"), many("authentication-method"))},
	{name: "authentication-method",
		attrs: []attribute{{name: "name", kind: enum, values: []string{"gssapi-with-mic", "publickey", "keyboard-interactive", "password", "hostbased", "certificate"}, required: true}}},
	{name: "auth-hostbased", children: one("local-hostname")},
	{name: "local-hostname", attrs: nameOnly},
	{name: "auth-password", children: one("password")},
	{name: "auth-publickey", children: one("key-selection"), attrs: []attribute{{name: "signature-algorithms"}}},
	{name: "key-selection", children: many("public-key issuer-name"),
		attrs: []attribute{{name: "policy", kind: enum, values: []string{"automatic", "interactive-shy"}, def: "automatic"}}},
	{name: "public-key", attrs: []attribute{{name: "type", kind: enum, values: []string{"plain", "certificate"}, required: true}}},
	{name: "issuer-name", attrs: []attribute{{name: "match-server-certificate", kind: yesNo, def: "no"}, {name: "name"}}},
	{name: "auth-gssapi", attrs: []attribute{{name: "dll-path"}, {name: "allow-ticket-forwarding", kind: yesNo, def: "no"}}},
	{name: "auth-keyboard-interactive"},
	{name: "hostbased-default-domain", status: NotActedOn, attrs: nameOnly},
	{name: "compression",
		attrs: []attribute{
			{name: "name", kind: enum, values: []string{"none", "zlib"}, def: "none", status: NotActedOn, quiet: []string{"none"}},
			{name: "level", kind: number, max: 9, def: "6"}}},
	{name: "proxy", attrs: []attribute{{name: "ruleset", kind: literal, required: true}}},
	{name: "idle-timeout", attrs: seconds("5")},
	{name: "tcp-connect-timeout", attrs: seconds("5")},
	{name: "keepalive-interval", attrs: seconds("0")},
	{name: "exclusive-connection", attrs: enable("no", General)},
	{name: "server-banners", attrs: []attribute{{name: "visible", kind: yesNo, def: "yes"}}},
	{name: "forwards", children: many("forward")},
	{name: "forward",
		attrs: []attribute{
			{name: "type", kind: enum, values: []string{"x11", "agent"}, required: true},
			{name: "state", kind: enum, values: []string{"on", "off", "denied"}, required: true, status: NotActedOn, quiet: []string{"off", "denied"}}}},
	{name: "remote-environment", children: many("environment")},
	{name: "environment", status: NotActedOn,
		attrs: []attribute{{name: "name", required: true}, {name: "value", kind: literal}, {name: "format", kind: yesNo, def: "no"}}},
	{name: "server-authentication-methods",
		children: join(one("auth-server-publickey auth-server-certificate"), many("authentication-method"))},
	{name: "auth-server-publickey",
		attrs: []attribute{{name: "policy", kind: enum, values: []string{"strict", "ask", "trust-on-first-use", "tofu", "advisory"}, def: "ask"}}},
	{name: "auth-server-certificate"},
	{name: "authentication-success-message", attrs: enable("yes", NotActedOn)},
	{name: "sftpg3-mode", open: true, status: NotActedOn},
	{name: "terminal-selection", open: true, status: NotActedOn},
	{name: "terminal-bell", open: true, status: NotActedOn},
	{name: "close-window-on-disconnect", open: true, status: NotActedOn},
	{name: "quiet-mode", attrs: enable("no", NotActedOn)},
	{name: "checksum", open: true, status: NotActedOn},
	{name: "address-family", attrs: []attribute{{name: "type", kind: enum, values: []string{"any", "inet", "inet6"}, def: "any"}}},

	// profiles

	{name: "profiles", children: many("profile")},
	{name: "profile",
		children: one(`hostkey ciphers macs kexs hostkey-algorithms rekey authentication-methods user-identities compression proxy
			idle-timeout tcp-connect-timeout keepalive-interval exclusive-connection server-banners forwards tunnels extended
			remote-environment server-authentication-methods password tls`),
		attrs: []attribute{
			{name: "id", required: true},
			{name: "name"},
			{name: "host", required: true},
			{name: "port", kind: number, min: 1, max: MaxPort, def: "22"},
			{name: "protocol", kind: enum, values: []string{"secsh2", "tls"}, def: "secsh2"},
			{name: "host-type", kind: enum, values: []string{"default", "windows", "unix"}, def: "default", status: NotBuilt, quiet: []string{"default"}},
			{name: "connect-on-startup", kind: yesNo, def: "no"},
			{name: "user"},
			{name: "transports", kind: number, min: 1, max: maxTransports},
			{name: "gateway-profile"},
		}},
	{name: "hostkey", text: true, attrs: []attribute{{name: "file"}}},
	{name: "user-identities", children: many("identity")},
	{name: "identity", attrs: []attribute{{name: "identity-file"}, {name: "file"}, {name: "hash"}, {name: "id"}, {name: "data", kind: literal}}},
	{name: "password", attrs: []attribute{{name: "string", kind: literal}, {name: "file"}, {name: "command"}}},
	{name: "tls", attrs: []attribute{
		{name: "ca-file"},
		{name: "system-ca", kind: yesNo, def: "no"},
		{name: "certificate"},
		{name: "key"},
		{name: "server-name"},
		{name: "service"},
		{name: "carrier", kind: enum, values: []string{"gateway", "connect"}, def: "gateway"},
	}},
	{name: "tunnels", children: many("local-tunnel remote-tunnel")},
	{name: "local-tunnel", attrs: tunnelAttrs},
	{name: "remote-tunnel", status: NotBuilt, attrs: tunnelAttrs},

	// static-tunnels, gui

	{name: "static-tunnels", children: many("tunnel")},
	{name: "tunnel", attrs: append(tunnelAttrs[:len(tunnelAttrs):len(tunnelAttrs)], attribute{name: "profile"})},
	{name: "gui", open: true, status: NotActedOn},

	// filter-engine

	{name: "filter-engine", children: many("network dns filter rule"),
		attrs: []attribute{
			{name: "ip-generate-start", def: "198.18.0.0"},
			{name: "ip6-generate-start"},
			{name: "ftp-filter-at-signs", kind: yesNo, def: "no", status: NotBuilt, quiet: []string{"no"}},
			{name: "default-action", kind: enum, values: []string{"DIRECT", "BLOCK"}, def: "DIRECT"},
			{name: "crash-policy", kind: enum, values: []string{"closed", "open"}},
			{name: "capture-root", kind: yesNo, def: "no"},
			{name: "capture-users"},
			{name: "user-brokers", kind: yesNo, def: "yes"},
		}},
	{name: "network", attrs: []attribute{{name: "id", required: true}, {name: "address"}, {name: "domain"}, {name: "ip-generate-start"}, {name: "ip6-generate-start"}}},
	{name: "dns",
		attrs: []attribute{
			{name: "id", required: true},
			{name: "network-id"},
			{name: "application", kind: pattern},
			{name: "host", kind: pattern},
			{name: "ip-address", kind: pattern},
			{name: "pseudo-ip", kind: yesNo, def: "no"},
		}},
	{name: "filter",
		attrs: []attribute{
			{name: "dns-id", required: true},
			{name: "ports"},
			{name: "action", kind: enum, values: actions, required: true},
			{name: "profile-id"},
			{name: "destination"},
			{name: "destination-port", kind: number, min: 1, max: MaxPort, mayEmpty: true},
			{name: "fallback-to-plain", kind: yesNo, def: "no"},
		}},
	{name: "rule",
		attrs: []attribute{
			{name: "application", kind: pattern},
			{name: "host", kind: pattern},
			{name: "ip-address", kind: pattern},
			{name: "users"},
			{name: "groups"},
			{name: "pseudo-ip", kind: yesNo, def: "no"},
			{name: "ports"},
			{name: "action", kind: enum, values: actions, required: true},
			{name: "profile-id"},
			{name: "destination"},
			{name: "destination-port", kind: number, min: 1, max: MaxPort, mayEmpty: true},
			{name: "username"},
			{name: "hostname-from-app", kind: yesNo, def: "no"},
			{name: "username-from-app", kind: yesNo, def: "no"},
			{name: "fallback-to-plain", kind: yesNo, def: "no"},
			{name: "show-sftp-server-banner", kind: yesNo, def: "no"},
		}},

	// logging

	{name: "logging", children: many("log-target log-events")},
	{name: "log-target", attrs: []attribute{{name: "type", kind: enum, values: []string{"file", "syslog", "discard"}}, {name: "file"}}},
	{name: "log-events", text: true, children: many("log-target"),
		attrs: []attribute{
			{name: "facility", kind: enum, values: []string{"normal", "daemon", "user", "auth", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7", "discard"}},
			{name: "severity", kind: enum, values: []string{"informational", "notice", "warning", "error", "critical", "security-success", "security-failure"}},
		}},
}

var actions = []string{"DIRECT", "BLOCK", "TUNNEL", "FTP-TUNNEL", "FTP-PROXY"}

var tunnelAttrs = []attribute{
	{name: "type", kind: enum, values: []string{"tcp", "ftp", "socks", "socks-proxy", "http-connect", "http-connect-chain", "local"}, def: "tcp"},
	{name: "listen-port", kind: number, min: 1, max: MaxPort, required: true},
	{name: "listen-address"},
	{name: "dst-host"},
	{name: "dst-port", kind: number, max: MaxPort, mayEmpty: true},
	{name: "service"},
	{name: "allow-relay", kind: yesNo, def: "no"},
}

// elementNamed looks an element up in the schema.
func elementNamed(name string) *element {
	for i := range schema {
		if schema[i].name == name {
			return &schema[i]
		}
	}
	return nil
}

// parentsOf lists the elements in which name may stand.
func parentsOf(name string) []string {
	var parents []string
	for i := range schema {
		if _, ok := schema[i].child(name); ok {
			parents = append(parents, schema[i].name)
		}
	}
	return parents
}
