package netns

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sshbroker/capture/listen"
	"sshbroker/capture/nft"
	"sshbroker/capture/origin"
	"sshbroker/capture/queue"
)

const (
	queueLength = 8192    // SYNs held at once
	queueBuffer = 4 << 20 // holds 2,000 unread ones without a loss
)

// buildNetwork makes links, addresses, routes, settings, sockets and rules in the
// current network namespace, and returns the sockets with their manifest.
func buildNetwork(udpRelay, unheld bool) (Manifest, []*os.File, error) {
	m := Manifest{IPv6: hasIPv6(), UDPRelay: udpRelay}
	var err error
	if m.NetNS, err = inode("/proc/self/ns/net"); err != nil {
		return m, nil, err
	}
	tuneNetwork()
	if err := addLinks(m.IPv6); err != nil {
		return m, nil, err
	}

	var files []*os.File
	add := func(role string, f *os.File) {
		m.Files = append(m.Files, role)
		files = append(files, f)
	}
	spec := RuleSpec{Queue: queueNumber}
	if !unheld {
		spec.Form = nft.ProbeQueue()
	}
	for _, s := range []struct {
		role string
		port *uint16
		open func(netip.AddrPort) (*os.File, error)
		want bool
	}{
		{roleTCP, &spec.TCP, listen.Open, true},
		{roleDNSTCP, &spec.DNSTCP, listen.Open, true},
		{roleDNSUDP, &spec.DNSUDP, listen.OpenUDP, true},
		{roleRelay, &spec.UDPRelay, listen.OpenUDP, udpRelay},
	} {
		if !s.want {
			continue
		}
		pair, port, err := listen.Pair(s.open, m.IPv6)
		if err != nil {
			return m, nil, err
		}
		*s.port = port
		for _, f := range pair {
			add(s.role, f)
		}
	}
	diag, err := origin.OpenDiag()
	if err != nil {
		return m, nil, err
	}
	add(roleDiag, diag.File())

	if spec.Form != nft.NoQueue {
		// Bound before the rules send anything there.
		q, err := openQueue()
		if err != nil {
			return m, nil, err
		}
		add(roleQueue, q.File())
		m.Held = true
	}
	if err := loadRules(Rules(spec)); err != nil {
		return m, nil, err
	}
	if udpRelay {
		// After the rules, by which the kernel has begun to track connections.
		ct, err := openConntrack()
		if err != nil {
			return m, nil, err
		}
		add(roleConntrack, ct.File())
	}
	return m, files, nil
}

// openQueue binds the queue, while the kernel's answer is all that can be received.
func openQueue() (*queue.Queue, error) {
	q, err := queue.OpenSocket(queueBuffer)
	if err != nil {
		return nil, err
	}
	read := make(chan error, 1)
	go func() { read <- q.Receive(func(queue.Packet) {}) }()
	if err := q.Bind(queueNumber, queueLength); err != nil {
		q.Close()
		return nil, err
	}
	return q, <-read
}

func loadRules(r nft.Ruleset) error {
	t, err := nft.NewTable(nft.Unowned)
	if err != nil {
		return err
	}
	defer t.Close()
	return t.Apply(r)
}

// addressing is what one family of the namespace's device gets.
type addressing struct {
	family        int
	addr, gateway string
	prefix, max   int // bits
	flags         int
}

func addressing4() []addressing {
	return []addressing{{unix.AF_INET, address4, gateway4, prefix4, 32, 0}}
}

// addressing6 goes without duplicate address detection, during which an address is
// unusable for more than a second.
func addressing6() []addressing {
	return []addressing{{unix.AF_INET6, address6, gateway6, prefix6, 128, unix.IFA_F_NODAD}}
}

func addLinks(ipv6 bool) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("link lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("link lo: up: %w", err)
	}
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "v0"}, PeerName: "v1"}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("link v0: add: %w", err)
	}
	v0, err := netlink.LinkByName("v0")
	if err != nil {
		return fmt.Errorf("link v0: %w", err)
	}
	v1, err := netlink.LinkByName("v1")
	if err != nil {
		return fmt.Errorf("link v1: %w", err)
	}
	mac, _ := net.ParseMAC(nobodyMAC)

	families := addressing4()
	if ipv6 {
		families = append(families, addressing6()...)
	}
	for _, f := range families {
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(f.addr), Mask: net.CIDRMask(f.prefix, f.max)}, Flags: f.flags}
		if err := netlink.AddrAdd(v0, addr); err != nil {
			return fmt.Errorf("address %s: %w", f.addr, err)
		}
	}
	for _, l := range []netlink.Link{v0, v1} {
		if err := netlink.LinkSetUp(l); err != nil {
			return fmt.Errorf("link %s: up: %w", l.Attrs().Name, err)
		}
	}
	for _, f := range families {
		gateway := net.ParseIP(f.gateway)
		err := netlink.NeighSet(&netlink.Neigh{LinkIndex: v0.Attrs().Index, Family: f.family,
			State: netlink.NUD_PERMANENT, IP: gateway, HardwareAddr: mac})
		if err != nil {
			return fmt.Errorf("neighbour %s: %w", f.gateway, err)
		}
		err = netlink.RouteAdd(&netlink.Route{LinkIndex: v0.Attrs().Index, Gw: gateway,
			Dst: &net.IPNet{IP: make(net.IP, f.max/8), Mask: net.CIDRMask(0, f.max)}})
		if err != nil {
			return fmt.Errorf("default route via %s: %w", f.gateway, err)
		}
	}
	return nil
}

// tuneNetwork writes the settings that an owner of the namespace may write. Kernels
// that lack one do without.
func tuneNetwork() {
	for _, s := range []struct{ path, value string }{
		{"ipv4/icmp_ratemask", "0"}, // refusals by ICMP must not be rationed
		{"ipv6/icmp/ratemask", ""},
		{"ipv4/tcp_syncookies", "0"}, // a cookie loses the SYN by which a connection is known
		{"ipv6/conf/default/accept_dad", "0"},
		{"ipv6/conf/default/router_solicitations", "0"},
	} {
		_ = os.WriteFile("/proc/sys/net/"+s.path, []byte(s.value+"\n"), 0)
	}
}

// hasIPv6 turns IPv6 on where the kernel has it: a namespace without it would let
// programs see another world than the tunnel's far end.
func hasIPv6() bool {
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		return false
	}
	for _, scope := range []string{"all", "default", "lo"} {
		_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+scope+"/disable_ipv6", []byte("0\n"), 0)
	}
	b, err := os.ReadFile("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
	return err == nil && strings.TrimSpace(string(b)) == "0"
}

func inode(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, fmt.Errorf("stat %s: %w", path, err)
	}
	return st.Ino, nil
}
