package location

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"sshbroker/test/host"
	"sshbroker/test/netns"
	"sshbroker/test/sut"
)

func TestMain(m *testing.M) { sut.Main(m, nil) }

// patience is how long things may take that happen by themselves.
const patience = 20 * time.Second

const (
	targetPort = 7000
	ownAddress = "10.50.7.1/16" // of the client, in the office
	hosts      = "127.0.0.1 localhost\n::1 localhost\n"
)

// world is a host whose users have rules for the office.
type world struct {
	*host.Host
	target netip.AddrPort
	ctl    []string // asks the broker that decides
	user   *netns.User
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{Host: host.New(t)}
	w.target = netip.AddrPortFrom(w.Server.Addr4, targetPort)
	target := w.Server.Start(t, netns.Cmd{Args: []string{w.Testprog, "target", w.target.String()}, Limit: -1})
	target.WaitFor(t, "listening "+w.target.String())
	w.Client.Replace(t, "/etc/hosts", hosts)
	w.domain(t, "elsewhere.test")
	return w
}

// config has rules by which the target is in clear in the office and tunneled elsewhere.
// An address alone does not make the office, nor does a domain.
func (w *world) config(user string) string {
	return host.Config(fmt.Sprintf(`<profiles>%s</profiles>
<filter-engine>
<network id="office" address="10.50.0.0/16" domain="office.test"/>
<network id="exact" address="10.50.0.0"/>
<dns id="here" network-id="office" ip-address="%s"/>
<dns id="there" network-id="exact"/>
<filter dns-id="here" action="DIRECT"/>
<filter dns-id="there" ports="1" action="BLOCK"/>
<rule ports="%d" action="TUNNEL" profile-id="p"/>
</filter-engine>`, w.Profile("p", user), strings.ReplaceAll(w.Server.Addr4.String(), ".", `\.`), targetPort))
}

func (w *world) domain(t *testing.T, name string) {
	t.Helper()
	w.Client.Replace(t, "/etc/resolv.conf", "nameserver 127.0.0.53\nsearch "+name+"\n")
}

// address gives the client the address of the office, or takes it away.
func (w *world) address(t *testing.T, change func(netlink.Link, *netlink.Addr) error) {
	t.Helper()
	err := w.Client.Do(func() error {
		l, err := netlink.LinkByName("to-server")
		if err != nil {
			return err
		}
		a, err := netlink.ParseAddr(ownAddress)
		if err != nil {
			return err
		}
		return change(l, a)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// await waits until status says of the networks what is wanted, and logs how long the
// change took to be in force.
func (w *world) await(t *testing.T, want string) {
	t.Helper()
	type row struct{ ID, On string }
	var st struct {
		Generation int
		Networks   []row
	}
	began := time.Now()
	for {
		if err := json.Unmarshal([]byte(w.Client.Output(t, w.user, append(w.ctl, "status", "-s")...)), &st); err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, n := range st.Networks {
			got += n.ID + " " + n.On + " "
		}
		if st.Generation != 1 {
			t.Errorf("generation %d, nothing was reloaded", st.Generation)
		}
		if strings.TrimSpace(got) == want {
			t.Logf("%s after %v", want, time.Since(began).Round(time.Millisecond))
			return
		}
		if time.Since(began) > patience {
			t.Fatalf("networks: %s, want %s", got, want)
		}
		<-time.After(5 * time.Millisecond) // there is no event to wait for outside
	}
}

// explain returns what explain says.
func (w *world) explain(t *testing.T) string {
	t.Helper()
	return w.Client.Output(t, w.user, append(w.ctl, "explain", w.Server.Addr4.String(), fmt.Sprint(targetPort))...)
}

// program is a captured one that holds connections.
type program struct {
	process *netns.Process
	jobs    *os.File
	asked   int
}

// start starts one by a command in front of it, if any.
func (w *world) start(t *testing.T, front ...string) *program {
	t.Helper()
	r, jobs, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	t.Cleanup(func() { jobs.Close() })
	c := w.Cmd(w.Alice, append(front, w.Testprog, "load", w.target.String(), w.target.String())...)
	c.Stdin, c.Limit = r, -1
	return &program{process: w.Client.Start(t, c), jobs: jobs}
}

// do has it do a job.
func (p *program) do(t *testing.T, job string) {
	t.Helper()
	p.asked++
	if _, err := fmt.Fprintln(p.jobs, job); err != nil {
		t.Fatalf("%v: %s", err, p.process.Output())
	}
	p.process.WaitFor(t, fmt.Sprintf("end %d\n", p.asked))
	if said := p.process.Stdout(); strings.Contains(said, `"error"`) {
		t.Fatalf("%s: %s", job, said)
	}
}

// TestFollows takes a host into the office and out again while a program is captured
// that keeps connecting.
func TestFollows(t *testing.T) {
	for _, kind := range []string{"namespace", "cgroup", "system"} {
		t.Run(kind, func(t *testing.T) {
			w := newWorld(t)
			w.user, w.ctl = w.Alice, []string{w.Ctl}
			file := host.UserAuditFile(w.Alice)
			front := []string{w.Capture, "--backend=" + kind}
			switch kind {
			case "namespace":
			case "cgroup":
				w.StartCaptured(t)
			case "system":
				w.StartCaptured(t)
				w.StartSystemBroker(t, w.config(w.Service.Name))
				w.Enable(t)
				w.user, w.ctl, front = nil, []string{w.Ctl, "-a", w.Address()}, nil
				file = w.AuditFile()
			}
			if kind != "system" {
				w.Alice.Write(t, ".ssh2/ssh-broker-config.xml", w.config(""), 0o600)
			}
			p := w.start(t, front...)
			p.do(t, "hold 1") // outside
			w.await(t, "office no exact no")
			if said := w.explain(t); !strings.Contains(said, "the host is not known to be on network office") || !strings.Contains(said, "TUNNEL by rule 3") {
				t.Errorf("explained outside: %s", said)
			}

			w.address(t, netlink.AddrAdd)
			w.await(t, "office no exact yes")
			p.do(t, "hold 1") // the domain is another's
			w.domain(t, "Office.Test.")
			w.await(t, "office yes exact yes")
			p.do(t, "hold 1") // in the office
			if said := w.explain(t); !strings.Contains(said, "DIRECT by rule 1") {
				t.Errorf("explained in the office: %s", said)
			}
			w.address(t, netlink.AddrDel)
			w.await(t, "office no exact no")
			p.do(t, "hold 1") // outside again
			p.do(t, "touch")  // all live
			p.do(t, "release")
			p.jobs.Close()
			p.process.Wait(t)

			records := host.AwaitRecords(t, file, 4)
			slices.SortFunc(records, func(a, b host.Record) int { return cmp.Compare(a.Flow, b.Flow) })
			var actions []string
			for _, r := range records {
				actions = append(actions, fmt.Sprint(r.Action, " by ", r.Rule))
			}
			if got := fmt.Sprint(actions); got != "[TUNNEL by 3 TUNNEL by 3 DIRECT by 1 TUNNEL by 3]" {
				t.Errorf("decided: %s", got)
			}
		})
	}
}

// TestBrokerGone: what the office let through in clear does not go out in clear elsewhere
// because the broker was gone when the host left: it waits for the next one.
func TestBrokerGone(t *testing.T) {
	w := newWorld(t)
	w.ctl = []string{w.Ctl, "-a", w.Address()}
	w.address(t, netlink.AddrAdd)
	w.domain(t, "office.test")
	w.StartCaptured(t)
	w.StartSystemBroker(t, w.config(w.Service.Name))
	w.Enable(t)
	w.await(t, "office yes exact yes")
	connect := func(args ...string) *netns.Process {
		t.Helper()
		return w.Client.Start(t, w.Cmd(w.Alice, append(append([]string{w.Testprog, "connect"}, args...), w.target.String())...))
	}
	if r := connect().Wait(t); !strings.Contains(r.Stdout, " ok ") {
		t.Fatalf("in the office: %v", r)
	}
	w.KillSystemBroker(t)
	w.address(t, netlink.AddrDel)
	if r := connect("-nonblock", "-timeout", "500ms").Wait(t); !strings.Contains(r.Stdout, " ETIMEDOUT ") {
		t.Errorf("outside, without a broker: %v", r)
	}
	waits := connect()
	w.StartSystemBroker(t, "")
	if r := waits.Wait(t); !strings.Contains(r.Stdout, " ok ") {
		t.Errorf("outside, with the next broker: %v", r)
	}
	w.await(t, "office no exact no")
	for _, r := range host.AwaitRecords(t, w.AuditFile(), 2)[1:] {
		if r.Action != "TUNNEL" {
			t.Errorf("record %+v", r)
		}
	}
}
