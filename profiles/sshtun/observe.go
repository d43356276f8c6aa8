package sshtun

import (
	"encoding/hex"
	"strings"

	"golang.org/x/crypto/ssh"

	"sshbroker/profiles"
)

// numbered tells the connector's observer, with the number of the connection.
func (c *Connector) numbered(session uint64) profiles.Observer {
	if c.Observe == nil {
		return nil
	}
	return func(e profiles.Event) {
		e.Session = session
		c.Observe(e)
	}
}

// exchanged tells that the first key exchange is done. Later ones of the connection the
// library does not tell of.
func (h *handshake) exchanged(id []byte, a ssh.NegotiatedAlgorithms) {
	if h.secured {
		return
	}
	h.secured = true
	h.observe.Tell(profiles.Event{Kind: profiles.AlgorithmsAgreed, Profile: h.profile, Algorithms: strings.Join([]string{
		"key exchange " + a.KeyExchange, "host key " + a.HostKey,
		"to the server " + direction(a.Write), "from the server " + direction(a.Read)}, "; ")})
	h.observe.Tell(profiles.Event{Kind: profiles.KeyExchanged, Profile: h.profile, Algorithms: a.KeyExchange, Protocol: hex.EncodeToString(id)})
}

// direction names cipher and MAC; ciphers of their own authentication have none.
func direction(a ssh.DirectionAlgorithms) string {
	if a.MAC == "" {
		return a.Cipher
	}
	return a.Cipher + " " + a.MAC
}
