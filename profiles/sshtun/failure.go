package sshtun

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/ssh"

	"sshbroker/profiles"
)

// refusedTexts are what servers say with reason 2 (RFC 4254 section 5.1, connect
// failed) when the destination answered our connection with a reset. RFC 4254 has no
// code for it, so the text is all there is.
var refusedTexts = []string{
	"connection refused",     // OpenSSH, libssh and Dropbear: strerror(3); Go: net.OpError
	"[errno 111]",            // AsyncSSH, Python's OSError on Linux
	"actively refused",       // Windows, WSAECONNREFUSED
	"connectexception: conn", // Apache MINA, Java
}

// unresolvedTexts are what servers say with reason 2 when they do not know the name.
var unresolvedTexts = []string{
	"name or service not known",                 // glibc, EAI_NONAME
	"temporary failure in name resolution",      // glibc, EAI_AGAIN
	"no address associated with",                // glibc, BSD, EAI_NODATA
	"name does not resolve",                     // musl
	"nodename nor servname provided",            // BSD and macOS
	"non-recoverable failure in name",           // glibc, EAI_FAIL
	"no such host",                              // Go, Windows
	"error resolving",                           // Dropbear
	"unknown host",                              // Java, others
	"hostname nor servname provided",            // older macOS
	"could not resolve",                         // others
	"server misbehaving",                        // Go, SERVFAIL
	"address family for hostname not supported", // glibc, EAI_ADDRFAMILY
}

// openFailure puts the server's refusal of a channel into its class and keeps what
// the server said.
func openFailure(err error) error {
	var refusal *ssh.OpenChannelError
	if !errors.As(err, &refusal) {
		return fmt.Errorf("%w: %w", profiles.ErrLost, err)
	}
	class := profiles.ErrOpen
	said := strings.ToLower(refusal.Message)
	switch refusal.Reason {
	case ssh.Prohibited:
		class = profiles.ErrProhibited
	case ssh.ConnectionFailed:
		switch {
		case containsAny(said, refusedTexts):
			class = profiles.ErrRefused
		case containsAny(said, unresolvedTexts):
			class = profiles.ErrNameNotFound
		}
	}
	return fmt.Errorf("%w: %s: %q", class, refusal.Reason, profiles.RemoteText(refusal.Message, 300, false))
}

func containsAny(s string, parts []string) bool {
	for _, p := range parts {
		if strings.Contains(s, p) {
			return true
		}
	}
	return false
}
