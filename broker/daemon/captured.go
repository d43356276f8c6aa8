package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"time"

	"sshbroker/broker/config"
	"sshbroker/broker/control"
	"sshbroker/broker/plan"
	"sshbroker/capture"
	"sshbroker/capture/service"
	"sshbroker/capture/service/client"
	"sshbroker/filter"
)

// answerTime is how long ssh-captured may take to answer one request.
const answerTime = 10 * time.Second

// maxSpec is how long a Spec may be, in bytes of JSON, to fit a message to ssh-captured: a
// socket of an ordinary user sends about 400 KiB at once (net.core.wmem_max).
const maxSpec = 300 << 10

// capturedSource is a capture that ssh-captured has made; *client.Source is one.
type capturedSource interface {
	capture.Source
	Served() service.Served
	SetSpec(ctx context.Context, spec capture.Spec) error
	Close() error
}

// captured is ssh-captured, as far as a broker has to do with it; see package client.
type captured struct {
	serve, carry func(ctx context.Context, o client.Options) (capturedSource, error)
	status       func(ctx context.Context) (service.Status, error)
}

func dialed(at client.Dialer) captured {
	return captured{
		serve: func(ctx context.Context, o client.Options) (capturedSource, error) {
			o.Dialer = at
			return sourceOr(client.Serve(ctx, o))
		},
		carry: func(ctx context.Context, o client.Options) (capturedSource, error) {
			o.Dialer = at
			return sourceOr(client.Carry(ctx, o))
		},
		status: func(ctx context.Context) (service.Status, error) {
			c, err := at.Dial(ctx)
			if err != nil {
				return service.Status{}, err
			}
			defer c.Close()
			return c.Status(ctx)
		},
	}
}

// sourceOr keeps a nil pointer from being an interface that is not nil.
func sourceOr(s *client.Source, err error) (capturedSource, error) {
	if err != nil {
		return nil, err
	}
	return s, nil
}

// forClient is an error of ssh-captured for whoever asked the broker.
func forClient(err error) error {
	var refused *service.Error
	switch {
	case errors.Is(err, client.ErrNotRunning):
		return &control.Error{Code: control.CodeFailed, Message: err.Error(),
			Hint: "as root: systemctl start ssh-captured; or capture with ssh-capture --backend=namespace"}
	case errors.As(err, &refused):
		return &control.Error{Code: control.CodeFailed, Message: err.Error(), Hint: refused.Hint}
	}
	return err
}

// codeOf is what ssh-captured calls err, "" for another's.
func codeOf(err error) service.Code {
	var refused *service.Error
	if errors.As(err, &refused) {
		return refused.Code
	}
	return ""
}

// compile makes the Spec of a capture. What the kernel lets through or refuses by
// itself is in no record: where records are required it is to ask about everything.
func (d *Daemon) compile(rules *filter.Set, o plan.Options, host config.Host) capture.Spec {
	o.Open = plan.MayOpen(rules)
	switch host.CrashPolicy {
	case config.CrashClosed:
		o.Open = false
	case config.CrashOpen:
		o.Open = true
	}
	spec := plan.Compile(rules, o)
	if d.Audit.Required() {
		spec.Open = false
		return askAll(spec)
	}
	if text, err := json.Marshal(spec); err != nil || len(text) > maxSpec {
		d.Log.Warn("the rules are too many for the kernel, the broker is asked about every connection", "bytes", len(text), "error", err)
		return askAll(spec)
	}
	return spec
}

// askAll leaves nothing to the kernel but what comes before the rules.
func askAll(spec capture.Spec) capture.Spec {
	spec.Rules, spec.Rest = nil, capture.Ask
	return spec
}

// askBeforePass has the kernel let nothing through by itself.
func askBeforePass(spec capture.Spec) capture.Spec {
	for i := range spec.Rules {
		if spec.Rules[i].Outcome == capture.Pass {
			spec.Rules[i].Outcome = capture.Ask
		}
	}
	if spec.Rest == capture.Pass {
		spec.Rest = capture.Ask
	}
	return spec
}

// blocks tells whether a rule of the set blocks, now or where the host may be next.
func blocks(rules *filter.Set) bool {
	for _, r := range rules.Rules() {
		if r.Action == filter.Block {
			return true
		}
	}
	return false
}

func pools(list ...netip.Prefix) []netip.Prefix {
	var given []netip.Prefix
	for _, p := range list {
		if p.IsValid() {
			given = append(given, p)
		}
	}
	return given
}
