package tlstun_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"sshbroker/profiles"
	"sshbroker/profiles/tuntest"
)

// opened connects to a proxy and has it open a flow.
func opened(t *testing.T, p *profiles.Profile) (profiles.Transport, profiles.Stream) {
	t.Helper()
	transport, err := connector(t).Connect(t.Context(), p, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { transport.Close() })
	s, err := transport.Open(t.Context(), profiles.Destination{Host: "a.test", Port: 1})
	if err != nil {
		t.Fatal(err)
	}
	s.SetDeadline(time.Now().Add(patience))
	return transport, s
}

// A proxy that dies has its kernel end the connection, between two records at best. That
// is not the end of what the far end had to say.
func TestProxyEndsWithoutCloseNotify(t *testing.T) {
	for _, halfClose := range []string{"", "Ssh-Gateway: half-close\r\n"} {
		p := tuntest.StartProxy(t, tuntest.NewAuthority(t, "tests"), &tuntest.Proxy{Answer: func(_ *http.Request, conn net.Conn) bool {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\n"+halfClose+"\r\nhalf of ")
			conn.(interface{ NetConn() net.Conn }).NetConn().(*net.TCPConn).CloseWrite()
			io.Copy(io.Discard, conn)
			return true
		}})
		_, s := opened(t, p)
		got, err := io.ReadAll(s)
		if string(got) != "half of " || !errors.Is(err, profiles.ErrReset) {
			t.Errorf("%q: got %q, %v", halfClose, got, err)
		}
		s.Close()
	}
}

// A transport may be closed between the proxy's answer and the stream that is made of it.
func TestProxyClosedWhileOpening(t *testing.T) {
	asked, answer := make(chan struct{}), make(chan struct{})
	p := tuntest.StartProxy(t, tuntest.NewAuthority(t, "tests"), &tuntest.Proxy{Answer: func(_ *http.Request, conn net.Conn) bool {
		close(asked)
		<-answer
		io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n")
		io.Copy(io.Discard, conn)
		return true
	}})
	transport, err := connector(t).Connect(t.Context(), p, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	go func() {
		_, err := transport.Open(context.Background(), profiles.Destination{Host: "a.test", Port: 1})
		failed <- err
	}()
	<-asked
	transport.Close()
	close(answer)
	select {
	case err := <-failed:
		if !errors.Is(err, profiles.ErrLost) {
			t.Errorf("got %v", err)
		}
	case <-time.After(patience):
		t.Fatal("the open hangs")
	}
}

// Who shows the server's certificate and has not its key is refused as an untrusted server
// is, so that no rule falls back to plain for it.
func TestServerWithoutItsKey(t *testing.T) {
	authority := tuntest.NewAuthority(t, "tests")
	config := authority.Server(t, "http/1.1")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	config.Certificates[0].PrivateKey = key
	p := tuntest.StartProxy(t, authority, &tuntest.Proxy{TLS: config})
	if _, err := connector(t).Connect(t.Context(), p, nil, nil); !errors.Is(err, profiles.ErrHostKey) {
		t.Errorf("got %v", err)
	}
}
