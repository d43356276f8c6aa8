package daemon

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"sshbroker/broker/control"
	"sshbroker/capture"
	"sshbroker/capture/capturetest"
	"sshbroker/capture/service"
)

const (
	direct = `<rule ip-address="203.0.113.0/24" action="DIRECT"/>`
	block  = `<rule ip-address="198.51.100.0/24" action="BLOCK"/>`
	tunnel = `<rule action="TUNNEL" profile-id="gw"/>`
	name   = `<rule host="db\.example" pseudo-ip="yes" action="TUNNEL" profile-id="gw"/>`
)

func cgroupArgs() control.CaptureArgs {
	return control.CaptureArgs{ID: "abcd", Backend: control.BackendCgroup}
}

// A capture by cgroup is served, follows reloads, and ends with its last process.
func TestCgroupCapture(t *testing.T) {
	b := begin(t, "", direct+tunnel, nil)
	c := b.capture(cgroupArgs())
	s := b.captured.source(t, "abcd")
	if row := within(t, c.rows); !row.Serving || !row.Held {
		t.Errorf("told %+v", row)
	}
	want := capture.Spec{Pools: prefixes("198.18.0.0/15"), Rest: capture.Ask, RefuseUDP: true,
		Rules: []capture.SpecRule{{Prefixes: prefixes("203.0.113.0/24"), Outcome: capture.Pass, Number: 1}}}
	if !reflect.DeepEqual(s.options.Spec, want) {
		t.Errorf("spec %+v\nwant %+v", s.options.Spec, want)
	}

	// What the queue has asked about is left to the kernel all the same.
	passed := capturetest.NewAttempt("203.0.113.7:23")
	passed.CanPass = true
	s.Offer(passed)
	if got := passed.Outcome(); !got.Passed {
		t.Errorf("outcome %+v", got)
	}
	old := capturetest.NewAttempt("192.0.2.7:23")
	s.Offer(old)
	if !old.Outcome().Admitted {
		t.Fatal("not admitted")
	}

	b.rules("", block)
	if r, err := one[control.ReloadResult](b, control.OpReload, nil); err != nil || len(r.Warnings) > 0 {
		t.Errorf("reload: %+v, %v", r, err)
	}
	want = capture.Spec{Pools: want.Pools, Rest: capture.Pass, Open: true,
		Rules: []capture.SpecRule{{Prefixes: prefixes("198.51.100.0/24"), Outcome: capture.Reset, Number: 1}}}
	if got := within(t, s.specs); !reflect.DeepEqual(got, want) {
		t.Errorf("spec after the reload %+v\nwant %+v", got, want)
	}
	refused := capturetest.NewAttempt("198.51.100.7:23")
	s.Offer(refused)
	if got := refused.Outcome(); got.Refusal != capture.Refused {
		t.Errorf("outcome %+v", got)
	}
	b.records(2) // the refusal's is written after it
	talk(t, old)
	for i, want := range []string{"passed", "blocked", "carried"} {
		if r := b.records(3)[i]; r["reason"] != want || r["backend"] != "cgroup" || r["capture"] != "abcd" {
			t.Errorf("record %d: %v", i, r)
		}
	}

	journal := filepath.Join(b.dir, "ssh-broker-names-abcd-cgroup")
	if _, err := os.Stat(journal); err != nil {
		t.Error(err)
	}
	s.end(service.CodeEnded)
	select {
	case err := <-c.done:
		t.Fatalf("the client was sent away before it has seen the end: %v", err)
	default:
	}
	if row, err := one[control.StatusRow](b, control.OpStatus, nil); err != nil || row.Captures != 1 || row.Captured == nil || !row.Captured.Connected || !row.Captured.Origins {
		t.Errorf("status %+v, %v", row, err)
	}
	c.conn.Close()
	eventually(t, "the end of the capture", func() bool {
		row, err := one[control.StatusRow](b, control.OpStatus, nil)
		return err == nil && row.Captures == 0
	})
	if _, err := os.Stat(journal); !os.IsNotExist(err) {
		t.Errorf("the journal is left: %v", err)
	}
}

// The client of a capture that was opened by --release is told so.
func TestReleased(t *testing.T) {
	b := begin(t, "", tunnel, nil)
	c := b.capture(cgroupArgs())
	s := b.captured.source(t, "abcd")
	within(t, c.rows)
	s.end(service.CodeReleased)
	if row := within(t, c.rows); row.Event == nil || !strings.Contains(row.Event.Text, "open everything") {
		t.Errorf("told %+v", row)
	}
}

// A capture that another broker takes away ends here, and its names stay for that one.
func TestTakenAway(t *testing.T) {
	b := begin(t, "", tunnel, nil)
	c := b.capture(cgroupArgs())
	s := b.captured.source(t, "abcd")
	within(t, c.rows)
	s.end(service.CodeBusy)
	if err := within(t, c.done); err == nil {
		t.Error("its client was told that all is well")
	}
	if _, err := os.Stat(filepath.Join(b.dir, "ssh-broker-names-abcd-cgroup")); err != nil {
		t.Error(err)
	}
}

func TestCgroupRefused(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*bench)
		args   control.CaptureArgs
		want   string
		hint   string
	}{
		{"ssh-captured does not run", func(b *bench) { b.captured.set(true) }, cgroupArgs(), "not running", "systemctl start"},
		{"another user's", func(b *bench) { b.captured.served.Owner++ }, cgroupArgs(), "and this broker is uid", ""},
		{"unknown backend", func(*bench) {}, control.CaptureArgs{ID: "abcd", Backend: "ptrace"}, `capture backend "ptrace"`, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := prepare(t, "", tunnel)
			c.change(b)
			if err := b.start(nil); err != nil {
				t.Fatal(err)
			}
			err := within(t, b.capture(c.args).done)
			var answer *control.Error
			if !errors.As(err, &answer) || !strings.Contains(answer.Message, c.want) || !strings.Contains(answer.Hint, c.hint) {
				t.Errorf("refused with %v", err)
			}
		})
	}
}

// What the kernel is told depends on the rules, on the options of the capture, and on
// whether records are required.
func TestSpecs(t *testing.T) {
	for _, c := range []struct {
		name   string
		attrs  string
		rules  string
		own    string // of the capture's own file; "": none
		change func(*control.CaptureArgs)
		audit  bool
		check  func(capture.Spec) bool
	}{
		{"closed by the rules", "", tunnel, "", nil, false, func(s capture.Spec) bool { return !s.Open }},
		{"open by the rules", "", direct, "", nil, false, func(s capture.Spec) bool { return s.Open }},
		{"closed by the file", `crash-policy="closed"`, direct, "", nil, false, func(s capture.Spec) bool { return !s.Open }},
		{"open by the file", `crash-policy="open"`, tunnel, "", nil, false, func(s capture.Spec) bool { return s.Open }},
		{"local", "", direct, "", func(a *control.CaptureArgs) { a.Localhost = true }, false, func(s capture.Spec) bool { return s.Local }},
		{"not local", "", direct, "", nil, false, func(s capture.Spec) bool { return !s.Local }},
		{"UDP as the rules are", "", direct, "", nil, false, func(s capture.Spec) bool { return !s.RefuseUDP }},
		{"UDP refused", "", tunnel, "", nil, false, func(s capture.Spec) bool { return s.RefuseUDP }},
		{"UDP allowed", "", tunnel, "", func(a *control.CaptureArgs) { a.UDPDirect = true }, false, func(s capture.Spec) bool { return !s.RefuseUDP }},
		{"audit required", `crash-policy="open"`, direct + block, "", nil, true, func(s capture.Spec) bool {
			return len(s.Rules) == 0 && s.Rest == capture.Ask && !s.Open && len(s.Pools) == 1
		}},
		{"own rules", "", direct, direct + block, nil, false, func(s capture.Spec) bool {
			return len(s.Rules) == 2 && s.Rules[0].Outcome == capture.Pass && s.Rules[1].Outcome == capture.Reset && s.Rest == capture.Pass
		}},
		{"own rules under common ones that block", "", block, direct, nil, false, func(s capture.Spec) bool {
			return s.Rest == capture.Ask && !hasOutcome(s, capture.Pass)
		}},
		{"own crash policy", `crash-policy="closed"`, direct, direct, nil, false, func(s capture.Spec) bool { return s.Open }},
		{"--via", "", direct, "", func(a *control.CaptureArgs) { a.Via = "me@192.0.2.9" }, false, func(s capture.Spec) bool {
			return len(s.Rules) == 0 && s.Rest == capture.Ask && s.RefuseUDP && !s.Open
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := begin(t, c.attrs, c.rules, func(o *Options) {
				if c.audit {
					o.AuditPath = ""
				}
			})
			args := cgroupArgs()
			if c.change != nil {
				c.change(&args)
			}
			if c.own != "" {
				args.ConfigFile = filepath.Join(b.dir, "own.xml")
				common := b.file
				b.file = args.ConfigFile
				b.rules("", c.own)
				b.file = common
			}
			client := b.capture(args)
			select {
			case s := <-b.captured.sources:
				for s.options.Capture != "abcd" {
					s = within(t, b.captured.sources)
				}
				if !c.check(s.options.Spec) {
					t.Errorf("spec %+v", s.options.Spec)
				}
			case err := <-client.done:
				t.Fatal(err)
			}
		})
	}
}

func hasOutcome(s capture.Spec, o capture.Outcome) bool {
	for _, r := range s.Rules {
		if r.Outcome == o {
			return true
		}
	}
	return false
}

// A reload counts for a capture with rules of its own, where the common ones block now.
func TestOwnRulesFollowCommonBlocks(t *testing.T) {
	b := begin(t, "", direct, nil)
	args := cgroupArgs()
	args.ConfigFile = filepath.Join(b.dir, "own.xml")
	if err := os.WriteFile(args.ConfigFile, []byte(`<secsh-broker><filter-engine>`+direct+`</filter-engine></secsh-broker>`), 0o600); err != nil {
		t.Fatal(err)
	}
	c := b.capture(args)
	s := b.captured.source(t, "abcd")
	within(t, c.rows)
	if s.options.Spec.Rest != capture.Pass {
		t.Errorf("spec %+v", s.options.Spec)
	}
	b.rules("", block)
	if _, err := b.Reload(); err != nil {
		t.Fatal(err)
	}
	if got := within(t, s.specs); got.Rest != capture.Ask || hasOutcome(got, capture.Pass) {
		t.Errorf("spec %+v", got)
	}
}

// Where the kernel cannot be told, the reload says so.
func TestReloadWarnsOfTheKernel(t *testing.T) {
	b := begin(t, "", direct, nil)
	c := b.capture(cgroupArgs())
	s := b.captured.source(t, "abcd")
	within(t, c.rows)
	s.mu.Lock()
	s.specErr = errors.New("no memory")
	s.mu.Unlock()
	b.rules("", block)
	r, err := b.Reload()
	if err != nil || len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], "no memory") {
		t.Errorf("reload: %+v, %v", r, err)
	}
}

// Name queries are answered on the sockets that came, and on others that come later.
func TestCgroupNames(t *testing.T) {
	b := begin(t, "", name+tunnel, nil)
	c := b.capture(cgroupArgs())
	s := b.captured.source(t, "abcd")
	within(t, c.rows)
	for range 2 {
		p, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		at := p.LocalAddr().String()
		s.options.Names(s.Served(), []net.PacketConn{p}, nil)
		addr := query(t, at, "db.example.")
		if !prefixes("198.18.0.0/15")[0].Contains(addr) {
			t.Errorf("answered %v", addr)
		}
		a := capturetest.NewAttempt(addr.String() + ":5432")
		s.Offer(a)
		if !a.Outcome().Admitted {
			t.Fatal("not admitted")
		}
		talk(t, a)
	}
	for _, r := range b.records(2) {
		if r["name"] != "db.example" || r["target"] != "db.example:5432" {
			t.Errorf("recorded %v", r)
		}
	}
}

// Journals stay as long as ssh-captured knows the capture, or cannot be asked.
func TestSweepOfCgroups(t *testing.T) {
	b := prepare(t, "", tunnel)
	for _, id := range []string{"live", "dead"} {
		if err := os.WriteFile(filepath.Join(b.dir, "ssh-broker-names-"+id+"-cgroup"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b.captured.known = []service.Capture{{ID: "live"}}
	left := func(id string) bool {
		_, err := os.Stat(filepath.Join(b.dir, "ssh-broker-names-"+id+"-cgroup"))
		return err == nil
	}
	b.captured.set(true)
	if err := b.start(nil); err != nil {
		t.Fatal(err)
	}
	b.sweep()
	if !left("live") || !left("dead") {
		t.Error("a journal is gone though nobody was asked")
	}
	b.captured.set(false)
	b.sweep()
	if !left("live") || left("dead") {
		t.Errorf("left: live %v, dead %v", left("live"), left("dead"))
	}
}
