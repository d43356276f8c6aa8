package profiles

import "time"

// KeyState is whether a private key could sign now.
type KeyState string

const (
	KeyReady    KeyState = "ready"    // no passphrase is needed
	KeyLocked   KeyState = "locked"   // its passphrase would be asked for
	KeyOpen     KeyState = "open"     // its passphrase is remembered
	KeyInAgent  KeyState = "agent"    // the agent has it
	KeyUnusable KeyState = "unusable" // see Problem
)

// KeyInfo is one private key as people see it. It has no secret.
type KeyInfo struct {
	ID          string // stays the same for a key; see keyfile.ID
	Type        string // of the public half; "" while the format hides that
	Fingerprint string // SHA256; "" as Type
	Public      string // a line of authorized_keys without its end; "" as Type
	Comment     string
	File        string // "" for a key that only the agent has
	Added       bool   // by a person, to this process
	State       KeyState
	Until       time.Time // of an open key: when its passphrase is forgotten at the latest; zero: never
	Problem     string
	Certificate *CertificateInfo // beside the key; nil where there is none that can be read
}

// CertificateInfo is an OpenSSH certificate of a key as people see it.
type CertificateInfo struct {
	File        string
	KeyID       string
	Serial      uint64
	Principals  []string
	Authority   string // SHA256 fingerprint of the key that signed it
	ValidAfter  time.Time
	ValidBefore time.Time // zero: for ever
	Problem     string    // why it is not offered
}

// HostKeyInfo is a key that a server shows, as people see it.
type HostKeyInfo struct {
	Type        string
	Fingerprint string // SHA256
	Public      string // base64 behind the type, as known_hosts has it
}
