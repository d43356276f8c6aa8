package nft

import "golang.org/x/sys/unix"

// liveTableName is that of a table beside the host's which nobody owns.
const liveTableName = HostTableName + "_live"

// KeepLive makes a table that matches nothing and uses NAT, for live diverted connections
// when the host's table goes with its owner, or by a release: without any NAT in the
// kernel what they send would leave in clear.
func KeepLive() error {
	t, err := NewTable(Unowned)
	if err != nil {
		return err
	}
	defer t.Close()
	return t.Apply(Ruleset{Table: liveTableName, Chains: []Chain{
		Base("divert", "nat", unix.NF_INET_LOCAL_OUT, PrioDivert, Rule{Never, Redirect(1)})}})
}

// DropLive removes it, if it is there.
func DropLive() error {
	t, err := NewTable(Unowned)
	if err != nil {
		return err
	}
	defer t.Close()
	return t.remove(liveTableName)
}
