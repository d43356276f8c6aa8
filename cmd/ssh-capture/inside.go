package main

import (
	"context"
	"os"
	"regexp"

	"sshbroker/capture/cgroup"
	"sshbroker/capture/cgroup/view"
	"sshbroker/capture/netns"
)

// inside says where a capture's processes are: in a namespace or in a cgroup. It
// travels to the keeper as JSON.
type inside struct {
	Namespace *netns.Manifest `json:"namespace,omitempty"`
	Cgroup    string          `json:"cgroup,omitempty"` // its directory
}

// empty says whether no process is left in the capture.
func (i inside) empty() (bool, error) {
	if i.Namespace != nil {
		left, err := netns.Processes(*i.Namespace)
		return len(left) == 0, err
	}
	leaf := cgroup.Leaf{Path: i.Cgroup}
	populated, err := leaf.Populated()
	return !populated, err
}

// waitEmpty returns once no process is left in the capture, or with ctx's error.
func (i inside) waitEmpty(ctx context.Context) error {
	if i.Namespace != nil {
		return netns.WaitEmpty(ctx, *i.Namespace)
	}
	return view.WaitEmpty(ctx, i.Cgroup)
}

// isCaptured says whether this process is in a capture. One that was put into its
// cgroup while it ran has no SSH_CAPTURE.
func isCaptured() bool {
	if os.Getenv("SSH_CAPTURE") != "" {
		return true
	}
	path, err := cgroup.OfProcess(os.Getpid())
	return err == nil && ofCapture.MatchString(path)
}

// ofCapture matches the cgroups that ssh-captured makes; see capture/cgroup.
var ofCapture = regexp.MustCompile(`/ssh-capture(/\d+-[a-z0-9]+|-\d+-[a-z0-9]+\.scope)(/|$)`)
