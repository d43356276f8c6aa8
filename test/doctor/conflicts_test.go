package doctor

import (
	"strings"
	"testing"

	"sshbroker/broker/doctor"
	"sshbroker/test/host"
	"sshbroker/test/netns"
)

func nft(t *testing.T, h *host.Host, table string) {
	t.Helper()
	r := h.Client.Run(t, netns.Cmd{Args: []string{"nft", "-f", "-"}, Stdin: strings.NewReader(table)})
	if r.Code != 0 {
		t.Fatalf("%v", r)
	}
}

// TestForeignRules: tables that are in the way are named, and where they harm a program that
// connects, that is found as well.
func TestForeignRules(t *testing.T) {
	h := bare(t)
	examine(t, h, h.Alice, "foreign-rules").says(t, "foreign-rules", doctor.Unknown, "only root sees the rules of others")
	examine(t, h, nil, "foreign-rules").well(t)
	for _, c := range []struct {
		name, table string
		status      doctor.Status // with ssh-captured; "": it is none of ours
		connect     doctor.Status
		words       []string
	}{
		{"mark", "table inet foreign { chain out { type route hook output priority -120; meta l4proto tcp meta mark set 0x42; }; }", doctor.Failed, doctor.Failed,
			[]string{"table inet foreign, chain out, output, priority -120: it writes marks", "0x00f00000"}},
		{"mark by a jump", "table ip foreign { chain two { meta mark set ct mark; }; chain one { jump two; }; chain out { type filter hook output priority -120; jump one; }; }",
			doctor.Failed, doctor.Failed, []string{"table ip foreign, chain out", "writes marks"}},
		{"mark before", "table ip foreign { chain out { type route hook output priority -150; meta mark set 0x42; }; }", "", doctor.OK, nil},
		{"mark behind", "table ip foreign { chain out { type filter hook output priority 0; meta mark set 0x42; }; }", "", doctor.OK, nil},
		{"divert", "table ip foreign { chain out { type nat hook output priority -120; ip daddr 127.0.0.0/8 accept; meta mark & 0x00f00000 == 0x00200000 tcp dport 1-65535 redirect to :9; }; }", doctor.Failed, doctor.Failed,
			[]string{"table ip foreign, chain out, output, priority -120: it diverts", "-100"}},
		{"usual divert", "table ip foreign { chain out { type nat hook output priority -100; ip daddr 172.17.0.1 dnat to 10.0.0.1; }; }", "", doctor.OK, nil},
		{"drop", "table inet foreign { chain in { type filter hook input priority 0; policy drop; ct state established accept; }; }", doctor.Warning, doctor.Failed,
			[]string{"table inet foreign, chain in, input, priority 0: it drops by policy", "iif lo accept"}},
		{"drop what is redirected", "table inet foreign { chain in { type filter hook input priority 0; ip daddr 127.0.0.1 ct status dnat tcp flags syn drop; }; }", "", doctor.Failed, nil},
		{"firewall", "table inet foreign { chain in { type filter hook input priority 0; policy drop; ct state established accept; iif lo accept; }; }", "", doctor.OK, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			nft(t, h, c.table)
			without := examine(t, h, nil, "foreign-rules,namespace")
			h.StartCaptured(t)
			with := examine(t, h, nil, "foreign-rules,cgroup")
			h.StopCaptured(t)
			h.Release(t)
			nft(t, h, "delete table "+strings.Join(strings.Fields(c.table)[1:3], " "))
			if c.name == "drop" { // nobody can connect, with a capture or without
				without.says(t, "namespace", doctor.Failed, "without a capture either", "iif lo accept")
			} else { // it has rules to itself
				without.says(t, "namespace", doctor.OK)
			}
			with.says(t, "cgroup", c.connect)
			if c.status == "" {
				without.says(t, "foreign-rules", doctor.OK)
				with.says(t, "foreign-rules", doctor.OK)
				return
			}
			without.says(t, "foreign-rules", doctor.Warning, append(c.words, "when ssh-captured runs")...)
			with.says(t, "foreign-rules", c.status, c.words...)
		})
	}
}

// TestIptables: those of nftables are understood, the older ones are at least seen.
func TestIptables(t *testing.T) {
	h := bare(t)
	for _, rules := range []string{
		"iptables-nft -t mangle -A OUTPUT -p tcp -j CONNMARK --restore-mark",
		"iptables-nft -t nat -A OUTPUT -d 10.99.1.2 -p tcp --dport 7001 -m addrtype --dst-type LOCAL -j DNAT --to-destination 10.99.1.9",
	} {
		h.Client.Output(t, nil, strings.Fields(rules)...)
	}
	examine(t, h, nil, "foreign-rules").well(t)
	if r := h.Run(t, nil, "iptables-legacy", "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "--dport", "7001", "-j", "REDIRECT"); r.Code != 0 {
		t.Fatalf("%v", r)
	}
	examine(t, h, nil, "foreign-rules").says(t, "foreign-rules", doctor.Warning, "table nat of iptables-legacy", "iptables-legacy-save")
}

func TestRouting(t *testing.T) {
	h := bare(t)
	const checks = "routing-marks,reverse-path,tracking"
	examine(t, h, h.Alice, checks).well(t)
	// As wg-quick and Tailscale have them.
	h.Client.Output(t, nil, "ip", "rule", "add", "not", "fwmark", "0xca6c", "table", "51820")
	h.Client.Output(t, nil, "ip", "-6", "rule", "add", "fwmark", "0x80000/0xff0000", "table", "52")
	f := examine(t, h, h.Alice, checks)
	f.says(t, "routing-marks", doctor.Warning, "ip -6 rule: ", "fwmark 0x80000/0xff0000 lookup 52", "bits of the mark that are ours")
	if got := len(f.list); got != 3 {
		t.Errorf("%d results: %v", got, f.Result)
	}
	h.Client.Sysctl(t, "net.ipv4.conf.all.rp_filter", "1")
	examine(t, h, h.Alice, checks).says(t, "reverse-path", doctor.Warning, "to-server", "0xca6c", "src_valid_mark=1")
	h.Client.Sysctl(t, "net.ipv4.conf.all.src_valid_mark", "1")
	examine(t, h, h.Alice, checks).says(t, "reverse-path", doctor.OK)
	h.Client.Sysctl(t, "net.ipv4.conf.all.src_valid_mark", "0")
	h.Client.Sysctl(t, "net.ipv4.conf.all.rp_filter", "2")
	examine(t, h, h.Alice, checks).says(t, "reverse-path", doctor.OK)
}

// TestConnectWithout: a part of us is missing.
func TestConnectWithout(t *testing.T) {
	h := bare(t)
	bin := installed(t, h, h.Alice, "ssh-broker")
	f := read(t, h.Run(t, h.Alice, bin+"/ssh-broker-ctl", "doctor", "-s", "--check", "namespace"))
	f.says(t, "namespace", doctor.Failed, "ssh-broker is neither beside this program nor on PATH", "ssh-capture -D 7")
	bin = installed(t, h, h.Bob, "ssh-capture")
	if r := h.Run(t, h.Bob, bin+"/ssh-broker-ctl", "doctor"); r.Code != 1 || !strings.Contains(r.Stderr, "ssh-capture is neither beside this program nor on PATH") {
		t.Errorf("%v", r)
	}
}
