package control

import "time"

// KeyArgs names a private key: by its id, a hash of it, or its file. For OpAddKey it is
// the file; for OpListKeys "" is all of them.
type KeyArgs struct {
	Key string `json:"key,omitempty"`
}

// KeyRow is a private key that may be tried, or a note on what could not be read.
type KeyRow struct {
	ID          string          `json:"id,omitempty"`
	Type        string          `json:"type,omitempty"`        // "" while the file's format hides it
	Fingerprint string          `json:"fingerprint,omitempty"` // SHA256
	Public      string          `json:"public,omitempty"`      // a line of authorized_keys
	Comment     string          `json:"comment,omitempty"`
	File        string          `json:"file,omitempty"` // "" for one that only the agent has
	Added       bool            `json:"added,omitempty"`
	State       string          `json:"state,omitempty"` // ready, locked, open, agent, unusable
	Until       time.Time       `json:"until,omitzero"`  // of an open one: its passphrase is forgotten then, at the latest
	Problem     string          `json:"problem,omitempty"`
	Certificate *CertificateRow `json:"certificate,omitempty"`
	Note        string          `json:"note,omitempty"`
}

// CertificateRow is the OpenSSH certificate of a key.
type CertificateRow struct {
	File        string    `json:"file,omitempty"`
	KeyID       string    `json:"key_id,omitempty"`
	Serial      uint64    `json:"serial"`
	Principals  []string  `json:"principals,omitempty"`
	Authority   string    `json:"authority,omitempty"` // SHA256 fingerprint
	ValidAfter  time.Time `json:"valid_after,omitzero"`
	ValidBefore time.Time `json:"valid_before,omitzero"` // zero: for ever
	Problem     string    `json:"problem,omitempty"`     // why it is not offered
}

// PassphraseArgs gives the passphrase of a key, or has it forgotten. "" for Key is all
// keys that it could be of; "" for Passphrase asks for it.
type PassphraseArgs struct {
	Key        string `json:"key,omitempty"`
	Passphrase string `json:"passphrase,omitempty"`
	Clear      bool   `json:"clear,omitempty"`
}

// ProbeKeyArgs is a server whose keys are to be shown.
type ProbeKeyArgs struct {
	Host string `json:"host"`
	Port uint16 `json:"port"`
}

// HostKeyRow is a key that a server shows. Nobody has checked that it is the server's.
type HostKeyRow struct {
	Host        string `json:"host"`
	Port        uint16 `json:"port"`
	Type        string `json:"type"`
	Fingerprint string `json:"fingerprint"`
	Public      string `json:"public"` // base64, as known_hosts has it behind the type
}

// AuthHandlerRow tells a handler of prompts that questions come to it from now on.
type AuthHandlerRow struct {
	Ready bool `json:"ready"`
}
