package profiles

import (
	"net"
	"strconv"
	"time"
)

// HostKeyPolicy is what happens with a host key that is not known yet. A changed
// key is refused under every policy but Advisory.
type HostKeyPolicy uint8

// The zero policy refuses whatever it does not know.
const (
	Strict   HostKeyPolicy = iota
	Ask                    // ask the person, refuse where nobody can be asked
	TOFU                   // trust on first use: accept and store
	Advisory               // accept and store; go on even when changed
)

// AuthMethod is a way to prove who we are, in the order the profile lists them.
type AuthMethod uint8

const (
	PublicKey AuthMethod = iota + 1
	Password
	KeyboardInteractive
)

// KeyStore is one place that keys are taken from where a profile names none: a key
// file, the keys that an identification file lists, or a directory of them.
type KeyStore struct {
	File, Public string // a private key, and its public half where that is not beside it
	// Index is an identification file: lines "IdKey FILE" and "CertKey FILE", relative
	// to Base. Its keys come before all others, in its order.
	Index, Base string
	// Dir is a directory whose every key counts, but where the file Unless exists.
	Dir, Unless string
	Remember
}

// Remember says how long the passphrase of a key counts once it was given.
type Remember struct {
	For  time.Duration // 0: as long as the process lives
	Idle time.Duration // after the last use; 0: the same
}

// KeySelection says which keys are tried where several are there.
type KeySelection struct {
	Shy            bool      // no key that somebody would have to be asked for
	Types          []KeyType // these alone, in this order; empty: of each key its certificate, then itself
	Issuers        []string  // certificates of these authorities alone, by SHA256 fingerprint; empty: of any
	IssuerOfServer bool      // certificates of the authority alone that has certified the server
}

// KeyType is a form in which a key can be offered.
type KeyType uint8

const (
	PlainKey KeyType = iota + 1
	CertifiedKey
)

// ServerProof is how a server has to prove who it is.
type ServerProof uint8

const (
	AnyProof         ServerProof = iota // a certificate where it has one that we can check, else its key
	KeyProof                            // a key on file; certificates do not count
	CertificateProof                    // a certificate of an authority on file; keys do not count
)

// AddressFamily restricts the addresses that a server or a proxy is reached at.
type AddressFamily uint8

const (
	AnyFamily AddressFamily = iota
	OnlyIPv4
	OnlyIPv6
)

// Protocol is the kind of tunnel.
type Protocol uint8

const (
	SSH Protocol = iota
	TLS
)

// TLSSettings is what a profile of protocol TLS says of the far end beside its address. Of the
// fields of a Profile that name keys, trust and algorithms of SSH none counts then.
type TLSSettings struct {
	// CAFiles are PEM files of the authorities that the server's certificate has to come
	// from; with SystemRoots those of the host count too.
	CAFiles     []string
	SystemRoots bool
	// Certificate and Key are PEM files: our certificate, with those that lead to its
	// authority behind it, and its private key. Both or none.
	Certificate, Key string
	ServerName       string // in the server's certificate; "": Host
	Service          string // of the gateway; "": the one that it chooses by the name asked for
	// Proxy is a server that speaks HTTP CONNECT over TLS and is no gateway of ours. Each
	// flow has a connection of its own. User and the password are sent to it, where given.
	Proxy bool
}

// Server is where one of a profile's servers is.
type Server struct {
	Host string
	Port uint16
}

// String is host:port.
func (s Server) String() string { return net.JoinHostPort(s.Host, strconv.Itoa(int(s.Port))) }

// Profile is one way out, complete: factory defaults and default-settings are
// already merged in. It is immutable once built; copy it to change it.
type Profile struct {
	ID   string // unique in a configuration; "" for one made from the defaults alone
	Name string

	Protocol Protocol
	TLS      TLSSettings

	Host string // "" or "*": the host that the program asked for (see For)
	Port uint16
	User string // "": somebody is asked; with TLS: none

	// More are servers that stand in for Host while that cannot be reached, in order.
	More []Server
	// Exclusive gives every stream a transport of its own.
	Exclusive bool
	// Transports is how many there may be at a time, so that streams need not wait for
	// each other; more than one are made where they help and nobody has to be asked.
	// 0 is 1. Nothing with Exclusive or ControlPath.
	Transports int

	Gateway *Profile // the transport is opened through this one; nil: straight

	// Proxy is a ruleset of package proxy, for servers without a gateway. HTTPSProxy and
	// NoProxy are the environment's variables; they count where Proxy is "". All three
	// may hold passwords.
	Proxy               string
	HTTPSProxy, NoProxy string

	// ProxyCommand is a command line that carries the connection, in place of a proxy;
	// see proxy.Command. No configuration file of a broker gives one.
	ProxyCommand string
	// ControlPath is the socket of an ssh that may be connected already; see ssh_config(5).
	// Where it is, its connection is used, and nothing else of this counts. Likewise.
	ControlPath string

	AddressFamily AddressFamily // of the connections that this host opens

	AuthMethods  []AuthMethod // empty: PublicKey, KeyboardInteractive, Password
	Identities   []string     // key files, or "#" and a key's hash (see keyfile.Matches); tried in order, they restrict the keys of the agent too
	KeyStores    []KeyStore   // where no identities are given: what is tried beside the keys of the agent
	DefaultKeys  []string     // and last: key files tried if they exist
	Remember     Remember     // of the keys that no store says it of
	KeySelection KeySelection
	SignWith     []string // signature algorithms of our keys; empty: the library's choice
	// CheckKeyModes has a private key passed over that others than its owner may read,
	// whoever that is, and one that is neither the user's nor root's. Without it only
	// the modes of the user's own files are looked at.
	CheckKeyModes bool
	Agent         string // path of the agent's socket; "" uses none
	PasswordText  string // secret
	PasswordFile  string
	PasswordCmd   string // a program that prints the password

	HostKeyPolicy HostKeyPolicy
	ServerProof   ServerProof
	HostKeyFile   string // the one key that is trusted, where the profile names it
	HostKeyText   string // the same in place of a file: see keyfile.ParseInline
	// KnownHosts are searched in order, and the first that has keys of the server
	// decides: OpenSSH files, where those that follow one another count as one, and
	// directories of key files, which end in a slash or are there as such.
	KnownHosts     []string
	StoreKnownHost string // the file that a new key is appended to, or the directory, with a slash, that it gets a file in; "" stores none
	PlainKeyNames  bool   // that file is named by the host; else by a hash of it
	HostKeyAlias   string // looked up in place of Host; "" for Host itself

	Ciphers, MACs, KEXs, HostKeyAlgorithms []string // empty: the library's choice

	RekeyBytes        uint64        // after so much another transport takes the new streams; 0: never
	ConnectTimeout    time.Duration // 0: the system's
	KeepaliveInterval time.Duration // 0: none
	KeepaliveMisses   int           // unanswered ones after which the transport is lost
	IdleTimeout       time.Duration // after the last stream; 0: closed with the last stream; <0: never
	OpenTimeout       time.Duration // for one stream
}

// HasServices tells whether p leads to an ssh-gateway, which has services by name.
func (p *Profile) HasServices() bool { return p.Protocol == TLS && !p.TLS.Proxy }

// For returns the profile with its server filled in: a copy that goes to host
// where fromApp is set or the profile names none, else p itself. user replaces the
// profile's when it is not empty.
func (p *Profile) For(host, user string, fromApp bool) *Profile {
	if !fromApp && p.Host != "" && p.Host != "*" && user == "" {
		return p
	}
	q := *p
	if fromApp || p.Host == "" || p.Host == "*" {
		q.Host, q.More = host, nil
	}
	if user != "" {
		q.User = user
	}
	return &q
}
