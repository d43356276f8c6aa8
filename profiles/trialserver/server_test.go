package trialserver

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/crypto/ssh"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestServer: one leads through to the target, with half-close, and nowhere else; nothing is
// left of a server that was closed.
func TestServer(t *testing.T) {
	echo, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	go func() {
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(c, c)
			c.Close()
		}
	}()
	target := netip.MustParseAddrPort(echo.Addr().String())
	s, err := Start(target)
	if err != nil {
		t.Fatal(err)
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(s.Key))
	if err != nil {
		t.Fatal(err)
	}
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), s.Port).String()
	client, err := ssh.Dial("tcp", at, &ssh.ClientConfig{User: "nobody", HostKeyCallback: ssh.FixedHostKey(key)})
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.Dial("tcp", target.String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(c); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
	c.Close()
	for _, other := range []string{at, "127.0.0.2:" + netip.AddrPortFrom(target.Addr(), target.Port()).String()[len("127.0.0.1:"):]} {
		_, err := client.Dial("tcp", other)
		if refused := (*ssh.OpenChannelError)(nil); !errors.As(err, &refused) || refused.Reason != ssh.Prohibited {
			t.Errorf("%s: %v", other, err)
		}
	}
	if _, err := client.NewSession(); err == nil {
		t.Error("a session was opened")
	}
	open, err := client.Dial("tcp", target.String())
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	if _, err := io.ReadAll(open); err != nil && !errors.Is(err, io.EOF) {
		t.Logf("after the end: %v", err)
	}
	_ = client.Wait()
	client.Close()
	if _, err := net.Dial("tcp4", at); err == nil {
		t.Error("it still listens")
	}
}
