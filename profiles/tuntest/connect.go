package tuntest

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"sshbroker/profiles"
)

// Proxy is a server of HTTP CONNECT over TLS. Fill the fields in before StartProxy.
type Proxy struct {
	// TLS is how it speaks; required.
	TLS *tls.Config
	// HalfClose has it tell the end of one direction by close_notify, as our gateway does.
	HalfClose bool
	// Answer takes the place of connecting: it writes whatever it likes and tells whether
	// that was all.
	Answer func(r *http.Request, conn net.Conn) bool
}

// StartProxy serves on loopback until the test ends and returns the profile that reaches
// it with a certificate of authority.
func StartProxy(t testing.TB, authority *Authority, x *Proxy) *profiles.Profile {
	t.Helper()
	if x.TLS == nil {
		x.TLS = authority.Server(t, "http/1.1")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var tasks sync.WaitGroup
	var mu sync.Mutex
	live := make(map[net.Conn]struct{})
	tasks.Go(func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			live[raw] = struct{}{}
			mu.Unlock()
			tasks.Go(func() {
				x.serve(raw.(*net.TCPConn))
				mu.Lock()
				delete(live, raw)
				mu.Unlock()
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for c := range live {
			c.Close()
		}
		mu.Unlock()
		tasks.Wait()
	})
	p := TLSProfile(t, authority, l.Addr().String())
	p.TLS.Proxy = true
	return p
}

func (x *Proxy) serve(raw *net.TCPConn) {
	defer raw.Close()
	conn := tls.Server(raw, x.TLS)
	from := bufio.NewReader(conn)
	r, err := http.ReadRequest(from)
	if err != nil || r.Method != http.MethodConnect {
		return
	}
	if x.Answer != nil && x.Answer(r, conn) {
		conn.Close()
		return
	}
	dst, err := net.Dial("tcp", r.Host)
	if err != nil {
		status := map[string]string{"refused": "connection_refused", "name-not-found": "dns_error"}[answerFor(err).Status.String()]
		io.WriteString(conn, "HTTP/1.1 502 Bad Gateway\r\nProxy-Status: test; error="+status+"; details=\"as; it, is\"\r\nContent-Length: 0\r\n\r\n")
		conn.Close()
		return
	}
	answer := "HTTP/1.1 200 OK\r\n"
	if x.HalfClose {
		answer += "Ssh-Gateway: half-close\r\n"
	}
	io.WriteString(conn, answer+"\r\n")
	far := &tlsEnd{Conn: conn, raw: raw, from: from, over: make(chan struct{})}
	if !x.HalfClose {
		joinWhole(far, dst.(*net.TCPConn))
		return
	}
	join(far, dst.(*net.TCPConn))
}

// tlsEnd is the proxy's end of a flow.
type tlsEnd struct {
	*tls.Conn
	raw  *net.TCPConn
	from *bufio.Reader
	over chan struct{}
}

func (e *tlsEnd) Read(p []byte) (int, error) { return e.from.Read(p) }
func (e *tlsEnd) Closed() <-chan struct{}    { return e.over }
func (e *tlsEnd) Reset() error {
	e.raw.SetLinger(0)
	return e.raw.Close()
}

// joinWhole carries a flow until either side has ended, as proxies do that know no end
// of one direction.
func joinWhole(far *tlsEnd, dst *net.TCPConn) {
	var tasks sync.WaitGroup
	tasks.Go(func() {
		io.Copy(struct{ io.Writer }{dst}, far)
		dst.CloseWrite()
		dst.SetReadDeadline(time.Now().Add(100 * time.Millisecond)) // what comes at once still counts
	})
	tasks.Go(func() {
		_, err := io.Copy(struct{ io.Writer }{far}, struct{ io.Reader }{dst})
		if err == nil || isTimeout(err) {
			far.CloseWrite()
		}
		far.raw.CloseRead()
	})
	tasks.Wait()
	dst.Close()
}

func isTimeout(err error) bool {
	timeout, ok := err.(net.Error)
	return ok && timeout.Timeout()
}
