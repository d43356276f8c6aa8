package tlstun_test

import (
	"testing"

	"sshbroker/profiles/sshtun"
	"sshbroker/profiles/tuntest"
)

// rivals are TLS, whose gateway is in this process too, and SSH to sshd.
func rivals(b *testing.B) tuntest.Kinds {
	p := tuntest.StartGateway(b, tuntest.NewAuthority(b, "bench"), &tuntest.Gateway{})
	ssh := tuntest.StartOpenSSH(b).Profile
	return tuntest.Kinds{
		"tls": func(b *testing.B) tuntest.Opener { return tuntest.OpenerOf(b, connector(b), p) },
		"ssh": func(b *testing.B) tuntest.Opener {
			return tuntest.OpenerOf(b, &sshtun.Connector{Log: connector(b).Log}, ssh)
		},
	}
}

func BenchmarkUp(b *testing.B)      { rivals(b).Up(b) }
func BenchmarkDown(b *testing.B)    { rivals(b).Down(b) }
func BenchmarkEcho(b *testing.B)    { rivals(b).Echo(b) }
func BenchmarkConnect(b *testing.B) { rivals(b).Connect(b) }
