package httpconnect

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"testing/iotest"

	"sshbroker/broker/gateway/gatewaytest"
)

func TestRead(t *testing.T) {
	for _, tc := range []struct {
		text string
		want Request
	}{
		{"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n", Request{Host: "a.example", Port: 443}},
		{"CONNECT a.example:443 HTTP/1.0\r\n\r\n", Request{Host: "a.example", Port: 443}},
		{"CONNECT 192.0.2.1:1 HTTP/1.1\r\nHost: other\r\n\r\nrest\r\n\r\n", Request{Host: "192.0.2.1", Port: 1, Rest: []byte("rest\r\n\r\n")}},
		{"CONNECT [2001:db8::1]:65535 HTTP/1.1\r\nhost:\r\n\r\n\x00", Request{Host: "2001:db8::1", Port: 65535, Rest: []byte{0}}},
		{"CONNECT b\xc3\xbccher.example:443 HTTP/1.1\r\nHost: x\r\nUser-Agent: curl/8\r\nProxy-Connection: Keep-Alive\r\nProxy-Authorization: Basic eA==\r\n" +
			"SSH-BROKER-FLOW: \t 42-a \r\n\r\n", Request{Host: "b\xc3\xbccher.example", Port: 443, Flow: "42-a"}},
	} {
		for name, r := range map[string]io.Reader{
			"at once":      strings.NewReader(tc.text),
			"byte by byte": iotest.OneByteReader(strings.NewReader(tc.text)),
			"with its end": iotest.DataErrReader(strings.NewReader(tc.text)),
		} {
			got, err := Read(r)
			rest, _ := io.ReadAll(r)
			got.Rest = append(got.Rest, rest...)
			if fmt.Sprintf("%+v %q", got, got.Rest) != fmt.Sprintf("%+v %q", tc.want, tc.want.Rest) || err != nil {
				t.Errorf("%q %s: %+v, %v", tc.text, name, got, err)
			}
		}
	}
}

func TestReadEnds(t *testing.T) {
	if _, err := Read(strings.NewReader("")); !errors.Is(err, ErrEmpty) {
		t.Errorf("nothing: %v", err)
	}
	if _, err := Read(strings.NewReader("CONNECT a:1 HTTP/1.1\r\nHost: a\r\n")); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("half a request: %v", err)
	}
	fault := errors.New("fault")
	if _, err := Read(io.MultiReader(strings.NewReader("CONN"), iotest.ErrReader(fault))); !errors.Is(err, fault) {
		t.Errorf("a fault: %v", err)
	}
	// What is no request is not read to its end.
	endless := io.MultiReader(strings.NewReader("CONNECT a:1 HTTP/1.1\r\nX: "), repeat('x'))
	var e *Error
	if _, err := Read(endless); !errors.As(err, &e) || e.Status != 431 {
		t.Errorf("without end: %v", err)
	}
	if _, err := Read(io.MultiReader(strings.NewReader("\x16\x03\x01"), repeat(0))); !errors.As(err, &e) || e.Status != 400 {
		t.Errorf("another protocol: %v", err)
	}
}

type repeat byte

func (r repeat) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(r)
	}
	return len(p), nil
}

func TestRefusal(t *testing.T) {
	r := Refusal{Status: 403, Error: "http_request_denied", Details: `exclude_patterns[0] "x\` + "\r\nSet-Cookie: a", Text: "no\r\n\r\nGET / \xff"}
	text := r.Append(nil)
	got, err := http.ReadResponse(newReader(text), nil)
	if err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	body, err := io.ReadAll(got.Body)
	if err != nil || string(body) != "no????GET / ?\n" {
		t.Errorf("body %q, %v", body, err)
	}
	if v := got.Header.Get("Proxy-Status"); v != `ssh-gateway; error=http_request_denied; details="exclude_patterns[0] \"x\\??Set-Cookie: a"` {
		t.Errorf("Proxy-Status: %s", v)
	}
	if got.StatusCode != 403 || !got.Close || got.Header.Get("Set-Cookie") != "" {
		t.Errorf("got %+v", got)
	}
	got, err = http.ReadResponse(newReader(Refusal{Status: 405, Text: strings.Repeat("x", 10_000)}.Append(nil)), nil)
	if err != nil || got.Header.Get("Allow") != "CONNECT" || got.ContentLength > 600 {
		t.Errorf("got %+v, %v", got, err)
	}
	got, err = http.ReadResponse(newReader([]byte(Opened)), &http.Request{Method: http.MethodConnect})
	if err != nil || got.StatusCode != 200 || got.Header.Get("Ssh-Gateway") != "half-close" || len(got.TransferEncoding) > 0 {
		t.Errorf("got %+v, %v", got, err)
	}
}

// What is taken is a CONNECT by the reading of the standard library, too, for the same
// destination, and Read and Parse are of one mind.
func FuzzParse(f *testing.F) {
	for _, h := range gatewaytest.Hostile() {
		f.Add([]byte(h.Text))
	}
	f.Add([]byte("CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\nrest"))
	f.Add([]byte("CONNECT [::1]:443 HTTP/1.0\r\nA: b\r\n\r\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		req, err := Read(bytes.NewReader(text))
		var e *Error
		if err != nil {
			if errors.As(err, &e) && (e.Status < 400 || e.Status > 599 || e.Text == "") {
				t.Errorf("error %+v", e)
			}
			return
		}
		block := text[:len(text)-len(req.Rest)]
		if len(text) > MaxHeader {
			block = text[:bytes.Index(text, []byte("\r\n\r\n"))+4]
		}
		again, err := Parse(block)
		if err != nil || again.Host != req.Host || again.Port != req.Port || again.Flow != req.Flow {
			t.Errorf("read %+v, parsed %+v, %v", req, again, err)
		}
		if req.Port == 0 || req.Host == "" || strings.ContainsAny(req.Host, " \r\n\x00@/%") {
			t.Errorf("taken: %+v", req)
		}
		std, err := http.ReadRequest(newReader(block))
		if err != nil {
			return // it does not take names that are not ASCII, for one
		}
		host := req.Host
		if a, err := netip.ParseAddr(host); err == nil && a.Is6() {
			host = "[" + host + "]"
		}
		if std.Method != http.MethodConnect || std.URL.Host != fmt.Sprintf("%s:%d", host, req.Port) {
			t.Errorf("read %+v, the library %s %s", req, std.Method, std.URL.Host)
		}
	})
}

// Requests of the table are refused with their status, or by their names later.
func TestHostile(t *testing.T) {
	table := gatewaytest.Hostile()
	if len(table) < 200 {
		t.Errorf("%d requests", len(table))
	}
	seen := map[string]bool{}
	for _, h := range table {
		if seen[h.Text] {
			t.Errorf("%q is there twice", h.Text)
		}
		seen[h.Text] = true
		_, err := Read(strings.NewReader(h.Text))
		var e *Error
		switch {
		case errors.As(err, &e) && e.Status != h.Status:
			t.Errorf("%q: %v, want %d", h.Text, e, h.Status)
		case h.Status == 0 && !errors.Is(err, io.ErrUnexpectedEOF), h.Status > 400 && e == nil:
			t.Errorf("%q: %v, want %d", h.Text, err, h.Status)
		}
	}
}
