package gateway

import (
	"context"
	"errors"
	"net"
	"net/http"

	"sshbroker/broker/audit"
	"sshbroker/broker/gateway/dial"
	"sshbroker/broker/gateway/httpconnect"
	"sshbroker/broker/gateway/limit"
	"sshbroker/broker/gateway/policy"
	"sshbroker/profiles/tlstun/wire"
)

// Reasons of flows beside those of the policy and of package audit, for records and
// metrics.
const (
	reasonTimedOut   = "timed-out"
	reasonBadRequest = "bad-request"
	reasonNoService  = "unknown-service"
	reasonExpired    = "expired"
	reasonIdle       = "idle"
	reasonDisallowed = "no-longer-allowed"
	reasonStarted    = "started"
)

// Reasons returns every word that a record has for what became of a flow, but those of
// policy.Reasons that refuse. For documents and tests.
func Reasons() []string {
	return []string{
		audit.Carried.String(), audit.RefusedByDestination.String(), audit.Unreachable.String(), reasonTimedOut, audit.NoDescriptors.String(),
		audit.Limit.String(), reasonBadRequest, reasonNoService, audit.AuditRequired.String(), audit.Abandoned.String(),
		reasonExpired, reasonIdle, reasonDisallowed, audit.Shutdown.String(), reasonStarted,
	}
}

// refusal is why a flow is not carried, in the words of everybody who is told.
type refusal struct {
	reason string // for the record and metrics
	rule   string
	text   string      // for the client as well
	err    error       // for the record alone, nil where text says it
	status int         // of HTTP
	proxy  string      // error type of RFC 9209
	answer wire.Status // of our own protocol
}

// byPolicy is a flow that may not be. What the resolver said comes this way, too.
func byPolicy(v policy.Verdict) *refusal {
	r := &refusal{reason: v.Reason.String(), rule: v.Rule, text: v.Detail, status: v.Reason.Status(), proxy: v.Reason.ProxyError(), answer: wire.Prohibited}
	switch v.Reason {
	case policy.BadHost, policy.BadPort:
		r.answer = wire.BadRequest
	case policy.NameNotFound:
		r.answer = wire.NameNotFound
	case policy.LookupFailed:
		r.answer = wire.Unreachable
	case policy.LookupTimeout:
		r.answer = wire.TimedOut
	case policy.Undecided:
		r.answer = wire.Failed
	}
	return r
}

// byBackend is a backend that could not be connected to.
func byBackend(err error) *refusal {
	switch {
	case errors.Is(err, dial.ErrRefused):
		return &refusal{reason: audit.RefusedByDestination.String(), text: "the destination refuses connections", err: err,
			status: http.StatusBadGateway, proxy: "connection_refused", answer: wire.Refused}
	case errors.Is(err, dial.ErrTimeout):
		return &refusal{reason: reasonTimedOut, text: "the destination does not answer", err: err,
			status: http.StatusGatewayTimeout, proxy: "connection_timeout", answer: wire.TimedOut}
	case errors.Is(err, dial.ErrNoDescriptors):
		return &refusal{reason: audit.NoDescriptors.String(), text: "the gateway has no descriptors left", err: err,
			status: http.StatusServiceUnavailable, proxy: "proxy_internal_error", answer: wire.Limited}
	}
	return &refusal{reason: audit.Unreachable.String(), text: "the destination cannot be reached", err: err,
		status: http.StatusBadGateway, proxy: "destination_ip_unroutable", answer: wire.Unreachable}
}

// byLimit is a flow for which there is no room: too many of one identity is its own
// affair (429), too many in all ours (503).
func byLimit(err error) *refusal {
	r := &refusal{reason: audit.Limit.String(), text: err.Error(), status: http.StatusServiceUnavailable, proxy: "connection_limit_reached", answer: wire.Limited}
	var hit *limit.Exceeded
	if errors.As(err, &hit) && hit.Name != "flows" && hit.Name != "descriptors" {
		r.status = http.StatusTooManyRequests
	}
	return r
}

// byEnd is a flow whose client, or the gateway, ends.
func byEnd(why error) *refusal {
	return &refusal{reason: endWord(why), text: why.Error(), status: http.StatusServiceUnavailable, proxy: "proxy_internal_response", answer: wire.Failed}
}

// byRequest is a request that cannot be understood.
func byRequest(err error) *refusal {
	r := &refusal{reason: reasonBadRequest, text: err.Error(), status: http.StatusBadRequest, proxy: "http_request_error", answer: wire.BadRequest}
	var known *httpconnect.Error
	var slow net.Error
	switch {
	case errors.As(err, &known):
		r.status, r.text = known.Status, known.Text
	case errors.Is(err, wire.ErrMalformed):
	case errors.As(err, &slow) && slow.Timeout():
		r.status, r.text, r.err = http.StatusRequestTimeout, "the request did not come in time", err
	default:
		r.text, r.err = "the request did not come whole", err
	}
	return r
}

// byAudit is a flow that may not go unrecorded.
func byAudit(err error) *refusal {
	return &refusal{reason: audit.AuditRequired.String(), text: "the gateway cannot record it", err: err,
		status: http.StatusServiceUnavailable, proxy: "proxy_internal_error", answer: wire.Failed}
}

func noService(name string) *refusal {
	return &refusal{reason: reasonNoService, text: "there is no service " + name, status: http.StatusForbidden, proxy: "http_request_denied", answer: wire.Prohibited}
}

// endWord is the reason of a flow that was ended by us.
func endWord(why error) string {
	switch {
	case errors.Is(why, errShutdown):
		return audit.Shutdown.String()
	case errors.Is(why, errExpired):
		return reasonExpired
	case errors.Is(why, errIdle):
		return reasonIdle
	case errors.Is(why, errGone), errors.Is(why, context.Canceled):
		return audit.Abandoned.String()
	}
	return reasonDisallowed
}

// limited counts a limit that was hit.
func (g *Gateway) limited(err error) {
	var hit *limit.Exceeded
	if errors.As(err, &hit) {
		g.metrics.Limit(hit.Name)
	}
}
