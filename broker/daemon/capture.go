package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"sync/atomic"

	"sshbroker/broker"
	"sshbroker/broker/control"
	"sshbroker/broker/eventlog"
	"sshbroker/broker/names"
	"sshbroker/capture"
	"sshbroker/capture/netns"
	"sshbroker/filter"
	"sshbroker/profiles"
	"sshbroker/profiles/sshconf"
)

// served is one capture that this daemon serves.
type served struct {
	args    control.CaptureArgs
	way     way
	backend backend
	journal string
	names   *names.Names
	capture *broker.Capture
	policy  atomic.Pointer[broker.Policy] // way.own's
	events  chan control.CaptureEvent

	keepers int           // connected clients that look after it; guarded by Daemon.mu
	alone   chan struct{} // one token: keepers may have become 0
	done    chan struct{} // closed when it is served no more
	err     error         // why; read after done
}

// backend is how a capture was made, and how one knows that it is over.
type backend interface {
	capture.Source
	Close() error
	describe(*broker.Capture) // what the broker has to know of it
	held() bool               // connect() waits for the decision
	strangers() uint64
	answer(ctx context.Context, known *names.Names) // serves name queries, and what else goes round the broker, until ctx ends
	waitEmpty(ctx context.Context) error            // until no process is left
	over(err error) bool                            // err, of Next, says that the capture is no more
	empty() bool                                    // no process is left; false in doubt
}

// opening is a capture that is about to be served.
type opening struct {
	journal string
	open    func(ctx context.Context, s *served) (backend, error) // called once s knows its way and its names
	drop    func()                                                // in place of open
}

// validID keeps what a client calls its capture fit for file names and prompts.
var validID = regexp.MustCompile(`^[a-z0-9]{4,32}$`)

// handleCapture takes a capture and answers its client for as long as it lives. The
// client's going away is no reason to end: the capture ends with its last process.
func (d *Daemon) handleCapture(ctx context.Context, call *control.Call) error {
	var args control.CaptureArgs
	if err := call.Decode(&args); err != nil {
		return err
	}
	files := call.Files()
	if d.System {
		closeFiles(files)
		return &control.Error{Code: control.CodeForbidden, Message: "the broker of the whole host serves no captures of single programs",
			Hint: "ssh-capture starts a broker of your own where -a and " + control.EnvAddress + " name none"}
	}
	if !validID.MatchString(args.ID) {
		closeFiles(files)
		return &control.Error{Code: control.CodeBadRequest, Message: fmt.Sprintf("capture id %q", args.ID)}
	}
	s := d.attach(args.ID)
	if s != nil { // a new keeper of a capture that we serve
		closeFiles(files)
	} else {
		var err error
		if s, err = d.begin(ctx, call, args, files); err != nil {
			return err
		}
	}
	defer d.detach(s)

	row := control.CaptureRow{Serving: true, Held: s.backend.held()}
	row.Warnings = slices.Clone(s.way.warnings)
	if !row.Held {
		row.Warnings = append(row.Warnings, "this kernel has no packet queue (nfnetlink_queue): connect() succeeds before it is known whether the far side answers")
	}
	if err := d.Audit.Stats().Failing; err != nil {
		row.Warnings = append(row.Warnings, fmt.Sprintf("the audit record cannot be written, connections go unrecorded: %v", err))
	}
	if args.Takeover {
		row.Warnings = nil // they were told at the start
	}
	if err := call.Send(row); err != nil {
		return err
	}
	for {
		select {
		case e := <-s.events:
			if err := call.Send(control.CaptureRow{Event: &e}); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		case <-s.done:
			return s.err
		}
	}
}

// begin serves a capture that is new to this daemon. It owns files.
func (d *Daemon) begin(ctx context.Context, call *control.Call, args control.CaptureArgs, files []*os.File) (*served, error) {
	prepare := d.namespaceOpening
	switch args.Backend {
	case "":
	case control.BackendCgroup:
		prepare = d.cgroupOpening
	default:
		closeFiles(files)
		return nil, &control.Error{Code: control.CodeBadRequest, Message: fmt.Sprintf("capture backend %q", args.Backend)}
	}
	o, err := prepare(args, files)
	if err != nil {
		return nil, err
	}
	s := &served{args: args, journal: o.journal, keepers: 1, alone: make(chan struct{}, 1), done: make(chan struct{}),
		events: make(chan control.CaptureEvent, 256)}
	if s.way, err = d.wayOf(ctx, call, args, o.journal); err == nil {
		err = s.learnNames(d)
	}
	if err != nil {
		o.drop()
		return nil, err
	}
	d.mu.Lock()
	before := d.loaded
	d.mu.Unlock()
	if s.backend, err = o.open(ctx, s); err != nil {
		_ = s.names.Close()
		return nil, err
	}
	s.capture.Source = s.backend
	s.backend.describe(s.capture)

	d.mu.Lock()
	if s.needsRules() && !d.loaded.present { // a reload came between
		d.mu.Unlock()
		_ = s.backend.Close()
		_ = s.names.Close()
		return nil, noRules("")
	}
	d.captures[args.ID] = s
	d.reconsider()
	stale := s.at(d.place) || d.loaded != before
	if c, ok := s.backend.(*cgroup); ok && stale {
		d.capWG.Go(func() { d.told(s.args.ID, d.renew(s, c)) })
	}
	d.capWG.Go(func() { d.live(s) })
	d.mu.Unlock()
	d.Log.Info("capture served", "capture", args.ID, "backend", s.capture.Backend, "command", args.Command, "takeover", args.Takeover, "via", args.Via)
	d.tellCapture(eventlog.CaptureStarted, s, nil)
	return s, nil
}

// learnNames makes what the broker has to know of the capture's rules, and its names.
func (s *served) learnNames(d *Daemon) error {
	if err := netns.PoolIsFree(s.way.pool4, s.way.pool6); err != nil {
		return poolInUse(err)
	}
	s.capture = &broker.Capture{ID: s.args.ID, Localhost: s.args.Localhost, User: d.account.name, Groups: d.account.groups}
	inForce := d.broker.Policy
	if s.way.own != nil {
		s.policy.Store(s.way.own.policy)
		s.capture.Policy, inForce = s.policy.Load, s.policy.Load
	}
	if s.args.Debug >= 5 {
		s.capture.Event = func(text string) { s.tell(5, text) }
	}
	var trace func(string)
	if s.args.Debug >= 7 {
		trace = func(text string) { s.tell(7, text) }
	}
	var err error
	s.names, err = names.New(names.Config{
		Policy: namePolicy(inForce), AllPseudo: s.args.Via != "",
		Pool4: s.way.pool4, Pool6: s.way.pool6, Logger: d.Log, Journal: s.journal,
		HostsFile: hostsFile, ResolvFile: resolvFile, Trace: trace,
	})
	if err != nil {
		return err
	}
	s.capture.Names = s.names
	return nil
}

// Where the host's own names come from.
const (
	hostsFile  = "/etc/hosts"
	resolvFile = "/etc/resolv.conf"
)

func poolInUse(err error) error {
	return &control.Error{Code: control.CodeConfig, Message: err.Error(),
		Hint: "choose other addresses with ip-generate-start on the filter-engine element"}
}

// way is what decides about a capture's flows.
type way struct {
	own          *loaded // nil: the daemon's; guarded by Daemon.mu
	pool4, pool6 netip.Prefix
	warnings     []string
}

// wayOf finds the rules for a capture, and connects where --via says so.
func (d *Daemon) wayOf(ctx context.Context, call *control.Call, args control.CaptureArgs, journal string) (way, error) {
	d.mu.Lock()
	current := d.loaded
	d.mu.Unlock()
	pools := (*loaded).pools
	if args.Takeover {
		pools = func(l *loaded) (pool4, pool6 netip.Prefix) { return l.takenPools(journal) }
	}
	pool4, pool6 := pools(current)
	switch {
	case args.Via != "":
		own, warnings, err := d.viaWay(ctx, call, args, current)
		return way{own, pool4, pool6, warnings}, err
	case args.ConfigFile != "":
		o := d.Config
		o.File, o.GlobalFile = args.ConfigFile, ""
		l, err := d.loadFrom(o)
		if err != nil {
			return way{}, &control.Error{Code: control.CodeConfig, Message: "the rules cannot be used:\n" + err.Error(),
				Hint: "see all of it with ssh-broker-ctl check-config " + args.ConfigFile}
		}
		if !l.present && !args.AllowDirect {
			return way{}, noRules(args.ConfigFile)
		}
		l.policy.Generation, l.policy.Since = current.policy.Generation, current.policy.Since
		warnings := l.warnings()
		if len(l.logging.Targets)+len(l.logging.Rules) > 0 {
			warnings = append(warnings, args.ConfigFile+": its element logging is not acted on: that of the broker's own configuration is")
		}
		pool4, pool6 = pools(l)
		return way{l, pool4, pool6, warnings}, nil
	case !current.present && !args.AllowDirect:
		return way{}, noRules("")
	}
	return way{pool4: pool4, pool6: pool6, warnings: current.warnings()}, nil
}

// warnings are what a person should know who starts a capture by these rules.
func (l *loaded) warnings() []string {
	if l.present {
		return nil
	}
	return []string{"no filter rules exist: every connection goes out in clear (--allow-direct)"}
}

func noRules(file string) error {
	where := "in any configuration file"
	if file != "" {
		where = "in " + file
	}
	return &control.Error{Code: control.CodeConfig, Message: "there is no filter-engine " + where + ": everything would go out in clear",
		Hint: "ssh-capture --via [user@]host COMMAND needs no file;\n" +
			"~/.ssh2/ssh-broker-config.xml may start from ssh-broker-config-example-capture.xml;\n" +
			"--allow-direct runs COMMAND all the same"}
}

// viaWay makes the rule set of a capture that sends everything through one server,
// and connects there while the person at the terminal can still be asked.
func (d *Daemon) viaWay(ctx context.Context, call *control.Call, args control.CaptureArgs, current *loaded) (own *loaded, warnings []string, err error) {
	p, warnings, err := sshconf.Load(args.Via, sshconf.Options{Home: d.Home, User: d.account.name, UID: os.Getuid(),
		Getenv: func(name string) string {
			if name == "SSH_AUTH_SOCK" {
				return args.Agent // of whoever asks, not of whoever started this broker
			}
			return os.Getenv(name)
		}})
	if err != nil {
		return nil, nil, &control.Error{Code: control.CodeConfig, Message: fmt.Sprintf("--via %s: %v", args.Via, err)}
	}
	if !args.Takeover {
		if err := d.pool.Ready(ctx, p, toldPrompter{callPrompter{call}, d, args}); err != nil {
			return nil, nil, &control.Error{Code: control.CodeFailed, Message: fmt.Sprintf("--via %s: %v", args.Via, err)}
		}
	}
	rules, err := filter.NewSet(nil, filter.Tunnel)
	if err != nil {
		return nil, nil, err
	}
	policy := &broker.Policy{Generation: current.policy.Generation, Since: current.policy.Since, Rules: rules, Defaults: p}
	return &loaded{policy: policy, rules: rules, present: true}, warnings, nil
}

// callPrompter asks the person at a client.
type callPrompter struct{ call *control.Call }

func (c callPrompter) Ask(ctx context.Context, p profiles.Prompt) (string, error) {
	return c.call.Ask(ctx, control.Prompt{Text: p.Text, Secret: p.Secret, YesNo: p.YesNo})
}

// live is a capture's life in this daemon.
func (d *Daemon) live(s *served) {
	ctx, cancel := context.WithCancel(context.Background())
	stopped := context.AfterFunc(d.ctx, cancel)
	defer stopped()
	defer cancel()
	answering := make(chan struct{})
	go func() {
		defer close(answering)
		s.backend.answer(ctx, s.names)
	}()
	ended := make(chan error, 1)
	go func() { ended <- d.broker.Run(ctx, s.capture) }()
	empty := make(chan struct{})
	go func() {
		defer close(empty)
		d.waitEmpty(ctx, s)
	}()

	var err error
	finished := false
	select {
	case err = <-ended:
		if s.backend.over(err) {
			finished, err = true, nil
			<-empty // its client has noticed as well
		}
		cancel()
		<-empty
	case <-empty:
		finished = ctx.Err() == nil
		cancel()
		<-ended
	}
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	_ = s.backend.Close()
	<-answering
	_ = s.names.Close()
	// While a process is left, another broker may take the capture over.
	if finished || s.backend.empty() {
		_ = os.Remove(s.journal)
	}
	d.mu.Lock()
	delete(d.captures, s.args.ID)
	add(&d.counts.namespaces, s.backend)
	d.counts.namespaces.Waiting = 0
	d.reconsider()
	d.mu.Unlock()
	s.err = err
	close(s.done)
	d.Log.Info("capture ended", "capture", s.args.ID, "error", err)
	d.tellCapture(eventlog.CaptureEnded, s, err)
}

// waitEmpty returns when nobody looks after the capture and no process is left in it.
func (d *Daemon) waitEmpty(ctx context.Context, s *served) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.alone:
		}
		if err := s.backend.waitEmpty(ctx); err != nil {
			if ctx.Err() == nil {
				d.Log.Warn("capture", "capture", s.args.ID, "error", err)
			}
			continue
		}
		d.mu.Lock()
		kept := s.keepers > 0
		d.mu.Unlock()
		if !kept {
			return
		}
	}
}

// attach counts one more client that looks after a capture, if there is that capture.
func (d *Daemon) attach(id string) *served {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.captures[id]
	if s != nil {
		s.keepers++
	}
	return s
}

func (d *Daemon) detach(s *served) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s.keepers--
	select {
	case s.alone <- struct{}{}:
	default:
	}
}

// namePolicy has the rules in force for a capture say which names are pseudo.
type namePolicy func() *broker.Policy

func (p namePolicy) Pseudo(name string) bool { return p().Rules.Pseudo(name) }

// tell hands an event to whoever watches; one who does not read misses some.
func (s *served) tell(level int, text string) {
	select {
	case s.events <- control.CaptureEvent{Level: level, Text: text}:
	default:
	}
}

func directOnly() *filter.Set {
	s, err := filter.NewSet(nil, filter.Direct)
	if err != nil {
		panic(err) // an empty rule set is always valid
	}
	return s
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
