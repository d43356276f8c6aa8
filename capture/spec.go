package capture

import "net/netip"

// Outcome is what the kernel does by itself with a flow's SYN.
type Outcome uint8

const (
	Ask   Outcome = iota // held in the queue until a broker has decided
	Pass                 // let through untouched
	Reset                // ECONNREFUSED
)

// String names the outcome.
func (o Outcome) String() string {
	switch o {
	case Pass:
		return "pass"
	case Reset:
		return "reset"
	default:
		return "ask"
	}
}

// Spec is a capture's rules as far as the kernel can carry them out by itself. What
// is said of the parts is in force in their order: Pools, local destinations, Exempt,
// Rules, Rest. The zero Spec asks about everything but local destinations.
//
// It travels as JSON from the broker, which makes it, to ssh-captured, which trusts
// it to say nothing but what becomes of the capture's own flows.
type Spec struct {
	// Pools are the ranges of made-up addresses: always asked about, and never let
	// out, whoever sends there.
	Pools []netip.Prefix `json:"pools,omitempty"`
	// Local says that connections to the host's own addresses are judged as well;
	// otherwise the kernel lets them through.
	Local bool `json:"local,omitempty"`
	// Exempt are the servers that transports connect to.
	Exempt []netip.AddrPort `json:"exempt,omitempty"`
	Rules  []SpecRule       `json:"rules,omitempty"`
	Rest   Outcome          `json:"rest,omitempty"` // of what no rule names

	// RefuseUDP refuses at once, so that QUIC cannot slip out, what is neither TCP
	// nor a name query and does not go to the host itself.
	RefuseUDP bool `json:"refuse_udp,omitempty"`

	// Users are the uids that a capture of the whole host takes. Not used by a
	// capture that has a cgroup: it takes its owner's sockets.
	Users []UIDRange `json:"users,omitempty"`

	// Open lets everything through while nobody serves the capture: the crash policy
	// "open". The zero value keeps the flows that ask waiting.
	Open bool `json:"open,omitempty"`
}

// SpecRule takes the flows to one of its prefixes and one of its ports.
type SpecRule struct {
	Prefixes []netip.Prefix `json:"prefixes,omitempty"` // empty: every address
	Ports    []PortRange    `json:"ports,omitempty"`    // empty: every port
	Outcome  Outcome        `json:"outcome,omitempty"`
	Number   int            `json:"number,omitempty"` // of the filter rule, for counters and people
}

// PortRange is one inclusive range of ports.
type PortRange struct {
	Lo uint16 `json:"lo"`
	Hi uint16 `json:"hi"`
}

// UIDRange is one inclusive range of uids.
type UIDRange struct {
	Lo uint32 `json:"lo"`
	Hi uint32 `json:"hi"`
}
