package gateway

import (
	"testing"

	"sshbroker/profiles/sshtun"
	"sshbroker/profiles/tuntest"
)

// rivals are our TLS tunnels to ssh-gateway, a process of its own, and our SSH tunnels to
// sshd, side by side on loopback.
func rivals(b *testing.B) tuntest.Kinds {
	w := newWorld(b, quiet, collection)
	ssh := tuntest.StartOpenSSH(b).Profile
	return tuntest.Kinds{
		"tls": func(b *testing.B) tuntest.Opener { return tuntest.OpenerOf(b, connector(b), w.profile()) },
		"ssh": func(b *testing.B) tuntest.Opener {
			return tuntest.OpenerOf(b, &sshtun.Connector{Log: connector(b).Log}, ssh)
		},
	}
}

func BenchmarkUp(b *testing.B)      { rivals(b).Up(b) }
func BenchmarkDown(b *testing.B)    { rivals(b).Down(b) }
func BenchmarkEcho(b *testing.B)    { rivals(b).Echo(b) }
func BenchmarkConnect(b *testing.B) { rivals(b).Connect(b) }
