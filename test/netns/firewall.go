package netns

import (
	"fmt"
	"strings"
	"testing"
)

// Refusal is what a firewall does with a new connection.
type Refusal string

const (
	Reset       Refusal = "reject with tcp reset"              // ECONNREFUSED
	Unreachable Refusal = "reject with icmpx host-unreachable" // EHOSTUNREACH
	Silence     Refusal = "drop"                               // nothing, ever
)

// AllowOnly makes the machine refuse new connections and datagrams from other
// machines, except to these TCP ports. Its own loopback, ICMP, and what belongs
// to connections it opened itself are not touched. Called again, it replaces.
func (m *Machine) AllowOnly(t testing.TB, refusal Refusal, tcpPorts ...uint16) {
	t.Helper()
	allow := ""
	for _, port := range tcpPorts {
		allow += fmt.Sprintf("tcp dport %d accept\n", port)
	}
	datagrams := Refusal("reject with icmpx port-unreachable")
	if refusal == Silence {
		datagrams = Silence
	}
	m.nft(t, fmt.Sprintf(`
table inet test_firewall
delete table inet test_firewall
table inet test_firewall {
	chain input {
		type filter hook input priority filter; policy accept;
		iif lo accept
		ct state established,related accept
		%s
		tcp flags & (fin | syn | rst | ack) == syn %s
		meta l4proto udp %s
	}
}`, allow, refusal, datagrams))
}

// AllowAll undoes AllowOnly.
func (m *Machine) AllowAll(t testing.TB) {
	t.Helper()
	m.nft(t, "table inet test_firewall\ndelete table inet test_firewall\n")
}

// Cut makes the machine refuse every packet to a TCP port of its own, those of live
// connections too; with Silence it answers none of them either. Called again, it
// replaces.
func (m *Machine) Cut(t testing.TB, refusal Refusal, port uint16) {
	t.Helper()
	answers := ""
	if refusal == Silence {
		answers = fmt.Sprintf("tcp sport %d drop", port)
	}
	m.nft(t, fmt.Sprintf(`
table inet test_cut
delete table inet test_cut
table inet test_cut {
	chain input {
		type filter hook input priority filter - 1; policy accept;
		tcp dport %d %s
	}
	chain output {
		type filter hook output priority filter - 1; policy accept;
		%s
	}
}`, port, refusal, answers))
}

// Mend undoes Cut.
func (m *Machine) Mend(t testing.TB) {
	t.Helper()
	m.nft(t, "table inet test_cut\ndelete table inet test_cut\n")
}

func (m *Machine) nft(t testing.TB, script string) {
	t.Helper()
	nft := RequireProgram(t, "nft", "nftables")
	if r := m.Run(t, Cmd{Args: []string{nft, "-f", "-"}, Stdin: strings.NewReader(script)}); r.Code != 0 {
		t.Fatalf("%s: nft: %s", m.Name, r)
	}
}
