package leak

import (
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"sshbroker/capture/leak/ways"
)

// Class is what a probe is about.
type Class string

// The classes.
const (
	TCP       Class = "tcp"       // the rules judge it
	Datagrams Class = "datagrams" // anything else that goes over a network
	Names     Class = "names"     // lookups of names
	Inherited Class = "inherited" // sockets of before the capture
)

// Probe is one way out that a program might take.
type Probe struct {
	Name  string // short, for options and scripts
	What  string // for people
	Class Class
	Cure  string // where it leaks; "" for what nothing but a capture's repair would cure

	six  bool                       // over IPv6
	far  bool                       // of Datagrams: there is no multicast of it, so it can be shown in a namespace alone
	sink func(Field) (*sink, error) // nil: Result says whether it got out
	at   func(Field) netip.Addr     // where it goes; nil: by class
}

// All returns every probe, in the order in which they are made.
func All() []Probe {
	four, six := false, true
	const refuseUDP = "a capture refuses UDP where everything is for the tunnel: --via, or a last rule without conditions; --udp=direct allows it"
	const withIPC = "--backend=namespace covers these sockets; or take \"resolve\" and nscd out of the host's name lookups (/etc/nsswitch.conf)"
	const privileged = "run the command as an ordinary user, or in a namespace without CAP_NET_RAW: no capture holds what goes round the kernel's rules"
	return []Probe{
		{Name: "tcp4", What: "TCP over IPv4", Class: TCP, sink: tcpSink(hostV4)},
		{Name: "tcp6", What: "TCP over IPv6", Class: TCP, six: six, sink: tcpSink(hostV6)},
		{Name: "tcp-mapped", What: "TCP over IPv4 by an IPv6 socket", Class: TCP, sink: tcpSink(hostV4)},
		{Name: "tcp-device", What: "TCP bound to a device (SO_BINDTODEVICE)", Class: TCP, at: loopback4, sink: tcpSink(loopback4)},
		{Name: "tcp-mark-pass", What: "TCP with the mark of what may pass (SO_MARK)", Class: TCP, sink: tcpSink(hostV4)},
		{Name: "tcp-mark-direct", What: "TCP with the mark of what the kernel lets pass (SO_MARK)", Class: TCP, sink: tcpSink(hostV4)},
		{Name: "tcp-fastopen", What: "TCP with data in its first packet (TCP Fast Open)", Class: TCP, sink: tcpSink(hostV4)},
		{Name: "tcp-iouring", What: "TCP by io_uring", Class: TCP, sink: tcpSink(hostV4)},
		{Name: "mptcp", What: "Multipath TCP", Class: TCP, sink: tcpSink(hostV4)},
		{Name: "tcp-raw", What: "a SYN by a raw socket", Class: TCP, Cure: privileged, sink: rawSYNSink},

		{Name: "udp4", What: "UDP over IPv4", Class: Datagrams, Cure: refuseUDP, sink: udpSink(four)},
		{Name: "udp6", What: "UDP over IPv6", Class: Datagrams, Cure: refuseUDP, six: six, sink: udpSink(six)},
		{Name: "udp-device", What: "UDP bound to a device (SO_BINDTODEVICE)", Class: Datagrams, Cure: refuseUDP, sink: udpSink(four)},
		{Name: "udp-lite", What: "UDP-Lite", Class: Datagrams, Cure: refuseUDP, sink: liteSink},
		{Name: "icmp", What: "ICMP echo requests", Class: Datagrams, Cure: refuseUDP, sink: rawSink(unix.IPPROTO_ICMP)},
		{Name: "raw", What: "another protocol by a raw socket", Class: Datagrams, Cure: refuseUDP, sink: rawSink(ways.ProtoExperiment)},
		{Name: "packet", What: "frames by a packet socket", Class: Datagrams, Cure: privileged, at: loopback4, sink: udpSink(four)},
		{Name: "sctp", What: "SCTP", Class: Datagrams, Cure: refuseUDP, far: true, sink: streamSink(unix.SOCK_STREAM, unix.IPPROTO_SCTP)},
		{Name: "dccp", What: "DCCP", Class: Datagrams, Cure: refuseUDP, far: true, sink: streamSink(unix.SOCK_DCCP, unix.IPPROTO_DCCP)},

		{Name: "dns-udp", What: "name queries over UDP", Class: Names, at: nobodysLoopback},
		{Name: "dns-tcp", What: "name queries over TCP", Class: Names, at: nobodysLoopback},
		{Name: "nscd", What: "names by the socket of nscd", Class: Names, Cure: withIPC},
		{Name: "resolved", What: "names by systemd-resolved's varlink socket", Class: Names, Cure: withIPC},
		{Name: "avahi", What: "names by avahi's socket", Class: Names, Cure: withIPC},
		{Name: "resolved-dbus", What: "names by systemd-resolved over D-Bus", Class: Names, Cure: "programs that ask by D-Bus alone (resolvectl) are not to be trusted with names that nobody may hear"},

		{Name: "inherited-tcp", What: "a TCP connection of before the capture", Class: Inherited, Cure: "ssh-capture --strict closes such sockets before COMMAND starts", sink: tokenSink()},
		{Name: "inherited-udp", What: "a UDP socket of before the capture", Class: Inherited, Cure: "ssh-capture --strict closes such sockets before COMMAND starts", at: hostV4, sink: udpSink(four)},
	}
}

// Named returns the probes of these names, in the order of All; the names that there are
// none of come back as well. No names are all probes.
func Named(names ...string) (probes []Probe, unknown []string) {
	probes = All()
	if len(names) == 0 {
		return probes, nil
	}
	for _, n := range names {
		if !slices.ContainsFunc(probes, func(p Probe) bool { return p.Name == n }) {
			unknown = append(unknown, n)
		}
	}
	return slices.DeleteFunc(probes, func(p Probe) bool { return !slices.Contains(names, p.Name) }), unknown
}

// Own are the probes that --strict makes in the command's own capture, by its own rules:
// what may go out in clear only where a rule, or --udp, says so in so many words. D-Bus is
// none of them, as it leads to far more than names.
func Own() []Probe {
	return slices.DeleteFunc(All(), func(p Probe) bool {
		return p.Class == TCP || p.Class == Inherited || p.answered() || p.Name == "resolved-dbus"
	})
}

// Rest are those that it makes in a capture of the same kind whose rules are known: whether
// a packet is caught does not hang on the rules.
func Rest() []Probe {
	return slices.DeleteFunc(All(), func(p Probe) bool { return p.Class != TCP && !p.answered() })
}

// answered says of a probe that a capture's own resolver answers it.
func (p Probe) answered() bool { return p.Class == Names && p.at != nil }

func loopback4(Field) netip.Addr { return netip.AddrFrom4([4]byte{127, 0, 0, 1}) }
func hostV4(f Field) netip.Addr  { return f.V4 }
func hostV6(f Field) netip.Addr  { return f.V6 }

// nobodysLoopback is an address of the host's that nobody is told of.
func nobodysLoopback(Field) netip.Addr { return netip.AddrFrom4([4]byte{127, 83, 76, 53}) }

// target is where the probe goes, without a port.
func (p Probe) target(f Field) (addr netip.Addr, group bool, why string) {
	switch {
	case p.at != nil:
		return p.at(f), false, ""
	case p.sink == nil:
		return netip.Addr{}, false, ""
	case p.Class == Inherited || p.Class == TCP || f.Namespace:
		if p.six {
			return f.V6, false, ""
		}
		return f.V4, false, ""
	case p.far:
		return netip.Addr{}, false, "in a cgroup it would take another host, where no test traffic is to go"
	case p.six && !f.DeviceV6 || !p.six && !f.DeviceV4.IsValid():
		return netip.Addr{}, false, "this host has no device but loopback that it could leave by"
	case p.six:
		return allNodes.WithZone(f.Device), true, ""
	}
	return allHosts, true, ""
}
