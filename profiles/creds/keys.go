package creds

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"sshbroker/profiles"
)

// maxKeyFile bounds what is read as a key or a certificate.
const maxKeyFile = 1 << 20

// agentTime bounds each exchange with the agent but the signatures, which may wait
// for a person's touch.
const agentTime = 5 * time.Second

// key is one key to try; its private half is fetched when its turn comes.
type key struct {
	name   string
	signer func(*Session) (ssh.Signer, error)
}

// loadKeys collects the keys to try: with identities those alone, from the agent
// where it has them; else all of the agent and then the files tried by default.
func (s *Session) loadKeys() {
	inAgent := s.agentSigners()
	add := func(name string, signer ssh.Signer) {
		s.keys = append(s.keys, &key{name: name, signer: func(*Session) (ssh.Signer, error) { return signer, nil }})
	}
	seen := make(map[string]bool)
	if len(s.profile.Identities) == 0 {
		for _, signer := range inAgent {
			seen[string(signer.PublicKey().Marshal())] = true
			add("from the agent", signer)
		}
	}
	files := s.profile.Identities
	if len(files) == 0 {
		files = s.profile.DefaultKeys
	}
	for _, file := range files {
		id, err := readIdentity(file)
		if errors.Is(err, fs.ErrNotExist) && len(s.profile.Identities) == 0 {
			continue
		}
		if err != nil {
			s.failed("publickey "+file, err)
			s.tell(profiles.IdentityFailed, file, "", err)
			continue
		}
		blob := ""
		if id.public != nil {
			blob = string(id.public.Marshal())
		}
		if seen[blob] {
			continue
		}
		var held ssh.Signer
		for _, signer := range inAgent {
			if blob != "" && string(signer.PublicKey().Marshal()) == blob {
				held = signer
			}
		}
		private := func(s *Session) (ssh.Signer, error) { return id.unlock(s) }
		if held != nil {
			private = func(*Session) (ssh.Signer, error) { return held, nil }
		}
		if id.cert != nil {
			s.keys = append(s.keys, &key{name: file + "-cert.pub", signer: func(s *Session) (ssh.Signer, error) {
				signer, err := private(s)
				if err != nil {
					return nil, err
				}
				return ssh.NewCertSigner(id.cert, signer)
			}})
		} else if id.certErr != nil {
			s.failed("publickey "+file+"-cert.pub", id.certErr)
			s.tell(profiles.IdentityFailed, file+"-cert.pub", "", id.certErr)
		}
		if held != nil {
			add(file+" (in the agent)", held)
		} else {
			s.keys = append(s.keys, &key{name: file, signer: private})
		}
	}
	if len(s.keys) == 0 {
		s.note("publickey: no key")
	}
}

// identity is what a key file says.
type identity struct {
	file    string
	text    []byte
	public  ssh.PublicKey // nil where an old format hides it
	locked  bool
	cert    *ssh.Certificate
	certErr error
	ready   ssh.Signer // nil where a passphrase guards it, or the file has the public half only
}

func readIdentity(file string) (*identity, error) {
	text, err := readSmall(file)
	if err != nil {
		return nil, err
	}
	id := &identity{file: file, text: text}
	if pub, _, _, _, err := ssh.ParseAuthorizedKey(text); err == nil {
		id.public = pub // a public key names a key of the agent
	} else {
		if err := private(file); err != nil {
			return nil, err
		}
		raw, err := ssh.ParseRawPrivateKey(text)
		var missing *ssh.PassphraseMissingError
		switch {
		case errors.As(err, &missing):
			id.locked = true
			id.public = missing.PublicKey
			if id.public == nil {
				id.public = publicBeside(file)
			}
		case err != nil:
			return nil, fmt.Errorf("not a private key: %w", err)
		default:
			if id.ready, err = ssh.NewSignerFromKey(raw); err != nil {
				return nil, err
			}
			id.public = id.ready.PublicKey()
		}
	}
	id.cert, id.certErr = certBeside(file, id.public)
	return id, nil
}

// unlock returns the private half. A passphrase is asked for only when the server
// has said that it would take the key, where the file tells the public half.
func (id *identity) unlock(s *Session) (ssh.Signer, error) {
	switch {
	case id.ready != nil:
		return id.ready, nil
	case !id.locked:
		return nil, errors.New("only its public half is here and the agent does not have it")
	case s.ask == nil:
		return nil, errors.New("needs its passphrase and nobody is there to ask")
	case id.public == nil:
		return id.open(s)
	}
	return &lockedSigner{id: id, session: s}, nil
}

// open asks for the passphrase until it fits.
func (id *identity) open(s *Session) (ssh.Signer, error) {
	if id.ready != nil {
		return id.ready, nil
	}
	for range personTries {
		phrase, err := s.ask.Ask(s.ctx, profiles.Prompt{Text: fmt.Sprintf("Passphrase for key %s: ", id.file), Secret: true})
		if err != nil {
			err = fmt.Errorf("passphrase: %w", err)
			s.tell(profiles.UnlockFailed, id.file, "", err)
			return nil, err
		}
		if phrase == "" {
			break // the person passes
		}
		signer, err := ssh.ParsePrivateKeyWithPassphrase(id.text, []byte(phrase))
		if err == nil {
			id.ready = signer
			s.tell(profiles.IdentityUnlocked, id.file, ssh.FingerprintSHA256(signer.PublicKey()), nil)
			return signer, nil
		}
	}
	err := errors.New("no right passphrase was given")
	s.tell(profiles.UnlockFailed, id.file, "", err)
	return nil, err
}

// lockedSigner shows its public half and opens the private one at the first
// signature.
type lockedSigner struct {
	id      *identity
	session *Session
}

var _ ssh.MultiAlgorithmSigner = (*lockedSigner)(nil)

func (l *lockedSigner) PublicKey() ssh.PublicKey { return l.id.public }

func (l *lockedSigner) Algorithms() []string {
	if l.id.public.Type() == ssh.KeyAlgoRSA {
		return []string{ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSA}
	}
	return []string{l.id.public.Type()}
}

func (l *lockedSigner) Sign(random io.Reader, data []byte) (*ssh.Signature, error) {
	return l.SignWithAlgorithm(random, data, "")
}

func (l *lockedSigner) SignWithAlgorithm(random io.Reader, data []byte, algorithm string) (*ssh.Signature, error) {
	signer, err := l.id.open(l.session)
	if err == nil && !bytes.Equal(signer.PublicKey().Marshal(), l.id.public.Marshal()) {
		err = errors.New("the public half beside it is of another key")
	}
	if err != nil {
		l.session.note(fmt.Sprintf("publickey %s: %v", l.id.file, err))
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

// publicBeside reads the public half that ssh-keygen left beside a key of an old
// format; nil where there is none.
func publicBeside(file string) ssh.PublicKey {
	text, err := readSmall(file + ".pub")
	if err != nil {
		return nil
	}
	pub, _, _, _, err := ssh.ParseAuthorizedKey(text)
	if err != nil {
		return nil
	}
	return pub
}

// certBeside reads the certificate beside a key; nil and no error where there is
// none.
func certBeside(file string, public ssh.PublicKey) (*ssh.Certificate, error) {
	text, err := readSmall(file + "-cert.pub")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	pub, _, _, _, err := ssh.ParseAuthorizedKey(text)
	if err != nil {
		return nil, err
	}
	cert, ok := pub.(*ssh.Certificate)
	switch {
	case !ok:
		return nil, errors.New("not a certificate")
	case cert.CertType != ssh.UserCert:
		return nil, errors.New("not a certificate of a user")
	case public != nil && !bytes.Equal(cert.Key.Marshal(), public.Marshal()):
		return nil, errors.New("certificate of another key")
	case cert.ValidBefore != ssh.CertTimeInfinity && uint64(time.Now().Unix()) >= cert.ValidBefore:
		return nil, fmt.Errorf("certificate expired at %s", time.Unix(int64(cert.ValidBefore), 0).UTC().Format(time.RFC3339))
	}
	return cert, nil
}

// agentConn is a connection to the agent that lasts as long as the authentication,
// as the signatures are made over it.
type agentConn struct {
	net.Conn
	unbind func() bool
}

func (a *agentConn) Close() error {
	a.unbind()
	return a.Conn.Close()
}

// agentSigners returns the keys of the agent; none where it cannot be asked, with a
// note.
func (s *Session) agentSigners() []ssh.Signer {
	if s.profile.Agent == "" {
		return nil
	}
	dialer := net.Dialer{Timeout: agentTime}
	conn, err := dialer.DialContext(s.ctx, "unix", s.profile.Agent)
	if err != nil {
		s.failed("agent", err)
		s.tell(profiles.AgentFailed, "", "", err)
		return nil
	}
	conn.SetDeadline(time.Now().Add(agentTime))
	signers, err := agent.NewClient(conn).Signers()
	if err != nil {
		conn.Close()
		s.failed("agent "+s.profile.Agent, err)
		s.tell(profiles.AgentFailed, "", "", err)
		return nil
	}
	conn.SetDeadline(time.Time{})
	s.agent = &agentConn{Conn: conn, unbind: context.AfterFunc(s.ctx, func() { conn.Close() })}
	return signers
}

func ownedByUs(st fs.FileInfo) bool {
	sys, ok := st.Sys().(*syscall.Stat_t)
	return ok && int(sys.Uid) == os.Geteuid()
}
