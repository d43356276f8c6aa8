package doctor

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"sshbroker/broker/trial"
	"sshbroker/capture/probe"
)

func (v *visit) connectNamespace(ctx context.Context) []Result {
	if r, err := v.kernel(ctx); err == nil && r.Namespace.Error != "" {
		return skipped("no capture by namespace can be made, see the check namespaces")
	}
	return v.connect(ctx, "namespace")
}

func (v *visit) connectCgroup(ctx context.Context) []Result {
	switch s, err := v.captured(ctx); {
	case err != nil:
		return skipped("ssh-captured does not answer, see the check of that name")
	case s == nil:
		return skipped("ssh-captured is not running")
	}
	return v.connect(ctx, "cgroup")
}

// connect has a program of ours connect in a real capture, where the truth is known.
func (v *visit) connect(ctx context.Context, backend string) []Result {
	outcomes, err := trial.Connect(ctx, v.Programs, backend, v.Connect)
	switch {
	case err != nil && ctx.Err() != nil:
		return unknown("%v", context.Cause(ctx))
	case errors.Is(err, trial.ErrNoControl):
		return failed("accept what goes over the loopback device in the host's firewall: iif lo accept, oif lo accept", "%v", err)
	case err != nil:
		return failed("ssh-capture -D 7 --backend="+backend+" COMMAND tells more", "no program can be captured: %v", err)
	}
	var wrong []string
	for _, o := range outcomes {
		if o.Got != o.Want {
			wrong = append(wrong, fmt.Sprintf("%s: %s, not %s", o.What, o.Got, o.Want))
		}
	}
	if len(wrong) == 0 {
		return fine("a captured program connects, through a tunnel and without, is refused and is blocked, and connect() says so")
	}
	text := "connect() does not say what is true; " + strings.Join(wrong, "; ")
	if f, why := v.features(ctx); why == nil && f.Queue == probe.QueueNone {
		return warning(cureQueue, "%s", text)
	}
	return failed("look for firewalls that drop what we redirect to the loopback device, and see the check foreign-rules as root", "%s", text)
}
