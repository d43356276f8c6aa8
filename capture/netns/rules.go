package netns

import (
	"golang.org/x/sys/unix"

	"sshbroker/capture"
	"sshbroker/capture/nft"
)

// TableName is that of the one table in the namespace.
const TableName = "ssh_capture"

// RuleSpec says what the namespace's rules refer to. Ports are those of sockets on
// 127.0.0.1 and ::1.
type RuleSpec struct {
	Queue    uint16
	Form     nft.QueueForm
	TCP      uint16
	DNSUDP   uint16
	DNSTCP   uint16
	UDPRelay uint16 // 0: UDP that leaves the namespace is refused
}

// Rules returns the rules of a capture that has a network namespace to itself:
// every SYN waits in the queue, and nothing but loopback gets anywhere. Without a
// queue every SYN that leaves is diverted, and loopback is the namespace's own.
func Rules(s RuleSpec) nft.Ruleset {
	hold := []nft.Rule{{nft.TCP, nft.DestPort(nft.PortDNS), nft.Accept}}
	if s.Form == nft.NoQueue {
		hold = append(hold,
			nft.Rule{nft.TCP, nft.SYN, nft.OutLoopback, nft.SetClass(capture.MarkPass), nft.Accept},
			nft.Rule{nft.TCP, nft.SYN, nft.SetClass(capture.MarkTunnel), nft.Accept})
	} else {
		hold = append(hold, nft.Rule{nft.TCP, nft.SYN, nft.ToQueue(s.Queue, s.Form)})
	}

	refuse := []nft.Rule{
		{nft.TCP, nft.HasClass(capture.MarkReset), nft.ResetTCP},
		{nft.TCP, nft.HasClass(capture.MarkUnreachable), nft.HostUnreachable},
		{nft.TCP, nft.DestPort(nft.PortDNS), nft.Accept},
		{nft.UDP, nft.DestPort(nft.PortDNS), nft.Accept},
		// Guard 1: a SYN whose verdict was lost on the way.
		{nft.TCP, nft.SYN, nft.HasNotClass(capture.MarkPass), nft.HasNotClass(capture.MarkTunnel), nft.CountedDrop},
		{nft.TCP, nft.Accept},
		{nft.OutLoopback, nft.Accept},
	}
	if s.UDPRelay != 0 {
		refuse = append(refuse, nft.Rule{nft.UDP, nft.Accept})
	}
	// Refused at once, so that QUIC falls back to TCP without waiting.
	refuse = append(refuse, nft.Rule{nft.HostUnreachable})

	divert := []nft.Rule{
		{nft.TCP, nft.HasClass(capture.MarkTunnel), nft.Redirect(s.TCP)},
		{nft.TCP, nft.DestPort(nft.PortDNS), nft.Redirect(s.DNSTCP)},
		{nft.UDP, nft.DestPort(nft.PortDNS), nft.Redirect(s.DNSUDP)},
	}
	if s.UDPRelay != 0 {
		divert = append(divert, nft.Rule{nft.UDP, nft.OutElsewhere, nft.Redirect(s.UDPRelay)})
	}
	// Live diverted flows hang once no rule uses NAT any more.
	divert = append(divert, nft.Rule{nft.Never, nft.Redirect(s.TCP)})

	return nft.Ruleset{Table: TableName, Chains: []nft.Chain{
		nft.Base("hold", "route", unix.NF_INET_LOCAL_OUT, nft.PrioHold, hold...),
		nft.Base("refuse", "filter", unix.NF_INET_LOCAL_OUT, nft.PrioRefuse, refuse...),
		nft.Base("divert", "nat", unix.NF_INET_LOCAL_OUT, nft.PrioDivert, divert...),
		// Guard 2: a SYN for the tunnel that something else diverted first.
		nft.Base("last", "filter", unix.NF_INET_POST_ROUTING, nft.PrioLast,
			nft.Rule{nft.TCP, nft.SYN, nft.HasClass(capture.MarkTunnel), nft.OutElsewhere, nft.CountedDrop}),
	}}
}
