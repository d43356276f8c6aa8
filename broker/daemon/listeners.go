package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"

	"sshbroker/broker"
	"sshbroker/broker/config"
	"sshbroker/broker/control"
	"sshbroker/broker/listeners"
	"sshbroker/capture"
	"sshbroker/capture/origin"
	"sshbroker/profiles"
)

// backendListener is the audit record's backend of what came to a listener.
const backendListener = "listener"

// ports are the ports through which programs reach us by themselves.
type ports struct {
	d    *Daemon
	diag *origin.Diag
	set  *listeners.Set
	find func(origin.Socket) capture.Origin
	who  *accounts // beside us

	mu     sync.Mutex
	wanted *loaded // the configuration in force
}

func newPorts(d *Daemon) (*ports, error) {
	diag, err := origin.OpenDiag()
	if err != nil {
		return nil, err
	}
	t := &ports{d: d, diag: diag, find: (&origin.Search{Processes: origin.Processes}).Find, who: newAccounts()}
	t.set = listeners.NewSet(listeners.Config{Serve: t.serve, Peer: t.peer, UID: uint32(os.Getuid()), AnyUser: d.System, Log: d.Log})
	return t, nil
}

func (t *ports) close() {
	t.set.Shutdown()
	t.diag.Close()
}

// bring has the listeners be those of a configuration.
func (t *ports) bring(l *loaded) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.wanted = l
	t.renewLocked()
}

// renew opens the tunnels of profiles that have got a connection, and closes those of
// profiles that have none any more.
func (t *ports) renew() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.wanted != nil {
		t.renewLocked()
	}
}

func (t *ports) renewLocked() {
	connected := map[string]bool{}
	if len(t.wanted.local) > 0 {
		for _, in := range t.d.pool.List() {
			connected[in.ProfileID] = connected[in.ProfileID] || in.Connected
		}
	}
	var specs []listeners.Spec
	for _, c := range t.wanted.static {
		specs = append(specs, specOf(c))
	}
	for _, c := range t.wanted.local {
		if connected[c.Profile] {
			specs = append(specs, specOf(c))
		}
	}
	t.set.Want(specs)
}

func specOf(c config.Tunnel) listeners.Spec {
	s := listeners.Spec{Listen: c.Listen, Host: c.Host, Port: c.Port, Service: c.Service, Profile: c.Profile, Relay: c.AllowRelay, Source: c.Source}
	s.Kind, s.Judged = kindOf(c.Type)
	return s
}

// kindOf is what the type of a tunnel means, the zero Kind for one that is not known.
func kindOf(name string) (kind listeners.Kind, judged bool) {
	switch name {
	case "tcp", "local":
		return listeners.TCP, false
	case "socks":
		return listeners.SOCKS, false
	case "socks-proxy":
		return listeners.SOCKS, true
	case "http-connect":
		return listeners.HTTPConnect, true
	case "http-connect-chain":
		return listeners.HTTPConnect, false
	}
	return 0, false
}

// serve has the broker decide about a listener's connections.
func (t *ports) serve(l *listeners.Listener) {
	c := &broker.Capture{ID: captureOf(l.ID()), Backend: backendListener, Source: l, Account: t.account}
	if err := t.d.broker.Run(context.Background(), c); !errors.Is(err, capture.ErrClosed) {
		t.d.Log.Error("listener", "listener", l.ID(), "error", err)
	}
}

// nobody is the uid of a program of another host.
const nobody = 1<<32 - 1

func (t *ports) account(uid uint32) (string, []string) {
	var a account
	switch {
	case uid == nobody:
	case uid == uint32(os.Getuid()):
		a = t.d.account
	default:
		a = t.who.of(uid)
	}
	return a.name, a.groups
}

// peer finds the socket at the other end of a connection, which is on this host or
// nowhere to be found.
func (t *ports) peer(c *net.TCPConn) (listeners.Peer, error) {
	remote, local := plain(c.RemoteAddr()), plain(c.LocalAddr())
	sock, err := t.diag.Lookup(remote, local)
	if errors.Is(err, origin.ErrNoSocket) && remote.Addr().Is4() {
		// A socket of IPv6 can be connected by IPv4.
		sock, err = t.diag.Lookup(mapped(remote), mapped(local))
	}
	switch {
	case errors.Is(err, origin.ErrNoSocket), err == nil && (sock.Inode == 0 || sock.State == origin.StateListen):
		if remote.Addr() == local.Addr() || remote.Addr().IsLoopback() {
			return listeners.Peer{}, origin.ErrNoSocket // from here, and gone again
		}
		return listeners.Peer{UID: nobody}, nil
	case err != nil:
		return listeners.Peer{}, err
	}
	return listeners.Peer{Here: true, UID: sock.UID, Origin: sync.OnceValue(func() capture.Origin { return t.find(sock) })}, nil
}

func plain(a net.Addr) netip.AddrPort {
	at := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(at.Addr().Unmap().WithZone(""), at.Port())
}

func mapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(a.Addr().As16()), a.Port())
}

// serverOf is the way that a person names as [user@]server[#port]: a profile by its id or
// name, else a host with the settings of default-settings.
func (t *ports) serverOf(user, host string, port uint16) (*profiles.Profile, error) {
	if host == "" {
		return nil, errors.New("no server is given")
	}
	policy := t.d.broker.Policy()
	p := policy.Profiles[host]
	for _, q := range policy.Profiles {
		if p == nil && q.Name == host {
			p = q
		}
	}
	if p == nil {
		if err := profiles.CheckHost(host); err != nil {
			return nil, err
		}
		p = policy.Defaults.For(host, user, true)
	} else {
		p = p.For("", user, false)
	}
	if port != 0 {
		q := *p
		q.Port = port
		p = &q
	}
	return p, nil
}

// followPool has the tunnels of profiles come and go with their connections.
func (d *Daemon) followPool() {
	for {
		select {
		case <-d.ctx.Done():
			return
		case <-d.pool.Changes():
			d.ports.renew()
		}
	}
}

// status counts the ports that are open, and says why others are not.
func (t *ports) status() (open int, shut []string) {
	for _, in := range t.set.List() {
		switch {
		case in.Open:
			open++
		case in.Err != nil:
			shut = append(shut, fmt.Sprintf("%s: %v", in.Spec.Source, in.Err))
		}
	}
	return open, shut
}

func (t *ports) row(in listeners.Info, live map[string]int) control.ListenerRow {
	row := control.ListenerRow{ID: in.ID, Type: in.Spec.Type(), Listen: in.At.String(), Profile: in.Spec.Profile, Service: in.Spec.Service, Relay: in.Spec.Relay, Source: in.Spec.Source,
		Open: in.Open, Since: in.Since, Accepted: in.Accepted, Refused: in.Refused, Live: live[captureOf(in.ID)]}
	if in.Spec.Kind == listeners.TCP && in.Spec.Service == "" {
		row.Destination = net.JoinHostPort(in.Spec.Host, strconv.Itoa(int(in.Spec.Port)))
	}
	if w := in.Spec.Way; w != nil {
		row.Profile = w.ID
		if w.ID == "" {
			row.Server = w.User + "@" + profiles.Server{Host: w.Host, Port: w.Port}.String()
		}
	}
	if in.Err != nil {
		row.Error = in.Err.Error()
	}
	return row
}

func captureOf(listener uint64) string { return fmt.Sprintf("listener-%d", listener) }

func (d *Daemon) handleListeners(_ context.Context, call *control.Call) error {
	live := map[string]int{}
	for _, f := range d.broker.Flows() {
		live[f.Capture]++
	}
	for _, in := range d.ports.set.List() {
		if err := call.Send(d.ports.row(in, live)); err != nil {
			return err
		}
	}
	return nil
}

func (d *Daemon) handleOpenListener(_ context.Context, call *control.Call) error {
	var args control.OpenListenerArgs
	if err := call.Decode(&args); err != nil {
		return err
	}
	spec, err := d.ports.asked(args)
	if err != nil {
		return &control.Error{Code: control.CodeBadRequest, Message: "open-tunnel-listener: " + err.Error()}
	}
	in, err := d.ports.set.Open(spec)
	if err != nil {
		return err
	}
	return call.Send(d.ports.row(in, nil))
}

// asked understands what a client wants opened.
func (t *ports) asked(args control.OpenListenerArgs) (listeners.Spec, error) {
	spec := listeners.Spec{Host: args.Host, Port: args.Port, Service: args.Service, Relay: args.Relay, Source: "open-tunnel-listener"}
	spec.Kind, spec.Judged = kindOf(args.Type)
	var err error
	switch tcp := spec.Kind == listeners.TCP; {
	case spec.Kind == 0:
		return spec, fmt.Errorf("type %q is not one of tcp, socks, socks-proxy, http-connect, http-connect-chain", args.Type)
	case args.Service != "" && (spec.Judged || args.Host != "" || args.Port != 0):
		return spec, errors.New("a service is the gateway's: neither the rules nor a destination go with it")
	case args.Service != "":
		err = profiles.CheckHost(args.Service)
	case tcp && args.Port == 0:
		return spec, errors.New("a tcp listener needs the port of its destination")
	case tcp:
		err = profiles.CheckHost(args.Host)
	case args.Host != "" || args.Port != 0:
		return spec, fmt.Errorf("the program says where a %s listener leads", spec.Type())
	}
	if err != nil {
		return spec, err
	}
	if spec.Listen, err = listenAt(args.Listen, args.Relay); err != nil {
		return spec, err
	}
	switch {
	case spec.Judged && args.Server != "":
		return spec, fmt.Errorf("the filter rules decide where a %s listener leads, no server is given", spec.Type())
	case spec.Judged:
		return spec, nil
	case args.User != "":
		err = profiles.CheckUser(args.User)
	}
	if err == nil {
		spec.Way, err = t.serverOf(args.User, args.Server, args.ServerPort)
	}
	if err == nil && spec.Service != "" && !spec.Way.HasServices() {
		err = fmt.Errorf("%s is no profile of protocol tls for an ssh-gateway: it has no service %s", args.Server, spec.Service)
	}
	return spec, err
}

// listenAt reads address:port; nothing before the colon means as in a configuration.
func listenAt(text string, relay bool) (netip.AddrPort, error) {
	host, service, err := net.SplitHostPort(text)
	if err != nil {
		return netip.AddrPort{}, err
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q is not a port", service)
	}
	addr, err := config.ListenAddress(host, relay)
	return netip.AddrPortFrom(addr, uint16(port)), err
}

func (d *Daemon) handleCloseListener(_ context.Context, call *control.Call) error {
	var args control.CloseListenerArgs
	if err := call.Decode(&args); err != nil {
		return err
	}
	id := args.ID
	if args.Listen != "" {
		at, err := listenAt(args.Listen, false)
		if err == nil {
			id, err = d.ports.set.At(at)
		}
		if err != nil {
			return err
		}
	}
	return d.ports.set.Close(id)
}
