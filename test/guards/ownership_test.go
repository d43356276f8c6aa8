package guards

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"sshbroker/capture/service"
	"sshbroker/test/host"
	"sshbroker/test/netns"
)

// flushes are what other programs do to all rules that they find.
var flushes = []struct{ name, script string }{
	{"nft flush ruleset", "nft flush ruleset"},
	{"iptables-nft -F", "for t in filter mangle nat; do iptables-nft -t $t -F; iptables-nft -t $t -X; done"},
	{"iptables-legacy -F", "for t in filter mangle nat; do iptables-legacy -t $t -F; done"},
	{"deletion of our table", "nft delete table inet ssh_captured || true"},
	{"flush of our chains", "nft flush table inet ssh_captured || true"},
}

// TestFlushOwned has others flush while connections live, SYNs are held and programs
// connect: where the kernel knows owners nothing happens to us.
func TestFlushOwned(t *testing.T) {
	w := newWorld(t)
	w.on(t)
	if st := w.Status(t); st.Ownership != "owner, persist" {
		t.Fatalf("ownership: %s", st.Ownership)
	}
	live := w.protected(t)
	for _, c := range live {
		w.through(t, c)
	}
	for _, f := range flushes {
		t.Run(f.name, func(t *testing.T) {
			w.sh(t, w.Client, "nft add table inet theirs")
			since, before := w.mark(t), w.Status(t)
			w.pause(t)
			held := w.hold(t)
			stop := w.flood(t)
			w.sh(t, w.Client, f.script)
			sent := stop()
			// Its SYNs are held as well: the queue has lost none.
			if st := w.Status(t); st.Waiting < len(held) {
				t.Errorf("%d SYNs are held, of %d and %d more", st.Waiting, len(held), sent)
			}
			w.resume(t)
			for _, c := range append(held, w.protected(t)...) {
				w.through(t, c)
				c.close(t)
			}
			for _, c := range live {
				w.speaks(t, c)
			}
			w.unseen(t, since)
			if st := w.Status(t); st.Repairs != before.Repairs {
				t.Errorf("%d repairs of a table that nobody can change", st.Repairs-before.Repairs)
			}
			if got := w.sh(t, w.Client, "nft list tables"); strings.Contains(f.name, "ruleset") && strings.Contains(got, "theirs") {
				t.Errorf("control: the flush left %s", got)
			}
			w.sh(t, w.Client, "nft delete table inet theirs || true")
		})
	}
}

// TestFlushUnowned has others flush where the kernel knows no persistent owners: the
// table is loaded again, and how long it was gone is told.
func TestFlushUnowned(t *testing.T) {
	for _, ownership := range []string{"none", "owner"} { // with rules that are closed, the same
		t.Run(ownership, func(t *testing.T) {
			w := newWorld(t, "--ownership="+ownership)
			w.on(t)
			if st := w.Status(t); st.Ownership != "none" || st.Policy != "closed" {
				t.Fatalf("ownership %s, policy %s", st.Ownership, st.Policy)
			}
			live := w.protected(t)
			for _, c := range live {
				w.through(t, c)
			}
			for _, i := range []int{0, 3, 4} {
				f := flushes[i]
				t.Run(f.name, func(t *testing.T) { w.repaired(t, f.script, live) })
			}
		})
	}
}

// repaired has a script remove our rules and expects them back.
func (w *world) repaired(t *testing.T, script string, live []*flow) {
	before := w.Status(t)
	w.pause(t)
	held := w.hold(t)
	since := w.mark(t)
	stop := w.flood(t)
	w.sh(t, w.Client, script)
	st := w.Await(t, "a repair", func(st service.Status) bool { return st.Repairs > before.Repairs })
	sent := stop()
	repaired := w.mark(t)
	w.resume(t)
	for _, c := range append(held, w.protected(t)...) {
		w.through(t, c)
		c.close(t)
	}
	for _, c := range live {
		w.speaks(t, c)
	}
	w.unseen(t, repaired)
	leaked := 0
	var window float64
	if list := w.toServer(t, since, repaired); len(list) > 0 {
		leaked = len(list)
		window = list[leaked-1].Time.Sub(list[0].Time).Seconds() * 1000
	}
	t.Logf("%d repairs; ssh-captured says that our table was gone for %s; of %d SYNs meanwhile %d left, in %.2f ms",
		st.Repairs-before.Repairs, st.LastGap, sent, leaked, window)
	if st.LastGap == "" {
		t.Error("no gap is told")
	}
	says := w.Run(t, nil, w.Ctl, "connector", "status").Stdout
	if want := fmt.Sprintf("%d times a foreign program removed our table", st.Repairs); !strings.Contains(says, want) || !strings.Contains(says, "gone for "+st.LastGap) {
		t.Errorf("connector status: %s", says)
	}
}

// toServer are the SYNs that left for the place of the host's rules between two moments.
func (w *world) toServer(t *testing.T, from, to int) (list []netns.Packet) {
	t.Helper()
	for _, p := range w.wire.Packets(t, nil)[from:to] {
		if p.Outgoing && netns.NewConnections(p) && p.Dst.String() == byRule {
			list = append(list, p)
		}
	}
	return list
}

// TestOwnerOpen is the one case in which the table goes with its owner: rules that fall
// back to plain, and no captures of users.
func TestOwnerOpen(t *testing.T) {
	w := newWorld(t, "--ownership=auto")
	w.WriteConfig(t, host.Config("<profiles>"+w.Profile("p", w.Service.Name)+`</profiles>
<filter-engine>
  <rule ip-address="10.99.1.2/32" ports="7001" action="TUNNEL" profile-id="p" fallback-to-plain="yes"/>
</filter-engine>`))
	w.Enable(t)
	if r := w.Run(t, nil, w.Ctl, "-a", w.Address(), "reload"); r.Code != 0 {
		t.Fatalf("reload: %v", r)
	}
	w.Await(t, "policy open", func(st service.Status) bool { return st.Ownership == "owner" && st.Policy == "open" })
	since := w.mark(t)
	c := w.alice.dial(t, byRule)
	w.through(t, c)
	for _, f := range flushes {
		w.sh(t, w.Client, f.script)
	}
	w.speaks(t, c)
	c2 := w.alice.dial(t, byRule)
	w.through(t, c2)
	c2.close(t)
	c.close(t)
	w.unseen(t, since)
	w.KillCaptured(t, true)
	poll(t, "our table to go with its owner", func() bool {
		return !strings.Contains(w.sh(t, w.Client, "nft list tables"), "ssh_captured")
	})
	w.plain(t, byRule, byRule)
	w.StartCaptured(t)
}

// flood has Alice begin connections and give them up, as fast as can be, until it is
// stopped. That returns how many.
func (w *world) flood(t *testing.T) (stop func() int) {
	t.Helper()
	const most = 1500 // fewer than a user may have waiting
	to := netip.MustParseAddrPort(byRule)
	quit, sent := make(chan struct{}), 0
	var wg sync.WaitGroup
	started := make(chan struct{})
	wg.Go(func() {
		err := w.Client.Do(func() error {
			// The owner of the sockets that this thread makes, and nothing else; it ends with Do.
			if err := unix.Setfsuid(int(w.Alice.UID)); err != nil {
				return err
			}
			for ; sent < most; sent++ {
				select {
				case <-quit:
					return nil
				default:
				}
				fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					return err
				}
				err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
				if err != nil && err != unix.EINPROGRESS {
					return err
				}
				defer unix.Close(fd)
				if sent == 0 {
					close(started)
				}
			}
			return nil
		})
		if err != nil {
			t.Errorf("flood: %v", err)
		}
	})
	<-started
	return func() int {
		close(quit)
		wg.Wait()
		return sent
	}
}
