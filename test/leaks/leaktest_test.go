package leaks

import (
	"slices"
	"strings"
	"testing"

	"sshbroker/capture/leak"
	"sshbroker/capture/service"
	"sshbroker/test/netns"
)

// TestControl: without a capture each probe gets out and is seen to, so that its silence
// from inside of one says something.
func TestControl(t *testing.T) {
	h := bare(t)
	for _, a := range accounts(h) {
		t.Run(a.name, func(t *testing.T) {
			all := found(t, h, amongDaemons(t, h, a.user, leakTest(h, "--backend", "none")...), 1)
			require(t, all, a.notPossible, names()...)
			if a.user != nil {
				for _, name := range privileged {
					if all[name].Verdict != leak.NotPossible {
						t.Errorf("%s is possible without privilege: %+v", name, all[name])
					}
				}
			}
		})
	}
}

// TestNamespace: nothing gets out but what is allowed to.
func TestNamespace(t *testing.T) {
	h := bare(t)
	for _, a := range accounts(h) {
		t.Run(a.name, func(t *testing.T) {
			all := found(t, h, amongDaemons(t, h, a.user, leakTest(h, "--backend", "namespace", "--close-sockets")...), 0)
			require(t, all, a.notPossible)
			for _, p := range leak.All() {
				if f := all[p.Name]; p.Class == leak.TCP && f.Verdict != leak.NotPossible && f.Verdict != leak.Held {
					t.Errorf("%s: %s (%s)", p.Name, f.Verdict, f.Detail)
				}
			}
			all = found(t, h, amongDaemons(t, h, a.user, leakTest(h, "--backend", "namespace")...), 1)
			require(t, all, a.notPossible, inheritance...)
			// What is relayed is UDP itself.
			all = found(t, h, amongDaemons(t, h, a.user, leakTest(h, "--backend", "namespace", "--close-sockets", "--udp", "direct")...), 1)
			require(t, all, a.notPossible, "udp4", "udp6")
		})
	}
	if r := h.Run(t, h.Alice, leakTest(h, "--backend", "cgroup")...); r.Code != 1 || !strings.Contains(r.Stderr, "ssh-captured is not running") {
		t.Errorf("without ssh-captured: %v", r)
	}
}

// TestCgroup: the host's network is not the capture's, so names can be asked for by daemons'
// sockets, which a namespace covers, and frames go round every rule.
func TestCgroup(t *testing.T) {
	h := bare(t)
	before := h.Snapshot(t)
	wire := h.Client.Capture(t, "to-server")
	h.StartCaptured(t)
	for _, a := range accounts(h) {
		t.Run(a.name, func(t *testing.T) {
			all := found(t, h, amongDaemons(t, h, a.user, leakTest(h, "--backend", "cgroup", "--close-sockets")...), 1)
			// A SYN of a raw socket is held as any other, and refused as it belongs to nobody.
			open := daemons
			if a.user == nil {
				open = append(slices.Clone(open), "packet")
			}
			require(t, all, a.notPossible, open...)
			for _, auto := range []string{"auto", "cgroup"} {
				all = found(t, h, h.Cmd(a.user, leakTest(h, "--backend", auto, "--udp", "direct")...), 1)
				require(t, all, lists(a.notPossible, daemons), lists(datagrams, inheritance, open[len(daemons):])...)
			}
		})
	}
	// Not one packet of all that has left the host.
	if got := wire.Packets(t, func(p netns.Packet) bool { return p.Dst.Port() != 0 || p.Proto == 253 }); len(got) > 0 {
		t.Errorf("on the wire: %v", got)
	}
	h.Await(t, "no capture", func(st service.Status) bool { return len(st.Captures) == 0 }) // it looks after what is left
	h.StopCaptured(t)
	h.RequireRestored(t, before, patience)
}

// TestTable is how people see it.
func TestTable(t *testing.T) {
	h := bare(t)
	r := h.Run(t, h.Alice, h.Ctl, "leak-test", "--backend", "namespace", "--probe", "udp4,tcp4", "--probe", "inherited-udp")
	want := []string{"VERDICT       PROBE             WHAT\n", "\nheld          tcp4              TCP over IPv4\n", "\nrefused       udp4              UDP over IPv4\n",
		"\nLEAK          inherited-udp     a UDP socket of before the capture\n    it came out in clear: a datagram from ", "    cure: ssh-capture --strict closes",
		"1 of 3 leak, 1 held, 1 refused, 0 not possible here; backend: namespace\n"}
	for _, text := range want {
		if !strings.Contains(r.Stdout, text) || r.Code != 1 {
			t.Errorf("lacks %q: %v", text, r)
		}
	}
	r = h.Run(t, h.Alice, h.Ctl, "leak-test", "--list", "--probe", "udp4")
	if r.Code != 0 || r.Stdout != "PROBE  ABOUT      WHAT\nudp4   datagrams  UDP over IPv4\n" {
		t.Errorf("%v", r)
	}
	// What proves nothing is no success.
	r = h.Run(t, h.Alice, h.Ctl, "leak-test", "--backend", "namespace", "--probe", "raw")
	if r.Code != 1 || !strings.Contains(r.Stderr, "nothing is proved") {
		t.Errorf("%v", r)
	}
	for _, args := range [][]string{{"--backend", "x"}, {"--udp", "x"}, {"--probe", "x"}, {"x"}} {
		if r := h.Run(t, h.Alice, append([]string{h.Ctl, "leak-test"}, args...)...); r.Code != 2 || r.Stderr == "" {
			t.Errorf("%v: %v", args, r)
		}
	}
}
