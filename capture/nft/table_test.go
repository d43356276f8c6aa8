package nft

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/capture"
)

// TestEveryExpression loads every table there can be, and has nft show it.
func TestEveryExpression(t *testing.T) {
	EveryExpression(t, func(form QueueForm) map[string]Ruleset {
		full, unheld := hostSpec(), hostSpec()
		full.Form, unheld.Form = form, NoQueue
		return map[string]Ruleset{"host": Host(full), "host unheld": Host(unheld), "host empty": Host(HostSpec{})}
	})
}

func EveryExpression(t *testing.T, tables func(QueueForm) map[string]Ruleset) {
	n := newNamespace(t)
	var form QueueForm
	n.do(func() { form = ProbeQueue() })
	if form == NoQueue {
		t.Skip("the kernel has no packet queue")
	}
	for name, r := range tables(form) {
		if err := n.open(t, Unowned).Apply(r); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		out, err := n.run(t, "", "nft", "list", "table", "inet", r.Table)
		if err != nil {
			t.Errorf("%s: nft: %v: %s", name, err, out)
		}
		rules := 0
		for _, c := range r.Chains {
			rules += len(c.rules)
			if !strings.Contains(out, "\tchain "+c.name+" {\n") {
				t.Errorf("%s: nft does not show chain %s: %s", name, c.name, out)
			}
		}
		for _, want := range []string{"socket cgroupv2 level 3", "25, 137-139", "192.0.2.1"} {
			if name == "host" && !strings.Contains(out, want) {
				t.Errorf("%s: nft does not show %q: %s", name, want, out)
			}
		}
		if got := strings.Count(out, "\n\t\t") - strings.Count(out, "\n\t\ttype"); got < rules {
			t.Errorf("%s: %d rules are shown of %d: %s", name, got, rules, out)
		}
		n.must(t, "nft delete table inet "+r.Table)
	}
}

// TestErrorNamesTheMessage has the kernel refuse one rule of many.
func TestErrorNamesTheMessage(t *testing.T) {
	n := newNamespace(t)
	table := n.open(t, Unowned)
	r := Host(hostSpec())
	bad := Chain{name: "wrong", rules: []Rule{{TCP, Accept}, {UDP, jump("nowhere")}}}
	r.Chains = append(r.Chains, bad)
	err := table.Apply(r)
	if !errors.Is(err, unix.ENOENT) || !strings.Contains(fmt.Sprint(err), "chain wrong, rule: meta l4proto udp jump nowhere") {
		t.Errorf("error: %v", err)
	}
	if out, _ := n.run(t, "", "nft", "list", "tables"); out != "" {
		t.Errorf("left behind: %s", out)
	}
	r = Host(HostSpec{Captures: []HostCapture{{ID: strings.Repeat("x", 300)}}})
	if err := table.Apply(r); err == nil || !strings.Contains(err.Error(), "xxx") {
		t.Errorf("a name of 300 bytes: %v", err)
	}
}

// TestLargeSets puts 20,000 prefixes of each family in force in one transaction, and
// then the same again.
func TestLargeSets(t *testing.T) {
	n := newNamespace(t)
	table := n.open(t, OwnedPersistent)
	rule := capture.SpecRule{Number: 1, Outcome: capture.Reset}
	for i := range 20000 {
		rule.Prefixes = append(rule.Prefixes,
			netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 7), byte(i << 1), 0}), 24),
			netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, byte(i >> 7), byte(i << 1), 15: 0}), 48))
	}
	spec := HostSpec{Form: NoQueue, TCP: 1, System: &HostCapture{ID: "system", Spec: capture.Spec{
		Users: []capture.UIDRange{{Hi: 1 << 20}}, Rules: []capture.SpecRule{rule}, Rest: capture.Pass}}}
	for range 2 {
		begin := time.Now()
		r := Host(spec)
		made := time.Since(begin)
		if err := table.Apply(r); err != nil {
			t.Fatal(err)
		}
		t.Logf("40000 prefixes: made in %v, applied in %v", made, time.Since(begin)-made)
	}
	n.must(t, "ip link set lo up")
	n.must(t, "ip route add local default dev lo")
	n.must(t, "ip -6 route add local default dev lo")
	d := n.dialer(t, "")
	spec.System.Spec.Local = true
	if err := table.Apply(Host(spec)); err != nil {
		t.Fatal(err)
	}
	n.answer(t, "tcp4", "0.0.0.0:80", "peer")
	n.answer(t, "tcp6", "[::]:80", "peer")
	for _, c := range []struct{ addr, want string }{
		{"10.0.0.1:80", "ECONNREFUSED"}, {"10.0.1.1:80", "peer"}, {"10.156.62.255:80", "ECONNREFUSED"}, {"10.156.63.0:80", "peer"}, {"9.255.255.255:80", "peer"},
		{"[2001:db8:0:1::1]:80", "ECONNREFUSED"}, {"[2001:db8:1::1]:80", "peer"}, {"[2001:db8:9c3e:ffff::1]:80", "ECONNREFUSED"},
	} {
		d.expect(t, 1000, "tcp", c.addr, c.want)
	}
	counters, err := table.Counters()
	if err != nil {
		t.Fatal(err)
	}
	var hits []string
	for _, h := range counters.Hits {
		hits = append(hits, fmt.Sprint(h))
	}
	if got := strings.Join(hits, " "); !strings.Contains(got, "{system 1 reset 4}") || !strings.Contains(got, "{system 0 pass 4}") {
		t.Errorf("hits: %s", got)
	}
}

// duplicate is what a process gets that takes over.
func duplicate(t *testing.T, f *os.File) *os.File {
	t.Helper()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	_ = unix.SetNonblock(fd, true)
	return os.NewFile(uintptr(fd), "nftables")
}

func (n *namespace) tables(t *testing.T) string {
	t.Helper()
	out, err := n.run(t, "", "nft", "list", "tables")
	if err != nil {
		t.Fatal(out)
	}
	return strings.TrimSpace(strings.ReplaceAll(out, "table inet ", ""))
}

// TestOwnership is the ladder: who may remove the table, and when it goes by itself.
func TestOwnership(t *testing.T) {
	n := newNamespace(t)
	persists := false
	n.do(func() { persists = Persists() })
	if !persists {
		t.Skip("the kernel does not know persist")
	}
	r := Host(HostSpec{TCP: 1})
	apply := func(table *Table) {
		t.Helper()
		if err := table.Apply(r); err != nil {
			t.Fatal(err)
		}
	}
	rules := func(want int) {
		t.Helper()
		if out, _ := n.run(t, "", "nft", "list", "table", "inet", HostTableName); strings.Count(out, "redirect") != want {
			t.Fatalf("want %d redirections: %s", want, out)
		}
	}
	shows := func(when, want string) {
		t.Helper()
		if got := n.tables(t); got != want {
			t.Fatalf("%s: tables %q, want %q", when, got, want)
		}
	}
	shows("after probes", "")

	// Unowned: anybody may remove it; it stays without us.
	table := n.open(t, Unowned)
	apply(table)
	n.must(t, "nft flush ruleset")
	shows("unowned, flushed", "")
	apply(table)
	apply(table)
	rules(1)
	table.Close()
	shows("unowned, closed", HostTableName)
	table = n.open(t, Unowned)
	apply(table)
	rules(1)

	// Owned: what an unowned one left is replaced, nobody else may touch it, and it is
	// gone with its last descriptor.
	owned := n.open(t, Owned)
	apply(owned)
	rules(1)
	n.must(t, "nft flush ruleset")
	shows("owned, flushed", HostTableName)
	if out, err := n.run(t, "", "nft", "delete", "table", "inet", HostTableName); err == nil || !strings.Contains(out, "not permitted") {
		t.Fatalf("foreign delete: %v: %s", err, out)
	}
	if err := table.Apply(r); !errors.Is(err, ErrForeign) {
		t.Fatalf("another socket: %v", err)
	}
	if err := table.Delete(); !errors.Is(err, unix.EPERM) {
		t.Fatalf("another socket deletes: %v", err)
	}
	kept := duplicate(t, owned.File())
	owned.Close()
	shows("owned, a duplicate is kept", HostTableName)
	adopted, err := AdoptTable(kept, Owned)
	if err != nil {
		t.Fatal(err)
	}
	apply(adopted)
	rules(1)

	// To persistent, with the same socket.
	if err := adopted.Replace(r, OwnedPersistent); err != nil {
		t.Fatal(err)
	}
	n.must(t, "nft flush ruleset")
	rules(1)
	adopted.Close()
	shows("persistent, closed", HostTableName)
	heir := n.open(t, OwnedPersistent)
	apply(heir)
	rules(1)
	n.must(t, "nft flush ruleset")
	shows("adopted, flushed", HostTableName)

	// An orphan is anybody's; one that is to be only owned is made anew.
	heir.Close()
	owned = n.open(t, Owned)
	apply(owned)
	rules(1)
	owned.Close()
	shows("owned, closed", "")
	heir = n.open(t, OwnedPersistent)
	apply(heir)
	heir.Close()
	n.must(t, "nft flush ruleset")
	shows("orphan, flushed", "")

	heir = n.open(t, OwnedPersistent)
	apply(heir)
	for range 2 {
		if err := heir.Delete(); err != nil {
			t.Fatal(err)
		}
	}
	shows("deleted", "")
}

// TestAdoptNotASocket must own and close what it was given.
func TestAdoptNotASocket(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := AdoptTable(r, Unowned); err == nil {
		t.Error("a pipe is no socket")
	}
	if err := r.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("still open: %v", err)
	}
}

// TestWatch repairs an unowned table that others flush, delete and change, and is told
// of nothing that it did itself.
func TestWatch(t *testing.T) {
	n := newNamespace(t)
	table := n.open(t, Unowned)
	spec := HostSpec{Form: NoQueue, TCP: 1, System: &HostCapture{ID: "system", Spec: capture.Spec{Users: []capture.UIDRange{{Lo: 1, Hi: 2}}}}}
	for i := range 20000 {
		spec.System.Spec.Exempt = append(spec.System.Spec.Exempt, netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), 22))
	}
	r := Host(spec)
	if err := table.Apply(r); err != nil {
		t.Fatal(err)
	}
	type repair struct {
		by string
		at time.Time
	}
	repairs := make(chan repair) // Watch waits until the last one was looked at
	ctx, cancel := context.WithCancel(t.Context())
	var ended <-chan error
	var err error
	n.do(func() {
		ended, err = table.Watch(ctx, func(by string) {
			if err := table.Apply(r); err != nil {
				t.Error(err)
			}
			repairs <- repair{by, time.Now()}
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, args := range []string{
		"flush ruleset", "delete table inet " + HostTableName, "flush chain inet " + HostTableName + " hold",
	} {
		n.must(t, "nft add table ip other") // which is not told
		begin := time.Now()
		n.must(t, "nft "+args)
		select {
		case got := <-repairs:
			if got.by != "nft" {
				t.Errorf("nft %s: by %q", args, got.by)
			}
			t.Logf("nft %s, 20000 servers: repaired at most %v later", args, got.at.Sub(begin))
		case <-time.After(10 * time.Second):
			t.Fatalf("%d: no notification of %s", i, args)
		}
		if out, _ := n.run(t, "", "nft", "list", "chain", "inet", HostTableName, "hold"); !strings.Contains(out, "jump syn") {
			t.Errorf("after %s: %s", args, out)
		}
	}
	// So many notifications at once that some are lost.
	var big strings.Builder
	big.WriteString("table ip big {\nset s {\ntype ipv4_addr\nelements = { ")
	for i := range 60000 {
		fmt.Fprintf(&big, "10.1.%d.%d, ", i>>8, i&255)
	}
	big.WriteString("10.0.0.1 }\n}\n}\n")
	n.must(t, "nft flush chain inet "+HostTableName+" hold")
	n.nft(t, big.String())
	for _, want := range []string{"nft", ""} {
		select {
		case got := <-repairs:
			if got.by != want {
				t.Errorf("at a loss: by %q, want %q", got.by, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("a loss was not noticed")
		}
	}
	cancel()
	for {
		select {
		case <-repairs: // what was not lost
		case err := <-ended:
			if !errors.Is(err, context.Canceled) {
				t.Errorf("watch ended: %v", err)
			}
			return
		}
	}
}
