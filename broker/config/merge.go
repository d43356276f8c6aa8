package config

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"sshbroker/broker/config/schema"
	"sshbroker/filter"
	"sshbroker/profiles"
)

// merged is what the files say together, by the rules of 2014: general, profiles and
// default-settings are combined and the user wins; filter-engine is taken whole from
// the first file that has it.
type merged struct {
	files    []*file // global before user
	defaults profiles.Profile
	order    []string // profile ids
	profiles map[string]*mergedProfile
	engine   *filterEngine

	checkKeys bool // by file-access-control
}

type mergedProfile struct {
	profile
	file  *file
	built *profiles.Profile
}

// merge combines the files, each of which may be nil, and checks what refers from one
// to another. What is wrong is added to the findings of the file where it stands.
func merge(env Env, userDir string, global, user *file) *merged {
	m := &merged{profiles: make(map[string]*mergedProfile)}
	for _, f := range []*file{global, user} {
		if f != nil {
			m.files = append(m.files, f)
		}
	}
	for _, f := range m.files {
		for _, p := range f.profiles {
			if m.profiles[p.id] == nil {
				m.order = append(m.order, p.id)
			}
			m.profiles[p.id] = &mergedProfile{profile: p, file: f}
		}
		switch {
		case f.filter == nil:
		case m.engine == nil:
			m.engine = f.filter
		default:
			f.Warn(schema.General, f.filter.pos, "filter-engine", "", "it is ignored, because %s has one", global.name)
		}
	}
	m.checkAccess(env, global, user)
	m.checkFIPS()
	m.checkRules()
	m.checkGateways()
	m.checkTunnels()
	m.defaults = m.buildDefaults(factory(env), userDir)
	return m
}

// checkFIPS refuses FIPS mode, which holds if either file asks for it. It is not a
// mistake in that file: a global one that asks for it is not ignored for that.
func (m *merged) checkFIPS() {
	for _, f := range m.files {
		if at := f.general.fips; at.Line != 0 {
			f.Fail(at, "crypto-lib", `write mode="standard", or leave the element out`, "FIPS mode is asked for, but there is no certified library here")
		}
	}
}

// checkRules looks for rules that name a profile which does not exist, also where the
// filter-engine of another file is in force.
func (m *merged) checkRules() {
	for _, f := range m.files {
		if f.filter == nil {
			continue
		}
		for _, r := range f.filter.rules {
			p := m.profiles[r.Profile]
			switch {
			case r.Profile != "" && p == nil:
				f.Fail(r.profilePos, r.element, m.profileHint(r.Profile), "there is no profile %q", r.Profile)
			case p != nil && p.protocol == profiles.TLS && (r.HostnameFromApp || r.UsernameFromApp || r.Username != "" || r.UsernameFile != ""):
				f.Fail(r.profilePos, r.element, "take hostname-from-app, username-from-app and username out, or name a profile of SSH",
					"the profile %q is one of protocol tls: its server is its own, and nobody logs in there", r.Profile)
			}
		}
	}
}

// profileHint helps with an id that does not exist.
func (m *merged) profileHint(id string) string {
	for _, known := range m.order {
		if m.profiles[known].name == id {
			return fmt.Sprintf("profiles are referred to by their id: %q", known)
		}
	}
	return schema.DidYouMean(id, m.order, schema.Allowed("profiles", m.order))
}

// checkGateways looks for gateways that do not exist, name no host, or lead back.
func (m *merged) checkGateways() {
	done := make(map[string]bool) // leads to no loop that was not reported
	for _, id := range m.order {
		p := m.profiles[id]
		if p.gateway == "" {
			continue
		}
		next := m.profiles[p.gateway]
		switch {
		case next == nil:
			p.file.Fail(p.gatewayPos, "profile", m.profileHint(p.gateway), "gateway-profile: there is no profile %q", p.gateway)
		case next.host == "" || next.host == "*":
			p.file.Fail(p.gatewayPos, "profile", "", "gateway-profile: profile %q names no host to go through", p.gateway)
		}
		var path []string
		step := make(map[string]int) // of path
		for at := id; m.profiles[at] != nil && !done[at]; at = m.profiles[at].gateway {
			if i, again := step[at]; again {
				first := m.profiles[at]
				first.file.Fail(first.gatewayPos, "profile", "", "gateway-profile: profiles lead in a circle: %s", strings.Join(append(path[i:], at), " -> "))
				break
			}
			step[at] = len(path)
			path = append(path, at)
		}
		for _, at := range path {
			done[at] = true
		}
	}
}

// factory is what holds where no file says anything.
func factory(env Env) profiles.Profile {
	p := profiles.Profile{
		Port:            22,
		Transports:      1,
		User:            env.User,
		HostKeyPolicy:   profiles.Ask,
		RekeyBytes:      1_000_000_000,
		KnownHosts:      []string{"/etc/ssh/ssh_known_hosts"},
		ConnectTimeout:  5 * time.Second,
		IdleTimeout:     5 * time.Second,
		OpenTimeout:     15 * time.Second,
		KeepaliveMisses: 3,
	}
	p.Agent, _ = env.Lookup("SSH_AUTH_SOCK")
	p.HTTPSProxy, p.NoProxy = env.either("HTTPS_PROXY", "https_proxy"), env.either("NO_PROXY", "no_proxy")
	if env.Home != "" {
		ssh := filepath.Join(env.Home, ".ssh")
		p.KnownHosts = append([]string{filepath.Join(ssh, "known_hosts")}, p.KnownHosts...)
		for _, name := range []string{"id_ed25519", "id_ecdsa", "id_rsa"} {
			p.DefaultKeys = append(p.DefaultKeys, filepath.Join(ssh, name))
		}
	}
	return p
}

// buildDefaults merges default-settings over p, the factory defaults, and what general
// says about keys and host keys. Of known-hosts the user's elements replace the global
// ones.
func (m *merged) buildDefaults(p profiles.Profile, userDir string) profiles.Profile {
	var strict, alwaysAsk, acceptUnknown bool
	var keys keyStores
	var hostKeys []hostKeyPlace
	for _, f := range m.files {
		keys = keys.combine(f.general.keys)
		if len(f.general.hostKeys) > 0 {
			hostKeys = f.general.hostKeys
		}
		set(&strict, f.general.strict)
		set(&alwaysAsk, f.general.alwaysAsk)
		set(&acceptUnknown, f.general.acceptUnknown)
	}
	p.CheckKeyModes = m.checkKeys
	keys.build(&p, userDir)
	placeHostKeys(&p, hostKeys, userDir)
	// A policy that any file gives beats the old switches, so those come first.
	p.HostKeyPolicy = deprecatedPolicy(strict, alwaysAsk, acceptUnknown)
	for _, f := range m.files {
		f.defaults.apply(&p)
	}
	return p
}

// config builds the result from files without errors. An error is a rule that the
// reader should have refused.
func (m *merged) config() (*Config, error) {
	c := &Config{
		Profiles: make(map[string]*profiles.Profile, len(m.order)),
		Defaults: &m.defaults,
		Pool4:    defaultPool4(),
		Host:     Host{UserBrokers: true},
		Logins:   make(map[string]string),
	}
	sum := sha256.New()
	for _, f := range m.files {
		sum.Write(digestLine(f.name, f.digest))
		c.Files = append(c.Files, f.name)
		if f.logging != nil {
			c.Logging = *f.logging
		}
		if f.defaults.user != "" || f.defaults.askUser {
			c.Logins[""] = f.defaults.user
		}
	}
	sum.Sum(c.Digest[:0])
	for _, id := range m.order {
		c.Profiles[id] = m.build(id)
		if m.profiles[id].startup {
			c.Startup = append(c.Startup, id)
		}
		login := cmp.Or(m.profiles[id].user, c.Logins[""])
		if login != "" && !m.profiles[id].askUser && m.profiles[id].protocol == profiles.SSH {
			c.Logins[id] = login
		}
	}
	c.StaticTunnels, c.LocalTunnels = m.tunnels(), m.localTunnels()
	if m.engine != nil {
		rules := make([]filter.Rule, len(m.engine.rules))
		for i := range m.engine.rules {
			rules[i] = m.engine.rules[i].Rule
		}
		set, err := filter.NewSet(rules, m.engine.defaultAction)
		if err != nil {
			return nil, err
		}
		c.Filter = set
		c.FilterPresent = true
		c.FilterSource = m.engine.pos.File
		c.Pool4, c.Pool6 = m.engine.pool4, m.engine.pool6
		c.Networks, c.Host = m.engine.networks, m.engine.host
	}
	return c, nil
}

func digestLine(name string, content [sha256.Size]byte) []byte {
	return fmt.Appendf(nil, "%q %x\n", name, content)
}

// Digest is Config.Digest for a configuration of these files, as they are now.
func Digest(files ...string) (digest [sha256.Size]byte, err error) {
	sum := sha256.New()
	for _, name := range files {
		data, err := ReadFile(name)
		if err != nil {
			return digest, err
		}
		sum.Write(digestLine(name, sha256.Sum256(data)))
	}
	sum.Sum(digest[:0])
	return digest, nil
}

// build completes one profile and those that it goes through, each once; there are no
// loops.
func (m *merged) build(id string) *profiles.Profile {
	mp := m.profiles[id]
	if mp.built != nil {
		return mp.built
	}
	p := m.defaults
	p.ID, p.Name, p.Host, p.Port, p.More = mp.id, mp.name, mp.host, mp.port, mp.more
	mp.apply(&p)
	if mp.protocol == profiles.TLS {
		mp.applyTLS(&p)
	}
	if mp.gateway != "" {
		p.Gateway = m.build(mp.gateway)
		p.Proxy, p.HTTPSProxy, p.NoProxy = "", "", "" // the gateway's own count
	}
	mp.built = &p
	return mp.built
}
