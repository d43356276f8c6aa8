package eventlog

import (
	"fmt"
	"strconv"
)

// Severity is how much an event matters, in the words of ssh-broker-config(5).
type Severity uint8

const (
	Informational Severity = iota + 1
	Notice
	Warning
	Error
	Critical
	SecuritySuccess
	SecurityFailure
)

// severityNames is indexed by Severity and never written to.
var severityNames = [...]string{
	Informational:   "informational",
	Notice:          "notice",
	Warning:         "warning",
	Error:           "error",
	Critical:        "critical",
	SecuritySuccess: "security-success",
	SecurityFailure: "security-failure",
}

// String returns the word of the configuration file.
func (s Severity) String() string {
	if int(s) < len(severityNames) && severityNames[s] != "" {
		return severityNames[s]
	}
	return "severity(" + strconv.Itoa(int(s)) + ")"
}

// UnmarshalText takes the words that String gives.
func (s *Severity) UnmarshalText(text []byte) error {
	for i, name := range severityNames {
		if name != "" && name == string(text) {
			*s = Severity(i)
			return nil
		}
	}
	return fmt.Errorf("severity %q is not known", text)
}

// Facility is which of the system's logs an event belongs to, in the words of
// ssh-broker-config(5).
type Facility uint8

const (
	Normal Facility = iota + 1 // daemon's
	Daemon
	User
	Auth
	Local0
	Local1
	Local2
	Local3
	Local4
	Local5
	Local6
	Local7
	Discard // not logged at all
)

// facilityNames is indexed by Facility and never written to.
var facilityNames = [...]string{
	Normal: "normal", Daemon: "daemon", User: "user", Auth: "auth",
	Local0: "local0", Local1: "local1", Local2: "local2", Local3: "local3",
	Local4: "local4", Local5: "local5", Local6: "local6", Local7: "local7",
	Discard: "discard",
}

// String returns the word of the configuration file.
func (f Facility) String() string {
	if int(f) < len(facilityNames) && facilityNames[f] != "" {
		return facilityNames[f]
	}
	return "facility(" + strconv.Itoa(int(f)) + ")"
}

// UnmarshalText takes the words that String gives.
func (f *Facility) UnmarshalText(text []byte) error {
	for i, name := range facilityNames {
		if name != "" && name == string(text) {
			*f = Facility(i)
			return nil
		}
	}
	return fmt.Errorf("facility %q is not known", text)
}

// Event is one kind of what can be logged; see Definition.
type Event uint8

// The zero Event is none and is never logged.
const (
	none Event = iota

	// Of Tectia's, with its numbers.
	ServerHostkey
	KEXFailure
	AlgorithmNegotiationFailure
	AlgorithmNegotiationSuccess
	KEXSuccess
	CertificateValidationFailure
	CertificateValidationSuccess

	// The broker itself.
	BrokerStarted
	BrokerStopping
	BrokerStopped
	BrokerReloaded
	BrokerReloadFailed

	// This log.
	LogEventsLost
	LogEventsSuppressed

	// Captures.
	CaptureStarted
	CaptureEnded

	// Flows.
	ConnectorFilterRule
	TunnelOpened
	TunnelClosed
	TunnelFailed
	TunnelFallback
	ConnectionDirect
	ConnectionBlocked
	ConnectionFailed
	ConnectionHandedOver
	ConnectionAbandoned
	LimitReached

	// Servers.
	ServerConnected
	ServerConnectFailed
	ServerConnectionLost
	ServerDisconnected

	// Trust.
	HostKeyNew
	HostKeyUnknown
	HostKeyChanged
	HostKeyRevoked
	AuthenticationSuccess
	AuthenticationFailure
	KeyStoreKeyFailed
	KeyStoreKeyUnlocked
	KeyStoreUnlockFailed
	KeyStoreAgentFailed
	PromptAsked
	PromptAnswered
	PromptFailed

	endOfEvents
)

// ArgName is the name of an argument. In a line it stands as here; the fields of the
// journal have it in capitals, with underscores.
type ArgName string

// The arguments, see ssh-broker-events(5).
const (
	ArgUsername   ArgName = "Username"
	ArgAlgorithm  ArgName = "Algorithm"
	ArgText       ArgName = "Text"
	ArgSession    ArgName = "Session-Id"
	ArgProtocol   ArgName = "Protocol-session-Id"
	ArgClientList ArgName = "Client-algorithms"
	ArgServerList ArgName = "Server-algorithms"
	ArgStatus     ArgName = "Status"
	ArgKeyFile    ArgName = "Key-file"
	ArgKeyType    ArgName = "Key-type"
	ArgKeyHash    ArgName = "Public-key-hash"
	ArgVersion    ArgName = "Version"
	ArgPID        ArgName = "Pid"
	ArgFiles      ArgName = "Files"
	ArgGeneration ArgName = "Generation"
	ArgChanged    ArgName = "Changed"
	ArgTo         ArgName = "Target"
	ArgCount      ArgName = "Count"
	ArgKind       ArgName = "Suppressed-event"
	ArgCapture    ArgName = "Capture"
	ArgBackend    ArgName = "Backend"
	ArgCommand    ArgName = "Command"
	ArgFlow       ArgName = "Flow"
	ArgProgram    ArgName = "Program"
	ArgSrc        ArgName = "Src"
	ArgDst        ArgName = "Dst"
	ArgHost       ArgName = "Name"
	ArgRule       ArgName = "Rule"
	ArgRuleSource ArgName = "Rule-source"
	ArgAction     ArgName = "Action"
	ArgProfile    ArgName = "Profile"
	ArgServer     ArgName = "Server"
	ArgAskedFor   ArgName = "Destination"
	ArgReason     ArgName = "Reason"
	ArgBytesUp    ArgName = "Bytes-up"
	ArgBytesDown  ArgName = "Bytes-down"
	ArgDuration   ArgName = "Duration"
	ArgCipher     ArgName = "Cipher"
	ArgVia        ArgName = "Via"
	ArgMethod     ArgName = "Method"
	ArgSecret     ArgName = "Secret"
)

// What is told of a flow: once a rule is found, once it is known where it leads, when it
// ends, and when it has carried something.
var (
	decision = []ArgName{ArgFlow, ArgCapture, ArgUsername, ArgPID, ArgProgram, ArgSrc, ArgDst, ArgHost, ArgRule, ArgRuleSource, ArgAction}
	way      = append(decision[:len(decision):len(decision)], ArgProfile, ArgServer, ArgAskedFor)
	ended    = append(way[:len(way):len(way)], ArgReason, ArgText, ArgDuration)
	carried  = append(ended[:len(ended):len(ended)], ArgBytesUp, ArgBytesDown)
)

// Definition is what there is to know of an Event.
type Definition struct {
	Name     string
	Number   int
	Severity Severity  // where the configuration gives no other; the facility is Normal
	Args     []ArgName // that it may have, in this order; those without a value are left out
	// Never marks Tectia's events that a configuration may name and that cannot happen
	// here.
	Never bool
}

// definitions is indexed by Event and never written to. Numbers below 20000 are Tectia's
// own; what of its events has no published number (Connector_filter_rule, the family
// Key_store_*) has one of ours. A number is never used again for something else.
var definitions = [endOfEvents]Definition{
	ServerHostkey:                {"Server_hostkey", 140, Informational, []ArgName{ArgStatus, ArgServer, ArgKeyType, ArgKeyHash, ArgText, ArgSession}, false},
	KEXFailure:                   {"KEX_failure", 1000, Warning, []ArgName{ArgUsername, ArgServer, ArgText, ArgSession}, false},
	AlgorithmNegotiationFailure:  {"Algorithm_negotiation_failure", 1001, Warning, []ArgName{ArgUsername, ArgServer, ArgAlgorithm, ArgClientList, ArgServerList, ArgSession}, false},
	AlgorithmNegotiationSuccess:  {"Algorithm_negotiation_success", 1002, Informational, []ArgName{ArgUsername, ArgServer, ArgText, ArgSession}, false},
	KEXSuccess:                   {"KEX_success", 1003, Informational, []ArgName{ArgUsername, ArgServer, ArgAlgorithm, ArgSession, ArgProtocol}, false},
	CertificateValidationFailure: {"Certificate_validation_failure", 1100, Informational, nil, true},
	CertificateValidationSuccess: {"Certificate_validation_success", 1101, Informational, nil, true},

	BrokerStarted:      {"Broker_started", 20000, Notice, []ArgName{ArgVersion, ArgPID, ArgFiles, ArgGeneration}, false},
	BrokerStopping:     {"Broker_stopping", 20001, Notice, []ArgName{ArgPID, ArgText}, false},
	BrokerStopped:      {"Broker_stopped", 20002, Notice, []ArgName{ArgPID, ArgCount}, false},
	BrokerReloaded:     {"Broker_reloaded", 20003, Notice, []ArgName{ArgFiles, ArgGeneration, ArgChanged}, false},
	BrokerReloadFailed: {"Broker_reload_failed", 20004, Error, []ArgName{ArgGeneration, ArgText}, false},

	LogEventsLost:       {"Log_events_lost", 20010, Warning, []ArgName{ArgTo, ArgCount}, false},
	LogEventsSuppressed: {"Log_events_suppressed", 20011, Warning, []ArgName{ArgKind, ArgCount}, false},

	CaptureStarted: {"Capture_started", 20100, Informational, []ArgName{ArgCapture, ArgBackend, ArgUsername, ArgCommand, ArgVia}, false},
	CaptureEnded:   {"Capture_ended", 20101, Informational, []ArgName{ArgCapture, ArgBackend, ArgUsername, ArgText}, false},

	ConnectorFilterRule:  {"Connector_filter_rule", 20200, Informational, decision, false},
	TunnelOpened:         {"Tunnel_opened", 20210, Informational, way, false},
	TunnelClosed:         {"Tunnel_closed", 20211, Informational, carried, false},
	TunnelFailed:         {"Tunnel_failed", 20212, Warning, ended, false},
	TunnelFallback:       {"Tunnel_fallback", 20213, Warning, append(way[:len(way):len(way)], ArgText), false},
	ConnectionDirect:     {"Connection_direct", 20220, Informational, carried, false},
	ConnectionBlocked:    {"Connection_blocked", 20221, Notice, ended, false},
	ConnectionFailed:     {"Connection_failed", 20222, Notice, carried, false},
	ConnectionHandedOver: {"Connection_handed_over", 20223, Informational, ended, false},
	ConnectionAbandoned:  {"Connection_abandoned", 20224, Informational, ended, false},
	LimitReached:         {"Limit_reached", 20230, Warning, ended, false},

	ServerConnected:      {"Server_connected", 20300, Informational, []ArgName{ArgUsername, ArgProfile, ArgServer, ArgVia, ArgCipher, ArgKeyHash}, false},
	ServerConnectFailed:  {"Server_connect_failed", 20301, Warning, []ArgName{ArgUsername, ArgProfile, ArgServer, ArgVia, ArgText}, false},
	ServerConnectionLost: {"Server_connection_lost", 20302, Warning, []ArgName{ArgUsername, ArgProfile, ArgServer, ArgVia, ArgDuration, ArgText}, false},
	ServerDisconnected:   {"Server_disconnected", 20303, Informational, []ArgName{ArgUsername, ArgProfile, ArgServer, ArgVia, ArgDuration}, false},

	HostKeyNew:     {"Host_key_new", 20400, Notice, []ArgName{ArgServer, ArgKeyType, ArgKeyHash, ArgKeyFile, ArgStatus, ArgSession}, false},
	HostKeyUnknown: {"Host_key_unknown", 20401, SecurityFailure, []ArgName{ArgServer, ArgKeyType, ArgKeyHash, ArgSession}, false},
	HostKeyChanged: {"Host_key_changed", 20402, SecurityFailure, []ArgName{ArgServer, ArgKeyType, ArgKeyHash, ArgKeyFile, ArgStatus, ArgSession}, false},
	HostKeyRevoked: {"Host_key_revoked", 20403, SecurityFailure, []ArgName{ArgServer, ArgKeyType, ArgKeyHash, ArgKeyFile, ArgSession}, false},

	AuthenticationSuccess: {"Authentication_success", 20410, SecuritySuccess, []ArgName{ArgUsername, ArgProfile, ArgServer, ArgMethod, ArgSession}, false},
	AuthenticationFailure: {"Authentication_failure", 20411, SecurityFailure, []ArgName{ArgUsername, ArgProfile, ArgServer, ArgText, ArgSession}, false},

	KeyStoreKeyFailed:    {"Key_store_key_failed", 20420, Warning, []ArgName{ArgKeyFile, ArgProfile, ArgText, ArgSession}, false},
	KeyStoreKeyUnlocked:  {"Key_store_key_unlocked", 20421, Informational, []ArgName{ArgKeyFile, ArgProfile, ArgKeyHash, ArgSession}, false},
	KeyStoreUnlockFailed: {"Key_store_unlock_failed", 20422, Warning, []ArgName{ArgKeyFile, ArgProfile, ArgText, ArgSession}, false},
	KeyStoreAgentFailed:  {"Key_store_agent_failed", 20423, Warning, []ArgName{ArgProfile, ArgText, ArgSession}, false},

	PromptAsked:    {"Prompt_asked", 20430, Informational, []ArgName{ArgCapture, ArgVia, ArgText, ArgSecret}, false},
	PromptAnswered: {"Prompt_answered", 20431, Informational, []ArgName{ArgCapture, ArgVia, ArgSecret}, false},
	PromptFailed:   {"Prompt_failed", 20432, Notice, []ArgName{ArgCapture, ArgVia, ArgText}, false},
}

// Events returns every Event, in the order of their numbers.
func Events() []Event {
	all := make([]Event, 0, endOfEvents-1)
	for e := none + 1; e < endOfEvents; e++ {
		all = append(all, e)
	}
	return all
}

// Definition returns what there is to know of e, the zero Definition where e is none.
// The caller does not change its slices.
func (e Event) Definition() Definition {
	if e < endOfEvents {
		return definitions[e]
	}
	return Definition{}
}

// String returns the event's name.
func (e Event) String() string {
	if d := e.Definition(); d.Name != "" {
		return d.Name
	}
	return "event(" + strconv.Itoa(int(e)) + ")"
}
