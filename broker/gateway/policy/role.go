package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Role is a set of identities: those for which each part that is given holds. A part holds
// if one of its entries is one of the identity's. A Role without parts is refused by New.
type Role struct {
	Name         string
	Emails       []string // as ParseEmail returns them
	EmailDomains []string // as ParseDomain returns them; a subdomain is another domain
	URIs         []URIPattern
	Groups       []string // case counts
	Issuers      []string // as Identity.Issuer has them; case counts
}

// Check tells why nobody can have the role.
func (r *Role) Check() error {
	if len(r.Emails)+len(r.EmailDomains)+len(r.URIs)+len(r.Groups)+len(r.Issuers) == 0 {
		return fmt.Errorf("the role %q says nothing of whom it is for", r.Name)
	}
	return nil
}

func (r *Role) match(id *Identity) bool {
	return r.Check() == nil &&
		(len(r.Emails) == 0 || intersect(r.Emails, id.Emails)) &&
		(len(r.EmailDomains) == 0 || slices.ContainsFunc(id.Emails, func(email string) bool {
			at := strings.LastIndexByte(email, '@')
			return at > 0 && slices.Contains(r.EmailDomains, email[at+1:])
		})) &&
		(len(r.URIs) == 0 || slices.ContainsFunc(id.URIs, func(uri string) bool {
			return slices.ContainsFunc(r.URIs, func(p URIPattern) bool { return p.match(uri) })
		})) &&
		(len(r.Groups) == 0 || intersect(r.Groups, id.Groups)) &&
		(len(r.Issuers) == 0 || slices.Contains(r.Issuers, id.Issuer))
}

func intersect(a, b []string) bool {
	return slices.ContainsFunc(a, func(s string) bool { return slices.Contains(b, s) })
}

// URIPattern is a URI, or the beginning of URIs. The zero URIPattern matches nothing.
type URIPattern struct {
	text string
	tail bool // text is the beginning
}

// ParseURIPattern reads an entry of uris: a URI, or one that ends in "*" for any
// characters. Behind "//" the star has to come after the host, as it would let in hosts
// whose names only begin alike.
func ParseURIPattern(text string) (URIPattern, error) {
	core, tail := strings.CutSuffix(text, "*")
	scheme, rest, ok := strings.Cut(core, ":")
	switch {
	case !ok || scheme == "" || strings.ContainsFunc(text, unprintable):
		return URIPattern{}, fmt.Errorf("%q is not a URI", text)
	case strings.Contains(core, "*"):
		return URIPattern{}, fmt.Errorf("%q has a * in another place than its end", text)
	}
	if authority, ok := strings.CutPrefix(rest, "//"); ok && tail && !strings.Contains(authority, "/") {
		return URIPattern{}, errors.New("a * is possible only after the host and a slash")
	}
	return URIPattern{core, tail}, nil
}

func (p URIPattern) String() string {
	if p.tail {
		return p.text + "*"
	}
	return p.text
}

func (p URIPattern) match(uri string) bool {
	return p.text != "" && (p.text == uri || p.tail && strings.HasPrefix(uri, p.text))
}

// Policy says who may use a service, and where these may go. It is for identities that
// have one of its roles and says nothing about others.
type Policy struct {
	Name     string
	Roles    []*Role
	Anywhere bool      // all that the service's patterns allow; with it Allow is empty
	Allow    []Pattern // else one of these has to cover a destination
	Deny     []Pattern // none of these may
}

// Check tells what makes a policy ambiguous, or useless.
func (p *Policy) Check() error {
	switch {
	case len(p.Roles) == 0:
		return fmt.Errorf("the policy %q names no role", p.Name)
	case p.Anywhere && len(p.Allow) > 0:
		return fmt.Errorf("the policy %q allows everything, and some things", p.Name)
	case !p.Anywhere && len(p.Allow) == 0:
		return fmt.Errorf("the policy %q allows nothing", p.Name)
	}
	for _, r := range p.Roles {
		if r == nil {
			return fmt.Errorf("the policy %q has a role that is nil", p.Name)
		}
		if err := r.Check(); err != nil {
			return err
		}
	}
	for _, list := range [][]Pattern{p.Allow, p.Deny} {
		for i := range list {
			if err := list[i].Check(); err != nil {
				return fmt.Errorf("the policy %q: %w", p.Name, err)
			}
		}
	}
	return nil
}

// role returns the first role of the policy that the identity has, nil where it has none.
func (p *Policy) role(id *Identity) *Role {
	for _, r := range p.Roles {
		if r.match(id) {
			return r
		}
	}
	return nil
}
