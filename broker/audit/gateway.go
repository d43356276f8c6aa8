package audit

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"time"
)

// GatewayEvent is what a record of a gateway tells of.
type GatewayEvent string

// A flow that is carried has two records, GatewayOpen before its first byte and
// GatewayClose after its last; one that is not has GatewayRefused alone. What is open
// when a gateway is killed has no second one: the GatewayStart of the next instance
// tells that it is over.
const (
	GatewayStart   GatewayEvent = "start"
	GatewayStop    GatewayEvent = "stop"
	GatewayOpen    GatewayEvent = "open"
	GatewayClose   GatewayEvent = "close"
	GatewayRefused GatewayEvent = "refused"
)

// GatewayRecord is one flow as the far end of a TLS tunnel sees it. Fields that are
// not known stay zero and are then left out.
type GatewayRecord struct {
	Time       time.Time // when this record was made
	Event      GatewayEvent
	Instance   string // of the gateway's process; no two have the same
	Flow       uint64 // number of the flow, unique in the instance
	FlowID     string // under which the broker records it, as the client says
	Connection uint64 // number of the TLS connection, unique in the instance
	Generation uint64 // of the configuration that decided

	// Who asks.
	Client       netip.AddrPort
	Carrier      string // "mux", "connect" or "raw"
	Subject      string
	Issuer       string
	Serial       string
	Fingerprint  string
	Emails, URIs []string
	Groups       []string
	NotAfter     time.Time // of the client's certificate
	Program      string    // as the client says; nobody has proven it

	// The decision.
	Host       string // as asked
	Port       uint16
	Service    string
	Rule       string // of the policy, or the place of the pattern
	Permissive bool   // the policy would have refused it
	Target     string // after overrides, as host:port

	// The outcome.
	Dialled    netip.AddrPort
	Reason     string // one word; never empty
	Error      string // text behind Reason
	ClientEnd  string // how the direction from the client ended
	BackendEnd string

	Decision time.Duration // from the request until it was decided, with the lookup of the name
	Dial     time.Duration // from then until the backend was connected, or had failed
	Duration time.Duration // from the request to the end

	BytesUp, BytesDown int64 // from the client, and to it
}

// gatewayLine is GatewayRecord in the order and with the names of the file.
type gatewayLine struct {
	V           int          `json:"v"`
	Time        string       `json:"time"`
	Event       GatewayEvent `json:"event"`
	Instance    string       `json:"instance"`
	Flow        uint64       `json:"flow,omitempty"`
	FlowID      string       `json:"flow_id,omitempty"`
	Connection  uint64       `json:"connection,omitempty"`
	Generation  uint64       `json:"generation"`
	Client      string       `json:"client,omitempty"`
	Carrier     string       `json:"carrier,omitempty"`
	Subject     string       `json:"subject,omitempty"`
	Issuer      string       `json:"issuer,omitempty"`
	Serial      string       `json:"serial,omitempty"`
	Fingerprint string       `json:"fingerprint,omitempty"`
	Emails      []string     `json:"emails,omitempty"`
	URIs        []string     `json:"uris,omitempty"`
	Groups      []string     `json:"groups,omitempty"`
	NotAfter    string       `json:"not_after,omitempty"`
	Program     string       `json:"program,omitempty"`
	Host        string       `json:"host,omitempty"`
	Port        uint16       `json:"port,omitempty"`
	Service     string       `json:"service,omitempty"`
	Rule        string       `json:"rule,omitempty"`
	Permissive  bool         `json:"permissive,omitempty"`
	Target      string       `json:"target,omitempty"`
	Dialled     string       `json:"dialled,omitempty"`
	Reason      string       `json:"reason"`
	Error       string       `json:"error,omitempty"`
	ClientEnd   string       `json:"client_end,omitempty"`
	BackendEnd  string       `json:"backend_end,omitempty"`
	DecisionMS  millis       `json:"decision_ms"`
	DialMS      millis       `json:"dial_ms"`
	DurationMS  millis       `json:"duration_ms"`
	BytesUp     int64        `json:"bytes_up"`
	BytesDown   int64        `json:"bytes_down"`
}

// AppendLine appends r to b as one line with its newline, as Record.AppendLine does.
func (r GatewayRecord) AppendLine(b []byte) ([]byte, error) {
	text, err := json.Marshal(gatewayLine{
		V:           Version,
		Time:        stamp(r.Time),
		Event:       r.Event,
		Instance:    r.Instance,
		Flow:        r.Flow,
		FlowID:      cut(r.FlowID, maxText),
		Connection:  r.Connection,
		Generation:  r.Generation,
		Client:      address(r.Client),
		Carrier:     r.Carrier,
		Subject:     cut(r.Subject, maxText),
		Issuer:      cut(r.Issuer, maxText),
		Serial:      cut(r.Serial, maxText),
		Fingerprint: r.Fingerprint,
		Emails:      cutAll(r.Emails, maxNames),
		URIs:        cutAll(r.URIs, maxNames),
		Groups:      cutAll(r.Groups, maxNames),
		NotAfter:    stamp(r.NotAfter),
		Program:     cut(r.Program, maxProgram),
		Host:        cut(r.Host, maxText),
		Port:        r.Port,
		Service:     cut(r.Service, maxText),
		Rule:        cut(r.Rule, maxText),
		Permissive:  r.Permissive,
		Target:      cut(r.Target, maxText),
		Dialled:     address(r.Dialled),
		Reason:      r.Reason,
		Error:       cut(r.Error, maxText),
		ClientEnd:   r.ClientEnd,
		BackendEnd:  r.BackendEnd,
		DecisionMS:  millis(r.Decision),
		DialMS:      millis(r.Dial),
		DurationMS:  millis(r.Duration),
		BytesUp:     r.BytesUp,
		BytesDown:   r.BytesDown,
	})
	if err != nil {
		return b, fmt.Errorf("audit record of flow %d: %w", r.Flow, err)
	}
	return append(appendASCII(b, text), '\n'), nil
}

// stamp writes a time as records have it, and nothing for none.
func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339Nano)
}

// RecordGateway writes r and does not wait for the disk, as Record.
func (l *Log) RecordGateway(r GatewayRecord) { l.putGateway(r) }

// RecordGatewayNow writes r and returns when it is in the file, so that a gateway that
// is killed the next moment has left it there. It does not wait for the disk itself.
// Its errors are of class ErrCannotWrite: the record is lost, or is tried again later.
func (l *Log) RecordGatewayNow(r GatewayRecord) error { return l.await(l.putGateway(r)) }

func (l *Log) putGateway(r GatewayRecord) uint64 {
	if r.Reason == "" {
		if l.opts.Strict {
			panic(fmt.Sprintf("audit: flow %d has no reason: %+v", r.Flow, r))
		}
		l.mu.Lock()
		l.stats.Unset++
		l.mu.Unlock()
		r.Reason = Internal.String()
	}
	return l.put(r.AppendLine(nil))
}
