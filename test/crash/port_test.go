package crash

import (
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"testing"
	"time"

	"sshbroker/test/netns"
)

// TestPortsOfTheDead has another user bind the ports that name queries are diverted to,
// once ssh-captured, its keeper and the broker are dead: no query arrives there. The
// ports are that user's to hear from when the rules are gone, which is the control.
func TestPortsOfTheDead(t *testing.T) {
	w := newWorld(t, "auto", "closed")
	before := w.Snapshot(t)
	w.up(t, nil, nil)
	ports := w.diverts(t)
	killAll(t, w)
	for _, host := range []string{"127.0.0.1", "0.0.0.0", "::1", "::"} {
		t.Run(host, func(t *testing.T) {
			udp := w.hears(t, net.JoinHostPort(host, ports["udp"]))
			tcp := w.accepts(t, net.JoinHostPort(host, ports["tcp"]))
			for _, server := range []netip.Addr{w.Server.Addr4, w.Server.Addr6, netip.MustParseAddr("127.0.0.53")} {
				at := netip.AddrPortFrom(server, 53).String()
				if err := w.say(w.Alice, "udp", at); err != nil {
					t.Errorf("a query to %s: %v", at, err)
				}
				if err := w.say(w.Alice, "tcp", at); err == nil {
					t.Errorf("somebody answers at %s by TCP", at)
				}
			}
			for network, heard := range map[string]chan string{"udp": udp, "tcp": tcp} {
				select {
				case from := <-heard:
					t.Errorf("%s: somebody else hears what %s asks", network, from)
				default:
				}
			}
		})
	}
	w.Release(t)
	t.Run("control", func(t *testing.T) {
		heard := map[string]chan string{"udp": w.hears(t, "127.0.0.1:"+ports["udp"]), "tcp": w.accepts(t, "127.0.0.1:"+ports["tcp"])}
		for network, heard := range heard {
			if err := w.say(w.Alice, network, "127.0.0.1:"+ports[network]); err != nil {
				t.Error(err)
			}
			select {
			case <-heard:
			case <-time.After(settle):
				t.Errorf("nothing is heard by %s", network)
			}
		}
	})
	w.RequireRestored(t, before, settle)
}

// diverts are the ports that the name queries of the host's users go to.
func (w *world) diverts(t *testing.T) map[string]string {
	t.Helper()
	list := w.Client.Output(t, nil, "nft", "list", "chain", "inet", "ssh_captured", "divert_system")
	ports := map[string]string{}
	for _, m := range regexp.MustCompile(`(tcp|udp) dport 53 redirect to :(\d+)`).FindAllStringSubmatch(list, -1) {
		ports[m[1]] = m[2]
	}
	if len(ports) != 2 {
		t.Fatalf("what is diverted: %s", list)
	}
	return ports
}

// say sends something, as a user.
func (w *world) say(u *netns.User, network, to string) error {
	return w.Client.As(u, func() error {
		c, err := net.DialTimeout(network, to, 200*time.Millisecond)
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = fmt.Fprintln(c, "who is secret.test?")
		return err
	})
}

// hears has Bob listen for datagrams, until the test ends.
func (w *world) hears(t *testing.T, at string) chan string {
	t.Helper()
	var p net.PacketConn
	err := w.Client.As(w.Bob, func() (err error) { p, err = net.ListenPacket("udp", at); return err })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	heard := make(chan string, 10)
	go func() {
		for {
			_, from, err := p.ReadFrom(make([]byte, 100))
			if err != nil {
				return
			}
			heard <- from.String()
		}
	}()
	return heard
}

// accepts has Bob listen for connections.
func (w *world) accepts(t *testing.T, at string) chan string {
	t.Helper()
	var l net.Listener
	err := w.Client.As(w.Bob, func() (err error) { l, err = net.Listen("tcp", at); return err })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	heard := make(chan string, 10)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			heard <- c.RemoteAddr().String()
			c.Close()
		}
	}()
	return heard
}
