package policy

import "testing"

// Each reason has a name of its own, a status and, but for the one that lets through, an
// error of RFC 9209.
func TestReasons(t *testing.T) {
	// Section 2.3 of RFC 9209.
	registered := map[string]bool{}
	for _, name := range []string{"dns_timeout", "dns_error", "destination_not_found", "destination_unavailable", "destination_ip_prohibited",
		"destination_ip_unroutable", "connection_refused", "connection_terminated", "connection_timeout", "connection_read_timeout",
		"connection_write_timeout", "connection_limit_reached", "tls_protocol_error", "tls_certificate_error", "tls_alert_received",
		"http_request_error", "http_request_denied", "http_response_incomplete", "http_response_header_section_size",
		"http_response_header_size", "http_response_body_size", "http_response_trailer_section_size", "http_response_trailer_size",
		"http_response_transfer_coding", "http_response_content_coding", "http_response_timeout", "http_upgrade_failed",
		"http_protocol_error", "proxy_internal_response", "proxy_internal_error", "proxy_configuration_error", "proxy_loop_detected"} {
		registered[name] = true
	}
	names := map[string]bool{}
	for _, r := range Reasons() {
		if r.String() == "" || names[r.String()] {
			t.Errorf("reason %d is called %q", r, r)
		}
		names[r.String()] = true
		if r == Permitted {
			if r.Status() != 200 || r.ProxyError() != "" {
				t.Errorf("%v: %d %q", r, r.Status(), r.ProxyError())
			}
			continue
		}
		if r.Status() < 400 || r.Status() > 599 || !registered[r.ProxyError()] {
			t.Errorf("%v: %d %q", r, r.Status(), r.ProxyError())
		}
		if (Verdict{Reason: r}).Allowed() {
			t.Errorf("%v lets through", r)
		}
		passes := r == NoRole || r == PolicyDenied || r == PolicyNotAllowed
		if (Verdict{Reason: r, Permissive: true}).Allowed() != passes {
			t.Errorf("permissive, %v lets through: %t", r, !passes)
		}
	}
	if (Verdict{}).Allowed() || (Verdict{Permissive: true}).Allowed() {
		t.Error("the zero verdict lets through")
	}
	if r := Reason(200); r.String() != "reason-200" || r.Status() != 500 || r.ProxyError() != "proxy_internal_error" {
		t.Errorf("an unknown reason is %v, %d, %s", r, r.Status(), r.ProxyError())
	}
}
