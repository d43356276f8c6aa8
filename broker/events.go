package broker

import (
	"cmp"
	"strconv"

	"sshbroker/broker/audit"
	"sshbroker/broker/eventlog"
	"sshbroker/filter"
)

// tell raises an event with what is known of the flow. Where it is not logged that costs
// a look.
func (f *flow) tell(e eventlog.Event) {
	if f.Events.Enabled(e) {
		f.raise(e)
	}
}

// raise is apart from tell, so that the copy of a record is on no stack that does without.
func (f *flow) raise(e eventlog.Event) {
	f.mu.Lock()
	r := f.rec
	f.mu.Unlock()
	names := e.Definition().Args
	args := make([]eventlog.Arg, 0, len(names))
	for _, name := range names {
		if v := argument(name, &r); v != "" {
			args = append(args, name.Is(v))
		}
	}
	f.Events.Raise(e, args...)
}

// argument is what a record has for an argument, "" for nothing.
func argument(name eventlog.ArgName, r *audit.Record) string {
	switch name {
	case eventlog.ArgFlow:
		return strconv.FormatUint(r.Flow, 10)
	case eventlog.ArgCapture:
		return r.Capture
	case eventlog.ArgUsername:
		return cmp.Or(r.User, strconv.FormatUint(uint64(r.UID), 10))
	case eventlog.ArgPID:
		return positive(int64(r.PID))
	case eventlog.ArgProgram:
		return r.Program
	case eventlog.ArgSrc:
		return r.Src.String()
	case eventlog.ArgDst:
		return r.Dst.String()
	case eventlog.ArgHost:
		return r.Name
	case eventlog.ArgRule:
		return strconv.Itoa(r.Rule)
	case eventlog.ArgRuleSource:
		return r.RuleSource
	case eventlog.ArgAction:
		return r.Action
	case eventlog.ArgProfile:
		return r.Profile
	case eventlog.ArgServer:
		return r.Server
	case eventlog.ArgAskedFor:
		return r.Target
	case eventlog.ArgReason:
		if r.Reason == audit.Unset { // not ended yet
			return ""
		}
		return r.Reason.String()
	case eventlog.ArgText:
		return r.Error
	case eventlog.ArgBytesUp:
		return positive(r.BytesUp)
	case eventlog.ArgBytesDown:
		return positive(r.BytesDown)
	case eventlog.ArgDuration:
		if r.Duration == 0 {
			return ""
		}
		return eventlog.Seconds(r.Duration)
	}
	return ""
}

func positive(n int64) string {
	if n <= 0 {
		return ""
	}
	return strconv.FormatInt(n, 10)
}

// endOf is the event that tells how a flow ended.
func endOf(r *audit.Record) eventlog.Event {
	switch r.Reason {
	case audit.Carried:
		return eventlog.TunnelClosed
	case audit.Direct, audit.Passed, audit.Fallback:
		return eventlog.ConnectionDirect
	case audit.HandedOver:
		return eventlog.ConnectionHandedOver
	case audit.Blocked:
		return eventlog.ConnectionBlocked
	case audit.Abandoned:
		return eventlog.ConnectionAbandoned
	case audit.Limit, audit.NoDescriptors:
		return eventlog.LimitReached
	case audit.RefusedByDestination, audit.Unreachable, audit.Prohibited, audit.NameNotFound, audit.ServerUnreachable,
		audit.AuthFailed, audit.HostKey, audit.ProfileError, audit.TransportLost, audit.RefusedByCarrier, audit.CarrierGone:
		if r.Action == filter.Tunnel.String() {
			return eventlog.TunnelFailed
		}
	}
	return eventlog.ConnectionFailed
}
