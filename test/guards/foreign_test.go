package guards

import (
	"fmt"
	"strings"
	"testing"

	"sshbroker/test/netns"
)

// foreign is a firewall of somebody else's.
type foreign struct {
	name         string
	load, unload string // scripts
	// control shows on the wire what the rules do where nothing is captured.
	control func(t *testing.T, w *world)

	// dropped says that a guard of ours has to drop protected SYNs while the rules are
	// there, in each of the two orders; refused, that the foreign rules themselves refuse.
	dropped, droppedBefore guard
	refused                bool
	six                    bool // all this is so for IPv6 too

	allowed bool   // the rules let a connection to compiled pass
	device  string // another way out that they have
}

// guard names the counter of one.
type guard string

const (
	lostMark guard = "lost mark"
	diverted guard = "diverted"
)

// dscp makes marks seen on the wire: a packet that leaves with one has this DSCP.
const dscp = 46

// observe loads what does it, after all else that could change a mark.
const observe = `nft -f - <<'!'
table inet observer {
	chain last {
		type filter hook postrouting priority 500;
		meta nfproto ipv4 meta mark != 0 ip dscp set 46
		meta nfproto ipv6 meta mark != 0 ip6 dscp set 46
	}
}
!`

func hasDSCP(p netns.Packet) bool { return p.Frame[15]>>2 == dscp }

// tables deletes tables of nft, base chains and all, as a firewall's reload does.
func tables(names ...string) string {
	var b strings.Builder
	for _, name := range names {
		fmt.Fprintf(&b, "nft delete table %s\n", name)
	}
	return b.String()
}

// nft loads a table of one chain.
func nft(family, base string, rules ...string) (load, unload string) {
	return fmt.Sprintf("nft -f - <<'!'\ntable %s foreign {\n\tchain out {\n\t\t%s\n\t\t%s\n\t}\n}\n!", family, base, strings.Join(rules, "\n\t\t")),
		tables(family + " foreign")
}

// foreigners are the firewalls of the matrix.
func foreigners() []foreign {
	list := []foreign{
		restoreMark("iptables-nft", tables("ip mangle")),
		restoreMark("iptables-legacy", "iptables-legacy -t mangle -F"),
		allBits("iptables-nft", tables("ip mangle")),
		allBits("iptables-legacy", "iptables-legacy -t mangle -F"),
		overlap(), docker("iptables-nft", tables("ip nat")), docker("iptables-legacy", "iptables-legacy -t nat -F; iptables-legacy -t nat -X"),
		kubeProxy(), redirect(-100, "", ""), redirect(-110, diverted, diverted),
		firewalld(), ufw(true), ufw(false), policyRouting(),
	}
	for _, priority := range []int{-110, -106, -105, -100} {
		list = append(list, dnat(priority))
	}
	return append(list, dnatThenClear())
}

// writers write all marks, or clear them, at one priority after another.
func writers() (list []foreign) {
	for _, priority := range []int{-300, -150, -146, -145, -144, -120, -110, -109, -106, -105, -101, -100, -99, -98, 0, 100} {
		for name, mark := range map[string]string{"set": "0xffffffff", "clear": "0"} {
			f := foreign{name: fmt.Sprintf("%s at %d", name, priority), six: true}
			switch {
			case priority >= -144 && priority <= -100:
				f.dropped, f.droppedBefore = lostMark, lostMark
			case priority == -145: // of two with the same the one loaded last comes first
				f.droppedBefore = lostMark
			case priority == -99:
				f.dropped = lostMark
			}
			f.load, f.unload = nft("inet", fmt.Sprintf("type route hook output priority %d;", priority), "meta l4proto tcp meta mark set "+mark)
			f.control = marked(true)
			if mark == "0" {
				const before = "type route hook output priority -400; meta l4proto tcp meta mark set 0x42"
				f.load += "\nnft 'table inet earlier { chain out { " + before + "; }; }'"
				f.unload += tables("inet earlier")
				f.control = marked(false)
			}
			list = append(list, f)
		}
	}
	return list
}

// dnatThenClear takes away what a guard by mark alone on the way out would go by.
func dnatThenClear() foreign {
	f := dnat(-110)
	f.name += ", marks cleared later"
	load, unload := nft("ip", "type route hook output priority -50;", "meta mark set 0")
	f.load += "\n" + strings.ReplaceAll(load, "foreign", "later")
	f.unload += strings.ReplaceAll(unload, "foreign", "later")
	return f
}

func restoreMark(iptables, unload string) foreign {
	return foreign{name: iptables + " mangle restore-mark", allowed: true,
		load: iptables + ` -t mangle -A OUTPUT -p tcp -j CONNMARK --set-mark 0x77
` + iptables + ` -t mangle -A OUTPUT -p tcp -j CONNMARK --restore-mark`,
		unload: unload, control: marked(true)}
}

func allBits(iptables, unload string) foreign {
	return foreign{name: iptables + " mangle set all bits", allowed: true,
		load:   iptables + ` -t mangle -A OUTPUT -p tcp -j MARK --set-mark 0xffffffff`,
		unload: unload, control: marked(true)}
}

func overlap() foreign {
	return foreign{name: "mangle with a mask that overlaps ours", allowed: true,
		load: `iptables-nft -t mangle -A OUTPUT -p tcp -j MARK --set-xmark 0x100000/0xff0000
iptables-nft -t mangle -A OUTPUT -p tcp -j MARK --or-mark 0x40000`,
		unload: tables("ip mangle"), control: marked(true)}
}

func dnat(priority int) foreign {
	f := foreign{name: fmt.Sprintf("nft dnat at %d", priority), control: goesElsewhere}
	f.load, f.unload = nft("ip", fmt.Sprintf("type nat hook output priority %d;", priority),
		"ip daddr 10.99.1.2 tcp dport 7001-7005 dnat to "+elsewhere)
	if priority < -105 {
		f.dropped, f.droppedBefore = diverted, diverted
	}
	if priority == -105 { // the one loaded last comes first
		f.dropped = diverted
	}
	return f
}

func docker(iptables, unload string) foreign {
	return foreign{name: iptables + " Docker-like", allowed: true, control: goesElsewhere,
		load: fmt.Sprintf(`i() { %s -t nat "$@"; }
i -N DOCKER
i -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
i -A OUTPUT -d 10.99.1.2 -p tcp --dport 7001:7002 -j DOCKER
i -A DOCKER -p tcp --dport 7001:7002 -j DNAT --to-destination %s
i -A POSTROUTING -s 172.17.0.0/16 -j MASQUERADE`, iptables, elsewhere), unload: unload}
}

func kubeProxy() foreign {
	return foreign{name: "kube-proxy-like", allowed: true, control: goesElsewhere,
		load: `i() { iptables-nft -t nat "$@"; }
i -N KUBE-SERVICES; i -N KUBE-MARK-MASQ; i -N KUBE-SVC; i -N KUBE-POSTROUTING
i -A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
i -A POSTROUTING -j KUBE-POSTROUTING
i -A KUBE-SERVICES -d 10.99.1.2/32 -p tcp --dport 7001:7002 -j KUBE-SVC
i -A KUBE-SVC -j KUBE-MARK-MASQ
i -A KUBE-SVC -p tcp -m statistic --mode random --probability 0.5 -j DNAT --to-destination ` + elsewhere + `
i -A KUBE-SVC -p tcp -j DNAT --to-destination ` + elsewhere + `
i -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
i -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
i -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
i -A KUBE-POSTROUTING -j MASQUERADE --random-fully`,
		unload: tables("ip nat")}
}

func redirect(priority int, dropped, before guard) foreign {
	f := foreign{name: fmt.Sprintf("nft redirect at %d", priority), six: true, allowed: true, dropped: dropped, droppedBefore: before}
	f.load, f.unload = nft("inet", fmt.Sprintf("type nat hook output priority %d;", priority), "tcp dport 7001-7002 redirect to :7099")
	f.control = func(t *testing.T, w *world) {
		since := w.mark(t)
		for _, address := range []string{byRule, byRule6} {
			c := w.alice.dial(t, address)
			if got := c.answer(t); got != "connected" {
				t.Errorf("control: %s", got)
			} else if got := c.say(t, "x"); !strings.Contains(got, ":7099 ") {
				t.Errorf("control: %q", got)
			}
			c.close(t)
		}
		if got := w.syns(t, since); len(got) > 0 {
			t.Errorf("control: %v", got)
		}
	}
	return f
}

func firewalld() foreign {
	return foreign{name: "firewalld-like", six: true, allowed: true, control: refuses,
		load: `nft -f - <<'!'
table inet firewalld {
	chain filter_OUTPUT {
		type filter hook output priority 10;
		ct state { established, related } accept
		ct state invalid drop
		oifname "lo" accept
		ip daddr 127.0.0.0/8 accept
		ip6 daddr ::1 accept
		tcp dport { 22, 7005 } accept
		meta l4proto tcp reject with icmpx admin-prohibited
	}
	chain nat_OUTPUT {
		type nat hook output priority -90;
	}
	chain mangle_PREROUTING {
		type filter hook prerouting priority -140;
	}
}
!`, unload: tables("inet firewalld")}
}

func ufw(accept bool) foreign {
	f := foreign{name: "ufw-like, new connections accepted", allowed: true, control: allows, unload: tables("ip filter"),
		load: `i() { iptables-nft "$@"; }
i -N ufw-before-output; i -N ufw-user-output; i -N ufw-track-output
i -A OUTPUT -j ufw-before-output
i -A OUTPUT -j ufw-track-output
i -A ufw-before-output -o lo -j ACCEPT
i -A ufw-before-output -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
i -A ufw-before-output -j ufw-user-output
i -A ufw-user-output -p tcp --dport 22 -j ACCEPT
i -A ufw-user-output -p tcp --dport 7005 -j ACCEPT
`}
	if accept {
		f.load += "i -A ufw-track-output -p tcp -m conntrack --ctstate NEW -j ACCEPT\ni -P OUTPUT DROP"
		return f
	}
	f.name, f.control, f.refused = "ufw-like, new connections refused", refuses, true
	f.load += "i -A ufw-track-output -p tcp -m conntrack --ctstate NEW -j REJECT"
	return f
}

// policyRouting sends another way out what has one of our bits, or WireGuard's mark.
func policyRouting() foreign {
	return foreign{name: "routing by mark", allowed: true, device: "out",
		load: `ip link add out type veth peer name nowhere
ip link set out up; ip link set nowhere up
ip neigh add 192.0.2.1 lladdr 02:00:00:00:00:01 dev out
ip route add default via 192.0.2.1 dev out onlink table 77
for bit in 0x100000 0x200000 0x400000 0x800000; do ip rule add fwmark $bit/$bit lookup 77 pref 100; done
ip rule add fwmark 0xca6c lookup 77 pref 101`,
		unload: `for i in 1 2 3 4; do ip rule del pref 100; done
ip rule del pref 101
ip link del out
`,
		control: func(t *testing.T, w *world) {
			out := w.Client.Capture(t, "out")
			load, unload := nft("ip", "type route hook output priority -150;", "tcp dport 7001 meta mark set 0x200000")
			w.sh(t, w.Client, load)
			defer w.sh(t, w.Client, unload)
			f := w.alice.dial(t, byRule)
			poll(t, "control: a SYN on the other way out", func() bool { return len(out.Packets(t, netns.NewConnections)) > 0 })
			f.close(t)
		}}
}

// marked is the control of rules that set or clear all marks of what leaves.
func marked(want bool) func(t *testing.T, w *world) {
	return func(t *testing.T, w *world) {
		t.Helper()
		w.sh(t, w.Client, observe)
		defer w.sh(t, w.Client, tables("inet observer"))
		since := w.mark(t)
		w.plain(t, byRule, byRule)
		syns := w.syns(t, since)
		if len(syns) == 0 || hasDSCP(syns[0]) != want {
			t.Errorf("control: %d SYNs, and not one with a mark %t", len(syns), want)
		}
	}
}

// goesElsewhere is the control of rules that divert to another server.
func goesElsewhere(t *testing.T, w *world) {
	t.Helper()
	since := w.mark(t)
	w.plain(t, byRule, elsewhere+":7001")
	if syns := w.syns(t, since); len(syns) != 1 || syns[0].Dst.Addr().String() != elsewhere {
		t.Errorf("control: %v", syns)
	}
}

// refuses is the control of rules that refuse all connections but to compiled.
func refuses(t *testing.T, w *world) {
	t.Helper()
	since := w.mark(t)
	f := w.alice.dial(t, byRule)
	if got := f.answer(t); got == "connected" {
		t.Error("control: connected")
	}
	if syns := w.syns(t, since); len(syns) != 0 {
		t.Errorf("control: %v", syns)
	}
	w.plain(t, compiled, compiled)
}

func allows(t *testing.T, w *world) {
	t.Helper()
	w.plain(t, byRule, byRule)
}

// plain fails the test unless a connection of Alice's goes out in clear and is answered
// by that place.
func (w *world) plain(t *testing.T, to, by string) {
	t.Helper()
	f := w.alice.dial(t, to)
	defer f.close(t)
	if got := f.answer(t); got != "connected" {
		t.Errorf("in clear to %s: %s", to, got)
		return
	}
	if got, want := f.say(t, "x"), fmt.Sprintf("%s %sx", by, direct); got != want {
		t.Errorf("in clear to %s: %q, want %q", to, got, want)
	}
}
