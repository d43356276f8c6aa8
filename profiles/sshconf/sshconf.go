package sshconf

import (
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/kevinburke/ssh_config"

	"sshbroker/profiles"
)

// Options say whose configuration it is.
type Options struct {
	Home   string // required
	User   string // login name; required
	UID    int
	Getenv func(string) string // for SSH_AUTH_SOCK and the proxies; nil: nothing is set

	// Files are read in their order, the first value of a keyword counts. nil:
	// ~/.ssh/config and /etc/ssh/ssh_config.
	Files []string

	Hostname string // of this host, for ControlPath; "": as the system says
}

// defaults of ssh_config(5), and ours where ssh has none that suits a tunnel.
const (
	defaultPort           = 22
	defaultConnectTimeout = 30 * time.Second
	defaultKeepalive      = 15 * time.Second
	defaultMisses         = 3
	openTimeout           = 15 * time.Second
	maxJumps              = 8
)

// Load makes the profile for a server named as in --via. Warnings say what of the
// configuration has no effect here.
func Load(name string, o Options) (*profiles.Profile, []string, error) {
	s, err := parseSpec(name)
	if err != nil {
		return nil, nil, err
	}
	l := &loader{Options: o}
	if l.Getenv == nil {
		l.Getenv = func(string) string { return "" }
	}
	if err := l.read(); err != nil {
		return nil, l.warnings, err
	}
	p, err := l.profile(s, nil)
	if err != nil {
		return nil, l.warnings, err
	}
	return p, l.warnings, nil
}

type loader struct {
	Options
	files    []file
	warnings []string
}

type file struct {
	path   string
	config *ssh_config.Config
}

func (l *loader) read() error {
	paths := l.Files
	if paths == nil {
		paths = []string{filepath.Join(l.Home, ".ssh", "config"), "/etc/ssh/ssh_config"}
	}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("ssh configuration: %w", err)
		}
		c, err := ssh_config.DecodeBytes([]byte(l.withoutMatch(path, string(b))))
		if err != nil {
			return fmt.Errorf("ssh configuration %s: %w", path, err)
		}
		l.files = append(l.files, file{path, c})
	}
	return nil
}

// withoutMatch lets no host have the sections that only ssh itself can judge, such as
// Match exec. Lines keep their numbers.
func (l *loader) withoutMatch(path, text string) string {
	var out strings.Builder
	number := 0
	for line := range strings.Lines(text) {
		number++
		words := strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(" \t=\r\n", r) })
		if len(words) > 1 && strings.EqualFold(words[0], "match") && !understood(words[1:]) {
			l.warn("%s line %d: Match %s has no effect here", path, number, words[1])
			line = "Host !*\n"
		}
		out.WriteString(line)
	}
	return out.String()
}

// understood says whether the library can judge the criteria of a Match by the name
// alone.
func understood(criteria []string) bool {
	return strings.EqualFold(criteria[0], "all") || (strings.EqualFold(criteria[0], "host") && len(criteria) == 2)
}

// get is the first value for a keyword, "" where there is none.
func (l *loader) get(alias, key string) (string, error) {
	for _, f := range l.files {
		v, err := f.config.Get(alias, key)
		if err != nil {
			return "", fmt.Errorf("ssh configuration %s: %s: %w", f.path, key, err)
		}
		if v != "" {
			return v, nil
		}
	}
	return "", nil
}

func (l *loader) all(alias, key string) ([]string, error) {
	var out []string
	for _, f := range l.files {
		vs, err := f.config.GetAll(alias, key)
		if err != nil {
			return nil, fmt.Errorf("ssh configuration %s: %s: %w", f.path, key, err)
		}
		out = append(out, vs...)
	}
	return out, nil
}

// values are the keywords of one host, each at its first value.
type values map[string]string

func (l *loader) values(alias string) (values, error) {
	v := values{}
	for _, key := range []string{"HostName", "User", "Port", "ProxyJump", "ProxyCommand", "ProxyUseFdpass", "ControlPath", "IdentitiesOnly", "IdentityAgent",
		"UserKnownHostsFile", "GlobalKnownHostsFile", "RevokedHostKeys", "StrictHostKeyChecking", "HostKeyAlias", "ConnectTimeout",
		"ServerAliveInterval", "ServerAliveCountMax", "Ciphers", "MACs", "KexAlgorithms", "HostKeyAlgorithms"} {
		s, err := l.get(alias, key)
		if err != nil {
			return nil, err
		}
		v[key] = strings.Trim(strings.TrimSpace(s), `"`)
	}
	return v, nil
}

// profile builds the profile of one server; jumps are those that lead to it, for
// loops.
func (l *loader) profile(s spec, jumps []string) (*profiles.Profile, error) {
	alias := s.host
	for _, j := range jumps {
		if j == alias {
			return nil, fmt.Errorf("ProxyJump: %s leads back to itself (%s)", alias, strings.Join(append(jumps, alias), ", "))
		}
	}
	if len(jumps) > maxJumps {
		return nil, fmt.Errorf("ProxyJump: more than %d jumps", maxJumps)
	}
	v, err := l.values(alias)
	if err != nil {
		return nil, err
	}
	p := &profiles.Profile{
		Host: alias, Port: s.port, User: s.user, ConnectTimeout: defaultConnectTimeout,
		KeepaliveInterval: defaultKeepalive, KeepaliveMisses: defaultMisses, OpenTimeout: openTimeout,
		IdleTimeout: -1, // a passphrase typed for it is not asked for again
	}
	if v["HostName"] != "" {
		p.Host = strings.ReplaceAll(strings.ReplaceAll(v["HostName"], "%h", alias), "%%", "%")
		if err := profiles.CheckHost(p.Host); err != nil {
			return nil, fmt.Errorf("HostName: %w", err)
		}
	}
	if err := l.who(p, v); err != nil {
		return nil, err
	}
	if err := l.keys(p, v, alias); err != nil {
		return nil, err
	}
	if err := l.trust(p, v, alias); err != nil {
		return nil, err
	}
	l.timing(p, v)
	if path := v["ControlPath"]; path != "" && !strings.EqualFold(path, "none") {
		p.ControlPath = l.controlPath(path, p, v, alias)
	}
	l.algorithms(p, v)
	return p, l.way(p, v, append(jumps, alias))
}

// who fills in user and port.
func (l *loader) who(p *profiles.Profile, v values) error {
	if p.User == "" {
		p.User = v["User"]
	}
	if p.User == "" {
		p.User = l.User
	}
	if err := profiles.CheckUser(p.User); err != nil {
		return fmt.Errorf("keyword User: %w", err)
	}
	if p.Port == 0 && v["Port"] != "" {
		n, err := strconv.ParseUint(v["Port"], 10, 16)
		if err != nil || n == 0 {
			return fmt.Errorf("keyword Port: %q is not a number from 1 to 65535", v["Port"])
		}
		p.Port = uint16(n)
	}
	if p.Port == 0 {
		p.Port = defaultPort
	}
	return nil
}

// keys fills in identities and the agent.
func (l *loader) keys(p *profiles.Profile, v values, alias string) error {
	files, err := l.all(alias, "IdentityFile")
	if err != nil {
		return err
	}
	only := isYes(v["IdentitiesOnly"])
	var named []string
	for _, f := range files {
		if path := l.expand(f, p, alias); !strings.EqualFold(path, "none") {
			named = append(named, path)
		}
	}
	defaults := []string{}
	for _, name := range []string{"id_ed25519", "id_ecdsa", "id_rsa"} {
		defaults = append(defaults, filepath.Join(l.Home, ".ssh", name))
	}
	switch {
	case only && len(named) > 0:
		p.Identities = named
	case len(named) > 0:
		p.DefaultKeys = named
	default:
		p.DefaultKeys = defaults
	}
	switch agent := v["IdentityAgent"]; {
	case agent == "" || agent == "SSH_AUTH_SOCK":
		p.Agent = l.Getenv("SSH_AUTH_SOCK")
	case strings.EqualFold(agent, "none"):
	case strings.HasPrefix(agent, "$"):
		p.Agent = l.Getenv(strings.Trim(agent[1:], "{}"))
	default:
		p.Agent = l.expand(agent, p, alias)
	}
	return nil
}

// trust fills in the files of known hosts and the policy.
func (l *loader) trust(p *profiles.Profile, v values, alias string) error {
	user, global := v["UserKnownHostsFile"], v["GlobalKnownHostsFile"]
	if user == "" {
		user = "~/.ssh/known_hosts ~/.ssh/known_hosts2"
	}
	if global == "" {
		global = "/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2"
	}
	for i, list := range []string{user, global} {
		for j, f := range strings.Fields(list) {
			if f = strings.Trim(f, `"`); strings.EqualFold(f, "none") {
				continue
			}
			f = l.expand(f, p, alias)
			p.KnownHosts = append(p.KnownHosts, f)
			if i == 0 && j == 0 {
				p.StoreKnownHost = f
			}
		}
	}
	if f := v["RevokedHostKeys"]; f != "" && !strings.EqualFold(f, "none") {
		l.warn("RevokedHostKeys %s has no effect here: put the keys into a file of known hosts, with @revoked before them", f)
	}
	if p.HostKeyAlias = v["HostKeyAlias"]; p.HostKeyAlias != "" {
		if err := profiles.CheckHost(p.HostKeyAlias); err != nil {
			return fmt.Errorf("HostKeyAlias: %w", err)
		}
	}
	switch strings.ToLower(v["StrictHostKeyChecking"]) {
	case "yes":
		p.HostKeyPolicy = profiles.Strict
	case "accept-new":
		p.HostKeyPolicy = profiles.TOFU
	case "no", "off":
		// ssh would go on with a changed key; we do not.
		p.HostKeyPolicy = profiles.TOFU
		l.warn("StrictHostKeyChecking no: new keys of %s are accepted, changed ones are refused all the same", alias)
	case "", "ask":
		p.HostKeyPolicy = profiles.Ask
	default:
		return fmt.Errorf("StrictHostKeyChecking %q: it is yes, accept-new, no or ask", v["StrictHostKeyChecking"])
	}
	return nil
}

func (l *loader) timing(p *profiles.Profile, v values) {
	if d, ok := l.duration("ConnectTimeout", v); ok {
		p.ConnectTimeout = d
	}
	if d, ok := l.duration("ServerAliveInterval", v); ok && d > 0 {
		p.KeepaliveInterval = d
	}
	if n, err := strconv.Atoi(v["ServerAliveCountMax"]); err == nil && n > 0 {
		p.KeepaliveMisses = n
	}
}

// duration reads seconds, or a number with s, m or h behind it (TIME FORMATS in
// sshd_config(5), as far as one unit).
func (l *loader) duration(key string, v values) (time.Duration, bool) {
	text := v[key]
	if text == "" || text == "none" {
		return 0, false
	}
	if n, err := strconv.Atoi(text); err == nil && n >= 0 {
		return time.Duration(n) * time.Second, true
	}
	if d, err := time.ParseDuration(strings.ToLower(text)); err == nil && d >= 0 {
		return d, true
	}
	l.warn("%s %q is not understood and has no effect", key, text)
	return 0, false
}

// algorithms takes plain lists over. The forms that change ssh's own defaults mean
// nothing to another program's.
func (l *loader) algorithms(p *profiles.Profile, v values) {
	for key, dst := range map[string]*[]string{"Ciphers": &p.Ciphers, "MACs": &p.MACs,
		"KexAlgorithms": &p.KEXs, "HostKeyAlgorithms": &p.HostKeyAlgorithms} {
		switch text := v[key]; {
		case text == "":
		case strings.ContainsAny(text[:1], "+-^"):
			l.warn("%s %s changes a default of ssh and has no effect", key, text)
		default:
			*dst = strings.Split(text, ",")
		}
	}
}

// way fills in the gateways, or what stands in for one.
func (l *loader) way(p *profiles.Profile, v values, jumps []string) error {
	jump := v["ProxyJump"]
	switch command := v["ProxyCommand"]; {
	case jump != "" && !strings.EqualFold(jump, "none"):
	case command != "" && !strings.EqualFold(command, "none"):
		alias := jumps[len(jumps)-1]
		if isYes(v["ProxyUseFdpass"]) {
			return fmt.Errorf("ProxyUseFdpass of %s is not supported: leave it out, and have the ProxyCommand carry the connection", alias)
		}
		p.ProxyCommand = strings.NewReplacer("%%", "%", "%h", p.Host, "%n", alias, "%p", strconv.Itoa(int(p.Port)), "%r", p.User).Replace(command)
		return nil
	default:
		if jump == "" && command == "" { // "none" is a choice
			p.HTTPSProxy, p.NoProxy = l.either("HTTPS_PROXY", "https_proxy"), l.either("NO_PROXY", "no_proxy")
		}
		return nil
	}
	// The last one of the list is the nearest to the destination.
	list := strings.Split(jump, ",")
	var gateway *profiles.Profile
	for i, name := range list {
		s, err := parseSpec(strings.TrimSpace(name))
		if err != nil {
			return fmt.Errorf("ProxyJump: %w", err)
		}
		q, err := l.profile(s, jumps)
		if err != nil {
			return err
		}
		if i > 0 { // as ssh -J does: only the first one's own ProxyJump counts
			q.Gateway = gateway
		}
		gateway = q
	}
	p.Gateway = gateway
	return nil
}

// controlPath replaces the tokens of ControlPath, which has more than others.
func (l *loader) controlPath(path string, p *profiles.Profile, v values, alias string) string {
	host := l.Hostname
	if host == "" {
		host, _ = os.Hostname()
	}
	short, _, _ := strings.Cut(host, ".")
	key := v["HostKeyAlias"]
	if key == "" {
		key = alias
	}
	jump := v["ProxyJump"]
	if strings.EqualFold(jump, "none") {
		jump = ""
	}
	// %C of OpenSSH 9.6 and newer; older ones leave the jump out.
	sum := sha1.Sum([]byte(host + p.Host + strconv.Itoa(int(p.Port)) + p.User + jump))
	path = strings.NewReplacer("%%", "%%", "%C", hex.EncodeToString(sum[:]), "%l", host, "%L", short, "%k", key, "%j", jump).Replace(path)
	return l.expand(path, p, alias)
}

// expand replaces ~ and the tokens of ssh_config(5) that paths may hold.
func (l *loader) expand(path string, p *profiles.Profile, alias string) string {
	if path == "~" || strings.HasPrefix(path, "~/") {
		path = l.Home + path[1:]
	}
	return strings.NewReplacer("%%", "%", "%d", l.Home, "%h", p.Host, "%n", alias, "%p", strconv.Itoa(int(p.Port)),
		"%r", p.User, "%u", l.User, "%i", strconv.Itoa(l.UID)).Replace(path)
}

// either is the first of two variables that is set to something.
func (l *loader) either(name, other string) string {
	if v := l.Getenv(name); v != "" {
		return v
	}
	return l.Getenv(other)
}

func (l *loader) warn(format string, args ...any) {
	l.warnings = append(l.warnings, fmt.Sprintf(format, args...))
}

func isYes(s string) bool { return strings.EqualFold(s, "yes") || strings.EqualFold(s, "true") }
