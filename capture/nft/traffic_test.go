package nft

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/capture"
	"sshbroker/capture/queue"
)

func tunnel(queue.SYN) uint32 { return capture.MarkTunnel }

func (n *namespace) apply(t *testing.T, table *Table, spec HostSpec) {
	t.Helper()
	if err := table.Apply(Host(spec)); err != nil {
		t.Fatal(err)
	}
}

// TestWhoseSockets has two cgroups, one within the other, and a range of uids.
func TestWhoseSockets(t *testing.T) {
	w := newWorld(t)
	outerDir, outer := cgroup(t, "")
	innerDir, inner := cgroup(t, outerDir)
	spec := HostSpec{Form: w.form, TCP: w.both(t, "tcp", "broker"),
		Captures: []HostCapture{
			{ID: "outer", Queue: 11, Cgroup: outer, Level: level(outerDir), UID: 1000,
				DNSUDP: w.both(t, "udp", "names of outer"), DNSTCP: w.both(t, "tcp", "names of outer by TCP")},
			{ID: "inner", Queue: 12, Cgroup: inner, Level: level(innerDir), UID: 1000,
				DNSUDP: w.both(t, "udp", "names of inner"), DNSTCP: w.both(t, "tcp", "names of inner by TCP")},
		},
		System: &HostCapture{ID: "system", Queue: 10, Spec: capture.Spec{Users: []capture.UIDRange{{Lo: 2000, Hi: 2999}}},
			DNSUDP: w.both(t, "udp", "names of system"), DNSTCP: w.both(t, "tcp", "names of system by TCP")},
	}
	w.apply(t, w.open(t, OwnedPersistent), spec)
	_, system := w.serve(t, 10, tunnel)
	_, byOuter := w.serve(t, 11, tunnel)
	_, byInner := w.serve(t, 12, tunnel)
	w.answer(t, "udp4", "127.0.0.53:53", "stub")

	outside, inOuter, inInner := w.dialer(t, ""), w.dialer(t, outerDir), w.dialer(t, innerDir)
	for i, c := range []struct {
		from  *dialer
		uid   int
		queue *seen // nil: not captured
		names string
	}{
		{outside, 1000, nil, "peer"},
		{outside, 0, nil, "peer"},
		{outside, 1999, nil, "peer"},
		{outside, 3000, nil, "peer"},
		{outside, 2000, system, "names of system"},
		{outside, 2999, system, "names of system"},
		{inOuter, 1000, byOuter, "names of outer"},
		{inOuter, 1001, nil, "peer"}, // a set-uid program
		{inOuter, 0, nil, "peer"},
		{inOuter, 2500, system, "names of system"},
		{inInner, 1000, byInner, "names of inner"},
		{inInner, 1001, nil, "peer"},
		{inInner, 2001, system, "names of system"},
	} {
		for _, addr := range []string{fmt.Sprintf("203.0.113.%d:80", i), fmt.Sprintf("[2001:db8::%d]:80", i)} {
			want := "peer"
			if c.queue != nil {
				want = "broker"
			}
			c.from.expect(t, c.uid, "tcp", addr, want)
			c.from.expect(t, c.uid, "mptcp", addr, want)
			for _, q := range []*seen{system, byOuter, byInner} {
				if got := strings.Contains(q.list()+" ", addr+" "); got != (q == c.queue) {
					t.Errorf("case %d: %s in queue: %v", i, addr, got)
				}
			}
		}
		stub, byTCP := "stub", "peer"
		if c.queue != nil {
			stub, byTCP = c.names, c.names+" by TCP"
		}
		c.from.expect(t, c.uid, "udp", "10.9.0.2:53", c.names)
		c.from.expect(t, c.uid, "udp", "127.0.0.53:53", stub)
		c.from.expect(t, c.uid, "tcp", "203.0.113.1:53", byTCP)
		if c.queue != nil {
			c.from.expect(t, c.uid, "udp", "[2001:db8::1]:53", c.names)
			c.from.expect(t, c.uid, "tcp", "[2001:db8::1]:53", byTCP)
		}
	}
}

// TestDecidedByTheKernel holds rules to their order, families and ends of ranges.
func TestDecidedByTheKernel(t *testing.T) {
	w := newWorld(t)
	w.answer(t, "tcp4", "127.0.0.1:81", "local")
	spec := HostSpec{Form: w.form, TCP: w.both(t, "tcp", "broker"), System: &HostCapture{ID: "system", Queue: 10, Spec: capture.Spec{
		Users:  []capture.UIDRange{{Lo: 1000, Hi: 1000}},
		Pools:  prefixes("198.18.0.0/15", "2001:db8:18::/64"),
		Exempt: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:80"), netip.MustParseAddrPort("192.0.2.2:443"), netip.MustParseAddrPort("[2001:db8:2::1]:80")},
		Rules: []capture.SpecRule{
			{Number: 1, Outcome: capture.Reset, Prefixes: prefixes("192.0.2.0/24", "0.0.0.0/8", "255.0.0.0/8", "198.18.0.0/15")},
			{Number: 2, Outcome: capture.Pass, Prefixes: prefixes("192.0.2.0/23", "203.0.113.0/25"), Ports: []capture.PortRange{{Lo: 1, Hi: 79}, {Lo: 81, Hi: 100}, {Lo: 443, Hi: 443}}},
			{Number: 3, Outcome: capture.Pass, Prefixes: prefixes("2001:db8:3::/48")},
			{Number: 4, Outcome: capture.Reset, Prefixes: prefixes("203.0.113.128/25")},
			{Number: 5, Outcome: capture.Ask, Ports: []capture.PortRange{{Lo: 443, Hi: 443}}},
			{Number: 6, Outcome: capture.Reset, Prefixes: prefixes("0.0.0.0/0")},
			{Number: 7, Outcome: capture.Pass, Prefixes: []netip.Prefix{{}}},
			{Number: 8, Outcome: capture.Pass, Ports: []capture.PortRange{{Lo: 2, Hi: 1}}},
		}, Rest: capture.Ask}}}
	table := w.open(t, OwnedPersistent)
	w.apply(t, table, spec)
	w.serve(t, 10, tunnel)
	d := w.dialer(t, "")
	for _, c := range []struct{ addr, want string }{
		{"192.0.2.1:80", "peer"},  // exempt, before rule 1
		{"192.0.2.2:443", "peer"}, // exempt
		{"192.0.2.1:443", reset},  // the other's port
		{"192.0.2.2:80", reset},   //
		{"192.0.3.1:443", "peer"}, // 2
		{"203.0.113.1:80", reset}, // no port of 2, so 6
		{"203.0.113.1:443", "peer"},
		{"203.0.113.129:443", reset}, // 4 is before 5
		{"198.51.100.1:443", "broker"},
		{"198.51.100.1:80", reset},
		{"198.18.1.1:80", "broker"}, // the pool is before 1
		{"127.0.0.1:81", "local"},
		{"[2001:db8:2::1]:80", "peer"},
		{"[2001:db8:3::1]:80", "peer"},
		{"[2001:db8:4::1]:80", "broker"}, // not 6, 7 or 8
		{"[2001:db8:18::1]:80", "broker"},
	} {
		d.expect(t, 1000, "tcp", c.addr, c.want)
	}
	counters, err := table.Counters()
	if err != nil {
		t.Fatal(err)
	}
	want := "{system 1 reset 2} {system 2 pass 2} {system 3 pass 1} {system 4 reset 1} {system 6 reset 2}" // 7 and 8 can match nothing
	var got []string
	for _, h := range counters.Hits {
		got = append(got, fmt.Sprint(h))
	}
	if strings.Join(got, " ") != want || counters.LostMark+counters.Diverted+counters.Metered != 0 {
		t.Errorf("counters: %+v, want %s", counters, want)
	}

	spec.System.Spec.Local, spec.System.Spec.Rest = true, capture.Reset
	w.apply(t, table, spec)
	d.expect(t, 1000, "tcp", "127.0.0.1:81", reset)
	d.expect(t, 1000, "tcp", "[2001:db8:4::1]:80", reset)
	d.expect(t, 1001, "tcp", "127.0.0.1:81", "local")

	spec.Form = NoQueue
	w.apply(t, table, spec)
	d.expect(t, 1000, "tcp", "198.51.100.1:443", "broker")
	d.expect(t, 1000, "tcp", "203.0.113.129:443", reset)
}

const (
	reset       = "ECONNREFUSED"
	unreachable = "EHOSTUNREACH"
	denied      = "EPERM" // what send() says at once; the ICMP message comes as well
)

// TestNothingGetsOut is about addresses of pools, and about datagrams.
func TestNothingGetsOut(t *testing.T) {
	w := newWorld(t)
	dir, id := cgroup(t, "")
	spec := HostSpec{Form: w.form, TCP: w.both(t, "tcp", "broker"),
		Captures: []HostCapture{
			{ID: "a", Queue: 11, Cgroup: id, Level: level(dir), UID: 1000, Spec: capture.Spec{Rest: capture.Pass}, DNSUDP: w.both(t, "udp", "names"), DNSTCP: 1},
			{ID: "b", Queue: 12, Cgroup: id, Level: level(dir), UID: 1002, Spec: capture.Spec{Rest: capture.Pass}, DNSUDP: w.both(t, "udp", "names"), DNSTCP: 1}},
		System: &HostCapture{ID: "system", Queue: 10, DNSUDP: w.both(t, "udp", "names"), DNSTCP: 1, Spec: capture.Spec{
			Pools: prefixes("198.18.0.0/15", "2001:db8:18::/64"), Rest: capture.Pass, RefuseUDP: true,
			Rules: []capture.SpecRule{{Number: 1, Outcome: capture.Reset, Prefixes: prefixes("203.0.113.7/32")}},
			Users: []capture.UIDRange{{Lo: 1000, Hi: 1001}}}},
	}
	w.apply(t, w.open(t, OwnedPersistent), spec)
	w.serve(t, 10, func(s queue.SYN) uint32 {
		switch s.Dst.Port() {
		case 1:
			return capture.MarkReset
		case 3:
			return capture.MarkPass // what no broker should say of such an address
		default:
			return capture.MarkTunnel
		}
	})
	w.answer(t, "udp4", "127.0.0.1:443", "local")
	outside, inside := w.dialer(t, ""), w.dialer(t, dir)
	for _, c := range []struct {
		from                *dialer
		uid                 int
		network, addr, want string
	}{
		{outside, 1001, "tcp", "198.18.0.1:80", "broker"}, // and its data gets through
		{outside, 1001, "tcp", "[2001:db8:18::1]:80", "broker"},
		{outside, 1001, "tcp", "198.18.0.1:1", reset},
		{outside, 1001, "tcp", "198.18.0.1:3", unreachable},
		{outside, 1001, "tcp", "198.17.255.255:80", "peer"},
		{outside, 5, "tcp", "198.18.0.1:80", unreachable},
		{outside, 0, "tcp", "[2001:db8:18::1]:80", unreachable},
		{outside, 5, "udp", "198.18.0.1:443", denied},
		{inside, 1002, "tcp", "198.18.0.1:80", unreachable}, // another capture's pool

		// What a capture lets through is for the rules of the whole host, if they are for its user.
		{inside, 1000, "tcp", "198.18.0.1:80", "broker"},
		{inside, 1000, "tcp", "203.0.113.7:80", reset},
		{inside, 1000, "tcp", "203.0.113.8:80", "peer"},
		{inside, 1002, "tcp", "203.0.113.7:80", "peer"},

		{outside, 1001, "udp", "10.9.0.2:443", denied},
		{outside, 1001, "udp", "127.0.0.1:443", "local"},
		{outside, 1001, "udp", "10.9.0.2:53", "names"},
		{outside, 5, "udp", "10.9.0.2:443", "peer"},
		{inside, 1000, "udp", "10.9.0.2:443", denied}, // its own capture does not refuse
		{inside, 1002, "udp", "10.9.0.2:443", "peer"},
		{inside, 1001, "udp", "10.9.0.2:443", denied},
	} {
		c.from.expect(t, c.uid, c.network, c.addr, c.want)
	}
}

// TestGuards has foreign rules take our mark away, or divert first.
func TestGuards(t *testing.T) {
	w := newWorld(t)
	spec := HostSpec{Form: w.form, TCP: w.both(t, "tcp", "broker"), System: &HostCapture{ID: "system", Queue: 10, Spec: capture.Spec{
		Users: []capture.UIDRange{{Lo: 1000, Hi: 1000}},
		Rules: []capture.SpecRule{{Number: 1, Outcome: capture.Pass, Prefixes: prefixes("203.0.113.0/24")}}}}}
	table := w.open(t, OwnedPersistent)
	w.apply(t, table, spec)
	w.serve(t, 10, func(s queue.SYN) uint32 {
		if s.Dst.Port() == 443 {
			return capture.MarkPass
		}
		return capture.MarkTunnel
	})
	d := w.dialer(t, "")

	// A passed SYN, compiled or not, is routed by its mark without our class, and
	// leaves without it.
	w.must(t, fmt.Sprintf("ip rule add fwmark %#x/%#x lookup 100", capture.MarkPass, capture.MarkMask))
	w.must(t, "ip route add local default dev lo table 100")
	w.nft(t, fmt.Sprintf(`table ip foreign { chain out { type filter hook postrouting priority 10
		meta mark & %#x != 0 oifname v0 counter drop
	}
	}`, capture.MarkMask))
	d.expect(t, 1000, "tcp", "203.0.113.1:80", "peer")
	d.expect(t, 1000, "tcp", "198.51.100.1:443", "peer")
	d.expect(t, 1000, "tcp", "198.51.100.1:80", "broker")

	counted := func(when string, lost, diverted bool) {
		t.Helper()
		c, err := table.Counters()
		if err != nil || (c.LostMark > 0) != lost || (c.Diverted > 0) != diverted {
			t.Errorf("%s: %+v, %v", when, c, err)
		}
	}
	counted("before", false, false)
	const short = 300 * time.Millisecond
	w.nft(t, `table ip foreign { chain restore { type filter hook output priority -120
		tcp flags syn meta skuid 1000 meta mark set 0x7
	}
	}`)
	for _, addr := range []string{"198.51.100.1:80", "203.0.113.1:80"} {
		if got := d.dial(t, 1000, "tcp", addr, short); got != "timeout" {
			t.Errorf("%s without a mark: %s", addr, got)
		}
	}
	counted("mark taken", true, false)
	w.nft(t, `flush chain ip foreign restore
		table ip foreign { chain nat { type nat hook output priority -106
			tcp dport 80 dnat to 10.9.0.2:80
		}
		}`)
	if got := d.dial(t, 1000, "tcp", "198.51.100.1:80", short); got != "timeout" {
		t.Errorf("diverted first: %s", got)
	}
	counted("diverted first", true, true)
	d.expect(t, 1001, "tcp", "198.51.100.1:80", "peer")
}

// TestMeter lets two SYNs of a uid through at once, and remembers when rules change.
func TestMeter(t *testing.T) {
	w := newWorld(t)
	spec := HostSpec{Form: w.form, TCP: w.both(t, "tcp", "broker"), Meter: Meter{Rate: 1, Burst: 2}, System: &HostCapture{ID: "system", Queue: 10,
		Spec: capture.Spec{Users: []capture.UIDRange{{Lo: 1000, Hi: 1001}}}}}
	table := w.open(t, OwnedPersistent)
	w.apply(t, table, spec)
	_, asked := w.serve(t, 10, tunnel)
	d := w.dialer(t, "")
	dropped := 0
	for i := range 6 {
		if d.dial(t, 1000, "tcp", "203.0.113.1:80", 50*time.Millisecond) != "broker" {
			dropped++
		}
		if i == 3 {
			w.apply(t, table, spec)
		}
	}
	d.expect(t, 1001, "tcp", "203.0.113.1:80", "broker")
	c, err := table.Counters()
	if err != nil || dropped < 3 || c.Metered < uint64(dropped) {
		t.Errorf("%d of 6 were dropped, counters %+v, %v", dropped, c, err)
	}
	if n := len(strings.Fields(asked.list())); n != 7-dropped {
		t.Errorf("%d SYNs were asked about, and %d dropped", n, dropped)
	}
	d.expect(t, 1000, "tcp", "203.0.113.1:80", "broker") // a second later

	spec.Meter.Rate = 1000
	spec.Meter.Burst = 1000
	w.apply(t, table, spec)
	for range 6 {
		d.expect(t, 1000, "tcp", "203.0.113.1:80", "broker")
	}
	if out, _ := w.run(t, "", "nft", "list", "sets"); strings.Contains(out, "meter_1_2") || !strings.Contains(out, "meter_1000_1000") {
		t.Errorf("sets: %s", out)
	}
}

// TestChanges changes the rules fifty times, with a redirected connection alive, a SYN
// held, and programs connecting. Then it replaces the table.
func TestChanges(t *testing.T) {
	w := newWorld(t)
	dir, id := cgroup(t, "")
	base := HostSpec{Form: w.form, TCP: w.both(t, "tcp", "broker"), Meter: Meter{Rate: 100000, Burst: 100000}, System: &HostCapture{ID: "system", Queue: 10,
		Spec: capture.Spec{Users: []capture.UIDRange{{Lo: 1000, Hi: 1000}}}}}
	table := w.open(t, OwnedPersistent)
	w.apply(t, table, base)
	hold := true
	q, asked := w.serve(t, 10, func(s queue.SYN) uint32 {
		if s.Dst.Port() == 9999 && hold {
			hold = false
			return 0
		}
		return capture.MarkTunnel
	})
	live := w.connect(t, 1000, "203.0.113.1:80")
	echo := func(when string) {
		t.Helper()
		live.SetDeadline(time.Now().Add(patience))
		b := make([]byte, 6)
		if _, err := live.Write([]byte("x")); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		if _, err := io.ReadFull(live, b); err != nil || string(b) != "broker" {
			t.Fatalf("%s: %q, %v", when, b, err)
		}
	}
	echo("before")
	held := make(chan string, 1)
	go func(d *dialer) { held <- d.dial(t, 1000, "tcp", "203.0.113.1:9999", patience) }(w.dialer(t, ""))
	poll(t, "a held SYN", func() bool { return strings.Contains(asked.list(), ":9999") })

	var wg sync.WaitGroup
	stop := make(chan struct{})
	connects, worst := 0, time.Duration(0)
	wg.Add(1)
	go func(d *dialer) {
		defer wg.Done()
		for {
			select {
			case <-stop:
				return
			default:
			}
			begin := time.Now()
			if got := d.dial(t, 1000, "tcp", "203.0.113.1:80", patience); got != "broker" {
				t.Errorf("while rules change: %s", got)
				return
			}
			connects, worst = connects+1, max(worst, time.Since(begin))
		}
	}(w.dialer(t, ""))
	begin := time.Now()
	for i := range 50 {
		spec := base
		system := *base.System
		spec.System = &system
		for k := range i {
			system.Spec.Exempt = append(system.Spec.Exempt, netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(k)}), 22))
			system.Spec.Rules = append(system.Spec.Rules, capture.SpecRule{Number: k, Outcome: capture.Pass,
				Ports: []capture.PortRange{{Lo: 1000, Hi: 2000}, {Lo: 3000, Hi: 4000 + uint16(k)}, {Lo: 6000, Hi: 6000}}})
		}
		for k := range i % 7 {
			spec.Captures = append(spec.Captures, HostCapture{ID: fmt.Sprint("c", k), Queue: 20 + uint16(k), Cgroup: id, Level: level(dir), UID: 1000 + uint32(k)})
		}
		w.apply(t, table, spec)
		echo(fmt.Sprint("change ", i))
	}
	took := time.Since(begin)
	close(stop)
	wg.Wait()
	t.Logf("50 changes in %v; %d connects meanwhile, the slowest %v", took, connects, worst)
	if connects < 10 {
		t.Errorf("only %d connects", connects)
	}
	w.apply(t, table, base)
	if n := strings.Count(asked.list(), ":9999"); n != 1 {
		t.Errorf("the held SYN was dropped and came %d times", n)
	}
	if err := q.Requeue(10); err != nil {
		t.Fatal(err)
	}
	if got := <-held; got != "broker" {
		t.Errorf("the held SYN: %s", got)
	}
	if err := table.Replace(Host(base), Unowned); err != nil {
		t.Fatal(err)
	}
	echo("replaced")
}

// connect makes a connection of a uid from within the test process.
func (n *namespace) connect(t *testing.T, uid int, addr string) net.Conn {
	t.Helper()
	var c net.Conn
	var err error
	n.do(func() {
		_ = unix.Setfsuid(uid)
		defer func() { _ = unix.Setfsuid(0) }()
		c, err = net.DialTimeout("tcp", addr, patience)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
