package compiled

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/capture"
	"sshbroker/capture/nft"
	"sshbroker/capture/queue"
	"sshbroker/test/netns"
)

const (
	queueNumber = 7
	patience    = 20 * time.Second // for one batch of flows, which takes milliseconds
)

// linkLocal is the server's, as the client says it.
var linkLocal = netip.MustParseAddr("fe80::99%to-server")

// kernel is a host whose nftables are put to the test: the client of a topology
// whose server answers a SYN to any address at all with a reset. So a connect is
// refused whatever becomes of it, and what became of it is told by who has seen the
// SYN: the queue, the wire, or neither.
type kernel struct {
	t       *testing.T
	client  *netns.Machine
	out, lo *netns.Wire
	seen    map[*netns.Wire]int // packets of earlier batches
	form    nft.QueueForm
	table   *nft.Table
	port    uint16 // of the flow before

	mu    sync.Mutex
	asked map[syn]bool
	err   error // of the queue's reader
}

// syn is what tells the connections of a batch apart. Source addresses do not.
type syn struct {
	srcPort uint16
	dst     netip.AddrPort
}

func newKernel(t *testing.T) *kernel {
	t.Helper()
	netns.RequireProgram(t, "ip", "iproute2")
	n := netns.New(t)
	k := &kernel{t: t, client: n.Client, seen: make(map[*netns.Wire]int), asked: make(map[syn]bool)}
	for _, family := range []string{"-4", "-6"} {
		// In the main table, where the way back to the client is more specific.
		n.Server.Output(t, nil, "ip", family, "route", "add", "local", "default", "dev", "lo", "table", "main")
	}
	// The kernel's own link-local addresses cannot be used at once.
	n.Server.Output(t, nil, "ip", "addr", "add", "fe80::99/64", "dev", "to-client", "nodad")
	n.Client.Output(t, nil, "ip", "addr", "add", "fe80::11/64", "dev", "to-server", "nodad")
	k.out, k.lo = n.Server.Capture(t, "to-client"), n.Client.Capture(t, "lo")

	var q *queue.Queue
	err := n.Client.Do(func() (err error) {
		k.form = nft.ProbeQueue()
		if k.table, err = nft.NewTable(nft.Owned); err != nil {
			return err
		}
		q, err = queue.OpenSocket(4 << 20)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if k.form == nft.NoQueue {
		t.Fatal("this kernel has no packet queue")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		k.answer(q)
	}()
	if err := q.Bind(queueNumber, 4096); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		q.Close()
		<-done
		if err := k.table.Delete(); err != nil {
			t.Errorf("delete the table: %v", err)
		}
		k.table.Close()
	})
	return k
}

// answer writes down every SYN of the queue and has it refused.
func (k *kernel) answer(q *queue.Queue) {
	for {
		var failed error
		err := q.Receive(func(p queue.Packet) {
			s, ok := queue.ParseSYN(p.Payload)
			if !ok {
				failed = fmt.Errorf("no SYN in the queue: %x", p.Payload)
			}
			k.mu.Lock()
			k.asked[syn{s.Src.Port(), s.Dst}] = true
			k.mu.Unlock()
			if err := q.Verdict(p.Queue, p.ID, queue.Accept, capture.WithClass(p.Mark, capture.MarkReset)); err != nil {
				failed = err
			}
		})
		if err != nil { // closed, at the end
			return
		}
		if failed != nil {
			k.mu.Lock()
			k.err = failed
			k.mu.Unlock()
		}
	}
}

// load puts the compiled rules into the kernel.
func (k *kernel) load(spec capture.Spec) error {
	return k.table.Apply(nft.Host(nft.HostSpec{
		Form: k.form, TCP: 4000,
		System: &nft.HostCapture{ID: "system", Queue: queueNumber, DNSUDP: 4001, DNSTCP: 4002, Spec: spec},
	}))
}

// connect sends flows all at once, waits for their ends and returns what became of
// each; an error for what no outcome explains.
func (k *kernel) connect(flows []flow) ([]capture.Outcome, error) {
	attempts := make([]attempt, len(flows))
	err := k.client.Do(func() error {
		for i, f := range flows {
			a, err := start(f, k.nextPort())
			if err != nil {
				return fmt.Errorf("%s: %w", f, err)
			}
			attempts[i] = a
			defer unix.Close(a.fd)
		}
		return wait(attempts, time.Now().Add(patience))
	})
	if err != nil {
		return nil, err
	}
	return k.outcomes(flows, attempts)
}

// nextPort returns a port that no flow has had for long. What the kernel chooses it
// chooses again as soon as a connect has failed.
func (k *kernel) nextPort() uint16 {
	if k.port++; k.port < 10_000 || k.port > 60_000 {
		k.port = 10_000
	}
	return k.port
}

// outcomes tells what became of the attempts by who has seen their SYNs.
func (k *kernel) outcomes(flows []flow, attempts []attempt) ([]capture.Outcome, error) {
	k.mu.Lock()
	asked, err := k.asked, k.err
	k.asked = make(map[syn]bool)
	k.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("queue: %w", err)
	}
	out, lo := k.left(k.out), k.left(k.lo)
	got := make([]capture.Outcome, len(flows))
	for i, a := range attempts {
		passed := out[a.syn]
		if flows[i].local {
			passed = lo[a.syn]
		}
		switch {
		case a.errno != unix.ECONNREFUSED, asked[a.syn] && passed, out[a.syn] && lo[a.syn]:
			return nil, fmt.Errorf("%s: %w; in the queue %t, on the wire %t, on lo %t",
				flows[i], a.errno, asked[a.syn], out[a.syn], lo[a.syn])
		case asked[a.syn]:
			got[i] = capture.Ask
		case passed:
			got[i] = capture.Pass
		default:
			got[i] = capture.Reset
		}
		delete(asked, a.syn)
		delete(out, a.syn)
		delete(lo, a.syn)
	}
	if len(asked)+len(out)+len(lo) > 0 {
		return nil, fmt.Errorf("nobody's SYNs: in the queue %v, on the wire %v, on lo %v", asked, out, lo)
	}
	return got, nil
}

// left returns the SYNs that have passed an interface since the last batch.
func (k *kernel) left(w *netns.Wire) map[syn]bool {
	packets := w.Packets(k.t, netns.NewConnections)
	seen := make(map[syn]bool)
	for _, p := range packets[k.seen[w]:] {
		seen[syn{p.Src.Port(), p.Dst}] = true
	}
	k.seen[w] = len(packets)
	return seen
}

// flows returns those of w's flows that the topology can carry, with some to the
// host itself among them.
func (k *kernel) flows(w *world, n int) []flow {
	rng := rand.New(rand.NewPCG(w.seed, 4))
	var flows []flow
	for len(flows) < n {
		for _, f := range w.randomFlows(rng, n) {
			switch rng.IntN(20) {
			case 0:
				f.Addr, f.local = pick(rng, k.client.Addr4, k.client.Addr6, netip.MustParseAddr("127.0.0.1"),
					netip.MustParseAddr("127.1.2.3"), netip.IPv6Loopback()), true
			case 1:
				f.Addr = linkLocal
			}
			f.uid = pick[uint32](rng, 0, 1000, 1001, 59_999)
			if (f.local || usable(f.Addr)) && f.Port != portDNS && len(flows) < n {
				flows = append(flows, f)
			}
		}
	}
	// Whom the capture does not take goes his way, unless it is to a pool, where
	// nobody goes.
	for i := range flows {
		pooled := slices.ContainsFunc(w.options.Pools, func(p netip.Prefix) bool { return p.Contains(flows[i].Addr) })
		if rng.IntN(10) == 0 && !pooled {
			flows[i].uid = pick[uint32](rng, 1, 999, 60_000)
		}
	}
	return flows
}

// portDNS is the resolver's, whatever the rules are.
const portDNS = 53

// usable tells whether the client has a way to addr and the server answers for it.
// Nobody answers on the network between them but the two.
func usable(addr netip.Addr) bool {
	if addr.IsLinkLocalUnicast() {
		return addr.Zone() != ""
	}
	for _, p := range []string{"0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/3", "10.99.1.0/24", "::/96", "::ffff:0:0/96", "fe80::/10", "fd99:1::/64", "ff00::/8"} {
		if netip.MustParsePrefix(p).Contains(addr) {
			return false
		}
	}
	return true
}

// captured tells whether w's capture takes a flow at all.
func (w *world) captured(f flow) bool {
	return slices.ContainsFunc(w.options.Users, func(r capture.UIDRange) bool { return r.Lo <= f.uid && f.uid <= r.Hi })
}

// try sends flows through the kernel with the compiled rules of w, and returns what
// became of them.
func (k *kernel) try(w *world, flows []flow) ([]capture.Outcome, error) {
	if err := k.load(w.spec); err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	return k.connect(flows)
}

// wrong returns what is wrong with what the kernel made of a flow, "" where nothing
// is: it has to decide as the rules do, and to ask no more than the Spec says.
func (w *world) wrong(f flow, got capture.Outcome) string {
	if !w.captured(f) {
		if got != capture.Pass {
			return fmt.Sprintf("%s: %v, but is not captured", f, got)
		}
		return ""
	}
	if wrong := w.verify(f, got); wrong != "" {
		return wrong
	}
	if meant := interpret(w.spec, f); got != meant {
		return fmt.Sprintf("%s: %v, but the compiled rules mean %v", f, got, meant)
	}
	return ""
}

const (
	ruleSets   = 250
	flowsOfSet = 50
)

// TestKernel sends flows through a kernel that has the compiled rules, and holds
// what becomes of each to Decide.
func TestKernel(t *testing.T) {
	first, count := seeds(ruleSets, 40)
	for ; count > 0; count -= min(count, ruleSets) {
		from, to := first, first+min(count, ruleSets)
		first = to
		t.Run(fmt.Sprintf("%d-%d", from, to-1), func(t *testing.T) { testKernel(t, from, to) })
	}
}

func testKernel(t *testing.T, from, to uint64) {
	k := newKernel(t)
	begun := time.Now()
	var became [3]int
	six := 0
	for seed := from; seed < to && !t.Failed(); seed++ {
		w := randomWorld(seed)
		flows := k.flows(w, flowsOfSet)
		got, err := k.try(w, flows)
		if err != nil {
			t.Fatalf("-seed=%d: %v\n%s", seed, err, w)
		}
		for i, f := range flows {
			became[got[i]]++
			if f.Addr.Is6() {
				six++
			}
			if wrong := w.wrong(f, got[i]); wrong != "" {
				w.report(t, wrong, func(w *world) bool {
					got, err := k.try(w, flows[i:i+1])
					return err != nil || w.wrong(f, got[0]) != ""
				})
				break
			}
		}
	}
	all := int(to-from) * flowsOfSet
	t.Logf("%d flows in %v, %d of IPv6: %d passed, %d reset, %d asked about", all, time.Since(begun).Round(time.Millisecond),
		six, became[capture.Pass], became[capture.Reset], became[capture.Ask])
	if *oneSeed < 0 && (min(became[0], became[1], became[2]) < all/10 || six < all/4) {
		t.Error("the test has lost its grip")
	}
}

// TestKernelControl shows that TestKernel finds compiled rules that are wrong:
// those, of each kind of mistake, that the flows can find at all.
func TestKernelControl(t *testing.T) {
	k := newKernel(t)
	const each = 5
	tried := make(map[string]int)
	for seed := uint64(0); seed < 5_000; seed++ {
		w := randomWorld(seed)
		how := mutate(rand.New(rand.NewPCG(seed, 5)), &w.spec)
		if how == "" || tried[how] == each {
			continue
		}
		flows := k.flows(w, flowsOfSet)
		if !slices.ContainsFunc(flows, func(f flow) bool { return w.captured(f) && w.verify(f, interpret(w.spec, f)) != "" }) {
			continue
		}
		tried[how]++
		got, err := k.try(w, flows)
		if err != nil {
			t.Fatalf("-seed=%d, %s: %v\n%s", seed, how, err, w)
		}
		found := false
		for i, f := range flows {
			found = found || w.captured(f) && w.verify(f, got[i]) != ""
		}
		if !found {
			t.Errorf("-seed=%d: %s, and no flow shows it\n%s", seed, how, w)
		}
	}
	if len(tried) != mistakes {
		t.Errorf("tried %v, of %d kinds of mistakes", tried, mistakes)
	}
	for how, n := range tried {
		if n < each {
			t.Errorf("%s: tried %d times, want %d", how, n, each)
		}
	}
}
