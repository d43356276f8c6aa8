package httpconnect

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
)

// Bounds of a request.
const (
	MaxHeader = 8 << 10 // bytes, from the first of the request line to the empty line
	maxFields = 64
	maxHost   = 255 // of the longest name, with a dot at its end and one to spare
)

// FlowField is the header field by which a broker tells under which id it records the
// flow. Others do without.
const FlowField = "Ssh-Broker-Flow"

// Request is one CONNECT.
type Request struct {
	Host string // as asked; an IPv6 address without its brackets
	Port uint16 // never 0
	Flow string // of the field FlowField; not checked

	// Rest is what came behind the header block, and belongs to the flow.
	Rest []byte
}

// Error is a request that is not served, with the answer to it.
type Error struct {
	Status int // of HTTP
	Text   string
}

func (e *Error) Error() string { return fmt.Sprintf("%d: %s", e.Status, e.Text) }

func bad(format string, args ...any) error {
	return &Error{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

// ErrEmpty is a connection that ended before it said anything.
var ErrEmpty = errors.New("ended before a request")

// Read reads one request from r, which may give more than that: see Request.Rest. Its
// errors are *Error where an answer is due, ErrEmpty, io.ErrUnexpectedEOF where the
// client ended in the middle of a request, or that of r. It reads no more than
// MaxHeader bytes.
func Read(r io.Reader) (Request, error) {
	var text []byte
	buf := make([]byte, 1<<10) // a request is seldom larger, and a header waits for few
	for {
		n, err := r.Read(buf[:min(len(buf), MaxHeader-len(text))])
		seen := max(0, len(text)-3)
		text = append(text, buf[:n]...)
		if end := bytes.Index(text[seen:], []byte("\r\n\r\n")); end >= 0 {
			end += seen + 4
			req, err := Parse(text[:end])
			if err == nil && end < len(text) {
				req.Rest = text[end:]
			}
			return req, err
		}
		if fault := misplaced(text[seen:]); fault != "" {
			return Request{}, bad("%s", fault)
		}
		switch {
		case len(text) >= MaxHeader:
			return Request{}, &Error{http.StatusRequestHeaderFieldsTooLarge, fmt.Sprintf("the request is longer than %d bytes", MaxHeader)}
		case err == io.EOF && len(text) == 0:
			return Request{}, ErrEmpty
		case err == io.EOF:
			return Request{}, io.ErrUnexpectedEOF
		case err != nil:
			return Request{}, err
		}
	}
}

// misplaced finds what no request holds in any place, so that who speaks something
// else need not be waited for.
func misplaced(text []byte) string {
	for i, c := range text {
		switch {
		case c == '\n' && (i == 0 || text[i-1] != '\r') && i > 0:
			return "a line ends without CR"
		case c < ' ' && c != '\r' && c != '\n' && c != '\t', c == 0x7f:
			return fmt.Sprintf("the byte %#02x, which no request has", c)
		}
	}
	return ""
}

// Parse reads a whole header block, which ends with an empty line. Its errors are
// *Error.
func Parse(block []byte) (Request, error) {
	if len(block) > MaxHeader {
		return Request{}, &Error{http.StatusRequestHeaderFieldsTooLarge, fmt.Sprintf("the request is longer than %d bytes", MaxHeader)}
	}
	text, ok := strings.CutSuffix(string(block), "\r\n\r\n")
	if !ok {
		return Request{}, bad("the header block does not end with an empty line")
	}
	lines := strings.Split(text, "\r\n")
	for _, line := range lines {
		for _, c := range []byte(line) {
			if c < ' ' && c != '\t' || c == 0x7f {
				return Request{}, bad("the byte %#02x, which no request has", c)
			}
		}
	}
	target, version, err := requestLine(lines[0])
	if err != nil {
		return Request{}, err
	}
	var req Request
	if req.Host, req.Port, err = authority(target); err != nil {
		return Request{}, err
	}
	hosts, err := req.fields(lines[1:])
	switch {
	case err != nil:
		return Request{}, err
	case hosts > 1:
		return Request{}, bad("the field Host is there %d times", hosts)
	case hosts == 0 && version == "HTTP/1.1":
		return Request{}, bad("the field Host is missing")
	}
	return req, nil
}

// requestLine takes METHOD SP TARGET SP VERSION apart (RFC 9112 section 3).
func requestLine(line string) (target, version string, err error) {
	words := strings.Split(line, " ")
	if len(words) != 3 || !isToken(words[0]) || words[1] == "" || !isVersion(words[2]) {
		return "", "", bad("the request line is not CONNECT HOST:PORT HTTP/1.1")
	}
	switch version = words[2]; {
	case version != "HTTP/1.1" && version != "HTTP/1.0":
		return "", "", &Error{http.StatusHTTPVersionNotSupported, "HTTP/1.1 is spoken here"}
	case words[0] != http.MethodConnect:
		return "", "", &Error{http.StatusMethodNotAllowed, "only CONNECT is served here"}
	}
	return words[1], version, nil
}

// isVersion reports whether s is an HTTP-version of RFC 9112 section 2.3.
func isVersion(s string) bool {
	digits, ok := strings.CutPrefix(s, "HTTP/")
	return ok && len(digits) == 3 && isDigit(digits[0]) && digits[1] == '.' && isDigit(digits[2])
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// authority takes HOST:PORT apart (RFC 9110 section 9.3.6): no user, no zone, no path,
// and never without the port.
func authority(target string) (string, uint16, error) {
	colon := strings.LastIndexByte(target, ':')
	if colon < 0 {
		return "", 0, bad("the target has no port: it is HOST:PORT")
	}
	host, digits := target[:colon], target[colon+1:]
	port, err := strconv.ParseUint(digits, 10, 16)
	if err != nil || port == 0 || digits[0] == '0' || !isDigit(digits[0]) {
		return "", 0, bad("the target's port is not a number from 1 to 65535")
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		inner, ok = strings.CutSuffix(inner, "]")
		addr, err := netip.ParseAddr(inner)
		if !ok || err != nil || !addr.Is6() || addr.Zone() != "" {
			return "", 0, bad("the target's brackets do not hold an IPv6 address")
		}
		return inner, uint16(port), nil
	}
	if host == "" || len(host) > maxHost {
		return "", 0, bad("the target's host is empty or longer than %d bytes", maxHost)
	}
	for _, c := range []byte(host) {
		// Names that are not ASCII yet come as they are; whether they are names is
		// judged where they are looked up.
		if c <= ' ' || strings.IndexByte(`"#%/:<>?@[\]^`+"`{|}", c) >= 0 {
			return "", 0, bad("the target's host has a %q in it", rune(c))
		}
	}
	return host, uint16(port), nil
}

// fields reads the header fields and returns how many are named Host. What Host says
// counts for nothing, as RFC 9112 section 3.2.2 has it for proxies.
func (req *Request) fields(lines []string) (hosts int, err error) {
	if len(lines) > maxFields {
		return 0, &Error{http.StatusRequestHeaderFieldsTooLarge, fmt.Sprintf("more than %d header fields", maxFields)}
	}
	for _, line := range lines {
		name, value, ok := strings.Cut(line, ":")
		if !ok || !isToken(name) {
			return 0, bad("a header line is not NAME: VALUE")
		}
		switch strings.ToLower(name) {
		case "host":
			hosts++
		case "content-length", "transfer-encoding", "trailer", "upgrade", "expect":
			return 0, bad("a CONNECT has no %s", name)
		case strings.ToLower(FlowField):
			if req.Flow != "" {
				return 0, bad("the field %s is there twice", FlowField)
			}
			req.Flow = strings.Trim(value, " \t")
		}
	}
	return hosts, nil
}

// isToken reports whether s is a token of RFC 9110 section 5.6.2.
func isToken(s string) bool {
	for _, c := range []byte(s) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', isDigit(c):
		case strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0:
		default:
			return false
		}
	}
	return s != ""
}
