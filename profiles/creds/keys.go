package creds

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/crypto/ssh"

	"sshbroker/profiles"
)

// key is one key to try; its private half is fetched when its turn comes.
type key struct {
	name   string
	signer func() (ssh.Signer, error)
}

// loadKeys lists what is to be tried: every key that may be used in each form that may
// be offered, in order.
func (s *Session) loadKeys() {
	if s.Ring == nil {
		s.Ring = new(Keyring)
	}
	list := gather(s.profile, s.agentKeys(), s.Ring.addedFiles(), func(err error) { s.noteLack("publickey", err); s.note(err.Error()) })
	if len(s.profile.Identities) == 0 {
		slices.SortStableFunc(list, func(a, b *candidate) int { return a.trouble(s.Ring) - b.trouble(s.Ring) })
	}
	types := s.profile.KeySelection.Types
	if len(types) == 0 {
		for _, k := range list {
			s.offer(k, profiles.CertifiedKey)
			s.offer(k, profiles.PlainKey)
		}
	}
	for _, t := range types {
		for _, k := range list {
			s.offer(k, t)
		}
	}
	if len(s.keys) == 0 {
		s.note("publickey: no key")
	}
}

// trouble ranks keys by what they ask of a person: those whose order was given come
// first, then those that ask nothing, and last those of which not even the server can be
// asked before the passphrase is known.
func (k *candidate) trouble(ring *Keyring) int {
	switch {
	case k.listed:
		return 0
	case !k.locked() || ring.isOpen(k.digest):
		return 1
	case k.public != nil:
		return 2
	}
	return 3
}

// offer adds a key in one form to what is to be tried, or says why not.
func (s *Session) offer(k *candidate, form profiles.KeyType) {
	refuse := func(name string, err error) {
		s.noteLack("publickey "+name, err)
		s.notePlainly(fmt.Sprintf("publickey %s: %v", name, err))
	}
	if k.err != nil {
		if form == profiles.PlainKey { // once, where it is tried in both
			s.tell(profiles.IdentityFailed, k.file, "", k.err)
			if s.log != nil && (errors.Is(k.err, errOpenToOthers) || errors.Is(k.err, errForeign)) {
				s.log.Warn("a private key is ignored", "file", k.file, "error", k.err)
			}
		}
		refuse(k.file, k.err)
		return
	}
	if form == profiles.CertifiedKey {
		switch {
		case k.cert == nil && k.certErr == nil:
			return
		case k.certErr != nil:
			refuse(k.certName(), k.certErr)
			s.tell(profiles.IdentityFailed, k.certName(), "", k.certErr)
			return
		case !s.issuerFits(k.cert):
			refuse(k.certName(), errors.New("its authority is none of those that issuer-name asks for"))
			return
		}
	} else if k.onlyCert {
		if k.cert == nil && k.certErr == nil {
			refuse(k.name(), errors.New("no certificate beside it, and it stands as CertKey"))
		}
		return
	}
	if s.profile.KeySelection.Shy && k.locked() && !s.Ring.isOpen(k.digest) {
		refuse(k.name(), errors.New("passed over, as key-selection is interactive-shy and it needs its passphrase"))
		return
	}
	name := k.name()
	if form == profiles.CertifiedKey {
		name = fmt.Sprintf("%s, certificate %q until %s", k.certName(), profiles.RemoteText(k.cert.KeyId, 100, false), certTime(k.cert.ValidBefore))
	}
	s.keys = append(s.keys, &key{name: name, signer: func() (ssh.Signer, error) {
		signer, err := s.signer(k)
		if err == nil {
			signer, err = restrict(signer, s.profile.SignWith)
		}
		if err == nil && form == profiles.CertifiedKey && !k.heldCert {
			signer, err = ssh.NewCertSigner(k.cert, signer)
		}
		return signer, err
	}})
}

func (k *candidate) certName() string {
	if k.certFile == "" {
		return k.name()
	}
	return k.certFile
}

// issuerFits tells whether a certificate's authority is one that the profile wants.
func (s *Session) issuerFits(cert *ssh.Certificate) bool {
	want := s.profile.KeySelection
	if len(want.Issuers) == 0 && !want.IssuerOfServer {
		return true
	}
	if slices.Contains(want.Issuers, ssh.FingerprintSHA256(cert.SignatureKey)) {
		return true
	}
	server, ok := s.server.(*ssh.Certificate)
	return want.IssuerOfServer && ok && bytes.Equal(server.SignatureKey.Marshal(), cert.SignatureKey.Marshal())
}

// restrict keeps a key to the signature algorithms that the profile lists, whose names
// may be those of certificates.
func restrict(signer ssh.Signer, allowed []string) (ssh.Signer, error) {
	if len(allowed) == 0 {
		return signer, nil
	}
	var fit []string
	for _, name := range allowed {
		if name = underlying(name); slices.Contains(algorithmsOf(signer), name) && !slices.Contains(fit, name) {
			fit = append(fit, name)
		}
	}
	if len(fit) == 0 {
		return nil, fmt.Errorf("it cannot sign by any of %s (signature-algorithms)", strings.Join(allowed, ","))
	}
	as, ok := signer.(ssh.AlgorithmSigner)
	if !ok {
		return signer, nil // it has one algorithm, which fits
	}
	return ssh.NewSignerWithAlgorithms(as, fit)
}

// underlying is the algorithm by which a key signs that is offered under name.
func underlying(name string) string {
	if plain, ok := strings.CutSuffix(name, "-cert-v01@openssh.com"); ok {
		if strings.HasPrefix(plain, "sk-") {
			return plain + "@openssh.com"
		}
		return plain
	}
	return name
}

func algorithmsOf(signer ssh.Signer) []string {
	if multi, ok := signer.(ssh.MultiAlgorithmSigner); ok {
		return multi.Algorithms()
	}
	return algorithmsOfType(underlying(signer.PublicKey().Type()))
}

func algorithmsOfType(keyType string) []string {
	if keyType == ssh.KeyAlgoRSA {
		return []string{ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSA}
	}
	return []string{keyType}
}

// signer returns the private half. A passphrase is asked for only when the server has
// said that it would take the key, where the public half is known.
func (s *Session) signer(k *candidate) (ssh.Signer, error) {
	switch {
	case k.held != nil:
		return k.held, nil
	case k.private == nil:
		return nil, errors.New("only its public half is here and the agent does not have it")
	case !k.private.Locked:
		return k.private.Open("")
	}
	if open := s.Ring.recall(k.digest); open != nil {
		return open, nil
	}
	switch {
	case s.ask == nil:
		return nil, errors.New("needs its passphrase and nobody is there to ask")
	case k.public == nil:
		return s.unlock(k)
	}
	return &lockedSigner{key: k, session: s}, nil
}

func (s *Session) unlock(k *candidate) (ssh.Signer, error) {
	var waiting func() func()
	if p, ok := s.ask.(interface{ Pause() (resume func()) }); ok {
		waiting = p.Pause
	}
	signer, err := s.Ring.unlock(s.ctx, k, s.ask, waiting)
	if err != nil {
		s.tell(profiles.UnlockFailed, k.file, "", err)
		return nil, err
	}
	s.tell(profiles.IdentityUnlocked, k.file, ssh.FingerprintSHA256(signer.PublicKey()), nil)
	return signer, nil
}

// lockedSigner shows its public half and opens the private one at the first
// signature.
type lockedSigner struct {
	key     *candidate
	session *Session
}

var _ ssh.MultiAlgorithmSigner = (*lockedSigner)(nil)

func (l *lockedSigner) PublicKey() ssh.PublicKey { return l.key.public }

func (l *lockedSigner) Algorithms() []string { return algorithmsOfType(l.key.public.Type()) }

func (l *lockedSigner) Sign(random io.Reader, data []byte) (*ssh.Signature, error) {
	return l.SignWithAlgorithm(random, data, "")
}

func (l *lockedSigner) SignWithAlgorithm(random io.Reader, data []byte, algorithm string) (*ssh.Signature, error) {
	signer, err := l.session.unlock(l.key)
	if err == nil && !bytes.Equal(signer.PublicKey().Marshal(), l.key.public.Marshal()) {
		err = errors.New("the public half beside it is of another key")
	}
	if err != nil {
		l.session.note(fmt.Sprintf("publickey %s: %v", l.key.file, err))
		return nil, err
	}
	if random == nil {
		random = rand.Reader
	}
	if as, ok := signer.(ssh.AlgorithmSigner); ok {
		return as.SignWithAlgorithm(random, data, algorithm)
	}
	return signer.Sign(random, data)
}

func ownedByUs(st fs.FileInfo) bool {
	sys, ok := st.Sys().(*syscall.Stat_t)
	return ok && int(sys.Uid) == os.Geteuid()
}
