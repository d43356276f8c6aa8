package sshtun_test

import (
	"fmt"
	"net"
	"os"
	"testing"

	"golang.org/x/crypto/ssh"

	"sshbroker/profiles"
	"sshbroker/profiles/tuntest"
)

// rivals are ours and the library alone.
func rivals(b *testing.B) tuntest.Kinds {
	p := tuntest.StartOpenSSH(b).Profile
	return tuntest.Kinds{
		"ours":  func(b *testing.B) tuntest.Opener { return tuntest.OpenerOf(b, connector(b), p) },
		"naive": func(b *testing.B) tuntest.Opener { return naive(b, p) },
	}
}

// naive opens streams with the library alone, on a plain connection.
func naive(b *testing.B, p *profiles.Profile) tuntest.Opener {
	text, err := os.ReadFile(p.Identities[0])
	if err != nil {
		b.Fatal(err)
	}
	key, err := ssh.ParsePrivateKey(text)
	if err != nil {
		b.Fatal(err)
	}
	client, err := ssh.Dial("tcp", net.JoinHostPort(p.Host, fmt.Sprint(p.Port)), &ssh.ClientConfig{
		User: p.User, Auth: []ssh.AuthMethod{ssh.PublicKeys(key)}, HostKeyCallback: ssh.InsecureIgnoreHostKey(),
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { client.Close() })
	return func(b *testing.B, dst net.Addr) tuntest.HalfCloser {
		c, err := client.Dial("tcp", dst.String())
		if err != nil {
			b.Fatal(err)
		}
		return c.(tuntest.HalfCloser)
	}
}

func BenchmarkUp(b *testing.B)      { rivals(b).Up(b) }
func BenchmarkDown(b *testing.B)    { rivals(b).Down(b) }
func BenchmarkEcho(b *testing.B)    { rivals(b).Echo(b) }
func BenchmarkConnect(b *testing.B) { rivals(b).Connect(b) }
