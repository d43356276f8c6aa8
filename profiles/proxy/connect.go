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

// httpConnect has an HTTP proxy open a tunnel (RFC 9110 section 9.3.6), with Basic
// authentication (RFC 7617) where there is a user.
func httpConnect(r *Rule, conn net.Conn, address string) error {
	request := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: address}, Host: address, Header: http.Header{"User-Agent": {""}}}
	if r.User != "" {
		account := base64.StdEncoding.EncodeToString([]byte(r.User + ":" + r.Password))
		request.Header.Set("Proxy-Authorization", "Basic "+account)
	}
	if err := request.Write(conn); err != nil {
		return err
	}
	header, err := ReadHeader(conn)
	if err != nil {
		return err
	}
	response, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(header)), request)
	if err != nil {
		return errors.New("its answer is not HTTP")
	}
	response.Body.Close()
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
