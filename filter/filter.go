package filter

import (
	"net/netip"

	"sshbroker/filter/egrep"
)

// Action is what becomes of a flow.
type Action uint8

// The zero Action blocks.
const (
	Block Action = iota
	Direct
	Tunnel
	FTPTunnel
	FTPProxy
)

// Flow is what rules are matched against.
type Flow struct {
	Names []string // known names behind Addr, most recent first; none: Addr's text is matched
	Addr  netip.Addr
	Port  uint16

	// Program returns the path of the executable, "" when it is not known. It is
	// called at most once by one Decide, and only if a rule still needs it.
	Program func() string

	User   string   // login name of the flow's owner
	Groups []string // names of the owner's groups
}

// PortRange is one inclusive range of ports.
type PortRange struct{ Lo, Hi uint16 }

// Rule is one filter rule. Every condition that is given must hold.
type Rule struct {
	Number int    // 1 for the first rule of the file
	Source string // "file:line", for people

	Network     string         // id of the network that the host has to be on; "": wherever it is
	Application *egrep.Pattern // against the executable's full path or its base name
	Host        *egrep.Pattern // against each name, or the textual address where none is known
	Address     *egrep.Pattern // against the textual address; not looked at where Host is given
	Prefix      netip.Prefix   // in place of Address where the value is a prefix; zero: none
	Ports       []PortRange    // empty: every port
	Users       []string       // login names; empty: everybody
	Groups      []string       // group names; empty: everybody

	Action          Action
	Profile         string // profile id; "" for the default settings
	Destination     string // in place of the address the program asked for
	DestinationPort uint16 // in place of its port; 0 keeps it
	Username        string // for the SSH login; "" keeps the profile's
	UsernameFile    string // in place of Username: the file that has it when the rule decides

	PseudoIP         bool
	HostnameFromApp  bool
	UsernameFromApp  bool
	FallbackToPlain  bool
	ShowServerBanner bool
}

// Decision is what Decide says. The zero Decision blocks.
type Decision struct {
	Action Action
	Rule   *Rule  // the rule that decided; nil when none matched and the default holds
	Name   string // the name by which it matched, else the most recent one; "" where none is known
}
