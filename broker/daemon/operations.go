package daemon

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"time"

	"sshbroker/broker/audit"
	"sshbroker/broker/control"
	"sshbroker/broker/eventlog"
	"sshbroker/broker/explain"
	"sshbroker/capture/service"
	"sshbroker/filter"
	"sshbroker/profiles"
)

// handle registers the operations.
func (d *Daemon) handle() {
	d.server.Handle(control.OpStatus, d.handleStatus)
	d.server.Handle(control.OpReload, d.handleReload)
	d.server.Handle(control.OpStop, d.handleStop)
	d.server.Handle(control.OpConnections, d.handleConnections)
	d.server.Handle(control.OpChannels, d.handleChannels)
	d.server.Handle(control.OpExplain, d.handleExplain)
	d.server.Handle(control.OpCapture, d.handleCapture)
	d.server.Handle(control.OpProfiles, d.handleProfiles)
	d.server.Handle(control.OpClients, d.handleClients)
	d.server.Handle(control.OpDisconnect, byID(d.server.Disconnect))
	d.server.Handle(control.OpCloseConnection, byID(d.pool.Cut))
	d.server.Handle(control.OpCloseChannel, byID(d.broker.Cut))
	d.server.Handle(control.OpConnect, d.handleConnect)
	d.server.Handle(control.OpListeners, d.handleListeners)
	d.server.Handle(control.OpOpenListener, d.handleOpenListener)
	d.server.Handle(control.OpCloseListener, d.handleCloseListener)
	d.server.Handle(control.OpServices, d.handleServices)
	d.server.Handle(control.OpDebug, d.handleDebug)
	d.server.Handle(control.OpListKeys, d.handleListKeys)
	d.server.Handle(control.OpAddKey, d.handleAddKey)
	d.server.Handle(control.OpRemoveKey, d.handleRemoveKey)
	d.server.Handle(control.OpPassphrase, d.handlePassphrase)
	d.server.Handle(control.OpProbeKey, d.handleProbeKey)
	d.server.Handle(control.OpAuthHandler, d.handleAuthHandler)
	d.server.Handle(control.OpMetrics, d.handleMetrics)
	d.server.Handle(control.OpStay, func(context.Context, *control.Call) error { d.Stay(); return nil })
}

func (d *Daemon) handleStatus(ctx context.Context, call *control.Call) error {
	var strangers uint64
	ssh := d.capturedStatus(ctx)
	generations := d.generations()
	d.mu.Lock()
	l, place, captures, mode, held := d.loaded, d.place, len(d.captures), control.ModeDaemon, true
	for _, s := range d.captures {
		held = held && s.backend.held()
		strangers += s.backend.strangers()
	}
	switch {
	case d.System:
		mode, held = control.ModeSystem, ssh.Held
		if ssh.Connected {
			captures = 1
		}
	case d.OnDemand:
		mode = control.ModeOnDemand
	}
	d.mu.Unlock()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	totals, written := d.broker.Totals(), d.Audit.Stats()
	placeError := ""
	if err := place.Err(); err != nil && len(l.networksBy(filter.Unknown)) > 0 {
		placeError = err.Error()
	}
	open, shut := d.ports.status()
	return call.Send(control.StatusRow{Listeners: open, ListenerErrors: shut, MetricsErrors: texts(d.exposer.Errors()),

		PID: os.Getpid(), Version: control.Version(), Since: d.since, Address: d.Listener.Address(), Mode: mode,
		ConfigFiles: l.files, Generation: l.policy.Generation, Warnings: l.warn,
		Generations: generations, Networks: l.networkStatus(), PlaceError: placeError,
		Captures: captures, Strangers: strangers, FlowsLive: totals.Live, FlowsTotal: totals.All, HeldSYN: held,
		Audit: auditStatus(d.AuditPath, written), Log: logStatus(d.Events.Stats()),
		Memory: m.Sys, Goroutines: runtime.NumGoroutine(), FDs: countDescriptors(), Captured: ssh,
		ConfigDigest: l.sum(),
	})
}

// generations are those in use. A capture uses that of its rules: of those in force, of
// its own since it began, or of older ones where the kernel could not be given newer.
func (d *Daemon) generations() []control.GenerationStatus {
	rows := map[int]control.GenerationStatus{}
	add := func(generation int, since time.Time, flows, captures int) {
		g := rows[generation]
		rows[generation] = control.GenerationStatus{Generation: generation, Since: since, Flows: g.Flows + flows, Captures: g.Captures + captures}
	}
	for _, g := range d.broker.Generations() {
		add(g.Generation, g.Since, g.Flows, 0)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	current := d.loaded.policy
	add(current.Generation, current.Since, 0, 0)
	for _, s := range d.captures {
		used := current
		if c, ok := s.backend.(*cgroup); ok {
			used = c.has.Load()
		} else if s.way.own != nil {
			used = s.way.own.policy
		}
		add(used.Generation, used.Since, 0, 1)
	}
	if d.system != nil {
		if used := d.system.uses(); used != nil {
			add(used.Generation, used.Since, 0, 1)
		}
	}
	return slices.SortedFunc(maps.Values(rows), func(a, b control.GenerationStatus) int { return cmp.Compare(a.Generation, b.Generation) })
}

// statusTime is how long ssh-captured may take to answer when somebody waits for us.
const statusTime = 2 * time.Second

// capturedStatus is nil where nothing is done through ssh-captured.
func (d *Daemon) capturedStatus(ctx context.Context) *control.CapturedStatus {
	ctx, cancel := context.WithTimeout(ctx, statusTime)
	defer cancel()
	now, uses, err := d.askCaptured(ctx)
	if !uses {
		return nil
	}
	row := &control.CapturedStatus{Connected: err == nil, Enabled: now.Enabled, Held: now.Held, Origins: now.Origins == originsBPF}
	if d.system != nil {
		row.Policy = now.Policy
	}
	if err != nil {
		row.Error = err.Error()
	}
	return row
}

// askCaptured asks ssh-captured how it does; uses is false where nothing is done through
// it. Its error says why it does not serve us.
func (d *Daemon) askCaptured(ctx context.Context) (now service.Status, uses bool, err error) {
	d.mu.Lock()
	uses = d.system != nil || d.carrier != nil
	for _, s := range d.captures {
		if _, ok := s.backend.(*cgroup); ok {
			uses = true
		}
	}
	d.mu.Unlock()
	if !uses {
		return now, false, nil
	}
	now, err = d.captured.status(ctx)
	if d.system != nil {
		if serr := d.system.failure(); serr != nil {
			err = serr
		}
	}
	return now, true, err
}

func texts(errs []error) []string {
	var list []string
	for _, err := range errs {
		list = append(list, err.Error())
	}
	return list
}

// originsBPF is service.Status.Origins where the process behind a connection is known
// without a search.
const originsBPF = "bpf"

func auditStatus(path string, s audit.Stats) control.AuditStatus {
	row := control.AuditStatus{Path: path, Written: s.Written, Pending: s.Pending, Failed: s.Lost}
	if s.Failing != nil {
		row.Error = s.Failing.Error()
	}
	return row
}

func logStatus(targets []eventlog.TargetStats) []control.LogTarget {
	rows := []control.LogTarget{}
	for _, t := range targets {
		row := control.LogTarget{Target: t.Target.String(), Written: t.Written, Pending: t.Pending, Lost: t.Lost}
		if t.Failing != nil {
			row.Error = t.Failing.Error()
		}
		rows = append(rows, row)
	}
	return rows
}

func countDescriptors() int {
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return -1
	}
	return len(names) - 1 // not the one that was open to read
}

func (d *Daemon) handleReload(_ context.Context, call *control.Call) error {
	r, err := d.Reload()
	if err != nil {
		return err
	}
	return call.Send(r)
}

func (d *Daemon) handleStop(_ context.Context, call *control.Call) error {
	var args control.StopArgs
	if err := call.Decode(&args); err != nil {
		return err
	}
	d.Stop(time.Duration(args.DrainMS) * time.Millisecond)
	return nil
}

func (d *Daemon) handleDebug(_ context.Context, call *control.Call) error {
	var args control.DebugArgs
	if err := call.Decode(&args); err != nil {
		return err
	}
	level, err := ParseLevel(args.Level)
	if err != nil {
		return &control.Error{Code: control.CodeBadRequest, Message: err.Error()}
	}
	if d.Level != nil {
		d.Level.Set(level)
	}
	return nil
}

func (d *Daemon) handleConnections(_ context.Context, call *control.Call) error {
	for _, c := range d.pool.List() {
		row := control.ConnectionRow{ID: c.ID, Profile: c.ProfileID, Number: c.Number, Bulk: c.Bulk, Server: c.Server, User: c.User, Via: c.Gateway,
			HostKey: c.Transport.HostKey, Cipher: c.Transport.Cipher,
			Version: c.Transport.ServerVersion, Expires: c.Transport.Expires, Note: c.Transport.Note, Since: c.Since, Channels: c.Streams,
			BytesUp: c.Transport.Sent, BytesDown: c.Transport.Received, State: wayState(c), LastError: c.LastError, RetryAt: c.RetryAt}
		if err := call.Send(row); err != nil {
			return err
		}
	}
	return nil
}

func wayState(c profiles.Info) string {
	switch {
	case c.Connected && c.Retired:
		return "retired"
	case c.Connected:
		return "connected"
	case c.Connecting:
		return "connecting"
	case time.Now().Before(c.RetryAt):
		return "resting"
	default:
		return "disconnected"
	}
}

func (d *Daemon) handleChannels(_ context.Context, call *control.Call) error {
	for _, f := range d.broker.Flows() {
		r := f.Record
		rule := "default"
		if r.Rule > 0 {
			rule = strconv.Itoa(r.Rule) + " (" + r.RuleSource + ")"
		}
		owner := ""
		if d.System {
			owner = r.User
		}
		row := control.ChannelRow{ID: f.ID, Owner: owner, Connection: f.Way, Capture: f.Capture, Program: r.Program, PID: r.PID,
			Src: r.Src.String(), Dst: r.Dst.String(), Name: r.Name, Rule: rule, Action: r.Action, Profile: r.Profile,
			Since: f.Since, BytesUp: uint64(f.Up), BytesDown: uint64(f.Down), State: f.State, Error: r.Error}
		if err := call.Send(row); err != nil {
			return err
		}
	}
	return nil
}

func (d *Daemon) handleExplain(_ context.Context, call *control.Call) error {
	var args control.ExplainArgs
	if err := call.Decode(&args); err != nil {
		return err
	}
	if args.Flow != 0 {
		return d.explainLive(call, args)
	}
	owner := account{name: args.User}
	switch {
	case d.System && args.User == "":
		owner = d.system.accounts.of(uint32(call.PeerUID()))
	case d.System:
		owner = accountNamed(args.User)
	case args.User == "" || args.User == d.account.name:
		owner = d.account
	}
	for _, row := range explain.Flow(d.broker.Policy(), args, owner.name, owner.groups) {
		if d.System && row.Result != nil {
			row.Result.Owner = owner.name
		}
		if err := call.Send(row); err != nil {
			return err
		}
	}
	return nil
}

// ParseLevel reads a debug level as -D takes it: 0-99, or module=level pairs of
// which the highest counts.
func ParseLevel(s string) (slog.Level, error) {
	n, err := debugLevel(s)
	switch {
	case err != nil:
		return 0, err
	case n >= 5:
		return slog.LevelDebug, nil
	case n >= 3:
		return slog.LevelInfo, nil
	case n >= 1:
		return slog.LevelWarn, nil
	default:
		return slog.LevelError, nil
	}
}
