package daemon

import (
	"context"
	"encoding/json"
	"net/netip"
	"os"
	"strconv"
	"sync"

	"sshbroker/broker"
	"sshbroker/broker/control"
	"sshbroker/broker/names"
	"sshbroker/capture/netns"
)

// namespace is a capture whose network namespace its client has made. Its descriptors
// came with the call.
type namespace struct {
	*netns.Served
	manifest netns.Manifest
}

func (d *Daemon) namespaceOpening(args control.CaptureArgs, files []*os.File) (opening, error) {
	var m netns.Manifest
	if err := json.Unmarshal(args.Manifest, &m); err != nil {
		closeFiles(files)
		return opening{}, &control.Error{Code: control.CodeBadRequest, Message: "capture manifest: " + err.Error()}
	}
	return opening{
		journal: d.journal(args.ID, strconv.FormatUint(m.NetNS, 10)),
		open: func(context.Context, *served) (backend, error) {
			source, err := netns.Adopt(m, files, args.Takeover, d.Log)
			if err != nil {
				return nil, err
			}
			return &namespace{source, m}, nil
		},
		drop: func() { closeFiles(files) },
	}, nil
}

func (n *namespace) describe(c *broker.Capture) { c.Backend = "namespace" }

func (n *namespace) held() bool { return n.manifest.Held }

func (n *namespace) strangers() uint64 { return n.Strangers() }

// answer serves name queries, and UDP, which no rule judges; what was made up for a
// name leads nowhere.
func (n *namespace) answer(ctx context.Context, known *names.Names) {
	var wg sync.WaitGroup
	wg.Go(func() { _ = known.Serve(ctx, n.DNSUDP, n.DNSTCP) })
	wg.Go(func() {
		_ = n.ServeUDP(ctx, func(dst netip.AddrPort) bool { return !known.IsPool(dst.Addr()) })
	})
	wg.Wait()
}

func (n *namespace) waitEmpty(ctx context.Context) error { return netns.WaitEmpty(ctx, n.manifest) }

// over is false: a namespace without processes is noticed by waitEmpty alone.
func (n *namespace) over(error) bool { return false }

func (n *namespace) empty() bool {
	left, err := n.Processes()
	return err == nil && len(left) == 0
}
