package doctor

import (
	"context"
	"errors"

	"sshbroker/capture/cgroup"
	"sshbroker/capture/probe"
)

// What helps on a kernel that lacks something.
const (
	cureQueue  = "load the module nft_queue, or xt_NFQUEUE (modprobe nft_queue), or take a kernel that has one of them"
	curePolicy = "Linux 6.9 and newer keep the table without its owner; until then ssh-captured loads it again when others flush it"
)

func (v *visit) namespaces(ctx context.Context) []Result {
	r, err := v.kernel(ctx)
	switch {
	case err != nil:
		return unknown("%v", err)
	case r.Namespace.Error != "" && r.Namespace.Cure != "":
		return failed(r.Namespace.Cure, "%s", r.Namespace.Error)
	case r.Namespace.Error != "":
		return failed("ssh-capture --backend=cgroup needs no namespaces, but ssh-captured", "a network for a capture cannot be made: %s", r.Namespace.Error)
	case !r.IPv6:
		return warning("sysctl -w net.ipv6.conf.all.disable_ipv6=0, or a kernel with IPv6", "captures by namespace work, without IPv6")
	}
	return fine("captures by namespace can be made")
}

// features are the kernel's, or why they are not known.
func (v *visit) features(ctx context.Context) (probe.Features, []Result) {
	r, err := v.kernel(ctx)
	switch {
	case err != nil:
		return probe.Features{}, unknown("%v", err)
	case r.Probed.Error != "" && r.Probed.Cure != "":
		return probe.Features{}, unknown("to try takes a network namespace: %s (cure: %s)", r.Probed.Error, r.Probed.Cure)
	case r.Probed.Error != "":
		return probe.Features{}, unknown("%s", r.Probed.Error)
	}
	return r.Features, nil
}

func (v *visit) packetQueue(ctx context.Context) []Result {
	f, why := v.features(ctx)
	switch {
	case why != nil:
		return why
	case f.Queue == probe.QueueNative:
		return fine("connections are held by nft's own queue")
	case f.Queue == probe.QueueTarget:
		return fine("connections are held by the target NFQUEUE, as this kernel lacks nft_queue")
	}
	return warning(cureQueue, "this kernel cannot hold connections: connect() succeeds before the far side has answered, and ssh-captured does not start")
}

func (v *visit) tableOwner(ctx context.Context) []Result {
	f, why := v.features(ctx)
	switch {
	case why != nil:
		return why
	case f.Persist:
		return fine("a table can belong to ssh-captured and outlive it")
	case f.Owner:
		return warning(curePolicy, "a table can belong to ssh-captured, but not outlive it: for the policy \"closed\" it belongs to nobody")
	}
	return warning(curePolicy, "tables belong to nobody: any program can flush that of ssh-captured, and crash-policy=\"open\" is not to be had")
}

func (v *visit) cgroups(ctx context.Context) []Result {
	f, why := v.features(ctx)
	if why != nil {
		return why
	}
	tree, err := cgroup.Find()
	switch {
	case !f.Cgroup:
		return warning("a kernel with CONFIG_SOCK_CGROUP_DATA and nft_socket (Linux 5.13 and newer)", "rules cannot tell the cgroup of a socket: no captures by cgroup")
	case errors.Is(err, cgroup.ErrNone):
		return warning("mount -t cgroup2 none /sys/fs/cgroup/unified; a container needs a cgroup namespace of its own with it", "%v: no captures by cgroup", err)
	case err != nil:
		return unknown("%v", err)
	}
	return fine("rules tell cgroups; the hierarchy is at %s", tree.Mount)
}
