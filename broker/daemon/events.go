package daemon

import (
	"context"
	"net"
	"os"
	"strconv"
	"strings"

	"sshbroker/broker/control"
	"sshbroker/broker/eventlog"
	"sshbroker/profiles"
)

// Observer has what happens on the way to servers logged as events.
func Observer(log *eventlog.Log) profiles.Observer {
	return func(e profiles.Event) {
		if event := eventOf[e.Kind]; log.Enabled(event) {
			raise(log, event, &e)
		}
	}
}

// eventOf is never written to.
var eventOf = map[profiles.EventKind]eventlog.Event{
	profiles.Connected:         eventlog.ServerConnected,
	profiles.ConnectFailed:     eventlog.ServerConnectFailed,
	profiles.ConnectionLost:    eventlog.ServerConnectionLost,
	profiles.Disconnected:      eventlog.ServerDisconnected,
	profiles.AlgorithmsAgreed:  eventlog.AlgorithmNegotiationSuccess,
	profiles.AlgorithmsFailed:  eventlog.AlgorithmNegotiationFailure,
	profiles.KeyExchanged:      eventlog.KEXSuccess,
	profiles.KeyExchangeFailed: eventlog.KEXFailure,
	profiles.Authenticated:     eventlog.AuthenticationSuccess,
	profiles.AuthRefused:       eventlog.AuthenticationFailure,
	profiles.HostKeyJudged:     eventlog.ServerHostkey,
	profiles.HostKeyNew:        eventlog.HostKeyNew,
	profiles.HostKeyUnknown:    eventlog.HostKeyUnknown,
	profiles.HostKeyChanged:    eventlog.HostKeyChanged,
	profiles.HostKeyRevoked:    eventlog.HostKeyRevoked,
	profiles.IdentityFailed:    eventlog.KeyStoreKeyFailed,
	profiles.IdentityUnlocked:  eventlog.KeyStoreKeyUnlocked,
	profiles.UnlockFailed:      eventlog.KeyStoreUnlockFailed,
	profiles.AgentFailed:       eventlog.KeyStoreAgentFailed,
}

func raise(log *eventlog.Log, event eventlog.Event, e *profiles.Event) {
	names := event.Definition().Args
	args := make([]eventlog.Arg, 0, len(names))
	for _, name := range names {
		if v := argument(name, event, e); v != "" {
			args = append(args, name.Is(v))
		}
	}
	log.Raise(event, args...)
}

// argument is what e has for an argument of the event, "" for nothing.
func argument(name eventlog.ArgName, event eventlog.Event, e *profiles.Event) string {
	switch p := e.Profile; name {
	case eventlog.ArgUsername:
		return p.User
	case eventlog.ArgProfile:
		return p.ID
	case eventlog.ArgServer:
		return net.JoinHostPort(p.Host, strconv.Itoa(int(p.Port)))
	case eventlog.ArgVia:
		if p.Gateway != nil {
			return p.Gateway.Label()
		}
	case eventlog.ArgSession:
		if e.Session > 0 {
			return strconv.FormatUint(e.Session, 10)
		}
	case eventlog.ArgProtocol:
		return e.Protocol
	case eventlog.ArgAlgorithm:
		return e.Algorithms
	case eventlog.ArgClientList:
		return strings.Join(e.Ours, ",")
	case eventlog.ArgServerList:
		return profiles.RemoteText(strings.Join(e.Theirs, ","), 1000, false)
	case eventlog.ArgCipher:
		return e.Cipher
	case eventlog.ArgKeyType:
		return e.KeyType
	case eventlog.ArgKeyHash:
		return e.KeyHash
	case eventlog.ArgKeyFile:
		return e.File
	case eventlog.ArgStatus:
		return e.Status
	case eventlog.ArgMethod:
		return e.Method
	case eventlog.ArgDuration:
		return eventlog.Seconds(e.Lived)
	case eventlog.ArgText:
		if e.Err != nil {
			return e.Err.Error()
		}
		if event == eventlog.AlgorithmNegotiationSuccess {
			return e.Algorithms
		}
	}
	return ""
}

// tellStart tells that the broker serves.
func (d *Daemon) tellStart() {
	d.mu.Lock()
	l := d.loaded
	d.mu.Unlock()
	d.tell(eventlog.BrokerStarted, eventlog.ArgVersion.Is(control.Version()), ownPID(), eventlog.ArgFiles.Is(strings.Join(l.files, " ")),
		eventlog.ArgGeneration.Is(strconv.Itoa(l.policy.Generation)))
}

func (d *Daemon) tellReloaded(l *loaded, changed bool) {
	d.tell(eventlog.BrokerReloaded, eventlog.ArgFiles.Is(strings.Join(l.files, " ")),
		eventlog.ArgGeneration.Is(strconv.Itoa(l.policy.Generation)), eventlog.ArgChanged.Is(yesNo(changed)))
}

func (d *Daemon) tellNotReloaded(err error) {
	d.mu.Lock()
	generation := d.loaded.policy.Generation
	d.mu.Unlock()
	d.tell(eventlog.BrokerReloadFailed, eventlog.ArgGeneration.Is(strconv.Itoa(generation)), textOf(err))
}

// tellCapture tells that a capture begins to be served, or ceases to be. What follows
// the command's name on its command line may hold secrets.
func (d *Daemon) tellCapture(event eventlog.Event, s *served, err error) {
	args := []eventlog.Arg{eventlog.ArgCapture.Is(s.args.ID), eventlog.ArgBackend.Is(s.capture.Backend), eventlog.ArgUsername.Is(d.account.name)}
	if event == eventlog.CaptureStarted {
		if len(s.args.Command) > 0 {
			args = append(args, eventlog.ArgCommand.Is(s.args.Command[0]))
		}
		args = append(args, eventlog.ArgVia.Is(s.args.Via))
	} else {
		args = append(args, textOf(err))
	}
	d.tell(event, args...)
}

// tellSource is tellCapture for what ssh-captured captures for the whole host.
func (d *Daemon) tellSource(event eventlog.Event, id string, err error) {
	args := []eventlog.Arg{eventlog.ArgCapture.Is(id), eventlog.ArgBackend.Is("system")}
	if event == eventlog.CaptureEnded {
		args = append(args, textOf(err))
	}
	d.tell(event, args...)
}

// tell is for what happens seldom: arguments are made whether or not it is logged.
func (d *Daemon) tell(event eventlog.Event, args ...eventlog.Arg) { d.Events.Raise(event, args...) }

func ownPID() eventlog.Arg { return eventlog.ArgPID.Is(strconv.Itoa(os.Getpid())) }

func textOf(err error) eventlog.Arg {
	if err == nil {
		return eventlog.Arg{Name: eventlog.ArgText}
	}
	return eventlog.ArgText.Is(err.Error())
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// toldPrompter tells of questions to a person. The answers are nobody's business.
type toldPrompter struct {
	profiles.Prompter
	d    *Daemon
	args control.CaptureArgs
}

// Ask implements profiles.Prompter.
func (t toldPrompter) Ask(ctx context.Context, p profiles.Prompt) (string, error) {
	about := func(more ...eventlog.Arg) []eventlog.Arg {
		return append([]eventlog.Arg{eventlog.ArgCapture.Is(t.args.ID), eventlog.ArgVia.Is(t.args.Via)}, more...)
	}
	secret := eventlog.ArgSecret.Is(yesNo(p.Secret))
	t.d.tell(eventlog.PromptAsked, about(eventlog.ArgText.Is(p.Text), secret)...)
	answer, err := t.Prompter.Ask(ctx, p)
	if err != nil {
		t.d.tell(eventlog.PromptFailed, about(textOf(err))...)
		return answer, err
	}
	t.d.tell(eventlog.PromptAnswered, about(secret)...)
	return answer, nil
}
