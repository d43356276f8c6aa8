package certfile

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"
)

// maxFile bounds a file of certificates or a key, in bytes: as many authorities as the
// largest distributions have fit into it.
const maxFile = 4 << 20

// Names are the files of one end of a connection.
type Names struct {
	Authorities      []string // whom the other end's certificate has to come from
	System           bool     // the authorities of the host count too
	Certificate, Key string   // our own; both or none
}

// Files are what Names held when they were read. They are not changed afterwards.
type Files struct {
	Roots       *x509.CertPool
	Certificate *tls.Certificate  // nil: none
	Sum         [sha256.Size]byte // of the files
}

// Load reads the files of a client. Its errors name the file.
func Load(n Names) (*Files, error) {
	f := &Files{Roots: x509.NewCertPool()}
	if n.System {
		pool, err := x509.SystemCertPool()
		if err != nil {
			return nil, fmt.Errorf("authorities of this host: %w", err)
		}
		f.Roots = pool
	}
	sum := sha256.New()
	take := func(name string) ([]byte, error) {
		text, err := read(name)
		fmt.Fprintf(sum, "%d ", len(text))
		sum.Write(text)
		return text, err
	}
	for _, name := range n.Authorities {
		text, err := take(name)
		if err != nil {
			return nil, err
		}
		list, err := Certificates(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		for _, one := range list {
			f.Roots.AddCert(one)
		}
	}
	switch {
	case len(n.Authorities) == 0 && !n.System:
		return nil, errors.New("no authority to trust is given")
	case (n.Certificate == "") != (n.Key == ""):
		return nil, errors.New("certificate and key go together")
	case n.Certificate != "":
		certificate, err := take(n.Certificate)
		if err != nil {
			return nil, err
		}
		key, err := take(n.Key)
		if err != nil {
			return nil, err
		}
		if f.Certificate, err = pair(n, certificate, key); err != nil {
			return nil, err
		}
	}
	sum.Sum(f.Sum[:0])
	return f, nil
}

// pair makes a certificate and its key of the texts of their files.
func pair(n Names, certificate, key []byte) (*tls.Certificate, error) {
	if _, err := Certificates(certificate); err != nil {
		return nil, fmt.Errorf("%s: %w", n.Certificate, err)
	}
	if block, _ := pem.Decode(key); block != nil && (block.Type == "ENCRYPTED PRIVATE KEY" || strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED")) {
		return nil, fmt.Errorf("%s: the key has a passphrase, which is not supported here: keep it without one, readable to its owner alone", n.Key)
	}
	both, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		said := strings.TrimPrefix(err.Error(), "tls: ")
		return nil, fmt.Errorf("certificate %s with key %s: %s", n.Certificate, n.Key, said)
	}
	for _, usage := range both.Leaf.ExtKeyUsage {
		if usage == x509.ExtKeyUsageClientAuth || usage == x509.ExtKeyUsageAny {
			return &both, nil
		}
	}
	if len(both.Leaf.ExtKeyUsage)+len(both.Leaf.UnknownExtKeyUsage) == 0 {
		return &both, nil // good for everything, RFC 5280 section 4.2.1.12
	}
	return nil, fmt.Errorf("%s: the certificate is not one for clients: it lacks the extended key usage clientAuth", n.Certificate)
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

// read reads a file that is one: a pipe must not hold us up.
func read(name string) ([]byte, error) {
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

// Expires is when our certificate does; zero where there is none.
func (f *Files) Expires() time.Time {
	if f.Certificate == nil {
		return time.Time{}
	}
	return f.Certificate.Leaf.NotAfter
}

// Current tells why our certificate does not count at now.
func (f *Files) Current(now time.Time) error {
	if f.Certificate == nil {
		return nil
	}
	const form = "2006-01-02 15:04:05 MST"
	switch leaf := f.Certificate.Leaf; {
	case now.After(leaf.NotAfter):
		return fmt.Errorf("our certificate has expired, on %s", leaf.NotAfter.UTC().Format(form))
	case now.Before(leaf.NotBefore):
		return fmt.Errorf("our certificate is not valid before %s: is the clock right?", leaf.NotBefore.UTC().Format(form))
	}
	return nil
}
