package gateway

import (
	"math"

	"golang.org/x/sys/unix"

	"sshbroker/broker/gateway/gwconfig"
	"sshbroker/broker/gateway/limit"
)

// limitsOf reads them off a configuration, and the system's bound on descriptors.
func limitsOf(cfg *gwconfig.Config) limit.Limits {
	l := &cfg.Limits
	return limit.Limits{
		Descriptors: descriptors(l.Reserve), Handshakes: l.Handshakes,
		Connections: l.Connections, IdentityConnections: l.FlowsPerIdentity, // many a connection is one flow
		Flows: l.Flows, IdentityFlows: l.FlowsPerIdentity, IdentityRate: l.ConnectsPerSecond,
	}
}

// descriptors is how many are there for clients, when reserve of them are for all else.
func descriptors(reserve int) int {
	var most unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &most) != nil {
		return math.MaxInt32
	}
	return int(min(most.Cur, math.MaxInt32)) - reserve
}
