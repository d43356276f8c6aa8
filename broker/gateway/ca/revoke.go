package ca

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"sshbroker/broker/replace"
)

// Reason is why a certificate is revoked, RFC 5280 section 5.3.1. Zero is not said.
type Reason int

// reasons are those that one can give here: a hold could not be lifted, and the others
// are about authorities.
var reasons = map[string]Reason{"unspecified": 0, "keyCompromise": 1, "affiliationChanged": 3, "superseded": 4,
	"cessationOfOperation": 5, "privilegeWithdrawn": 9}

// Reasons are the names of all reasons, sorted by their numbers.
func Reasons() []string {
	var names []string
	for name := range reasons {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int { return int(reasons[a] - reasons[b]) })
	return names
}

// ParseReason reads the name of a reason, in letters of either case.
func ParseReason(text string) (Reason, error) {
	for name, r := range reasons {
		if strings.EqualFold(name, text) {
			return r, nil
		}
	}
	return 0, fmt.Errorf("reason %q: it is one of %s", text, strings.Join(Reasons(), ", "))
}

func (r Reason) String() string {
	for name, other := range reasons {
		if r == other {
			return name
		}
	}
	return fmt.Sprintf("reason %d", int(r))
}

// ParseSerial reads a serial number in hexadecimal, as openssl x509 -serial and -text
// print it, and returns it as the index has it.
func ParseSerial(text string) (string, error) {
	digits := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(strings.TrimPrefix(text, "serial="), "0x"), ":", ""))
	if len(digits)%2 == 1 {
		digits = "0" + digits
	}
	b, err := hex.DecodeString(digits)
	if err != nil || len(b) == 0 || len(b) > 20 { // RFC 5280 section 4.1.2.2
		return "", fmt.Errorf("%q is not a serial number in hexadecimal", text)
	}
	return SerialOf(new(big.Int).SetBytes(b)), nil
}

// SerialOf is a serial number as the index has it, and as the gateway's records do.
func SerialOf(n *big.Int) string { return n.Text(16) }

var (
	// ErrNotIssued says that a certificate is none of this authority's.
	ErrNotIssued = errors.New("this authority has issued no such certificate")
	// ErrRevoked says that a certificate was revoked before.
	ErrRevoked = errors.New("it is revoked already")
)

// Revoke notes that a certificate does not count any more, and returns it as it is then.
// With an ErrRevoked it returns it as it was. WriteList tells others.
func (a *Authority) Revoke(serial string, reason Reason, now time.Time) (Entry, error) {
	i, known := a.index.at[serial]
	if !known {
		return Entry{}, fmt.Errorf("serial %s: %w", serial, ErrNotIssued)
	}
	if e := a.index.entries[i]; !e.Revoked.IsZero() {
		return e, fmt.Errorf("serial %s: %w, since %s", serial, ErrRevoked, stamp(e.Revoked))
	}
	if err := a.index.add(lineRevoked, serial, stamp(now), reason.String()); err != nil {
		return Entry{}, err
	}
	return a.index.entries[i], nil
}

// SerialIn returns the serial number of a certificate, which this authority must have
// signed. One that the index does not have, as after a backup was restored, is noted
// first, so that it can be revoked.
func (a *Authority) SerialIn(cert *x509.Certificate) (string, error) {
	if err := cert.CheckSignatureFrom(a.cert); err != nil {
		return "", fmt.Errorf("%w: it was issued by %s", ErrNotIssued, cert.Issuer)
	}
	serial := SerialOf(cert.SerialNumber)
	if _, known := a.index.at[serial]; known {
		return serial, nil
	}
	e := Entry{Serial: serial, Kind: ForClient, Validity: Validity{cert.NotBefore, cert.NotAfter}, Names: []string{"lost:" + strconv.QuoteToASCII(cert.Subject.String())}}
	if slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageServerAuth) {
		e.Kind = ForServer
	}
	if err := a.index.add(e.issued()...); err != nil {
		return "", fmt.Errorf("note a certificate that the index does not have: %w", err)
	}
	return serial, nil
}

// backdated is how far the list, as all that is issued, reaches back, for clocks that are
// behind.
const backdated = 5 * time.Minute

// lingering is how long a certificate stays on the list after its end: it has to be on
// one at least, and clocks differ.
const lingering = 24 * time.Hour

// WriteList signs the list of what is revoked and puts it in the place of the last one.
// Gateways take it until it is due for the next.
func (a *Authority) WriteList(now time.Time, due time.Time) (*x509.RevocationList, error) {
	if !due.After(now) {
		return nil, errors.New("the next list would be due before this one")
	}
	number, err := a.nextNumber(now)
	if err != nil {
		return nil, err
	}
	template := &x509.RevocationList{Number: number, ThisUpdate: now.Add(-backdated).UTC(), NextUpdate: due.UTC()}
	for _, e := range a.index.entries {
		if e.Revoked.IsZero() || now.Sub(e.Validity.Until) > lingering {
			continue
		}
		serial, _ := new(big.Int).SetString(e.Serial, 16) // the index was read
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: serial, RevocationTime: e.Revoked, ReasonCode: int(e.Reason)})
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, a.cert, a.key)
	if err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: blockCRL, Bytes: der})
	if err := replace.Make(inDir(a.dir, listFile), text, 0o644, true); err != nil {
		return nil, err
	}
	return x509.ParseRevocationList(der)
}

// nextNumber is one that no list before has had: that of the last one and one more, or
// the time if that is larger, so that a list that was lost is still followed by a larger
// number.
func (a *Authority) nextNumber(now time.Time) (*big.Int, error) {
	number := big.NewInt(now.Unix())
	last, err := ReadList(a.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return number, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w; remove it, and another is made", err)
	}
	if last.Number != nil && last.Number.Cmp(number) >= 0 {
		number.Add(last.Number, big.NewInt(1))
	}
	return number, nil
}

// ReadList reads the list of an authority's directory.
func ReadList(dir string) (*x509.RevocationList, error) {
	name := inDir(dir, listFile)
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	block, err := find(text, "revocation list", blockCRL)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	list, err := x509.ParseRevocationList(block)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return list, nil
}
