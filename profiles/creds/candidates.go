package creds

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"sshbroker/profiles"
	"sshbroker/profiles/keyfile"
)

const (
	maxKeyFile = 1 << 20 // of a key or a certificate
	maxDirKeys = 256     // taken from one directory
	maxIndex   = 256     // lines that count of an identification file
)

// candidate is one key that might be tried.
type candidate struct {
	file     string        // "" for a key that only the agent has
	comment  string        // of the public half
	public   ssh.PublicKey // nil while the format hides it
	private  *keyfile.Private
	digest   digest
	held     ssh.Signer // the agent has it
	heldCert bool       // and with its certificate, which held signs for
	cert     *ssh.Certificate
	certFile string
	certErr  error
	onlyCert bool
	listed   bool // its place in the order was given
	added    bool
	remember profiles.Remember
	err      error // it cannot be used
}

// name is what messages call it.
func (k *candidate) name() string {
	switch {
	case k.file == "":
		return "from the agent"
	case k.held != nil:
		return k.file + " (in the agent)"
	}
	return k.file
}

// id is what people call it.
func (k *candidate) id() string {
	if k.public != nil {
		return keyfile.ID(k.public)
	}
	sum := sha256.Sum256([]byte("file " + k.file))
	return hex.EncodeToString(sum[:8])
}

func (k *candidate) locked() bool { return k.held == nil && k.private != nil && k.private.Locked }

// gatherer collects candidates, each key once.
type gatherer struct {
	profile *profiles.Profile
	inAgent []agentKey
	added   []string
	list    []*candidate
	seen    map[string]*candidate
	note    func(error)
}

// gather lists the keys that p may be tried with, in order. With identities it is
// those alone; else what identification files list, the agent's, those that were
// added, those of the stores and the default ones.
func gather(p *profiles.Profile, inAgent []agentKey, added []string, note func(error)) []*candidate {
	g := &gatherer{profile: p, inAgent: inAgent, added: added, seen: make(map[string]*candidate), note: note}
	if len(p.Identities) == 0 {
		g.everything()
		return g.list
	}
	var all []*candidate // only where a hash is to be found
	for _, name := range p.Identities {
		hash, byHash := strings.CutPrefix(name, "#")
		if !byHash {
			g.file(name, "", p.Remember, func(k *candidate) { k.listed = true })
			continue
		}
		if all == nil {
			every := &gatherer{profile: p, inAgent: inAgent, added: added, seen: make(map[string]*candidate), note: func(error) {}}
			every.everything()
			all = every.list
		}
		i := slices.IndexFunc(all, func(k *candidate) bool { return k.public != nil && keyfile.Matches(k.public, hash) || k.id() == hash })
		if i < 0 {
			note(fmt.Errorf("publickey %s: no key with this hash", name))
			continue
		}
		g.add(all[i])
	}
	return g.list
}

func (g *gatherer) everything() {
	p := g.profile
	for _, s := range p.KeyStores {
		if s.Index != "" {
			g.index(s)
		}
	}
	for _, a := range g.inAgent {
		k := &candidate{held: a.signer, comment: a.comment, public: a.signer.PublicKey()}
		k.cert, _ = parsedKey(k.public).(*ssh.Certificate)
		if k.cert != nil {
			k.onlyCert, k.heldCert, k.certErr = true, true, checkCert(k.cert, nil)
		}
		g.add(k)
	}
	for _, file := range g.added {
		g.file(file, "", p.Remember, func(k *candidate) { k.added = true })
	}
	for _, s := range p.KeyStores {
		switch {
		case s.File != "":
			g.file(s.File, s.Public, s.Remember, nil)
		case s.Dir != "" && !exists(s.Unless):
			g.directory(s)
		}
	}
	for _, file := range p.DefaultKeys {
		if exists(file) {
			g.file(file, "", p.Remember, nil)
		}
	}
}

// exists is true in doubt.
func exists(file string) bool {
	if file == "" {
		return false
	}
	_, err := os.Stat(file)
	return !errors.Is(err, fs.ErrNotExist)
}

// file adds one key file.
func (g *gatherer) file(file, public string, remember profiles.Remember, mark func(*candidate)) {
	k, err := readKey(file, g.profile.CheckKeyModes)
	if err == nil && public != "" && k.public == nil {
		k.public, k.comment, err = readPublic(public)
	}
	if err != nil {
		k = &candidate{file: file, err: err}
	}
	k.remember = remember
	if mark != nil {
		mark(k)
	}
	g.add(k)
}

// add takes a key unless it is there already, and joins a file with the agent's key
// of the same public half: the agent signs, for the certificate beside the file too.
func (g *gatherer) add(k *candidate) {
	key := "file " + k.file
	if k.public != nil {
		key = string(parsedKey(k.public).Marshal())
	}
	if first := g.seen[key]; first != nil {
		if first.file == "" && k.file != "" {
			first.file, first.private, first.digest = k.file, k.private, k.digest
			if !first.heldCert {
				first.cert, first.certFile, first.certErr = k.cert, k.certFile, k.certErr
			}
		}
		return
	}
	g.seen[key] = k
	if k.file != "" && k.public != nil {
		for _, a := range g.inAgent {
			if bytes.Equal(a.signer.PublicKey().Marshal(), k.public.Marshal()) {
				k.held = a.signer
			}
		}
	}
	g.list = append(g.list, k)
}

// index adds what an identification file lists, where there is one.
func (g *gatherer) index(s profiles.KeyStore) {
	text, err := readSmall(s.Index)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		g.note(fmt.Errorf("identification file: %w", err))
		return
	}
	n := 0
	for line := range strings.Lines(string(text)) {
		word, file, _ := strings.Cut(strings.TrimSpace(line), " ")
		file = strings.Trim(strings.TrimSpace(file), `"`)
		cert := strings.EqualFold(word, "CertKey")
		if word == "" || word[0] == '#' {
			continue
		}
		if n++; n > maxIndex {
			g.note(fmt.Errorf("identification file %s: only its first %d lines count", s.Index, maxIndex))
			break
		}
		if !cert && !strings.EqualFold(word, "IdKey") || file == "" {
			g.note(fmt.Errorf("identification file %s: line passed over, it is neither IdKey FILE nor CertKey FILE", s.Index))
			continue
		}
		if !filepath.IsAbs(file) {
			file = filepath.Join(s.Base, file)
		}
		g.file(file, "", s.Remember, func(k *candidate) { k.listed, k.onlyCert = true, cert })
	}
}

// directory adds every key of a directory: files that begin as a private key does.
// Others of the same place, such as a configuration, are not keys.
func (g *gatherer) directory(s profiles.KeyStore) {
	entries, err := os.ReadDir(s.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		g.note(fmt.Errorf("keys: %w", err))
	}
	n := 0
	for _, e := range entries {
		file := filepath.Join(s.Dir, e.Name())
		if strings.HasSuffix(file, ".pub") || !looksPrivate(file) {
			continue
		}
		if n++; n > maxDirKeys {
			g.note(fmt.Errorf("keys: only %d of %s count", maxDirKeys, s.Dir))
			return
		}
		g.file(file, "", s.Remember, nil)
	}
}

// looksPrivate tells by the beginning of a regular file.
func looksPrivate(file string) bool {
	st, err := os.Stat(file)
	if err != nil || !st.Mode().IsRegular() {
		return false
	}
	f, err := os.Open(file)
	if err != nil {
		return false
	}
	defer f.Close()
	begin := make([]byte, 256)
	n, _ := io.ReadFull(f, begin)
	return keyfile.IsPrivate(begin[:n])
}

// readKey reads a key file with what lies beside it. A public key or a certificate
// stands for the private half beside it, or for the agent's. strict is private's.
func readKey(file string, strict bool) (*candidate, error) {
	text, err := readSmall(file)
	if errors.Is(err, fs.ErrNotExist) { // the agent may have the private half
		if public, comment, perr := readPublic(file + ".pub"); perr == nil {
			k := &candidate{file: file, public: public, comment: comment}
			k.addCert()
			return k, nil
		}
	}
	if err != nil {
		return nil, err
	}
	public, comment, err := keyfile.ParsePublic(text)
	if err != nil {
		return readPrivate(file, text, strict)
	}
	cert, isCert := public.(*ssh.Certificate)
	base := strings.TrimSuffix(file, ".pub")
	if isCert {
		base = strings.TrimSuffix(base, "-cert")
	}
	k := &candidate{file: file, public: keyfile.Plain(public), comment: comment}
	if base != file {
		if text, err := readSmall(base); err == nil {
			p, err := readPrivate(base, text, strict)
			if err != nil {
				return nil, err
			}
			if p.public == nil || bytes.Equal(p.public.Marshal(), k.public.Marshal()) {
				p.public = k.public
				k = p
			}
		}
	}
	if isCert {
		k.cert, k.certFile, k.onlyCert = cert, file, true
		k.certErr = checkCert(cert, k.public)
	} else {
		k.addCert()
	}
	return k, nil
}

func readPrivate(file string, text []byte, strict bool) (*candidate, error) {
	if err := CheckPrivate(file, strict); err != nil {
		return nil, err
	}
	p, err := keyfile.ParsePrivate(text)
	if err != nil {
		return nil, err
	}
	k := &candidate{file: file, private: p, public: p.Public, digest: sha256.Sum256(text)}
	if beside, comment, err := readPublic(file + ".pub"); err == nil {
		k.comment = comment
		if k.public == nil {
			k.public = keyfile.Plain(beside)
		}
	}
	k.addCert()
	return k, nil
}

func readPublic(file string) (ssh.PublicKey, string, error) {
	text, err := readSmall(file)
	if err != nil {
		return nil, "", err
	}
	public, comment, err := keyfile.ParsePublic(text)
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", file, err)
	}
	return public, comment, nil
}

// addCert reads the certificate beside a key.
func (k *candidate) addCert() {
	k.certFile = strings.TrimSuffix(k.file, ".pub") + "-cert.pub"
	public, _, err := readPublic(k.certFile)
	switch cert, ok := public.(*ssh.Certificate); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		k.certErr = err
	case !ok:
		k.certErr = errors.New("not a certificate")
	default:
		k.cert, k.certErr = cert, checkCert(cert, k.public)
	}
}

// checkCert tells why a certificate is not offered.
func checkCert(cert *ssh.Certificate, public ssh.PublicKey) error {
	now := uint64(time.Now().Unix())
	switch {
	case cert.CertType != ssh.UserCert:
		return errors.New("not a certificate of a user")
	case public != nil && !bytes.Equal(cert.Key.Marshal(), public.Marshal()):
		return errors.New("certificate of another key")
	case cert.ValidBefore != ssh.CertTimeInfinity && now >= cert.ValidBefore:
		return fmt.Errorf("certificate expired at %s", certTime(cert.ValidBefore))
	case now < cert.ValidAfter:
		return fmt.Errorf("certificate not valid before %s", certTime(cert.ValidAfter))
	}
	return nil
}

func certTime(t uint64) string {
	if t == ssh.CertTimeInfinity {
		return "for ever"
	}
	return time.Unix(int64(t), 0).UTC().Format(time.RFC3339)
}

// parsedKey gives an agent's key its own type.
func parsedKey(key ssh.PublicKey) ssh.PublicKey {
	if parsed, err := ssh.ParsePublicKey(key.Marshal()); err == nil {
		return parsed
	}
	return key
}

func readSmall(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err == nil && len(text) > maxKeyFile {
		err = fmt.Errorf("%s: larger than %d bytes", name, maxKeyFile)
	}
	return text, err
}
