package tlstun

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"sshbroker/profiles"
	"sshbroker/profiles/creds"
)

// maxFile bounds a file of certificates or a key, in bytes: as many authorities as the
// largest distributions have fit into it.
const maxFile = 4 << 20

// sessionsKept is how many sessions of TLS are kept for being resumed, a credential.
const sessionsKept = 32

// credential is what a profile's files held when they were read: our certificate and whom
// we trust. It is not changed afterwards, but for stamps.
type credential struct {
	certificate *tls.Certificate // nil: none
	roots       *x509.CertPool
	sessions    tls.ClientSessionCache
	sum         [sha256.Size]byte // of the files
	stamps      []stamp           // guarded by the lock of credentials
}

// stamp tells whether a file is another one or was written to.
type stamp struct {
	device, inode uint64
	size          int64
	modified      time.Time
}

// credentials are those that were read, by profile.
type credentials struct {
	mu   sync.Mutex
	kept map[profiles.Key]*credential
}

// maxKept bounds the credentials that are remembered.
const maxKept = 256

// get returns p's credential, which it reads again only where a file has changed. Its
// errors are ErrSetup.
func (c *credentials) get(p *profiles.Profile) (*credential, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := (&profiles.Profile{TLS: p.TLS, CheckKeyModes: p.CheckKeyModes}).Key()
	stamps, err := stampsOf(p)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", profiles.ErrSetup, err)
	}
	kept := c.kept[key]
	if kept != nil && slices.Equal(kept.stamps, stamps) {
		return kept, nil
	}
	// A file that changes from here on has another stamp next time.
	fresh, err := read(p)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", profiles.ErrSetup, err)
	}
	if kept != nil && kept.sum == fresh.sum { // touched, no more
		kept.stamps = stamps
		return kept, nil
	}
	fresh.stamps = stamps
	if c.kept == nil || len(c.kept) >= maxKept {
		c.kept = make(map[profiles.Key]*credential)
	}
	c.kept[key] = fresh
	return fresh, nil
}

func filesOf(p *profiles.Profile) []string {
	files := slices.Clone(p.TLS.CAFiles)
	if p.TLS.Certificate != "" {
		files = append(files, p.TLS.Certificate, p.TLS.Key)
	}
	return files
}

func stampsOf(p *profiles.Profile) ([]stamp, error) {
	var stamps []stamp
	for _, name := range filesOf(p) {
		info, err := os.Stat(name)
		if err != nil {
			return nil, err
		}
		s := stamp{size: info.Size(), modified: info.ModTime()}
		if sys, ok := info.Sys().(*syscall.Stat_t); ok {
			s.device, s.inode = uint64(sys.Dev), sys.Ino
		}
		stamps = append(stamps, s)
	}
	return stamps, nil
}

// read reads p's files.
func read(p *profiles.Profile) (*credential, error) {
	c := &credential{roots: x509.NewCertPool(), sessions: tls.NewLRUClientSessionCache(sessionsKept)}
	sum := sha256.New()
	if p.TLS.SystemRoots {
		pool, err := x509.SystemCertPool()
		if err != nil {
			return nil, fmt.Errorf("authorities of this host: %w", err)
		}
		c.roots = pool
	}
	for _, name := range p.TLS.CAFiles {
		text, err := readFile(name)
		if err != nil {
			return nil, err
		}
		list, err := Certificates(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		for _, one := range list {
			c.roots.AddCert(one)
		}
		fmt.Fprintf(sum, "%d ", len(text))
		sum.Write(text)
	}
	switch {
	case len(p.TLS.CAFiles) == 0 && !p.TLS.SystemRoots:
		return nil, errors.New("no authority to trust is given")
	case p.TLS.Certificate == "" && p.TLS.Key != "", p.TLS.Certificate != "" && p.TLS.Key == "":
		return nil, errors.New("certificate and key go together")
	case p.TLS.Certificate != "":
		if err := creds.CheckPrivate(p.TLS.Key, p.CheckKeyModes); err != nil {
			return nil, err
		}
		certificate, err := readFile(p.TLS.Certificate)
		if err != nil {
			return nil, err
		}
		key, err := readFile(p.TLS.Key)
		if err != nil {
			return nil, err
		}
		if c.certificate, err = pair(p, certificate, key); err != nil {
			return nil, err
		}
		fmt.Fprintf(sum, "%d %d ", len(certificate), len(key))
		sum.Write(certificate)
		sum.Write(key)
	}
	sum.Sum(c.sum[:0])
	return c, nil
}

// pair makes a certificate and its key of the texts of p's files.
func pair(p *profiles.Profile, certificate, key []byte) (*tls.Certificate, error) {
	if _, err := Certificates(certificate); err != nil {
		return nil, fmt.Errorf("%s: %w", p.TLS.Certificate, err)
	}
	if block, _ := pem.Decode(key); block != nil && (block.Type == "ENCRYPTED PRIVATE KEY" || strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED")) {
		return nil, fmt.Errorf("%s: the key has a passphrase, which is not supported here: keep it without one, readable to its owner alone", p.TLS.Key)
	}
	both, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		said := strings.TrimPrefix(err.Error(), "tls: ")
		return nil, fmt.Errorf("certificate %s with key %s: %s", p.TLS.Certificate, p.TLS.Key, said)
	}
	for _, usage := range both.Leaf.ExtKeyUsage {
		if usage == x509.ExtKeyUsageClientAuth || usage == x509.ExtKeyUsageAny {
			return &both, nil
		}
	}
	if len(both.Leaf.ExtKeyUsage)+len(both.Leaf.UnknownExtKeyUsage) == 0 {
		return &both, nil // good for everything, RFC 5280 section 4.2.1.12
	}
	return nil, fmt.Errorf("%s: the certificate is not one for clients: it lacks the extended key usage clientAuth", p.TLS.Certificate)
}

// Certificates reads PEM certificates, of which there is at least one. Between them there
// may be text; what calls itself a certificate and is none is an error.
func Certificates(text []byte) ([]*x509.Certificate, error) {
	var list []*x509.Certificate
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		one, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(list)+1, err)
		}
		list = append(list, one)
	}
	if len(list) == 0 {
		return nil, errors.New("no PEM certificate in it")
	}
	return list, nil
}

// readFile reads a file that is one: a pipe must not hold us up.
func readFile(name string) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file", name)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(text) > maxFile {
		err = fmt.Errorf("%s: more than %d bytes", name, maxFile)
	}
	return text, err
}

// Check reads the files of a profile of protocol TLS as a connect does, and returns when
// our certificate ends, the zero time where there is none. Its errors name the file.
func Check(p *profiles.Profile, now time.Time) (expires time.Time, err error) {
	c, err := read(p)
	if err != nil {
		return time.Time{}, err
	}
	return c.expires(), c.current(now)
}

// expires is when our certificate does.
func (c *credential) expires() time.Time {
	if c.certificate == nil {
		return time.Time{}
	}
	return c.certificate.Leaf.NotAfter
}

// current tells why the certificate does not count at now.
func (c *credential) current(now time.Time) error {
	if c.certificate == nil {
		return nil
	}
	switch leaf := c.certificate.Leaf; {
	case now.After(leaf.NotAfter):
		return fmt.Errorf("our certificate has expired, on %s", day(leaf.NotAfter))
	case now.Before(leaf.NotBefore):
		return fmt.Errorf("our certificate is not valid before %s: is the clock right?", day(leaf.NotBefore))
	}
	return nil
}

func day(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 MST") }

// config is how TLS is spoken with the credential.
func (c *credential) config(p *profiles.Profile, protocol string) *tls.Config {
	name := p.TLS.ServerName
	if name == "" {
		name = p.Host
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: name,
		RootCAs:    c.roots,
		NextProtos: []string{protocol},
		// Whatever authorities the server lists: why it refuses ours says more than that
		// there is none.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if c.certificate == nil {
				return &tls.Certificate{}, nil
			}
			return c.certificate, nil
		},
		ClientSessionCache: c.sessions,
		// Records are as large as they may be from the first on: flows share a connection
		// that is not new.
		DynamicRecordSizingDisabled: true,
	}
}
