package nft

import (
	"fmt"
	"testing"

	"sshbroker/capture"
)

// TestPortsUsedBefore has one socket after the other ask the same server from the same
// port: of users whose queries are left alone, of one in a capture, and of the whole
// host's. Each is heard by its own resolver, or where the kernel has no zones by nobody.
func TestPortsUsedBefore(t *testing.T) {
	for _, zones := range []bool{true, false} {
		t.Run(map[bool]string{true: "zones", false: "no zones"}[zones], func(t *testing.T) {
			if zones && !Zones() {
				t.Skip("this kernel has no zones")
			}
			w := newWorld(t)
			dir, id := cgroup(t, "")
			spec := HostSpec{Form: w.form, TCP: 1, NoZones: !zones,
				Captures: []HostCapture{{ID: "a", Queue: 11, Cgroup: id, Level: level(dir), UID: 1002, DNSUDP: w.both(t, "udp", "hers"), DNSTCP: 1}},
				System: &HostCapture{ID: "system", Queue: 10, DNSUDP: w.both(t, "udp", "names"), DNSTCP: 1,
					Spec: capture.Spec{Users: []capture.UIDRange{{Lo: 1000, Hi: 1001}}}},
			}
			w.answer(t, "udp4", "127.0.0.53:53", "local")
			table := w.open(t, OwnedPersistent)
			w.apply(t, table, spec)
			outside, inside := w.dialer(t, ""), w.dialer(t, dir)
			asks := []struct {
				from *dialer
				uid  int
				want string
			}{{outside, 5, "local"}, {outside, 1000, "names"}, {inside, 1002, "hers"}, {outside, 0, "local"}, {outside, 1001, "names"}}
			for first := range asks {
				for i := range asks {
					a := asks[(first+i)%len(asks)]
					got := a.from.dial(t, a.uid, fmt.Sprintf("udp4/%d", 20000+first), "127.0.0.53:53", patience)
					if got != a.want && (zones || got != denied) {
						t.Errorf("the query of uid %d was answered by %s, want %s", a.uid, got, a.want)
					}
				}
			}
			c, err := table.Counters()
			if err != nil || zones == (c.Diverted > 0) {
				t.Errorf("%+v, %v", c, err)
			}
		})
	}
}
