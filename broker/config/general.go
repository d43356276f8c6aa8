package config

import (
	"path/filepath"

	"sshbroker/broker/config/schema"
	"sshbroker/profiles"
)

// general is what the element general says.
type general struct {
	fips Pos // where crypto-lib asks for FIPS mode; zero: it does not

	userDir    string // user-config-directory; "" where it is not given
	userDirPos Pos

	keys     keyStores
	hostKeys []hostKeyPlace // in order

	access *bool // file-access-control; nil where it is not given

	strict        *bool // strict-host-key-checking; nil where it is not given
	alwaysAsk     *bool // host-key-always-ask
	acceptUnknown *bool // accept-unknown-host-keys

	metrics *Metrics // nil without the element
}

func (r *reader) general(n *schema.Node) {
	g := &r.file.general
	for _, c := range n.Children {
		switch c.Name {
		case "crypto-lib":
			if c.Str("mode") == "fips" {
				g.fips = c.At("mode")
			}
		case "user-config-directory":
			g.userDir, g.userDirPos = r.userConfigDirectory(c), c.Pos
		case "file-access-control":
			g.access = r.fileAccessControl(c)
		case "key-stores":
			r.keyStores(c)
		case "metrics":
			g.metrics = r.metrics(c)
		case "known-hosts":
			r.knownHosts(c)
		case "strict-host-key-checking":
			g.strict = r.deprecated(c)
		case "host-key-always-ask":
			g.alwaysAsk = r.deprecated(c)
		case "accept-unknown-host-keys":
			g.acceptUnknown = r.deprecated(c)
		}
	}
}

// userConfigDirectory returns the directory in place of $HOME/.ssh2, "" for that
// itself. The one variable that exists only here stands for it.
func (r *reader) userConfigDirectory(n *schema.Node) string {
	usual := r.env.UserDir()
	env := r.env
	env.Environ = append(env.Environ[:len(env.Environ):len(env.Environ)], "USER_CONFIG_DIRECTORY="+usual)
	dir, ok := r.Expanded(n, "path", env)
	if !ok || dir == "" || dir == usual {
		return ""
	}
	if !filepath.IsAbs(dir) {
		r.Fail(n.At("path"), n.Name, "", "path: %q is not absolute", dir)
		return ""
	}
	return dir
}

// deprecated reads one of the three host key switches that came before policy.
func (r *reader) deprecated(n *schema.Node) *bool {
	r.Warn(schema.General, n.Pos, n.Name, `write <auth-server-publickey policy="strict|ask|tofu|advisory"/> in default-settings`,
		"deprecated; it counts only where no policy is given")
	if n.Flawed {
		return nil
	}
	on := n.Yes("enable")
	return &on
}

// deprecatedPolicy maps the three old switches, given ones only, to a policy.
func deprecatedPolicy(strict, alwaysAsk, acceptUnknown bool) profiles.HostKeyPolicy {
	switch {
	case alwaysAsk:
		return profiles.Ask
	case strict:
		return profiles.Strict
	case acceptUnknown:
		return profiles.TOFU
	}
	return profiles.Ask
}
