package proxy

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"

	"sshbroker/profiles"
)

// maxHeader bounds what an HTTP proxy may answer with.
const maxHeader = 16 << 10

// httpConnect has an HTTP proxy open a tunnel.
func httpConnect(r *Rule, conn net.Conn, address string) error {
	response, err := AskConnect(conn, address, r.User, r.Password)
	if err != nil {
		return err
	}
	said := profiles.RemoteText(response.Status, 200, false)
	switch {
	case response.StatusCode >= 200 && response.StatusCode < 300:
		return nil
	case response.StatusCode == http.StatusProxyAuthRequired && r.User == "":
		return fmt.Errorf("it wants a user and a password: %q", said)
	case response.StatusCode == http.StatusProxyAuthRequired, response.StatusCode == http.StatusUnauthorized:
		return fmt.Errorf("it does not take the user and the password: %q", said)
	}
	return fmt.Errorf("it said %q", said)
}

// maxInterim is how many answers of status 1xx a server may send before the one.
const maxInterim = 5

// AskConnect asks an HTTP proxy for a tunnel to address, host:port (RFC 9110 section 9.3.6),
// with Basic authentication (RFC 7617) where there is a user, and returns its answer,
// whatever that is. Of what follows the header nothing is read: after a status of 2xx it
// is the tunnel's, and there is no body, whatever the header says.
func AskConnect(conn io.ReadWriter, address, user, password string) (*http.Response, error) {
	request := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: address}, Host: address, Header: http.Header{"User-Agent": {""}}}
	if user != "" {
		account := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
		request.Header.Set("Proxy-Authorization", "Basic "+account)
	}
	if err := request.Write(conn); err != nil {
		return nil, err
	}
	for range maxInterim {
		header, err := ReadHeader(conn)
		if err != nil {
			return nil, err
		}
		response, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(header)), request)
		if err != nil {
			return nil, errors.New("its answer is not HTTP")
		}
		response.Body.Close()
		if response.StatusCode >= 200 {
			return response, nil
		}
	}
	return nil, errors.New("it does not come to an answer")
}

// ReadHeader takes the header of an HTTP message, of 16 KiB at most, and nothing behind
// it: that belongs to whoever speaks next.
func ReadHeader(conn io.Reader) ([]byte, error) {
	var header []byte
	one := make([]byte, 1)
	for len(header) < maxHeader {
		if _, err := io.ReadFull(conn, one); err != nil {
			return nil, unanswered(err)
		}
		header = append(header, one[0])
		if bytes.HasSuffix(header, []byte("\r\n\r\n")) || bytes.HasSuffix(header, []byte("\n\n")) {
			return header, nil
		}
	}
	return nil, fmt.Errorf("more than %d bytes of header", maxHeader)
}
