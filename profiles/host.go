package profiles

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// CheckHost tells why host is not a name or an address of a server. What it lets
// through is safe in a file of known hosts, as an argument of a command and in a log
// line: it has no space, no control character, no pattern and no leading hyphen.
func CheckHost(host string) error {
	switch {
	case host == "":
		return errors.New("no host")
	case len(host) > 253+1:
		return errors.New("host name longer than 253 characters")
	case host[0] == '-':
		return fmt.Errorf("host %q begins with a hyphen", host)
	}
	text := host
	if addr, err := netip.ParseAddr(host); err == nil {
		if addr.Zone() == "" {
			return nil
		}
		text = addr.Zone() // which the parser lets be anything
	}
	for i := range len(text) {
		c := text[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-_.", c) >= 0) {
			return fmt.Errorf("host %q has the character %q", host, rune(c))
		}
	}
	return nil
}

// CheckUser tells why user is not a user name that may be sent to a server. The
// rules are those of OpenSSH 9.6 and newer, which also keep it safe as an argument.
func CheckUser(user string) error {
	switch {
	case user == "":
		return errors.New("no user")
	case user[0] == '-':
		return fmt.Errorf("user %q begins with a hyphen", user)
	case strings.ContainsAny(user, "'`\";&<>|(){}\\"):
		return fmt.Errorf("user %q has a character that means something to a shell", user)
	}
	for _, r := range user {
		if r < ' ' || r == 0x7f {
			return fmt.Errorf("user %q has a control character", user)
		}
	}
	return nil
}

// IsHostRune tells whether r is a letter, digit or mark that names of hosts are made of.
func IsHostRune(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.'
}
