package probe

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"sshbroker/capture/netns"
)

// The first arguments by which ssh-capture knows that it is to call WriteReport or Inside.
// It is asked, and nobody else, as the host may allow namespaces to that program alone.
const (
	ReportArg = "--probe-kernel"
	InsideArg = "--inside-probe"
)

// Report is what ssh-capture can do on this machine.
type Report struct {
	// Of a network that was made as for a capture by namespace, and given up.
	Namespace Outcome `json:"namespace"`
	Held      bool    `json:"held"` // its connections would wait in a packet queue
	IPv6      bool    `json:"ipv6"`

	Features Features `json:"features"`
	Probed   Outcome  `json:"probed"` // of asking for Features
}

// Outcome is how something went. The zero value says that it went well.
type Outcome struct {
	Error string `json:"error,omitempty"`
	Cure  string `json:"cure,omitempty"`
}

func outcomeOf(err error) (o Outcome) {
	if err == nil {
		return o
	}
	o.Error = err.Error()
	if forbidden := (*netns.ForbiddenError)(nil); errors.As(err, &forbidden) {
		o.Cure = forbidden.Cure
	}
	return o
}

// Here finds out what self, the program that this is, can do: it has to call netns.Inside
// and Inside where its first argument says so.
func Here(ctx context.Context, self string) (r Report) {
	c, err := netns.Start(netns.Options{Self: self, Path: self, Argv: []string{self}, ID: "doctor"})
	if err == nil {
		r.Held, r.IPv6 = c.Manifest.Held, c.Manifest.IPv6
		c.Abort()
	}
	r.Namespace = outcomeOf(err)
	r.Features, err = Kernel(ctx, self, InsideArg)
	r.Probed = outcomeOf(err)
	return r
}

// Ask has the program at that path, ssh-capture, make its report.
func Ask(ctx context.Context, program string) (r Report, err error) {
	cmd := exec.CommandContext(ctx, program, ReportArg)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	switch {
	case ctx.Err() != nil:
		return r, context.Cause(ctx)
	case err != nil:
		return r, fmt.Errorf("%s %s: %w: %s", program, ReportArg, err, strings.TrimSpace(errs.String()))
	}
	if err := json.Unmarshal(out, &r); err != nil {
		return r, fmt.Errorf("%s %s: %w", program, ReportArg, err)
	}
	return r, nil
}
