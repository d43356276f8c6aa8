package audit

import (
	"fmt"
	"strconv"
)

// Reason is what became of a flow, in one word.
type Reason uint8

// The zero Reason says that nobody has given one; see Log.Record.
const (
	Unset Reason = iota

	// The flow was let go.
	Carried  // through a tunnel
	Direct   // relayed without one
	Passed   // carried by the kernel
	Fallback // in plain, after its tunnel had failed

	HandedOver // to its owner's own broker, which records it as Carried

	// The rules refused it.
	Blocked
	NotBuilt // decided by an action that this version does not have
	BadName  // its name cannot be used

	// The destination, as the far side or the host's own kernel told.
	RefusedByDestination
	Unreachable
	Prohibited // the server does not forward there
	NameNotFound

	// The way there.
	ServerUnreachable
	AuthFailed
	HostKey
	ProfileError  // the profile cannot be used
	TransportLost // while opening; a live flow that loses it is Carried and ends with a reset

	// Its owner's own broker, which was to carry it.
	RefusedByCarrier
	CarrierGone // it ended while it was at it

	Abandoned // the program gave up connecting

	// Ourselves.
	Limit         // too many flows
	NoDescriptors // none left in this process
	AuditRequired // records cannot be written, and must be
	Shutdown
	Internal // a fault of this program

	endOfReasons
)

// reasonNames is indexed by Reason and never written to.
var reasonNames = [endOfReasons]string{
	Unset:                "unset",
	Carried:              "carried",
	Direct:               "direct",
	Passed:               "passed",
	Fallback:             "fallback",
	HandedOver:           "handed-over",
	Blocked:              "blocked",
	NotBuilt:             "not-built",
	BadName:              "bad-name",
	RefusedByDestination: "refused-by-destination",
	Unreachable:          "unreachable",
	Prohibited:           "prohibited",
	NameNotFound:         "name-not-found",
	ServerUnreachable:    "server-unreachable",
	AuthFailed:           "auth-failed",
	HostKey:              "host-key",
	ProfileError:         "profile-error",
	TransportLost:        "transport-lost",
	RefusedByCarrier:     "refused-by-carrier",
	CarrierGone:          "carrier-gone",
	Abandoned:            "abandoned",
	Limit:                "limit",
	NoDescriptors:        "no-descriptors",
	AuditRequired:        "audit-required",
	Shutdown:             "shutdown",
	Internal:             "internal",
}

// Reasons returns every Reason but Unset, in order, for documents and tests.
func Reasons() []Reason {
	all := make([]Reason, 0, endOfReasons-1)
	for r := Unset + 1; r < endOfReasons; r++ {
		all = append(all, r)
	}
	return all
}

// String returns the word used in records.
func (r Reason) String() string {
	if r < endOfReasons {
		return reasonNames[r]
	}
	return "reason(" + strconv.Itoa(int(r)) + ")"
}

// MarshalText is String; it has no error for unknown values.
func (r Reason) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText takes only the words that MarshalText gives for known values.
func (r *Reason) UnmarshalText(text []byte) error {
	for i, name := range reasonNames {
		if name == string(text) {
			*r = Reason(i)
			return nil
		}
	}
	return fmt.Errorf("audit reason %q is not known", text)
}
