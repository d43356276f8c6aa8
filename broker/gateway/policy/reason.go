package policy

import (
	"fmt"
	"net/http"
)

// Reason is why a flow or a connection was refused, or that it was not.
type Reason uint8

// The reasons, by who gives them. The zero Reason refuses.
const (
	Undecided Reason = iota
	Permitted

	// Who asks.
	NoIdentity // no verified certificate, or one that identifies nobody
	NoPolicy   // the service has no policy, so it admits nobody
	NoRole     // none of the service's policies names a role of this identity

	// What is asked for.
	BadHost   // no name and no address of a host, or one of several spellings
	BadPort   // port 0
	NotTarget // the service has a fixed target, and this is another destination

	// What the service's patterns say.
	HostNotAllowed    // no allow pattern has the host
	PortNotAllowed    // allow patterns have the host, none of them the port
	Excluded          // an exclude pattern has host and port
	AddressNotAllowed // no allow pattern has the address that the name leads to
	AddressExcluded   // an exclude pattern has that address
	AddressReserved   // loopback and the like, or the gateway itself, written down nowhere

	// What the policies say. A permissive service passes over these and NoRole.
	PolicyDenied     // a deny rule has it
	PolicyNotAllowed // no allow rule has it

	// What the resolver says.
	NameNotFound
	LookupFailed
	LookupTimeout

	reasons // how many there are
)

// table is what each reason is called and how the gateway answers it: the status of HTTP and
// the error of Proxy-Status (RFC 9209, section 2.3). Where that RFC recommends 502 for an
// address that is prohibited, it is 403 here, as trying again does not help.
var table = [reasons]struct {
	name   string
	status int
	proxy  string
}{
	Undecided:         {"undecided", http.StatusInternalServerError, "proxy_internal_error"},
	Permitted:         {"permitted", http.StatusOK, ""},
	NoIdentity:        {"no-identity", http.StatusForbidden, "http_request_denied"},
	NoPolicy:          {"no-policy", http.StatusForbidden, "http_request_denied"},
	NoRole:            {"no-role", http.StatusForbidden, "http_request_denied"},
	BadHost:           {"bad-host", http.StatusBadRequest, "http_request_error"},
	BadPort:           {"bad-port", http.StatusBadRequest, "http_request_error"},
	NotTarget:         {"not-target", http.StatusForbidden, "http_request_denied"},
	HostNotAllowed:    {"host-not-allowed", http.StatusForbidden, "http_request_denied"},
	PortNotAllowed:    {"port-not-allowed", http.StatusForbidden, "http_request_denied"},
	Excluded:          {"excluded", http.StatusForbidden, "http_request_denied"},
	AddressNotAllowed: {"address-not-allowed", http.StatusForbidden, "destination_ip_prohibited"},
	AddressExcluded:   {"address-excluded", http.StatusForbidden, "destination_ip_prohibited"},
	AddressReserved:   {"address-reserved", http.StatusForbidden, "destination_ip_prohibited"},
	PolicyDenied:      {"policy-denied", http.StatusForbidden, "http_request_denied"},
	PolicyNotAllowed:  {"policy-not-allowed", http.StatusForbidden, "http_request_denied"},
	NameNotFound:      {"name-not-found", http.StatusBadGateway, "dns_error"},
	LookupFailed:      {"lookup-failed", http.StatusBadGateway, "dns_error"},
	LookupTimeout:     {"lookup-timeout", http.StatusGatewayTimeout, "dns_timeout"},
}

// Reasons returns all of them, in order.
func Reasons() []Reason {
	all := make([]Reason, reasons)
	for i := range all {
		all[i] = Reason(i)
	}
	return all
}

func (r Reason) String() string {
	if r >= reasons {
		return fmt.Sprintf("reason-%d", uint8(r))
	}
	return table[r].name
}

// Status is the HTTP status by which a CONNECT request is answered.
func (r Reason) Status() int {
	if r >= reasons {
		return table[Undecided].status
	}
	return table[r].status
}

// ProxyError is the error type of Proxy-Status (RFC 9209, section 2.3); "" for Permitted.
func (r Reason) ProxyError() string {
	if r >= reasons {
		return table[Undecided].proxy
	}
	return table[r].proxy
}

// ofPolicy tells whether a permissive service passes over the reason.
func (r Reason) ofPolicy() bool { return r == NoRole || r == PolicyDenied || r == PolicyNotAllowed }

// Verdict is the answer of Admit and Decide. The zero Verdict refuses.
type Verdict struct {
	Reason Reason

	// Rule is what decided: a policy and the position of its rule where the policies
	// were asked last ("policy staff", "policy staff: deny[0]", "any_certificate"), else
	// the pattern of the service ("exclude_patterns[2]"); "" where nothing matched.
	// Positions count from 0.
	Rule string

	// Detail says it in words. It has names and addresses of destinations, no secrets
	// and nothing of the gateway's own network, so that the client may see it.
	Detail string

	// Permissive says that the policies would have refused it, for Reason, and that the
	// service only logs that.
	Permissive bool
}

// Allowed tells whether it may go on.
func (v Verdict) Allowed() bool {
	return v.Reason == Permitted || v.Permissive && v.Reason.ofPolicy()
}

func (v Verdict) String() string {
	text := v.Reason.String()
	if v.Permissive {
		text += " (permissive)"
	}
	if v.Rule != "" {
		text += ", " + v.Rule
	}
	if v.Detail != "" {
		text += ": " + v.Detail
	}
	return text
}
