package doctor

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"sshbroker/broker/config"
	"sshbroker/broker/control"
	"sshbroker/broker/trial"
	"sshbroker/capture/probe"
	"sshbroker/capture/service"
	"sshbroker/capture/service/client"
	"sshbroker/profiles"
)

// Status is how a check came out.
type Status string

// The statuses. The zero one is none of them.
const (
	OK      Status = "ok"
	Warning Status = "warning"
	Failed  Status = "FAILED"
	Unknown Status = "unknown" // Text says why
	Skipped Status = "skipped" // Text says why it does not matter here
)

// Result is what a check has found. One check may have several.
type Result struct {
	Group  string `json:"group"`
	Check  string `json:"check"`
	Status Status `json:"status"`
	Text   string `json:"text"`
	Cure   string `json:"cure,omitempty"` // of a Warning or a Failed one
}

// Env is where the doctor looks. All that is not said to be optional is required.
type Env struct {
	Programs trial.Programs
	Connect  []string       // the command that calls trial.ConnectInside
	Config   config.Options // as the broker would load it
	System   bool           // it is about the broker of the whole system

	Address  string // of the broker's socket
	AnyOwner bool   // Address was given by a person
	Captured string // of ssh-captured's socket; "": where it usually is
	Program  string // name and version of the caller, for ssh-captured
	Version  string // of the programs

	Now   func() time.Time // nil: time.Now
	Built time.Time        // when the program was made, at the latest; zero: not known
	Sys   string           // "": /proc/sys

	// Server asks the server of a profile for the certificate of its host key, nil for one
	// without; nil: no server is contacted.
	Server func(context.Context, *profiles.Profile) (*profiles.CertificateInfo, error)
}

// Check is one of the things that are looked at.
type Check struct {
	Group, Name string
	What        string // for people, before the result is there
	limit       time.Duration
	do          func(*visit, context.Context) []Result
}

// Checks are all of them, in the order in which they are made.
func Checks() []Check {
	const quick, slow = 5 * time.Second, 30 * time.Second
	return []Check{
		{"kernel", "namespaces", "make a network as for a capture", slow, (*visit).namespaces},
		{"kernel", "packet-queue", "load a rule that holds connections", slow, (*visit).packetQueue},
		{"kernel", "table-owner", "load a table that belongs to a socket", slow, (*visit).tableOwner},
		{"kernel", "cgroups", "load a rule that tells cgroups", slow, (*visit).cgroups},

		{"in force", "configuration", "load the configuration", quick, (*visit).configuration},
		{"in force", "broker", "ask the broker", quick, (*visit).broker},
		{"in force", "ssh-captured", "ask ssh-captured", quick, (*visit).sshCaptured},

		{"conflicts", "foreign-rules", "read the rules of others", quick, (*visit).foreignRules},
		{"conflicts", "routing-marks", "read the routing policies", quick, (*visit).routingMarks},
		{"conflicts", "reverse-path", "read the reverse path filters", quick, (*visit).reversePath},
		{"conflicts", "tracking", "count tracked connections", quick, (*visit).tracking},

		{"connections", "namespace", "connect in a capture by namespace", slow, (*visit).connectNamespace},
		{"connections", "cgroup", "connect in a capture by cgroup", slow, (*visit).connectCgroup},

		{"host", "clock", "look at the clock", quick, (*visit).clock},
		{"host", "files", "look at files and their modes", quick, (*visit).files},
		{"host", "keys", "read the private keys", quick, (*visit).keys},
		{"host", "certificates", "look for certificates that expire", slow, (*visit).certificates},

		{"servers", "servers", "ask the servers for their host keys", time.Minute, (*visit).servers},
	}
}

// Run makes the checks one after the other. begin is called before each, found for each
// result. It returns ctx's error if that has ended.
func Run(ctx context.Context, env Env, checks []Check, begin func(Check), found func(Result)) error {
	if env.Now == nil {
		env.Now = time.Now
	}
	if env.Sys == "" {
		env.Sys = "/proc/sys"
	}
	v := &visit{Env: env}
	for _, c := range checks {
		begin(c)
		for _, r := range v.make(ctx, c) {
			r.Group, r.Check = c.Group, c.Name
			found(r)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}

var errTakesTooLong = errors.New("it takes too long")

// make waits for a check as long as that may take: a file system that hangs cannot be
// interrupted.
func (v *visit) make(ctx context.Context, c Check) []Result {
	ctx, cancel := context.WithTimeoutCause(ctx, c.limit, errTakesTooLong)
	defer cancel()
	done := make(chan []Result, 1)
	go func() { done <- c.do(v, ctx) }()
	const after = 6 * time.Second // for what heeds ctx to end, and to clean up (broker/trial)
	select {
	case results := <-done:
		return results
	case <-ctx.Done():
	}
	select {
	case results := <-done:
		return results
	case <-time.After(after):
		return unknown("to %s has taken more than %v", c.What, c.limit)
	}
}

// visit is one run. What several checks need is found out once.
type visit struct {
	Env

	once struct{ report, status, config sync.Once }

	report    probe.Report
	reportErr error
	status    *service.Status // nil: ssh-captured does not run
	statusErr error
	loaded    *config.Config
	loadErr   error
}

func (v *visit) kernel(ctx context.Context) (probe.Report, error) {
	v.once.report.Do(func() { v.report, v.reportErr = probe.Ask(ctx, v.Programs.Capture) })
	return v.report, v.reportErr
}

// captured is the status of ssh-captured, nil where that does not run.
func (v *visit) captured(ctx context.Context) (*service.Status, error) {
	v.once.status.Do(func() {
		c, err := client.Dial(ctx, v.Captured, v.Program)
		if errors.Is(err, client.ErrNotRunning) {
			return
		}
		if err == nil {
			defer c.Close()
			var s service.Status
			if s, err = c.Status(ctx); err == nil {
				v.status = &s
			}
		}
		v.statusErr = err
	})
	return v.status, v.statusErr
}

func (v *visit) configured() (*config.Config, error) {
	v.once.config.Do(func() { v.loaded, v.loadErr = config.Load(v.Config) })
	return v.loaded, v.loadErr
}

// dial connects to the broker.
func (v *visit) dial(ctx context.Context) (*control.Client, error) {
	return control.Dialer{Address: v.Address, AnyOwner: v.AnyOwner}.Dial(ctx)
}

// The results, where there is one.

func fine(format string, args ...any) []Result {
	return []Result{{Status: OK, Text: fmt.Sprintf(format, args...)}}
}

func skipped(format string, args ...any) []Result {
	return []Result{{Status: Skipped, Text: fmt.Sprintf(format, args...)}}
}

func unknown(format string, args ...any) []Result {
	return []Result{{Status: Unknown, Text: fmt.Sprintf("unknown, because "+format, args...)}}
}

func warning(cure, format string, args ...any) []Result {
	return []Result{{Status: Warning, Text: fmt.Sprintf(format, args...), Cure: cure}}
}

func failed(cure, format string, args ...any) []Result {
	return []Result{{Status: Failed, Text: fmt.Sprintf(format, args...), Cure: cure}}
}

// or are results, or that all is fine where there are none.
func or(results []Result, format string, args ...any) []Result {
	if len(results) > 0 {
		return results
	}
	return fine(format, args...)
}
