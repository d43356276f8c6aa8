package hostkeys

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
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
	// Observe is told of keys that are new, changed or revoked; it is set before Check.
	Observe profiles.Observer

	profile *profiles.Profile
	log     *slog.Logger
	host    string // as looked up
	port    uint16
	name    string // both, in lower case
	pinned  ssh.PublicKey
	stores  []store // in the order in which they are asked
}

// store is a place with keys: one of the two is set.
type store struct {
	files *files
	dir   *directory
}

// New reads what is known of p's server. Files that do not exist are empty ones.
// Its errors are ErrSetup: a file that cannot be read may hold a revocation, so
// going on without it would trust more than was said.
func New(p *profiles.Profile, log *slog.Logger) (*Checker, error) {
	c := &Checker{profile: p, log: log, host: p.Host, port: p.Port}
	if p.HostKeyAlias != "" {
		c.host, c.port = p.HostKeyAlias, 22 // an alias has no port, see ssh_config(5)
	}
	if addr, err := netip.ParseAddr(c.host); err == nil {
		c.host = addr.String() // as ssh(1) writes addresses
	}
	c.name = net.JoinHostPort(strings.ToLower(c.host), strconv.Itoa(int(c.port)))
	var err error
	switch {
	case p.HostKeyText != "":
		if c.pinned, err = keyfile.ParseInline(p.HostKeyText); err != nil {
			return nil, fmt.Errorf("%w: host key of the profile: %w", profiles.ErrSetup, err)
		}
	case p.HostKeyFile != "":
		text, err := readSmall(p.HostKeyFile, maxKey)
		if err != nil {
			return nil, fmt.Errorf("%w: host key: %w", profiles.ErrSetup, err)
		}
		if c.pinned, _, err = keyfile.ParsePublic(text); err != nil {
			return nil, fmt.Errorf("%w: host key %s: %w", profiles.ErrSetup, p.HostKeyFile, err)
		}
	default:
		if err := c.read(); err != nil {
			return nil, fmt.Errorf("%w: known hosts: %w", profiles.ErrSetup, err)
		}
	}
	return c, nil
}

// read loads the stores. Where new keys go is looked at too, so that nothing is new
// twice.
func (c *Checker) read() error {
	places := slices.Clone(c.profile.KnownHosts)
	if own := c.profile.StoreKnownHost; own != "" && !slices.Contains(places, own) {
		places = append(places, own)
	}
	var adjacent []string
	flush := func() error {
		if len(adjacent) == 0 {
			return nil
		}
		known, err := readFiles(adjacent, c.log)
		if err == nil {
			c.stores = append(c.stores, store{files: known})
		}
		adjacent = nil
		return err
	}
	for _, place := range places {
		if !isDirectory(place) {
			adjacent = append(adjacent, place)
			continue
		}
		if err := flush(); err != nil {
			return err
		}
		dir, err := readDirectory(place, c.host, c.port)
		if err != nil {
			return err
		}
		if n := dir.unreadable(); n > 0 {
			c.log.Warn("host keys in Tectia's hashed form cannot be read", "directory", place, "files", n,
				"hint", "store the keys in the plain format")
		}
		c.stores = append(c.stores, store{dir: dir})
	}
	return flush()
}

// isDirectory tells the places apart that Profile.KnownHosts has.
func isDirectory(place string) bool {
	if strings.HasSuffix(place, "/") {
		return true
	}
	st, err := os.Stat(place)
	return err == nil && st.IsDir()
}

// Algorithms returns the host key algorithms to offer, of those in supported: first
// those of the keys that are known for the server, as OpenSSH does, so that a server
// with several keys shows the one we know. Certificates are offered only where a
// certification authority is known for the server. The list is empty where nothing that
// a server could show would do.
func (c *Checker) Algorithms(supported []string) []string {
	var known []string
	authority := false
	if c.pinned != nil {
		known = algorithmsOf(c.pinned.Type())
	}
	for _, s := range c.stores {
		plain, certified := s.types(c.name)
		authority = authority || certified || s.certifies(c.portless())
		if len(known) == 0 { // the first store that knows the server decides
			known = plain
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
	switch {
	case c.pinned != nil:
		return first
	case c.profile.ServerProof == profiles.CertificateProof && !authority:
		return nil
	case c.profile.ServerProof == profiles.CertificateProof:
		return certified
	case c.profile.ServerProof == profiles.KeyProof || !authority:
		certified = nil
	}
	return slices.Concat(certified, first, rest)
}

// Unprovable says what is missing where Algorithms had nothing to offer.
func (c *Checker) Unprovable() error {
	if c.pinned == nil && c.profile.ServerProof == profiles.CertificateProof {
		return fmt.Errorf("%w: the server has to show a certificate, and no authority is known for %s: add a line @cert-authority to a known_hosts file (X.509 certificates are not checked)",
			profiles.ErrHostKey, c.name)
	}
	return fmt.Errorf("%w: no host key algorithm left that fits the key on file", profiles.ErrSetup)
}

// portless is the server's name at the standard port. For certificates OpenSSH looks at
// what is on file for that too, where nothing else fits.
func (c *Checker) portless() string { return atPort22(c.name) }

func (s store) certifies(server string) bool {
	_, authority := s.types(server)
	return authority
}

// types are the signature algorithms of the keys that a store has of a server, and
// whether it has an authority for it.
func (s store) types(server string) (plain []string, authority bool) {
	if s.dir != nil {
		if s.dir.known != nil {
			plain = algorithmsOf(s.dir.known.Type())
		}
		return plain, false
	}
	for _, k := range s.files.db.HostKeys(server) {
		if k.Cert {
			authority = true
			continue
		}
		plain = append(plain, algorithmsOf(k.Type())...)
	}
	return plain, authority
}

// algorithmsOf returns the signature algorithms of a key type, RFC 8332 section 3.
func algorithmsOf(keyType string) []string {
	if keyType == ssh.KeyAlgoRSA {
		return []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSA}
	}
	return []string{keyType}
}

// known is a key that a store has of the server.
type known struct {
	key   ssh.PublicKey
	place string
	cure  string // how to take it away
	own   string // the file that holds it, where we may put another in its place
}

// Check judges key. Its errors are ErrHostKey and carry the whole story: host, key
// type, fingerprint, where another key is on file, and what to do. ask may be nil.
func (c *Checker) Check(ctx context.Context, remote net.Addr, key ssh.PublicKey, ask profiles.Prompter) error {
	if c.pinned != nil {
		return c.checkPinned(key)
	}
	cert, certified := key.(*ssh.Certificate)
	if certified && c.profile.ServerProof == profiles.KeyProof {
		return fmt.Errorf("%w: %s has to show a key, it shows a %s", profiles.ErrHostKey, c.name, describe(key))
	}
	if !certified && c.profile.ServerProof == profiles.CertificateProof {
		return fmt.Errorf("%w: %s has to show a certificate, it shows %s", profiles.ErrHostKey, c.name, describe(key))
	}
	if err := c.checkRevoked(remote, key); err != nil {
		return err
	}
	verdicts := make([]error, len(c.stores))
	for i, s := range c.stores {
		if s.files != nil {
			verdicts[i] = s.files.judge(c.name, remote, key)
		}
	}
	if certified {
		return c.checkCertificate(remote, cert, verdicts)
	}
	for i, s := range c.stores {
		onFile, trusted, err := c.onFile(s, key, verdicts[i])
		switch {
		case err != nil || trusted:
			return err
		case len(onFile) > 0:
			return c.changed(ctx, key, onFile, ask)
		}
	}
	return c.unknown(ctx, remote, key, ask)
}

// checkRevoked refuses what any store has taken back, wherever else it may be on file. A
// certificate is also taken back with its key and with its authority's; the library tells
// that only of the store that has the authority.
func (c *Checker) checkRevoked(remote net.Addr, key ssh.PublicKey) error {
	keys := []ssh.PublicKey{keyfile.Plain(key)}
	if cert, ok := key.(*ssh.Certificate); ok {
		keys = append(keys, cert.SignatureKey)
	}
	for _, s := range c.stores {
		if s.files == nil {
			continue
		}
		for _, k := range keys {
			var revoked *xknownhosts.RevokedError
			if errors.As(s.files.judge(c.name, remote, k), &revoked) {
				c.tell(profiles.HostKeyRevoked, key, "refused", s.files.place(revoked.Revoked))
				return fmt.Errorf("%w: the %s of %s is REVOKED at %s; do not connect to this server",
					profiles.ErrHostKey, describe(key), c.name, s.files.place(revoked.Revoked))
			}
		}
	}
	return nil
}

// onFile tells what one store has on the server: this key, or others.
func (c *Checker) onFile(s store, key ssh.PublicKey, verdict error) (other []known, trusted bool, err error) {
	if s.dir != nil {
		switch {
		case s.dir.known == nil:
			return nil, false, nil
		case bytes.Equal(s.dir.known.Marshal(), key.Marshal()):
			return nil, true, nil
		}
		k := known{key: s.dir.known, place: s.dir.file, cure: fmt.Sprintf("rm '%s'", s.dir.file)}
		if filepath.Clean(s.dir.path) == filepath.Clean(c.profile.StoreKnownHost) {
			k.own = s.dir.file
		}
		return []known{k}, false, nil
	}
	var unknown *xknownhosts.KeyError
	switch {
	case verdict == nil && s.files.isAuthority(c.name, key):
		return nil, false, fmt.Errorf("%w: %s shows the key of its certification authority as its own, %s", profiles.ErrHostKey, c.name, describe(key))
	case verdict == nil:
		return nil, true, nil
	case !errors.As(verdict, &unknown):
		return nil, false, fmt.Errorf("%w: %s of %s: %s", profiles.ErrHostKey, describe(key), c.name, verdict)
	}
	for _, w := range unknown.Want {
		// The library lists the keys of authorities among the wanted ones; a plain key
		// beside them is new, not changed.
		if !s.files.isAuthority(c.name, w.Key) {
			other = append(other, known{key: w.Key, place: s.files.place(w),
				cure: fmt.Sprintf("ssh-keygen -R '%s' -f '%s'", knownhosts.Normalize(c.name), s.files.file(w.Filename))})
		}
	}
	return other, false, nil
}

// checkCertificate accepts a certificate that an authority of any store has signed for
// this server. The library has checked its time and its names.
func (c *Checker) checkCertificate(remote net.Addr, cert *ssh.Certificate, verdicts []error) error {
	why := errors.New("no authority is known")
	for i, s := range c.stores {
		if s.files == nil {
			continue
		}
		if verdicts[i] == nil || s.files.judge(c.portless(), remote, cert) == nil {
			return nil
		}
		if s.certifies(c.name) || s.certifies(c.portless()) {
			why = verdicts[i]
		}
	}
	return fmt.Errorf("%w: %s of %s: %s", profiles.ErrHostKey, describe(cert), c.name, why)
}

func (c *Checker) checkPinned(key ssh.PublicKey) error {
	if bytes.Equal(key.Marshal(), c.pinned.Marshal()) {
		return nil
	}
	from := c.profile.HostKeyFile
	if c.profile.HostKeyText != "" {
		from = "the profile"
	}
	c.tell(profiles.HostKeyChanged, key, "refused", from)
	return fmt.Errorf("%w: THE HOST KEY IS NOT THE ONE TRUSTED: %s shows %s, %s has %s; somebody may be in between, or the server has a new key: put it into that place only after checking its fingerprint with the server's owner",
		profiles.ErrHostKey, c.name, describe(key), from, describe(c.pinned))
}

// changed refuses a key that differs from what is on file. A key of another type
// counts as changed too: we offer the types on file first, so an honest server that
// still has the old key shows that one. Under the policy ask a person may let it in
// where we keep the key on file ourselves, by typing the new fingerprint.
func (c *Checker) changed(ctx context.Context, key ssh.PublicKey, old []known, ask profiles.Prompter) error {
	onFile := make([]string, len(old))
	for i, k := range old {
		onFile[i] = fmt.Sprintf("%s at %s", describe(k.key), k.place)
	}
	story := fmt.Sprintf("THE HOST KEY HAS CHANGED: %s shows %s, on file is %s", c.name, describe(key), strings.Join(onFile, ", "))
	switch {
	case c.profile.HostKeyPolicy == profiles.Advisory:
		c.tell(profiles.HostKeyChanged, key, "accepted", old[0].place)
		c.log.Warn("HOST KEY HAS CHANGED, accepted as the policy is advisory",
			"host", c.name, "shown", describe(key), "known", strings.Join(onFile, ", "))
		return nil
	case c.profile.HostKeyPolicy == profiles.Ask && ask != nil && old[0].own != "":
		return c.askChanged(ctx, key, story, old[0], ask)
	}
	c.tell(profiles.HostKeyChanged, key, "refused", old[0].place)
	return fmt.Errorf("%w: %s; somebody may be in between, or the server has a new key: check its fingerprint with the server's owner, and only then remove the old key with: %s",
		profiles.ErrHostKey, story, old[0].cure)
}

func (c *Checker) askChanged(ctx context.Context, key ssh.PublicKey, story string, old known, ask profiles.Prompter) error {
	answer, err := ask.Ask(ctx, profiles.Prompt{
		YesNo: true,
		Text: fmt.Sprintf("%s\nSomebody may be in between, or the server has a new key: check its fingerprint with the server's owner.\n"+
			"To put it in place of the old one type the new fingerprint; anything else refuses: ", story),
	})
	if err != nil {
		c.tell(profiles.HostKeyChanged, key, "refused", old.place)
		return fmt.Errorf("%w: %s, and nobody answered: %w", profiles.ErrHostKey, story, err)
	}
	if strings.TrimSpace(answer) != ssh.FingerprintSHA256(key) {
		c.tell(profiles.HostKeyChanged, key, "refused", old.place)
		return fmt.Errorf("%w: %s, and it was not accepted", profiles.ErrHostKey, story)
	}
	c.tell(profiles.HostKeyChanged, key, "accepted", old.place)
	c.log.Warn("CHANGED HOST KEY accepted by a person", "host", c.name, "shown", describe(key), "before", describe(old.key))
	if err := storeIn(c.profile.StoreKnownHost, c.host, c.port, key, c.profile.PlainKeyNames, old.own); err != nil {
		c.log.Warn("accepted host key could not be stored, it will be asked for again", "host", c.name, "error", err)
	}
	return nil
}

// unknown treats a key of a server that nothing is on file of.
func (c *Checker) unknown(ctx context.Context, remote net.Addr, key ssh.PublicKey, ask profiles.Prompter) error {
	switch c.profile.HostKeyPolicy {
	case profiles.TOFU, profiles.Advisory:
		err := c.store(key)
		switch {
		case err == nil:
			c.tell(profiles.HostKeyNew, key, "stored", c.profile.StoreKnownHost)
			c.log.Info("new host key accepted and stored", "host", c.name, "key", describe(key), "place", c.profile.StoreKnownHost)
			return nil
		case c.profile.HostKeyPolicy == profiles.Advisory, errors.Is(err, errOccupied):
			// The second is ssh-broker-config(5)'s: the connection goes on.
			c.tell(profiles.HostKeyNew, key, "accepted", "")
			c.log.Warn("new host key accepted but not stored", "host", c.name, "key", describe(key), "error", err)
			return nil
		}
		// Trust on first use means nothing where every use is the first.
		c.tell(profiles.HostKeyUnknown, key, "refused", "")
		return fmt.Errorf("%w: the %s of %s is new and could not be stored: %w", profiles.ErrHostKey, describe(key), c.name, err)
	case profiles.Ask:
		if ask != nil {
			return c.ask(ctx, remote, key, ask)
		}
	}
	c.tell(profiles.HostKeyUnknown, key, "refused", "")
	return fmt.Errorf("%w: the %s of %s is not known%s", profiles.ErrHostKey, describe(key), c.name, c.cure())
}

// cure says how to make the server known.
func (c *Checker) cure() string {
	file := c.profile.StoreKnownHost
	if i := slices.IndexFunc(c.profile.KnownHosts, func(place string) bool { return !isDirectory(place) }); i >= 0 && (file == "" || isDirectory(file)) {
		file = c.profile.KnownHosts[i]
	}
	port, keep := "", fmt.Sprintf(">> '%s'", file)
	switch {
	case file == "":
		return " and the profile names no file of known hosts"
	case isDirectory(file):
		keep = fmt.Sprintf("| cut -d' ' -f2- > '%s'", filepath.Join(file, plainName(c.host, c.port)))
		port = "-t ed25519 " // a file has one key
	}
	if c.profile.Port != 22 {
		port += fmt.Sprintf("-p %d ", c.profile.Port)
	}
	cure := fmt.Sprintf(" in %s; check the fingerprint with the server's owner, then store it with: ssh-keyscan %s'%s' %s", file, port, c.profile.Host, keep)
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
		c.tell(profiles.HostKeyUnknown, key, "refused", "")
		return fmt.Errorf("%w: the %s of %s is not known and nobody answered: %w", profiles.ErrHostKey, describe(key), c.name, err)
	}
	answer = strings.TrimSpace(answer)
	if !strings.EqualFold(answer, "yes") && answer != ssh.FingerprintSHA256(key) {
		c.tell(profiles.HostKeyUnknown, key, "refused", "")
		return fmt.Errorf("%w: the %s of %s was not accepted", profiles.ErrHostKey, describe(key), c.name)
	}
	if c.profile.StoreKnownHost == "" {
		c.tell(profiles.HostKeyNew, key, "accepted", "")
		return nil
	}
	if err := c.store(key); err != nil {
		c.tell(profiles.HostKeyNew, key, "accepted", "")
		c.log.Warn("accepted host key could not be stored, it will be asked for again", "host", c.name, "error", err)
		return nil
	}
	c.tell(profiles.HostKeyNew, key, "stored", c.profile.StoreKnownHost)
	return nil
}

// tell tells what becomes of a key; file is where it stands, or the one that it differs
// from.
func (c *Checker) tell(kind profiles.EventKind, key ssh.PublicKey, status, file string) {
	c.Observe.Tell(profiles.Event{Kind: kind, Profile: c.profile, KeyType: key.Type(), KeyHash: ssh.FingerprintSHA256(key), Status: status, File: file})
}

func (c *Checker) store(key ssh.PublicKey) error {
	if c.profile.StoreKnownHost == "" {
		return errors.New("the profile names no file to store it in")
	}
	if isDirectory(c.profile.StoreKnownHost) {
		return storeIn(c.profile.StoreKnownHost, c.host, c.port, key, c.profile.PlainKeyNames, "")
	}
	return Append(c.profile.StoreKnownHost, knownhosts.Line([]string{c.name}, key))
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
