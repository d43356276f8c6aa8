package leak

import (
	"net"
	"net/netip"
	"slices"
)

// Field is where probes are sent: addresses of this host alone.
type Field struct {
	V4, V6 netip.Addr // the host's own; loopback where it has no other

	// A device with an address, whose multicast groups of all hosts stand in for an address
	// elsewhere: with a TTL of 0 the kernel routes a datagram out of the device, by all rules
	// for what leaves, hands a copy to its own listeners and drops the rest (ip_mc_output in
	// net/ipv4/ip_output.c, ip6_finish_output2). "" where there is none.
	Device   string
	Index    int
	DeviceV4 netip.Addr // zero: it has none
	DeviceV6 bool       // it speaks IPv6

	// Namespace says that the capture has a network of its own. Where it has not, what goes
	// to the host's own addresses is not meant, but for TCP with ssh-capture -l.
	Namespace bool
}

// The groups that every host is a member of: RFC 1112, RFC 4291 (of the interface alone).
var (
	allHosts = netip.AddrFrom4([4]byte{224, 0, 0, 1})
	allNodes = netip.MustParseAddr("ff01::1")
)

// Survey chooses the field among this host's devices.
func Survey() (Field, error) {
	f := Field{V4: netip.AddrFrom4([4]byte{127, 0, 0, 1}), V6: netip.IPv6Loopback()}
	devices, err := net.Interfaces()
	if err != nil {
		return f, err
	}
	const need = net.FlagUp | net.FlagMulticast
	devices = slices.DeleteFunc(devices, func(d net.Interface) bool {
		return d.Flags&need != need || d.Flags&net.FlagLoopback != 0
	})
	for _, d := range devices {
		addrs, err := d.Addrs()
		if err != nil {
			continue // it went away meanwhile
		}
		f.consider(d, addrs)
	}
	return f, nil
}

func (f *Field) consider(d net.Interface, addrs []net.Addr) {
	var four, six netip.Addr
	speaks6 := false
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err != nil {
			continue
		}
		addr := p.Addr().Unmap()
		switch {
		case addr.Is4() && addr.IsGlobalUnicast():
			four = addr
		case addr.Is6():
			speaks6 = true
			if addr.IsGlobalUnicast() {
				six = addr
			}
		}
	}
	if f.V4.IsLoopback() && four.IsValid() {
		f.V4 = four
	}
	if f.V6.IsLoopback() && six.IsValid() {
		f.V6 = six
	}
	if better := four.IsValid() && !f.DeviceV4.IsValid(); better || f.Device == "" && speaks6 {
		f.Device, f.Index, f.DeviceV4, f.DeviceV6 = d.Name, d.Index, four, speaks6
	}
}
