package broker

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"sshbroker/broker/audit"
	"sshbroker/broker/eventlog"
	"sshbroker/capture"
	"sshbroker/capture/service"
	"sshbroker/filter"
	"sshbroker/profiles"
)

// Hander is an attempt that can be left to its owner's own broker.
type Hander interface {
	// Hand waits until that broker has decided. An error of code no-carrier means that
	// there is none; the attempt is then undecided, as it is where that broker refuses
	// it or ends.
	Hand(ctx context.Context, payload []byte) (service.Handed, error)
}

// Ordered is an attempt that a system broker has decided about and that we, its owner's
// own broker, are to carry.
type Ordered interface {
	Payload() []byte // an Order; nil: it is an attempt like every other
	// RefuseBecause is Refuse with a Reply as its text.
	RefuseBecause(r capture.Refusal, text string)
}

// orderVersion is raised when a carrier must not misunderstand what is new.
const orderVersion = 1

// Order is what a system broker says of a flow to the broker that is to carry it.
type Order struct {
	V           int         `json:"v"`
	Flow        uint64      `json:"flow"` // the system broker's number of it, to find its record
	Profile     OrderServer `json:"profile"`
	Destination struct {
		Host string `json:"host"`
		Port uint16 `json:"port"`
	} `json:"destination"`
	Name       string `json:"name,omitempty"`
	Rule       int    `json:"rule"`
	RuleSource string `json:"rule_source,omitempty"`
}

// OrderServer is a server that the carrier has to use, by the profile that names it.
type OrderServer struct {
	ID      string       `json:"id"`
	Host    string       `json:"host"`
	Port    uint16       `json:"port"`
	User    string       `json:"user,omitempty"`    // "": nobody has chosen one
	Gateway *OrderServer `json:"gateway,omitempty"` // through which it is reached

	More []OrderSpare `json:"more,omitempty"` // stand in while it cannot be reached
}

// OrderSpare is another server of the same profile.
type OrderSpare struct {
	Host string `json:"host"`
	Port uint16 `json:"port"`
}

// maxSpares bounds OrderServer.More.
const maxSpares = 32

// Reply is the text of a carrier's refusal.
type Reply struct {
	Reason string `json:"reason"` // of audit.Reason
	Error  string `json:"error,omitempty"`
}

// maxReply bounds the error that a carrier tells, in bytes.
const maxReply = 1 << 10

var errCarrierGone = errors.New("the owner's own broker ended while it opened the way")

// ParseOrder reads an Order and refuses what cannot be carried out.
func ParseOrder(payload []byte) (*Order, error) {
	var o Order
	if err := json.Unmarshal(payload, &o); err != nil {
		return nil, fmt.Errorf("order of the system broker: %w", err)
	}
	if o.V != orderVersion {
		return nil, fmt.Errorf("order of the system broker: version %d, we know %d", o.V, orderVersion)
	}
	if err := checkServer(o.Destination.Host, o.Destination.Port, ""); err != nil {
		return nil, fmt.Errorf("order of the system broker: destination: %w", err)
	}
	hops := 0
	for s := &o.Profile; s != nil; s = s.Gateway {
		if hops++; hops > profiles.MaxGateways {
			return nil, fmt.Errorf("order of the system broker: more than %d gateways", profiles.MaxGateways)
		}
		if err := checkServer(s.Host, s.Port, s.User); err != nil {
			return nil, fmt.Errorf("order of the system broker: server: %w", err)
		}
		if len(s.More) > maxSpares {
			return nil, fmt.Errorf("order of the system broker: more than %d servers", maxSpares)
		}
		for _, spare := range s.More {
			if err := checkServer(spare.Host, spare.Port, ""); err != nil {
				return nil, fmt.Errorf("order of the system broker: server: %w", err)
			}
		}
	}
	return &o, nil
}

func checkServer(host string, port uint16, user string) error {
	if err := profiles.CheckHost(host); err != nil {
		return err
	}
	if port == 0 {
		return errors.New("port 0")
	}
	if user != "" {
		return profiles.CheckUser(user)
	}
	return nil
}

// handOver leaves a tunneled flow to its owner's own broker, if one carries, and
// reports whether that was all there is to do.
//
// A server that is the host the program asked for is not handed over: the carrier's
// own connection to it would be one more flow that the system's rules decide.
func (f *flow) handOver(ctx context.Context, d filter.Decision, p *profiles.Profile, dst profiles.Destination, fallback bool) bool {
	h, ok := f.a.(Hander)
	fromApp := d.Rule != nil && d.Rule.HostnameFromApp
	if !ok || !overSSH(p) || !f.policy.UserBrokers || fromApp || !f.policy.pins(p.ID) {
		return false
	}
	order := f.policy.orderOf(f.id, d, p, dst)
	payload, err := json.Marshal(order)
	if err != nil {
		f.refuse(audit.Internal, err)
		return true
	}
	theirs := *p
	theirs.User = order.Profile.User // where it is not chosen the carrier knows
	f.leadsTo(&theirs, dst)
	wanted, done := f.whileWanted(ctx)
	handed, err := h.Hand(wanted, payload)
	unwanted := context.Cause(wanted) == capture.ErrAbandoned
	done()
	failure := (*service.Error)(nil)
	switch {
	case err == nil:
		f.handed(ctx, handed, fallback)
	case unwanted, errors.Is(err, capture.ErrAbandoned):
		f.forget()
	case errors.As(err, &failure) && failure.Code == service.CodeNoCarrier:
		return false
	case ctx.Err() != nil, errors.Is(err, capture.ErrClosed):
		f.gaveUp(err) // undecided: it is for the next system broker
	default:
		f.refuse(audit.Internal, fmt.Errorf("hand over to the owner's own broker: %w", err))
	}
	return true
}

// overSSH tells whether SSH leads to the server and through all gateways before it. An
// order speaks of logins at such servers; the certificates of other tunnels are the
// system broker's own, and so is the flow.
func overSSH(p *profiles.Profile) bool {
	for hops := 0; p != nil && hops <= profiles.MaxGateways; hops++ {
		if p.Protocol != profiles.SSH {
			return false
		}
		p = p.Gateway
	}
	return true
}

// handed ends a flow as its owner's own broker has decided. Where that broker is gone
// we do not take its place: the server may want the owner's keys and nobody else's.
func (f *flow) handed(ctx context.Context, h service.Handed, fallback bool) {
	switch h.Outcome {
	case service.HandAdmitted:
		f.opened()
		f.finish(audit.HandedOver, nil)
	case service.HandLost:
		f.finish(audit.Abandoned, nil)
	case service.HandGone:
		if fallback {
			f.fallBack(ctx, audit.CarrierGone, errCarrierGone)
			return
		}
		f.refuse(audit.CarrierGone, errCarrierGone)
	case service.HandRefused:
		reason, err := readReply(h.Text)
		switch {
		case reason == audit.Abandoned:
			f.forget()
		case fallback && carrierMayFallBack(reason):
			f.fallBack(ctx, audit.RefusedByCarrier, err)
		default:
			f.refuseAs(h.Refusal, audit.RefusedByCarrier, err)
		}
	default:
		f.refuse(audit.Internal, fmt.Errorf("hand over to the owner's own broker: outcome %q is not known", h.Outcome))
	}
}

// readReply understands a carrier's refusal. A reason that is not known is Unset, and
// then no ground for anything.
func readReply(text string) (audit.Reason, error) {
	var r Reply
	if json.Unmarshal([]byte(text), &r) != nil || r.Reason == "" {
		return audit.Unset, errors.New("the owner's own broker gave no reason")
	}
	var reason audit.Reason
	_ = reason.UnmarshalText([]byte(r.Reason))
	if r.Error == "" {
		return reason, fmt.Errorf("the owner's own broker says %.64s", r.Reason)
	}
	return reason, fmt.Errorf("the owner's own broker says %.64s: %.*s", r.Reason, maxReply, r.Error)
}

// carrierMayFallBack is mayFallBack for what a carrier says.
func carrierMayFallBack(reason audit.Reason) bool {
	switch reason {
	case audit.ServerUnreachable, audit.AuthFailed, audit.TransportLost, audit.Prohibited, audit.NameNotFound, audit.Unreachable:
		return true
	}
	return false
}

// pins reports whether the profile of that id names its server.
func (p *Policy) pins(id string) bool {
	profile := p.Profiles[id]
	return profile != nil && profile.Host != "" && profile.Host != "*"
}

// orderOf is what a carrier has to know of a flow.
func (p *Policy) orderOf(id uint64, d filter.Decision, way *profiles.Profile, dst profiles.Destination) *Order {
	o := &Order{V: orderVersion, Flow: id, Name: d.Name}
	o.Profile = p.orderServer(way)
	if d.Rule != nil {
		o.Rule, o.RuleSource = d.Rule.Number, d.Rule.Source
		if d.Rule.Username != "" || d.Rule.UsernameFile != "" {
			o.Profile.User = way.User
		}
	}
	o.Destination.Host, o.Destination.Port = dst.Host, dst.Port
	last := &o.Profile
	for gw, hops := way.Gateway, 0; gw != nil && hops < profiles.MaxGateways; gw, hops = gw.Gateway, hops+1 {
		through := p.orderServer(gw)
		last.Gateway = &through
		last = last.Gateway
	}
	return o
}

func (p *Policy) orderServer(profile *profiles.Profile) OrderServer {
	s := OrderServer{ID: profile.ID, Host: profile.Host, Port: profile.Port, User: p.Logins[profile.ID]}
	for _, more := range profile.More {
		s.More = append(s.More, OrderSpare(more))
	}
	return s
}

// order is what a system broker says of the flow, nil where it is our own to decide.
func (f *flow) order() []byte {
	if o, ok := f.a.(Ordered); ok && len(o.Payload()) > 0 {
		return o.Payload()
	}
	return nil
}

// obey carries a flow that a system broker has decided about.
func (f *flow) obey(ctx context.Context) {
	o, err := ParseOrder(f.order())
	if err != nil {
		f.refuse(audit.ProfileError, err)
		return
	}
	f.mu.Lock()
	f.rec.Action, f.rec.Name, f.rec.Rule, f.rec.RuleSource = filter.Tunnel.String(), o.Name, o.Rule, o.RuleSource
	f.rec.Decision = time.Since(f.at.Arrived)
	f.mu.Unlock()
	f.tell(eventlog.ConnectorFilterRule)
	f.enter(StateDecided)
	if f.policy == nil {
		f.refuse(audit.ProfileError, profiles.ErrSetup)
		return
	}
	p, err := f.policy.ordered(&o.Profile)
	if err != nil {
		f.refuse(audit.ProfileError, err)
		return
	}
	f.through(ctx, p, profiles.Destination{Host: o.Destination.Host, Port: o.Destination.Port, Origin: f.at.Src}, false)
}

// ordered is the way to a server that a system broker has chosen. How to log in there,
// and which host key to trust, is our own: as the profile of the same id says, if there
// is one, else the defaults.
func (p *Policy) ordered(s *OrderServer) (*profiles.Profile, error) {
	own, login := p.Profiles[s.ID], p.Logins[s.ID]
	if own == nil {
		own, login = p.Defaults, ""
	}
	if own == nil {
		return nil, fmt.Errorf("no profile for this flow: %w", profiles.ErrSetup)
	}
	if !overSSH(own) {
		return nil, fmt.Errorf("the system broker leads to a server of SSH, and our profile %q is of another protocol: %w", own.ID, profiles.ErrSetup)
	}
	q := *own
	q.ID, q.Host, q.Port, q.HostKeyAlias, q.Gateway = s.ID, s.Host, s.Port, "", nil
	q.More = nil
	for _, spare := range s.More {
		q.More = append(q.More, profiles.Server(spare))
	}
	q.User = cmp.Or(login, s.User, own.User)
	if named := own.Host != "" && own.Host != "*"; named && !serves(own, s) {
		q.PasswordText, q.PasswordFile, q.PasswordCmd = "", "", "" // another server's
	}
	if s.Gateway != nil {
		gateway, err := p.ordered(s.Gateway)
		if err != nil {
			return nil, err
		}
		q.Gateway = gateway
	}
	return &q, nil
}

// serves tells whether all that an order names are servers of the profile.
func serves(own *profiles.Profile, s *OrderServer) bool {
	known := append([]profiles.Server{{Host: own.Host, Port: own.Port}}, own.More...)
	for _, spare := range s.More {
		if !slices.Contains(known, profiles.Server(spare)) {
			return false
		}
	}
	return slices.Contains(known, profiles.Server{Host: s.Host, Port: s.Port})
}

// answer refuses the attempt, and tells a system broker why.
func (f *flow) answer(r capture.Refusal, reason audit.Reason, err error) {
	if f.order() == nil {
		f.a.Refuse(r)
		return
	}
	reply := Reply{Reason: reason.String()}
	if err != nil {
		reply.Error = fmt.Sprintf("%.*s", maxReply, err)
	}
	text, merr := json.Marshal(reply)
	if merr != nil {
		text = nil // cannot be: two strings
	}
	f.a.(Ordered).RefuseBecause(r, string(text))
}
