package profiles

import "time"

// EventKind is what happened on the way to a server.
type EventKind uint8

const (
	// Told by the pool.
	Connected EventKind = iota + 1
	ConnectFailed
	ConnectionLost
	Disconnected // by us, as nobody needs it any more

	// Told by a connector.
	AlgorithmsAgreed
	AlgorithmsFailed // nothing in common
	KeyExchanged
	KeyExchangeFailed
	Authenticated
	AuthRefused

	// What became of the server's host key. HostKeyJudged comes with every one.
	HostKeyJudged
	HostKeyNew     // nothing was on file, and it is trusted now
	HostKeyUnknown // nothing was on file, and it is not trusted
	HostKeyChanged
	HostKeyRevoked

	// What became of keys to log in with.
	IdentityFailed   // cannot be used
	IdentityUnlocked // by a passphrase
	UnlockFailed
	AgentFailed
)

// Event is told to an Observer. Fields that say nothing about its kind are zero. There
// is no secret in it.
type Event struct {
	Kind    EventKind
	Profile *Profile
	Session uint64 // the connector's number of the connection; 0 where the pool tells

	Protocol   string // the protocol's own identifier of the session, in hex
	Algorithms string // those agreed on, or what there is none in common of
	Ours       []string
	Theirs     []string
	Cipher     string

	KeyType, KeyHash string // SHA256 fingerprint
	File             string // of the key
	Status           string // one word
	Method           string // of authentication, and with what

	Lived time.Duration
	Err   error
}

// Observer is told what happens on the way to servers. It returns at once. A nil one
// hears nothing.
type Observer func(Event)

// Tell tells e to whoever listens.
func (o Observer) Tell(e Event) {
	if o != nil {
		o(e)
	}
}
