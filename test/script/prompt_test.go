package script

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"net"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

// passwordServer is an SSH server on the loopback that lets in whoever knows the
// password, and then does nothing.
func (p *place) passwordServer(password string) (port string) {
	p.t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		p.t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		p.t.Fatal(err)
	}
	config := &ssh.ServerConfig{PasswordCallback: func(_ ssh.ConnMetadata, given []byte) (*ssh.Permissions, error) {
		if string(given) != password {
			return nil, errors.New("wrong password")
		}
		return nil, nil
	}}
	config.AddHostKey(signer)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		p.t.Fatal(err)
	}
	var wg sync.WaitGroup
	p.t.Cleanup(func() {
		p.stopBroker() // it has connections to this server
		l.Close()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				conn, channels, requests, err := ssh.NewServerConn(c, config)
				if err != nil {
					return
				}
				wg.Go(func() { ssh.DiscardRequests(requests) })
				for channel := range channels {
					_ = channel.Reject(ssh.Prohibited, "nothing here")
				}
				conn.Close()
			})
		}
	})
	_, port, _ = net.SplitHostPort(l.Addr().String())
	return port
}

// TestPrompts: host key and password are asked on the terminal before the command
// starts; Ctrl-C there ends it all and leaves the terminal as it was.
func TestPrompts(t *testing.T) {
	eachAccount(t, func(t *testing.T, p *place) {
		port := p.passwordServer("open sesame")
		tty := p.openShell()
		echo := func(want bool) {
			t.Helper()
			p.eventually(func() bool { return (tty.modes().Lflag&unix.ECHO != 0) == want }, func() string { return "the terminal's echo is not as it should be" })
		}
		via := "ssh-capture --via me@127.0.0.1:" + port + ` sh -c 'echo ran-$((1+1))'`

		tty.say(via)
		tty.expect("SHA256:")
		tty.press(ctrlC)
		tty.expect("out> ")
		tty.status("out> ", "130")

		tty.say(via)
		tty.expect("SHA256:")
		tty.say("perhaps")
		tty.expect("Please type yes or no:")
		tty.say("yes")
		tty.expect("assword")
		echo(false)
		tty.press(ctrlC)
		tty.expect("out> ")
		echo(true)
		tty.status("out> ", "130")
		p.none("sh -c echo ran")

		tty.say(via)
		tty.expect("assword")
		echo(false)
		tty.say("open sesame")
		tty.expect("ran-2")
		tty.expect("out> ")
		echo(true)
		tty.status("out> ", "0")
		tty.say("exit")
		tty.wait()
	})
}
