package leak

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/capture/leak/ways"
)

// Verdict is what became of a probe.
type Verdict string

// The verdicts. The zero one is none of them.
const (
	Held        Verdict = "held"         // caught, as a program's flow is that the rules judge
	RefusedHere Verdict = "refused"      // nothing came out
	Leaked      Verdict = "LEAK"         // it came out in clear
	NotPossible Verdict = "not possible" // it does not arrive here without a capture either
)

// Finding is a probe with its verdict.
type Finding struct {
	Probe   string  `json:"probe"`
	What    string  `json:"what"`
	Class   Class   `json:"class"`
	Verdict Verdict `json:"verdict"`
	Detail  string  `json:"detail"`         // what was seen
	Cure    string  `json:"cure,omitempty"` // of a leak
}

// Doer makes probes somewhere: inside a capture, or, as ways.Do does, here.
type Doer func(context.Context, ways.Request) (ways.Result, error)

// How long a sink is watched. What arrives at all arrives within the call that sends, but
// for what a broker relays.
const (
	controlWait = time.Second
	probeWait   = 300 * time.Millisecond
)

// Bequest is a socket that the process inside is to inherit, and its sink.
type Bequest struct {
	Probe string
	File  *os.File // the caller hands it on as a descriptor of that process
	FD    int      // its number there; the caller's to set

	sink *sink
}

// Bequeath makes the sockets for those of the probes that are about inherited ones. The
// caller closes them.
func Bequeath(f Field, probes []Probe) (list []*Bequest, err error) {
	for _, p := range probes {
		if p.Class != Inherited {
			continue
		}
		b := &Bequest{Probe: p.Name}
		if b.sink, err = p.sink(f); err == nil {
			b.File, err = b.sink.file, nil
			if b.File == nil {
				b.File, err = udpSocket()
			}
		}
		if err != nil {
			for _, b := range append(list, b) {
				b.Close()
			}
			return nil, fmt.Errorf("probe %s: %w", p.Name, err)
		}
		list = append(list, b)
	}
	return list, nil
}

// Close closes the socket and its sink.
func (b *Bequest) Close() {
	if b.File != nil {
		b.File.Close()
	}
	if b.sink != nil {
		b.sink.close()
	}
}

func udpSocket() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	return os.NewFile(uintptr(fd), "udp"), nil
}

// Run makes the probes one after the other, each here, where it has to arrive, and then
// inside, and calls found for each in their order. bequests are for those of Inherited. An
// error means that the process inside does not answer any more, or is ctx's.
func Run(ctx context.Context, f Field, probes []Probe, inside Doer, bequests []*Bequest, found func(Finding)) error {
	// What was sent is watched for while the next probes are made.
	var made []*attempt
	defer func() {
		for _, a := range made {
			a.close()
		}
	}()
	for _, p := range probes {
		a, err := p.begin(ctx, f, inside, bequests)
		if err != nil {
			return fmt.Errorf("probe %s: %w", p.Name, err)
		}
		made = append(made, a)
		for len(made) > 0 && time.Now().After(made[0].until) {
			found(made[0].finish())
			made = made[1:]
		}
	}
	for ; len(made) > 0; made = made[1:] {
		found(made[0].finish())
	}
	return ctx.Err()
}

// attempt is a probe that was made inside.
type attempt struct {
	finding Finding // with a verdict already where none was made
	probe   Probe
	result  ways.Result
	sink    *sink // nil: the result says it all
	until   time.Time
}

func (a *attempt) close() {
	if a.sink != nil {
		a.sink.close()
	}
}

// finish waits as long as it takes, and judges.
func (a *attempt) finish() Finding {
	defer a.close()
	if a.finding.Verdict != "" {
		return a.finding
	}
	came := ""
	if a.sink != nil {
		came = a.sink.wait(time.Until(a.until))
	}
	a.finding.Verdict, a.finding.Detail = a.probe.judge(came, a.result)
	if a.finding.Verdict == Leaked {
		a.finding.Cure = cmp.Or(a.probe.Cure, "the capture does not hold: look for rules of others with ssh-broker-ctl doctor")
	}
	return a.finding
}

func (p Probe) begin(ctx context.Context, f Field, inside Doer, bequests []*Bequest) (*attempt, error) {
	a := &attempt{probe: p, finding: Finding{Probe: p.Name, What: p.What, Class: p.Class}}
	notPossible := func(format string, args ...any) (*attempt, error) {
		a.finding.Verdict, a.finding.Detail = NotPossible, fmt.Sprintf(format, args...)
		return a, nil
	}
	addr, group, why := p.target(f)
	if why != "" {
		return notPossible("%s", why)
	}
	r := ways.Request{Probe: p.Name, To: netip.AddrPortFrom(addr, 0), Group: group, Device: f.Device, Index: f.Index, DeviceV4: f.DeviceV4}
	if p.Class == Inherited { // its control is that the socket was made
		i := slices.IndexFunc(bequests, func(b *Bequest) bool { return b.Probe == p.Name })
		if i < 0 {
			return notPossible("nothing was handed on")
		}
		a.sink, r.FD = bequests[i].sink, bequests[i].FD
		return a, a.make(ctx, r, inside, probeWait)
	}
	control := &attempt{probe: p}
	var err error
	if control.sink, err = p.open(f); err != nil {
		return notPossible("it cannot be watched for here: %v", reason(err))
	}
	defer control.close()
	here := func(_ context.Context, r ways.Request) (ways.Result, error) { return ways.Do(r), nil }
	if err := control.make(ctx, r, here, controlWait); err != nil {
		return nil, err
	}
	if !control.arrives() {
		return notPossible("without a capture: %s", control.result.Describe("nothing arrived"))
	}
	if a.sink, err = p.open(f); err != nil {
		return notPossible("it cannot be watched for here: %v", reason(err))
	}
	return a, a.make(ctx, r, inside, probeWait)
}

// arrives says whether the probe is known to get out where nothing holds it.
func (a *attempt) arrives() bool {
	switch {
	case a.probe.answered(): // nobody is where it is sent, so whatever happened is not the capture's doing
		return !a.result.Caught
	case a.sink == nil:
		return a.result.Outside
	}
	return a.sink.wait(time.Until(a.until)) != ""
}

// make makes the probe, and has its sink watched for that long.
func (a *attempt) make(ctx context.Context, r ways.Request, do Doer, wait time.Duration) (err error) {
	if r.Token = newToken(); a.sink != nil {
		r.Token = a.sink.token
		r.To = netip.AddrPortFrom(r.To.Addr(), a.sink.port) // 0 of protocols without ports
	}
	a.result, err = do(ctx, r)
	if a.result.Errno != 0 { // it may have come all the same: a reset after data, say
		wait = min(wait, probeWait)
	}
	a.until = time.Now().Add(wait)
	if err != nil {
		a.close()
	}
	return err
}

func reason(err error) error {
	if sys := (*os.SyscallError)(nil); errors.As(err, &sys) && sys.Err == unix.EPERM {
		return errors.New("that takes CAP_NET_RAW")
	}
	return err
}

func (p Probe) open(f Field) (*sink, error) {
	if p.sink == nil {
		return nil, nil
	}
	return p.sink(f)
}

func (p Probe) judge(came string, res ways.Result) (Verdict, string) {
	switch {
	case came != "":
		return Leaked, "it came out in clear: " + came
	case res.Outside:
		return Leaked, res.Text
	case res.Caught:
		return Held, res.Text
	case p.answered() && res.Errno == unix.ECONNREFUSED:
		return Leaked, "it went to the host's own address, where nobody listens: " + res.Describe("")
	case p.Class == TCP && (res.Errno == unix.EHOSTUNREACH || res.Errno == unix.ETIMEDOUT):
		return Held, "caught, and its tunnel is down: " + res.Describe("")
	case p.Class == TCP && res.Errno == 0:
		return Held, "nothing came out; " + res.Describe("no call failed")
	}
	return RefusedHere, res.Describe("nothing came out")
}
