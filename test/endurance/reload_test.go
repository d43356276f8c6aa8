package endurance

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"sshbroker/test/host"
	"sshbroker/test/netns"
)

// reloads is a broker that is told to reload again and again.
type reloads struct {
	*world
	user   *netns.User // whose broker it is; nil for the system's
	ctl    []string
	broker *netns.Process
	file   string
	texts  []string // configurations that all tunnel the targets; "" for a broken one

	done int // reloads that were asked for
	good int // of them
	hups map[bool]int
}

// The broker's words for a reload that was good and one that was not.
var outcomes = map[bool]string{true: `msg="configuration reloaded"`, false: `msg="configuration not reloaded, the old one stays"`}

// next reloads: another configuration each time, by SIGHUP and by ssh-broker-ctl in turns,
// and waits until that has been done.
func (r *reloads) next(t *testing.T) {
	t.Helper()
	text := r.texts[r.done%len(r.texts)]
	good := text != ""
	if !good {
		text = `<secsh-broker><filter-engine><rule action="DIRECT"/><rule action="TUNEL"/></filter-engine></secsh-broker>`
	}
	if err := os.WriteFile(r.file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	before, other := strings.Count(r.broker.Stderr(), outcomes[good]), strings.Count(r.broker.Stderr(), outcomes[!good])
	bySignal := r.done/len(r.texts)%2 == 0
	r.done++
	if good {
		r.good++
	}
	if !bySignal {
		if res := r.Run(t, r.user, append(r.ctl, "reload")...); (res.Code == 0) != good || !good && !strings.Contains(res.Stderr, "TUNEL") {
			t.Fatalf("reload %d: %v", r.done, res)
		}
		return
	}
	r.hups[good]++
	r.broker.Signal(t, syscall.SIGHUP)
	for end := time.Now().Add(patience); strings.Count(r.broker.Stderr(), outcomes[good]) == before; time.Sleep(time.Millisecond) { // the log has no other event
		if time.Now().After(end) || strings.Count(r.broker.Stderr(), outcomes[!good]) > other {
			t.Fatalf("reload %d by SIGHUP is not said to be good: %t", r.done, good)
		}
	}
}

// brokerStatus is a part of what status says.
type brokerStatus struct {
	Generation, Goroutines, Captures int
	Generations                      []struct{ Generation, Flows, Captures int }
}

func (r *reloads) status(t *testing.T) (st brokerStatus) {
	t.Helper()
	if err := json.Unmarshal([]byte(r.Run(t, r.user, append(r.ctl, "status", "-s")...).Stdout), &st); err != nil {
		t.Fatal(err)
	}
	return st
}

// size is how much stands in the kernel's tables: lines without what is in sets, where
// the kernel itself puts something for a while, and the addresses of compiled rules.
func (r *reloads) size(t *testing.T) string {
	t.Helper()
	terse, whole := r.Client.Output(t, nil, "nft", "-t", "list", "ruleset"), r.Client.Output(t, nil, "nft", "list", "ruleset")
	return fmt.Sprintf("%d lines, %d sets, %d addresses", strings.Count(terse, "\n"), strings.Count(terse, "\tset "), strings.Count(whole, "203."))
}

// texts are configurations of which the one after the other is so different that rules,
// sets and profiles change, and everything that a flow of the test meets stays the same.
func (w *world) texts(user string) []string {
	profile := func(id string) string {
		return fmt.Sprintf(`<profile id="%s" host="%s" port="%d" user="%s"><server-authentication-methods><auth-server-publickey policy="strict"/></server-authentication-methods></profile>`,
			id, w.Server.Addr4, w.SSHD.Addr4.Port(), user)
	}
	var many strings.Builder
	many.WriteString(`<rule ip-address="203\.1\.[0-9]*[02468]\..*" ports="9" action="DIRECT"/>` + "\n") // a set of its own
	for i := range 100 {
		fmt.Fprintf(&many, `<rule ip-address="203\.0\.(%d|%d)\..*" ports="%d" action="%s"/>`+"\n", i, i+102, 1+i%3, []string{"DIRECT", "BLOCK"}[i/3%2])
	}
	tunnel := func(profile string) string {
		return fmt.Sprintf(`<rule ports="%d-%d" action="TUNNEL" profile-id="%s"/>`, firstTarget, firstTarget+targets-1, profile)
	}
	configure := func(profiles, attributes, rules string) string {
		return host.Config("<profiles>" + profiles + "</profiles>\n<filter-engine " + attributes + ">\n" + rules + "</filter-engine>")
	}
	return []string{
		configure(profile("p"), `default-action="BLOCK"`, tunnel("p")),
		"",
		configure(profile("p"), "", fmt.Sprintf(`<network id="here" address="%s"/><network id="else" address="192.0.2.0"/>
<dns id="a" network-id="else"/><filter dns-id="a" action="BLOCK"/>
<dns id="b" network-id="here"/><filter dns-id="b" ports="%d-%d" action="TUNNEL" profile-id="p"/>`,
			netip.PrefixFrom(w.Server.Addr4, 24).Masked(), firstTarget, firstTarget+targets-1)),
		configure(profile("p")+profile("q"), "", many.String()+`<rule host=".*\.corp\.test" pseudo-ip="yes" profile-id="p" action="TUNNEL"/>`+tunnel("q")),
	}
}

// TestReloads reloads again and again while flows are held and new ones are made: none is
// lost, each goes by the configuration that it began with, and nothing piles up.
func TestReloads(t *testing.T) {
	times, chunk, rate, held := 10, 12, 100, 20
	if long() {
		times, chunk, rate, held = 1000, 50, 200, 200
	}
	piles := func(last, first use) bool {
		// Without need the runtime gives memory back after minutes.
		return last.files > first.files || long() && last.above(first)
	}
	for _, kind := range []string{"namespace", "cgroup", "system"} {
		t.Run(kind, func(t *testing.T) {
			w := newWorld(t)
			r := &reloads{world: w, hups: map[bool]int{}}
			var front []string
			if kind != "namespace" {
				w.StartCaptured(t)
			}
			if kind == "system" {
				r.texts = w.texts(w.Service.Name)
				r.file, r.ctl = w.ConfigFile(), []string{w.Ctl, "-a", w.Address()}
				r.broker = w.StartSystemBroker(t, r.texts[0], "-D", "3")
				w.Enable(t)
			} else {
				r.texts = w.texts(w.Alice.Name)
				r.user, r.file, r.ctl = w.Alice, w.Alice.Path(".ssh2/ssh-broker-config.xml"), []string{w.Ctl}
				w.Alice.Write(t, ".ssh2/ssh-broker-config.xml", r.texts[0], 0o600)
				c := w.Cmd(w.Alice, w.Broker, "--foreground", "-D", "3")
				c.Limit = -1
				r.broker = w.Client.Start(t, c)
				for end := time.Now().Add(patience); w.Run(t, w.Alice, w.Ctl, "status", "-q").Code != 0; time.Sleep(5 * time.Millisecond) { // a socket has no event for having come up
					if time.Now().After(end) {
						t.Fatalf("the broker does not answer: %s", r.broker.Output())
					}
				}
				front = []string{w.Capture, "--backend=" + kind}
			}
			holder, maker := w.load(t, w.Alice, w.ports[0], front...), w.load(t, w.Alice, w.ports[1], front...)
			round := func(n int) {
				t.Helper()
				for left := n; left > 0; left -= chunk {
					maker.begin(t, "rush %d %d %s", rate, 1500, strings.Join(w.ports[1:], " "))
					for range min(left, chunk) {
						r.next(t)
					}
					res := maker.end(t, patience)
					if len(res.Outcomes) != 1 || res.Outcomes["ok"] == 0 {
						t.Fatalf("after %d reloads, what became of new flows: %v", r.done, res.Outcomes)
					}
				}
			}
			settle := func() (use, int, string) {
				t.Helper()
				for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
					if st := r.status(t); len(st.Generations) == 1 {
						return using(t, r.broker.Pid()), st.Goroutines, r.size(t)
					} else if time.Now().After(end) {
						t.Fatalf("generations in use are left: %+v", st.Generations)
					}
				}
			}

			// Once before: what is taken for good is taken then. The last configuration of a
			// round is always the same one.
			holder.do(t, patience, "hold %d", held)
			round(2 * len(r.texts))
			holder.do(t, patience, "release")
			first, goroutines, tables := settle()
			began := r.good + 1
			holder.do(t, patience, "hold %d", held)
			round((times + 2*len(r.texts) - 1) / (2 * len(r.texts)) * 2 * len(r.texts))
			st := r.status(t)
			if st.Generation != 1+r.good {
				t.Errorf("generation %d after %d good reloads", st.Generation, r.good)
			}
			if g := st.Generations[0]; g.Generation != began || g.Flows != held {
				t.Errorf("the oldest in use is %+v, want %d flows of generation %d", g, held, began)
			}
			if len(st.Generations) > 2 { // those of the rush have ended, or nearly
				t.Logf("in use: %+v", st.Generations)
			}
			if touched := holder.do(t, patience, "touch"); touched.Count != int64(held) {
				t.Errorf("%d of the flows of before live, want %d", touched.Count, held)
			}
			holder.do(t, patience, "release")
			var last use
			var more int
			var now string
			for end := time.Now().Add(4 * patience); ; time.Sleep(time.Second) { // nothing tells when the runtime has given memory back
				last, more, now = settle()
				if !piles(last, first) && more <= goroutines && now == tables || time.Now().After(end) {
					break
				}
			}
			t.Logf("%d reloads, %d of them by SIGHUP, %d refused; before: %v, %d goroutines, %s; after: %v, %d goroutines, %s",
				r.done, r.hups[true]+r.hups[false], r.done-r.good, first, goroutines, tables, last, more, now)
			if piles(last, first) || more > goroutines || now != tables {
				t.Error("something piles up")
			}
			for _, l := range []*load{holder, maker} {
				l.jobs.Close()
				l.process.Wait(t)
			}
			if kind != "system" {
				r.broker.Signal(t, syscall.SIGTERM)
				r.broker.Wait(t)
			}
		})
	}
}
