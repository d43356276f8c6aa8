package config

import (
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"sshbroker/broker/config/schema"
)

// Metrics is what a configuration says of the broker's metrics. The zero one has none
// counted.
type Metrics struct {
	On       bool          // flows are counted
	Socket   string        // path of a Unix socket at which they are read; "": none
	Listen   string        // address:port of the loopback; "": none
	Textfile string        // path of a file with them; "": none
	Interval time.Duration // between writings of that
}

const defaultMetricsInterval = 15 * time.Second

// metrics reads the element of that name. The user's replaces the global one as a whole.
// What cannot be opened is seen by the broker: rules must not be given up for a metric.
func (r *reader) metrics(n *schema.Node) *Metrics {
	m := &Metrics{On: true, Listen: n.Str("listen"), Interval: defaultMetricsInterval}
	for _, file := range []struct {
		attr string
		path *string
	}{{"socket", &m.Socket}, {"textfile", &m.Textfile}} {
		*file.path = r.path(n.Str(file.attr))
		if *file.path != "" && !filepath.IsAbs(*file.path) {
			r.Fail(n.At(file.attr), n.Name, "", "%s: %q is not absolute", file.attr, *file.path)
		}
	}
	if m.Textfile != "" && !strings.HasSuffix(m.Textfile, ".prom") {
		r.Fail(n.At("textfile"), n.Name, "node_exporter reads no others: call it ssh-broker.prom", "textfile: %q does not end in .prom", m.Textfile)
	}
	if m.Listen != "" {
		r.loopback(n, m.Listen)
	}
	if seconds, given := n.Number("interval"); given {
		m.Interval = time.Duration(seconds) * time.Second
	}
	return m
}

// loopback refuses an address at which other hosts could read the metrics.
func (r *reader) loopback(n *schema.Node, address string) {
	const hint = "write 127.0.0.1:9464"
	a, err := netip.ParseAddrPort(address)
	switch {
	case err != nil:
		r.Fail(n.At("listen"), n.Name, hint, "listen: %q is not an address with a port", address)
	case !a.Addr().IsLoopback():
		r.Fail(n.At("listen"), n.Name, hint+"; for other hosts put a proxy in front that asks who they are", "listen: %v is not of the loopback", a.Addr())
	case a.Port() == 0:
		r.Fail(n.At("listen"), n.Name, hint, "listen: the port is missing in %q", address)
	}
}
