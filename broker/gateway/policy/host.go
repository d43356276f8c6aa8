package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// Host is a destination in its one spelling: a name in lower case with A-labels and without
// a trailing dot, or an address. The zero Host is none.
type Host struct {
	name string     // "" for an address
	addr netip.Addr // invalid for a name; never IPv4 in IPv6, never with a zone
}

// IsZero tells whether it is no host at all.
func (h Host) IsZero() bool { return h == Host{} }

// Addr is the address, invalid where the host is a name.
func (h Host) Addr() netip.Addr { return h.addr }

func (h Host) String() string {
	if h.addr.IsValid() {
		return h.addr.String()
	}
	return h.name
}

// names turns names with other letters than ASCII, or with A-labels, into A-labels (UTS 46,
// not transitional). What characters are left is checked by checkName.
var names = idna.New(idna.MapForLookup(), idna.BidiRule(), idna.Transitional(false), idna.StrictDomainName(false), idna.CheckHyphens(false))

// maxSpelling bounds a name before it is converted, in bytes: 253 letters, each of which
// may have been written with several bytes of UTF-8.
const maxSpelling = 4 * 253

// ParseHost brings the host of a CONNECT request, or of a configuration, into its one
// spelling. It refuses whatever two readers could take for different hosts: zone ids,
// brackets, IPv4 addresses that are not four plain decimal numbers (0177.1, 2130706433,
// 0x7f.1, 127.0.0.1.), and characters that names of hosts do not have.
func ParseHost(text string) (Host, error) {
	switch {
	case text == "":
		return Host{}, errors.New("no host")
	case len(text) > maxSpelling:
		return Host{}, errors.New("the host has more than 253 characters")
	case strings.Contains(text, "%"):
		return Host{}, fmt.Errorf("the host %+q has a zone id", text)
	}
	if addr, err := netip.ParseAddr(text); err == nil {
		return Host{addr: addr.Unmap()}, nil
	}
	name, err := canonicalName(strings.TrimSuffix(text, "."))
	if err != nil {
		return Host{}, err
	}
	if err := checkName(name); err != nil {
		return Host{}, err
	}
	if EndsInNumber(name) {
		return Host{}, fmt.Errorf("%+q is neither a name nor an IPv4 address of four decimal numbers", text)
	}
	return Host{name: name}, nil
}

// canonicalName folds case and converts other letters than ASCII.
func canonicalName(text string) (string, error) {
	if !utf8.ValidString(text) {
		return "", errors.New("the host is not UTF-8")
	}
	lower := strings.ToLower(text)
	if !strings.ContainsFunc(text, beyondASCII) && !strings.Contains("."+lower, ".xn--") {
		return lower, nil
	}
	name, err := names.ToASCII(text)
	if err != nil {
		return "", fmt.Errorf("the host %+q is not a name of IDNA", text)
	}
	return name, nil
}

func beyondASCII(r rune) bool { return r >= 0x80 }

// checkName holds a name to what all parts of the project let names of hosts be made of.
func checkName(name string) error {
	if len(name) > 253 {
		return errors.New("the host has more than 253 characters")
	}
	for label := range strings.SplitSeq(name, ".") {
		switch {
		case label == "":
			return fmt.Errorf("the host %+q has an empty label", name)
		case len(label) > 63:
			return fmt.Errorf("the host %+q has a label of more than 63 characters", name)
		case label[0] == '-':
			return fmt.Errorf("the host %+q has a label that begins with a hyphen", name)
		}
	}
	return checkLetters(name)
}

func checkLetters(name string) error {
	for _, r := range name {
		if !('a' <= r && r <= 'z' || '0' <= r && r <= '9' || r == '-' || r == '_' || r == '.') {
			return fmt.Errorf("the host %+q has the character %q", name, r)
		}
	}
	return nil
}

// EndsInNumber tells whether resolvers that follow inet_aton(3) would take the name for an
// IPv4 address: its last label is a decimal, octal or hexadecimal number. No such name
// exists in the DNS.
func EndsInNumber(name string) bool {
	last := name[strings.LastIndexByte(name, '.')+1:]
	digits := "0123456789"
	if hex, ok := strings.CutPrefix(last, "0x"); ok {
		last, digits = hex, "0123456789abcdef"
	}
	return strings.Trim(last, digits) == ""
}

// HostPattern is an entry of hostnames: a name, an address, or a name with "*" for any
// characters, dots included, at its beginning, its end or both. The zero HostPattern
// matches nothing.
type HostPattern struct {
	text        string // what stands between the stars
	head, tail  bool   // there is a star before it, after it
	addr        netip.Addr
	description string
}

// ParseHostPattern reads an entry of hostnames. Without a star it is what ParseHost takes.
func ParseHostPattern(text string) (HostPattern, error) {
	core, head := strings.CutPrefix(text, "*")
	core, tail := strings.CutSuffix(core, "*")
	if !head && !tail {
		host, err := ParseHost(text)
		return HostPattern{text: host.name, addr: host.addr, description: host.String()}, err
	}
	if strings.Contains(core, "*") {
		return HostPattern{}, fmt.Errorf("%q has a * in another place than its beginning or end", text)
	}
	if !tail {
		core = strings.TrimSuffix(core, ".")
	}
	core, err := canonicalFragment(core, head, tail)
	if err != nil {
		return HostPattern{}, fmt.Errorf("%q: %w", text, err)
	}
	if core == "" {
		return HostPattern{head: true, description: "*"}, nil
	}
	p := HostPattern{text: core, head: head, tail: tail, description: core}
	if head {
		p.description = "*" + p.description
	}
	if tail {
		p.description += "*"
	}
	return p, nil
}

// canonicalFragment brings a piece of a name into the spelling that names have. Letters
// beyond ASCII can be converted only in whole labels.
func canonicalFragment(core string, head, tail bool) (string, error) {
	before, after := "", ""
	rest := core
	if head && strings.HasPrefix(rest, ".") {
		before, rest = ".", rest[1:]
	}
	if tail && strings.HasSuffix(rest, ".") {
		after, rest = ".", rest[:len(rest)-1]
	}
	if rest == "" {
		if before+after != "" && core != "." {
			return "", errors.New("it has an empty label")
		}
		return core, nil
	}
	if strings.ContainsFunc(rest, beyondASCII) && (head && before == "" || tail && after == "") {
		return "", errors.New("a * beside a label with other letters than ASCII must be parted from it by a dot")
	}
	name, err := canonicalName(rest)
	if err != nil {
		return "", err
	}
	if strings.HasPrefix(name, ".") || strings.HasSuffix(name, ".") || strings.Contains(name, "..") {
		return "", errors.New("it has an empty label")
	}
	if len(name) > 253 {
		return "", errors.New("it has more than 253 characters")
	}
	return before + name + after, checkLetters(name)
}

func (p HostPattern) String() string { return p.description }

// Addr is the address that the entry is, invalid for one of names.
func (p HostPattern) Addr() netip.Addr { return p.addr }

// IsAny tells whether it is "*", which matches all names.
func (p HostPattern) IsAny() bool { return p.text == "" && p.head }

// match tells whether the host is covered. Stars cover names only.
func (p HostPattern) match(h Host) bool {
	switch {
	case h.addr.IsValid():
		return p.addr == h.addr
	case h.name == "":
		return false
	case p.head && p.tail:
		return strings.Contains(h.name, p.text)
	case p.head:
		return strings.HasSuffix(h.name, p.text)
	case p.tail:
		return strings.HasPrefix(h.name, p.text)
	}
	return p.text == h.name
}
