package httpconnect

import (
	"fmt"
	"net/http"
	"strings"
)

// ProxyName is how the gateway calls itself in Proxy-Status.
const ProxyName = "ssh-gateway"

// Opened is the answer after which the connection belongs to the flow. Its field
// Ssh-Gateway tells our own clients that TLS close_notify ends one direction and
// leaves the other.
const Opened = "HTTP/1.1 200 Connection established\r\nSsh-Gateway: half-close\r\n\r\n"

// Refusal is the answer to a request that is not served.
type Refusal struct {
	Status  int
	Error   string // the error type of RFC 9209 section 2.3; "" for none
	Details string // for Proxy-Status, for administrators
	Text    string // for people
}

// Append appends the answer to b. The connection ends after it.
func (r Refusal) Append(b []byte) []byte {
	text := printable(r.Text)
	if text == "" {
		text = http.StatusText(r.Status)
	}
	b = fmt.Appendf(b, "HTTP/1.1 %d %s\r\n", r.Status, http.StatusText(r.Status))
	if r.Status == http.StatusMethodNotAllowed {
		b = append(b, "Allow: CONNECT\r\n"...)
	}
	if r.Error != "" {
		b = fmt.Appendf(b, "Proxy-Status: %s; error=%s", ProxyName, r.Error)
		if r.Details != "" {
			b = fmt.Appendf(b, "; details=%s", sfString(r.Details))
		}
		b = append(b, "\r\n"...)
	}
	return fmt.Appendf(b, "Content-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s\n", len(text)+1, text)
}

// sfString writes a String of RFC 8941 section 3.3.3.
func sfString(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, c := range []byte(printable(s)) {
		if c == '"' || c == '\\' {
			b.WriteByte('\\')
		}
		b.WriteByte(c)
	}
	b.WriteByte('"')
	return b.String()
}

// maxText bounds what is told, in bytes: names in it are the client's.
const maxText = 512

// printable makes one line of ASCII of a text that may hold what a client sent.
func printable(s string) string {
	if len(s) > maxText {
		s = s[:maxText] + "..."
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}
