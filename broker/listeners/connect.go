package listeners

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"

	"sshbroker/profiles/proxy"
)

// readConnect reads the header of a request and nothing behind it. What it cannot serve
// it answers.
func readConnect(c io.ReadWriter) (host string, port uint16, r reply, err error) {
	header, err := proxy.ReadHeader(c)
	if err != nil {
		return "", 0, r, fmt.Errorf("HTTP request: %w", err)
	}
	request, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(header)))
	if err != nil {
		_, _ = c.Write(httpReply(http.StatusBadRequest, ""))
		return "", 0, r, errors.New("HTTP request: it is none")
	}
	request.Body.Close()
	if request.Method != http.MethodConnect {
		_, _ = c.Write(httpReply(http.StatusMethodNotAllowed, "Allow: CONNECT\r\n"))
		return "", 0, r, fmt.Errorf("HTTP request: method %.20q is not served", request.Method)
	}
	host, service, err := net.SplitHostPort(request.RequestURI)
	if err == nil {
		var n uint64
		n, err = strconv.ParseUint(service, 10, 16)
		port = uint16(n)
	}
	if err == nil {
		err = checkTarget(host, port)
	}
	if err != nil {
		_, _ = c.Write(httpReply(http.StatusBadRequest, ""))
		return "", 0, r, fmt.Errorf("HTTP request: CONNECT %.300q: %w", request.RequestURI, err)
	}
	return host, port, reply{[]byte("HTTP/1.1 200 Connection established\r\n\r\n"),
		httpReply(http.StatusBadGateway, ""), httpReply(http.StatusGatewayTimeout, "")}, nil
}

// httpReply is an answer without a tunnel.
func httpReply(code int, fields string) []byte {
	return fmt.Appendf(nil, "HTTP/1.1 %d %s\r\n%sContent-Length: 0\r\nConnection: close\r\n\r\n", code, http.StatusText(code), fields)
}
