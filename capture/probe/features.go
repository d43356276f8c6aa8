package probe

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"

	"sshbroker/capture/netns"
	"sshbroker/capture/nft"
)

// Features are what netfilter takes of what captures ask of it.
type Features struct {
	Queue   string `json:"queue"`   // QueueNative, QueueTarget or QueueNone
	Owner   bool   `json:"owner"`   // tables that belong to a socket
	Persist bool   `json:"persist"` // and outlive it
	Cgroup  bool   `json:"cgroup"`  // a match by the socket's cgroup
	Zones   bool   `json:"zones"`   // connection tracking by zones
}

// Values of Features.Queue.
const (
	QueueNative = "nft"  // nft's own expression
	QueueTarget = "xt"   // the target NFQUEUE of iptables
	QueueNone   = "none" // connections cannot be held
)

// Kernel asks the kernel for its features. command is one that calls Inside; it is run in a
// network namespace of its own, for an ordinary user in a user namespace too. A
// *netns.ForbiddenError says that this machine does not allow that, and what would.
func Kernel(ctx context.Context, command ...string) (Features, error) {
	var f Features
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	sys, userNS := netns.Attributes()
	cmd.SysProcAttr = sys
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return f, context.Cause(ctx)
		}
		if text := strings.TrimSpace(errs.String()); text != "" {
			return f, errors.New(text)
		}
		return f, netns.Forbidden(err, userNS)
	}
	if err := json.Unmarshal(out.Bytes(), &f); err != nil {
		return f, fmt.Errorf("kernel features: %w", err)
	}
	return f, nil
}

// Inside loads the tables, in the current network namespace, and tells of it. That has to be
// one of its own: to take a base chain back drops what others hold.
func Inside(w io.Writer) error {
	f := Features{Owner: nft.Owns(), Persist: nft.Persists(), Cgroup: nft.MatchesCgroups(), Zones: nft.Zones()}
	switch nft.ProbeQueue() {
	case nft.NativeQueue:
		f.Queue = QueueNative
	case nft.TargetQueue:
		f.Queue = QueueTarget
	default:
		f.Queue = QueueNone
	}
	return json.NewEncoder(w).Encode(f)
}
