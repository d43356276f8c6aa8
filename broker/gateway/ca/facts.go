package ca

import (
	"errors"
	"fmt"
	"net/mail"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Client is what has been verified of who gets a client certificate.
type Client struct {
	// URIs are what stays when a person is renamed: an issuer and its name for them, or
	// a SPIFFE ID. Alternative names of the certificate.
	URIs []string
	// Emails are for people to read. Alternative names as well; the first is also the
	// common name, which nothing may rely on.
	Emails []string
	// Groups become organizations (O) of the subject.
	Groups []string
}

// Server is what a server certificate stands for.
type Server struct {
	Names []string // of DNS; the first label may be *
	Addrs []netip.Addr
}

// Validity is the time during which a certificate counts, to the second.
type Validity struct{ From, Until time.Time }

// From returns the span from back before now to ahead behind it.
func From(now time.Time, back, ahead time.Duration) Validity {
	return Validity{now.Add(-back).UTC().Truncate(time.Second), now.Add(ahead).UTC().Truncate(time.Second)}
}

// Bounds of a certificate.
const (
	maxNames = 100 // alternative names, and groups
	maxName  = 253 // bytes
	maxGroup = 64  // characters: ub-organization-name of RFC 5280
)

// check returns what a certificate must not be made of.
func (c Client) check() error {
	if len(c.URIs)+len(c.Emails) == 0 {
		return errors.New("it is not said whose the certificate is: an email or a URI is needed")
	}
	if n := len(c.URIs) + len(c.Emails); n > maxNames || len(c.Groups) > maxNames {
		return fmt.Errorf("%d names and %d groups; at most %d of each fit", n, len(c.Groups), maxNames)
	}
	for _, e := range c.Emails {
		if err := checkEmail(e); err != nil {
			return err
		}
	}
	for _, text := range c.URIs {
		if _, err := parseURI(text); err != nil {
			return err
		}
	}
	for _, g := range c.Groups {
		if strings.TrimSpace(g) != g || g == "" || !printable(g) || utf8.RuneCountInString(g) > maxGroup {
			return fmt.Errorf("group %q: it is 1 to %d printable characters, without blanks around them", g, maxGroup)
		}
	}
	return nil
}

func checkEmail(text string) error {
	a, err := mail.ParseAddress(text)
	if err != nil || a.Address != text || len(text) > maxName || !ascii(text) {
		return fmt.Errorf("email %q: it is not an address like name@example.com", text)
	}
	return nil
}

func parseURI(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil || !ascii(text) || len(text) > 8*maxName:
		return nil, fmt.Errorf("URI %q: it cannot be read as one of ASCII characters", text)
	case u.Scheme == "" || u.Host == "" && u.Opaque == "" && u.Path == "":
		return nil, fmt.Errorf("URI %q: it is not absolute, as https://issuer.example.com/users/17 is", text)
	case u.String() != text:
		return nil, fmt.Errorf("URI %q: it is not in its usual form, which would be %q", text, u)
	}
	return u, nil
}

var dnsName = regexp.MustCompile(`^(\*\.)?([A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?\.)*[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?$`)

func (s Server) check() error {
	switch n := len(s.Names) + len(s.Addrs); {
	case n == 0:
		return errors.New("it is not said which server the certificate is for: a name or an address is needed")
	case n > maxNames:
		return fmt.Errorf("%d names; at most %d fit", n, maxNames)
	}
	for _, name := range s.Names {
		if _, err := netip.ParseAddr(name); err == nil {
			return fmt.Errorf("name %q is an address", name)
		}
		if len(name) > maxName || !dnsName.MatchString(name) {
			return fmt.Errorf("name %q: it is not one of DNS, as gateway.example.com is (others than ASCII in their xn-- form)", name)
		}
	}
	for _, a := range s.Addrs {
		if !a.IsValid() || a.Zone() != "" {
			return fmt.Errorf("address %q: it is not one that a certificate can hold", a)
		}
	}
	return nil
}

// labels are the facts as the index has them.
func (c Client) labels() []string {
	return slices.Concat(labelled("email:", c.Emails), labelled("uri:", c.URIs), labelled("group:", c.Groups))
}

func (s Server) labels() []string {
	addrs := make([]string, len(s.Addrs))
	for i, a := range s.Addrs {
		addrs[i] = a.Unmap().String()
	}
	return slices.Concat(labelled("dns:", s.Names), labelled("ip:", addrs))
}

func labelled(label string, values []string) []string {
	list := make([]string, len(values))
	for i, v := range values {
		list[i] = label + v
	}
	return list
}

func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

func ascii(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}
