package netns

import (
	"context"
	"net/netip"
	"os"
	"strconv"
	"time"

	"sshbroker/capture/udprelay"
)

// conntrackTimeout is how long the namespace remembers a silent UDP conversation. It
// outlasts the relay's own memory: an answer to a forgotten one would reach the
// program from the relay's address.
const conntrackTimeout = udprelay.DefaultIdleTimeout + time.Minute

// openConntrack opens connection tracking for a relay of UDP.
func openConntrack() (*udprelay.Conntrack, error) {
	seconds := []byte(strconv.Itoa(int(conntrackTimeout/time.Second)) + "\n")
	for _, name := range []string{"nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"} {
		// Where this is forbidden, late answers are lost.
		_ = os.WriteFile("/proc/sys/net/netfilter/"+name, seconds, 0)
	}
	return udprelay.OpenConntrack()
}

// ServeUDP relays the capture's UDP from the network of this process to the
// destinations that allow accepts, until ctx ends or the capture is closed; in a
// capture that does not relay UDP it returns at once. The error says that it could not
// begin. It may be called once. allow is called from several goroutines, once for each
// new conversation, and must not block.
func (s *Served) ServeUDP(ctx context.Context, allow func(dst netip.AddrPort) bool) error {
	return s.serveUDP(ctx, udprelay.Config{Allow: allow})
}

func (s *Served) serveUDP(ctx context.Context, c udprelay.Config) error {
	if len(s.relay) == 0 {
		return nil
	}
	c.Log = s.log
	return udprelay.Serve(ctx, s.relay, s.conntrack, c)
}

func (s *Served) closeRelay() {
	for _, p := range s.relay {
		p.Close()
	}
	if s.conntrack != nil {
		s.conntrack.Close()
	}
}
