package hostkeys

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/skeema/knownhosts"
	"golang.org/x/crypto/ssh"
	xknownhosts "golang.org/x/crypto/ssh/knownhosts"

	"sshbroker/profiles"
	"sshbroker/profiles/keyfile"
)

// Checker judges the host keys of one server. Safe for concurrent use.
type Checker struct {
	profile *profiles.Profile
	log     *slog.Logger
	name    string // host:port as looked up
	pinned  ssh.PublicKey
	db      *knownhosts.HostKeyDB
	names   map[string]string // path as read -> path as the profile has it
}

// New reads what is known of p's server. Files that do not exist are empty ones.
// Its errors are ErrSetup: a file that cannot be read may hold a revocation, so
// going on without it would trust more than was said.
func New(p *profiles.Profile, log *slog.Logger) (*Checker, error) {
	c := &Checker{profile: p, log: log, name: net.JoinHostPort(p.Host, strconv.Itoa(int(p.Port)))}
	if p.HostKeyAlias != "" {
		c.name = net.JoinHostPort(p.HostKeyAlias, "22") // an alias has no port, see ssh_config(5)
	}
	if p.HostKeyFile != "" {
		text, err := os.ReadFile(p.HostKeyFile)
		if err != nil {
			return nil, fmt.Errorf("%w: host key: %w", profiles.ErrSetup, err)
		}
		if c.pinned, _, err = keyfile.ParsePublic(text); err != nil {
			return nil, fmt.Errorf("%w: host key %s: %w", profiles.ErrSetup, p.HostKeyFile, err)
		}
		return c, nil
	}
	files := slices.Clone(p.KnownHosts)
	if p.StoreKnownHost != "" && !slices.Contains(files, p.StoreKnownHost) {
		files = append(files, p.StoreKnownHost)
	}
	if err := c.read(files); err != nil {
		return nil, fmt.Errorf("%w: known hosts: %w", profiles.ErrSetup, err)
	}
	return c, nil
}

// Algorithms returns the host key algorithms to offer, of those in supported: first
// those of the keys that are known for the server, as OpenSSH does, so that a server
// with several keys shows the one we know. Certificates are offered only where a
// certification authority is known for the server.
func (c *Checker) Algorithms(supported []string) []string {
	var known []string
	authority := false
	if c.pinned != nil {
		known = algorithmsOf(c.pinned.Type())
	} else {
		for _, k := range c.db.HostKeys(c.name) {
			if k.Cert {
				authority = true
				continue
			}
			known = append(known, algorithmsOf(k.Type())...)
		}
	}
	var first, certified, rest []string
	for _, a := range supported {
		switch {
		case strings.Contains(a, "-cert-v01@"):
			certified = append(certified, a)
		case slices.Contains(known, a):
			first = append(first, a)
		default:
			rest = append(rest, a)
		}
	}
	if c.pinned != nil {
		return first
	}
	if !authority {
		certified = nil
	}
	return slices.Concat(certified, first, rest)
}

// algorithmsOf returns the signature algorithms of a key type, RFC 8332 section 3.
func algorithmsOf(keyType string) []string {
	if keyType == ssh.KeyAlgoRSA {
		return []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSA}
	}
	return []string{keyType}
}

// Check judges key. Its errors are ErrHostKey and carry the whole story: host, key
// type, fingerprint, where another key is on file, and what to do. ask may be nil.
func (c *Checker) Check(ctx context.Context, remote net.Addr, key ssh.PublicKey, ask profiles.Prompter) error {
	if c.pinned != nil {
		return c.checkPinned(key)
	}
	err := c.db.HostKeyCallback()(c.name, unnamed{remote}, key)
	var unknown *xknownhosts.KeyError
	var revoked *xknownhosts.RevokedError
	switch {
	case err == nil && c.isAuthority(key):
		return fmt.Errorf("%w: %s shows the key of its certification authority as its own, %s", profiles.ErrHostKey, c.name, describe(key))
	case err == nil:
		return nil
	case errors.As(err, &revoked):
		return fmt.Errorf("%w: the %s of %s is REVOKED at %s; do not connect to this server",
			profiles.ErrHostKey, describe(key), c.name, c.place(revoked.Revoked))
	case !errors.As(err, &unknown):
		return fmt.Errorf("%w: %s of %s: %s", profiles.ErrHostKey, describe(key), c.name, err)
	}
	// The library lists the keys of authorities among the wanted ones; a plain key
	// beside them is new, not changed.
	want := slices.DeleteFunc(slices.Clone(unknown.Want), func(k xknownhosts.KnownKey) bool { return c.isAuthority(k.Key) })
	if len(want) > 0 {
		return c.changed(key, want)
	}
	return c.unknown(ctx, remote, key, ask)
}

// isAuthority tells whether key is on file as a certification authority of the
// server and not as a key of its own. The library does not tell them apart when it
// compares plain keys.
func (c *Checker) isAuthority(key ssh.PublicKey) bool {
	authority := false
	for _, k := range c.db.HostKeys(c.name) {
		if bytes.Equal(k.Marshal(), key.Marshal()) {
			if !k.Cert {
				return false
			}
			authority = true
		}
	}
	return authority
}

func (c *Checker) checkPinned(key ssh.PublicKey) error {
	if bytes.Equal(key.Marshal(), c.pinned.Marshal()) {
		return nil
	}
	return fmt.Errorf("%w: THE HOST KEY IS NOT THE ONE TRUSTED: %s shows %s, %s has %s; somebody may be in between, or the server has a new key: put it into that file only after checking its fingerprint with the server's owner",
		profiles.ErrHostKey, c.name, describe(key), c.profile.HostKeyFile, describe(c.pinned))
}

// changed refuses a key that differs from what is on file. A key of another type
// counts as changed too: we offer the types on file first, so an honest server that
// still has the old key shows that one.
func (c *Checker) changed(key ssh.PublicKey, want []xknownhosts.KnownKey) error {
	onFile := make([]string, len(want))
	for i, w := range want {
		onFile[i] = fmt.Sprintf("%s at %s", describe(w.Key), c.place(w))
	}
	if c.profile.HostKeyPolicy == profiles.Advisory {
		c.log.Warn("HOST KEY HAS CHANGED, accepted as the policy is advisory",
			"host", c.name, "shown", describe(key), "known", strings.Join(onFile, ", "))
		return nil
	}
	return fmt.Errorf("%w: THE HOST KEY HAS CHANGED: %s shows %s, on file is %s; somebody may be in between, or the server has a new key: check its fingerprint with the server's owner, and only then remove the old key with: ssh-keygen -R '%s' -f '%s'",
		profiles.ErrHostKey, c.name, describe(key), strings.Join(onFile, ", "),
		knownhosts.Normalize(c.name), c.file(want[0].Filename))
}

// unknown treats a key of a server that nothing is on file of.
func (c *Checker) unknown(ctx context.Context, remote net.Addr, key ssh.PublicKey, ask profiles.Prompter) error {
	switch c.profile.HostKeyPolicy {
	case profiles.TOFU, profiles.Advisory:
		err := c.store(key)
		switch {
		case err == nil:
			c.log.Info("new host key accepted and stored", "host", c.name, "key", describe(key), "file", c.profile.StoreKnownHost)
			return nil
		case c.profile.HostKeyPolicy == profiles.Advisory:
			c.log.Warn("new host key accepted but not stored", "host", c.name, "key", describe(key), "error", err)
			return nil
		}
		// Trust on first use means nothing where every use is the first.
		return fmt.Errorf("%w: the %s of %s is new and could not be stored: %w", profiles.ErrHostKey, describe(key), c.name, err)
	case profiles.Ask:
		if ask != nil {
			return c.ask(ctx, remote, key, ask)
		}
	}
	return fmt.Errorf("%w: the %s of %s is not known%s", profiles.ErrHostKey, describe(key), c.name, c.cure())
}

// cure says how to make the server known.
func (c *Checker) cure() string {
	file := c.profile.StoreKnownHost
	if file == "" && len(c.profile.KnownHosts) > 0 {
		file = c.profile.KnownHosts[0]
	}
	if file == "" {
		return " and the profile names no file of known hosts"
	}
	port := ""
	if c.profile.Port != 22 {
		port = fmt.Sprintf("-p %d ", c.profile.Port)
	}
	cure := fmt.Sprintf(" in %s; check the fingerprint with the server's owner, then store it with: ssh-keyscan %s'%s' >> '%s'",
		file, port, c.profile.Host, file)
	if c.profile.HostKeyAlias != "" {
		cure += fmt.Sprintf(" (and put the alias %s in place of the host name there)", c.profile.HostKeyAlias)
	}
	return cure
}

func (c *Checker) ask(ctx context.Context, remote net.Addr, key ssh.PublicKey, ask profiles.Prompter) error {
	where := ""
	if remote != nil && remote.String() != c.name {
		where = fmt.Sprintf(" (%s)", remote)
	}
	answer, err := ask.Ask(ctx, profiles.Prompt{
		YesNo: true,
		Text: fmt.Sprintf("The server %s%s is not known yet.\nIt shows the %s\nDo you trust this key (yes, no, or the fingerprint to compare)? ",
			c.name, where, describe(key)),
	})
	if err != nil {
		return fmt.Errorf("%w: the %s of %s is not known and nobody answered: %w", profiles.ErrHostKey, describe(key), c.name, err)
	}
	answer = strings.TrimSpace(answer)
	if !strings.EqualFold(answer, "yes") && answer != ssh.FingerprintSHA256(key) {
		return fmt.Errorf("%w: the %s of %s was not accepted", profiles.ErrHostKey, describe(key), c.name)
	}
	if c.profile.StoreKnownHost == "" {
		return nil
	}
	if err := c.store(key); err != nil {
		c.log.Warn("accepted host key could not be stored, it will be asked for again", "host", c.name, "error", err)
	}
	return nil
}

func (c *Checker) store(key ssh.PublicKey) error {
	if c.profile.StoreKnownHost == "" {
		return errors.New("the profile names no file to store it in")
	}
	return Append(c.profile.StoreKnownHost, knownhosts.Line([]string{c.name}, key))
}

func (c *Checker) place(k xknownhosts.KnownKey) string {
	return fmt.Sprintf("%s:%d", c.file(k.Filename), k.Line)
}

func (c *Checker) file(read string) string {
	if name, ok := c.names[read]; ok {
		return name
	}
	return read
}

// describe names a key as people compare it.
func describe(key ssh.PublicKey) string {
	if cert, ok := key.(*ssh.Certificate); ok {
		return fmt.Sprintf("certificate %s of authority %s", ssh.FingerprintSHA256(cert.Key), ssh.FingerprintSHA256(cert.SignatureKey))
	}
	return Describe(key)
}

// Describe returns the type and the SHA256 fingerprint of a key.
func Describe(key ssh.PublicKey) string {
	return key.Type() + " key " + ssh.FingerprintSHA256(key)
}

// unnamed keeps the address lookup of x/crypto happy where a connection has none
// that parses, as a pipe in a test; the name alone decides.
type unnamed struct{ net.Addr }

func (u unnamed) String() string {
	if u.Addr != nil {
		if _, _, err := net.SplitHostPort(u.Addr.String()); err == nil {
			return u.Addr.String()
		}
	}
	return "0.0.0.0:0"
}
