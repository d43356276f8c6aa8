package netns

import (
	"fmt"
	"os"
)

// queueNumber may be fixed: the namespace has all of them to itself.
const queueNumber = 7

// Manifest says what the descriptors of a capture are, in the order in which they
// are passed. It travels as JSON.
type Manifest struct {
	NetNS    uint64   `json:"netns"` // inode of the network namespace
	Files    []string `json:"files"` // one role for each descriptor
	IPv6     bool     `json:"ipv6"`
	Held     bool     `json:"held"` // SYNs wait in a packet queue; else the kernel has none
	UDPRelay bool     `json:"udp_relay,omitempty"`
}

// Roles of descriptors.
const (
	roleQueue     = "queue"
	roleDiag      = "diag"
	roleTCP       = "tcp"
	roleDNSUDP    = "dns-udp"
	roleDNSTCP    = "dns-tcp"
	roleRelay     = "udp-relay" // this and the next only where UDP is relayed
	roleConntrack = "conntrack"
)

// Addresses of the namespace. The IPv4 one is the dummy address of RFC 7600, which
// is nobody's; the IPv6 ones are of a unique local prefix (RFC 4193).
const (
	address4  = "192.0.0.8"
	gateway4  = "192.0.0.14"
	prefix4   = 28
	address6  = "fd53:7368:6361:7074::8"
	gateway6  = "fd53:7368:6361:7074::e"
	prefix6   = 64
	nobodyMAC = "02:00:00:00:00:01" // belongs to no device: what is not diverted dies
)

// check refuses a manifest that does not fit its descriptors.
func (m Manifest) check(files []*os.File) error {
	if len(m.Files) != len(files) {
		return fmt.Errorf("capture manifest names %d descriptors, %d came", len(m.Files), len(files))
	}
	count := map[string]int{}
	for _, role := range m.Files {
		count[role]++
	}
	for _, need := range []string{roleDiag, roleTCP, roleDNSUDP, roleDNSTCP} {
		if count[need] == 0 {
			return fmt.Errorf("capture manifest has no %s descriptor", need)
		}
	}
	if count[roleDiag] != 1 {
		return fmt.Errorf("capture manifest names a descriptor twice")
	}
	if queues := count[roleQueue]; queues > 1 || (queues == 1) != m.Held {
		return fmt.Errorf("capture manifest says held=%t, with %d queues", m.Held, queues)
	}
	conntracks := 0
	if m.UDPRelay {
		conntracks = 1
	}
	if (count[roleRelay] > 0) != m.UDPRelay || count[roleConntrack] != conntracks {
		return fmt.Errorf("capture manifest says udp_relay=%t, with %d sockets for it and %d to connection tracking",
			m.UDPRelay, count[roleRelay], count[roleConntrack])
	}
	if m.NetNS == 0 {
		return fmt.Errorf("capture manifest names no network namespace")
	}
	return nil
}
