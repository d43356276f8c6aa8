package control

import (
	"encoding/json"
	"time"
)

// The operations that ssh-broker serves. Beside each: its arguments, then its rows.
const (
	OpStatus      = "status"           // none; one StatusRow
	OpReload      = "reload"           // none; one ReloadResult
	OpStop        = "stop"             // StopArgs; none
	OpConnections = "list-connections" // none; ConnectionRow
	OpChannels    = "list-channels"    // none; ChannelRow
	OpExplain     = "explain"          // ExplainArgs; ExplainRow
	OpCapture     = "capture"          // CaptureArgs with descriptors; the broker's choice
	OpDebug       = "debug"            // DebugArgs; none
	OpConnect     = "connect"          // ConnectArgs with a TCP socket; one ConnectRow once it is connected; done when it has ended

	OpProfiles        = "list-profiles"     // none; ProfileRow
	OpClients         = "list-clients"      // none; ClientRow
	OpCloseConnection = "close-connection"  // IDArgs; none
	OpCloseChannel    = "close-channel"     // IDArgs; none
	OpDisconnect      = "disconnect-client" // IDArgs; none

	OpListeners     = "list-tunnel-listeners" // none; ListenerRow
	OpOpenListener  = "open-tunnel-listener"  // OpenListenerArgs; one ListenerRow
	OpCloseListener = "close-tunnel-listener" // CloseListenerArgs; none
	OpServices      = "services"              // ServicesArgs; ServiceRow
	OpListKeys      = "list-keys"             // KeyArgs; KeyRow
	OpAddKey        = "add-key"               // KeyArgs; one KeyRow
	OpRemoveKey     = "remove-key"            // KeyArgs; one KeyRow
	OpPassphrase    = "key-passphrase"        // PassphraseArgs; KeyRow of what was opened
	OpProbeKey      = "probe-key"             // ProbeKeyArgs; HostKeyRow
	OpAuthHandler   = "auth-handler"          // none; one AuthHandlerRow, and questions until the client leaves

	OpMetrics = "metrics" // none; MetricsRow, which are one text together

	OpStay = "stay" // none; none: a broker that runs on demand becomes a daemon
)

// Mode is how a broker came to run, and so when it ends.
type Mode string

const (
	ModeDaemon   Mode = "daemon"    // runs until told to stop
	ModeOnDemand Mode = "on-demand" // ends some seconds after its last client
	ModeSystem   Mode = "system"    // serves every user
)

// StatusRow is the broker at a glance.
type StatusRow struct {
	PID         int       `json:"pid"`
	Version     string    `json:"version"`
	Since       time.Time `json:"since"`
	Address     string    `json:"address"`
	Mode        Mode      `json:"mode"`
	ConfigFiles []string  `json:"config_files"`
	Generation  int       `json:"generation"` // 1 for the configuration of the start, one more with each reload
	Warnings    []string  `json:"warnings"`

	Generations []GenerationStatus `json:"generations"` // in use, the oldest first, the one in force among them
	Networks    []NetworkStatus    `json:"networks,omitempty"`
	PlaceError  string             `json:"place_error,omitempty"` // why it is not known of some network

	Captures   int         `json:"captures"`
	Strangers  uint64      `json:"strangers"` // connections made straight to a listener of a live capture; they were reset
	FlowsLive  int64       `json:"flows_live"`
	FlowsTotal int64       `json:"flows_total"`
	Audit      AuditStatus `json:"audit"`
	Log        []LogTarget `json:"log"`      // where the element logging sends events; empty: nowhere
	HeldSYN    bool        `json:"held_syn"` // connect() waits for the decision; false where this kernel cannot hold a SYN
	Memory     uint64      `json:"memory"`   // bytes obtained from the system
	Goroutines int         `json:"goroutines"`
	FDs        int         `json:"fds"`

	Listeners      int      `json:"listeners"`                 // open ports of tunnels
	ListenerErrors []string `json:"listener_errors,omitempty"` // why others are not

	MetricsErrors []string `json:"metrics_errors,omitempty"` // why they cannot be read by a way of the configuration

	Captured *CapturedStatus `json:"captured,omitempty"` // nil where nothing is done through ssh-captured

	// ConfigDigest is the sum over ConfigFiles as they were when they were read, in hex;
	// "" from an older broker.
	ConfigDigest string `json:"config_digest,omitempty"`
}

// NetworkStatus is whether the host is on a network of the configuration.
type NetworkStatus struct {
	ID string `json:"id"`
	On string `json:"on"` // NetworkHere and so on
}

// What NetworkStatus.On says.
const (
	NetworkHere    = "yes"
	NetworkAway    = "no"
	NetworkUnknown = "unknown" // rules for it that may send in clear are not in force
)

// GenerationStatus is a configuration that is in use: the one in force, or one that live
// flows began with.
type GenerationStatus struct {
	Generation int       `json:"generation"`
	Since      time.Time `json:"since"`    // when it came into force
	Flows      int       `json:"flows"`    // live
	Captures   int       `json:"captures"` // by its rules, or by rules of their own since it was in force
}

// CapturedStatus is how a broker stands with ssh-captured.
type CapturedStatus struct {
	Connected bool   `json:"connected"`
	Enabled   bool   `json:"enabled"`          // system-wide capture is on
	Held      bool   `json:"held"`             // connect() waits for the decision
	Origins   bool   `json:"origins"`          // the process behind a connection is found at once
	Policy    string `json:"policy,omitempty"` // of the system broker: what becomes of connections without it, "closed" or "open"
	Error     string `json:"error,omitempty"`  // why it is not connected
}

// AuditStatus says whether the audit record keeps up.
type AuditStatus struct {
	Path    string `json:"path"`
	Written uint64 `json:"written"`         // records
	Pending int    `json:"pending"`         // records that wait to be written
	Failed  uint64 `json:"failed"`          // records that could not be written
	Error   string `json:"error,omitempty"` // why they wait
}

// LogTarget says whether one target of the element logging keeps up.
type LogTarget struct {
	Target  string `json:"target"`
	Written uint64 `json:"written"`         // events
	Pending int    `json:"pending"`         // events that wait to be written
	Lost    uint64 `json:"lost"`            // events that there was no room for to wait
	Error   string `json:"error,omitempty"` // why they wait
}

// ConnectionRow is one transport.
type ConnectionRow struct {
	ID        uint64    `json:"id"`
	Profile   string    `json:"profile"`
	Number    int       `json:"number,omitempty"` // among those of its profile, where there may be several
	Bulk      bool      `json:"bulk,omitempty"`   // new channels are opened on another one, if possible
	Server    string    `json:"server"`           // host:port
	User      string    `json:"user"`
	Via       string    `json:"via,omitempty"` // the profile it is opened through
	HostKey   string    `json:"host_key"`      // type and SHA256 fingerprint
	Cipher    string    `json:"cipher"`
	Version   string    `json:"version,omitempty"` // of the server, or of TLS and what is spoken in it
	Expires   time.Time `json:"expires,omitzero"`  // our certificate
	Note      string    `json:"note,omitempty"`    // what does not work there
	Since     time.Time `json:"since,omitzero"`
	Channels  int       `json:"channels"`
	BytesUp   uint64    `json:"bytes_up"`
	BytesDown uint64    `json:"bytes_down"`
	State     string    `json:"state"`
	LastError string    `json:"last_error,omitempty"`
	RetryAt   time.Time `json:"retry_at,omitzero"`
}

// ChannelRow is one flow that is being carried.
type ChannelRow struct {
	ID         uint64    `json:"id"`
	Connection uint64    `json:"connection"` // ConnectionRow.ID; 0 for a flow carried without a tunnel
	Capture    string    `json:"capture"`
	Owner      string    `json:"owner,omitempty"` // login name, or uid; of a system broker
	Program    string    `json:"program"`
	PID        int       `json:"pid"`
	Src        string    `json:"src"` // address:port
	Dst        string    `json:"dst"` // address:port, as the program asked
	Name       string    `json:"name,omitempty"`
	Rule       string    `json:"rule"`
	Action     string    `json:"action"`
	Profile    string    `json:"profile,omitempty"`
	Since      time.Time `json:"since"`
	BytesUp    uint64    `json:"bytes_up"`
	BytesDown  uint64    `json:"bytes_down"`
	State      string    `json:"state"`
	Error      string    `json:"error,omitempty"` // why it is carried otherwise than the rule says
}

// ExplainArgs is a flow that nobody has opened, or the number of one that is open.
type ExplainArgs struct {
	Flow uint64 `json:"flow,omitempty"` // ChannelRow.ID; nothing else is given then

	Program string   `json:"program,omitempty"` // path of the executable; "" for one that is not known
	User    string   `json:"user,omitempty"`    // login name; "" for the broker's
	Groups  []string `json:"groups,omitempty"`  // names; none: those of User
	Host    string   `json:"host"`              // name or address
	Names   []string `json:"names,omitempty"`   // by which it is known besides, most recent first
	Port    uint16   `json:"port"`
}

// ExplainRow is a step, or at the end the result. Where a flow is open there is a row
// for it before, and the others only if they tell something else.
type ExplainRow struct {
	Flow   *ExplainFlow   `json:"flow,omitempty"`
	Step   *ExplainStep   `json:"step,omitempty"`
	Result *ExplainResult `json:"result,omitempty"`
}

// DecidedBy is who decided about a flow.
type DecidedBy string

const (
	DecidedByRules  DecidedBy = "rules"     // of Generation
	DecidedByOwn    DecidedBy = "own-rules" // of its capture; no reload touches them
	DecidedBySystem DecidedBy = "system"    // the broker of the whole system, of whose rules Rule is one
	DecidedByPlace  DecidedBy = "place"     // nobody: it goes to the capture's own addresses
)

// ExplainFlow is a flow that is open: what was known of it, and what was decided.
type ExplainFlow struct {
	ID         uint64    `json:"id"`
	Connection uint64    `json:"connection"` // as in ChannelRow
	Capture    string    `json:"capture"`
	State      string    `json:"state"`
	Since      time.Time `json:"since"`

	UID     uint32   `json:"uid"`
	User    string   `json:"user"` // whose it is
	Groups  []string `json:"groups"`
	Program string   `json:"program"`
	PID     int      `json:"pid"`
	Src     string   `json:"src"`
	Dst     string   `json:"dst"`
	Names   []string `json:"names"`
	Name    string   `json:"name"` // the one of Names that counted

	By          DecidedBy `json:"by"`
	Generation  int       `json:"generation"` // of the configuration then
	Current     int       `json:"current"`    // of that now
	Action      string    `json:"action"`     // "": nothing is decided yet
	Rule        int       `json:"rule"`       // 0: none matched, the default held
	Source      string    `json:"source"`
	Profile     string    `json:"profile"`
	Server      string    `json:"server"`      // [user@]host:port
	Destination string    `json:"destination"` // that the server was asked for
	Error       string    `json:"error"`       // of what went otherwise than decided
}

// ExplainStep is one rule that was looked at. Where it did not match, Condition
// is the first that did not hold.
type ExplainStep struct {
	Rule      int    `json:"rule"`
	Source    string `json:"source"` // file:line
	Matched   bool   `json:"matched"`
	Condition string `json:"condition,omitempty"` // attribute of the rule
	Value     string `json:"value,omitempty"`     // what the flow has
	Pattern   string `json:"pattern,omitempty"`   // what the rule wants
}

// ExplainResult is the decision.
type ExplainResult struct {
	Action      string `json:"action"`
	Rule        int    `json:"rule"` // 0: none matched, the default holds
	Source      string `json:"source,omitempty"`
	Profile     string `json:"profile,omitempty"`
	Server      string `json:"server,omitempty"`
	User        string `json:"user,omitempty"` // login name at the server
	Fallback    bool   `json:"fallback"`       // carried in clear if the tunnel fails
	Destination string `json:"destination,omitempty"`
	Note        string `json:"note,omitempty"`
	Owner       string `json:"owner,omitempty"` // whose flow it would be; of a system broker
}

// CaptureArgs describes a capture. The descriptors of a namespace come with the call.
type CaptureArgs struct {
	ID          string   `json:"id"`
	Backend     string   `json:"backend,omitempty"`  // "": a namespace; BackendCgroup
	Takeover    bool     `json:"takeover,omitempty"` // an earlier broker served it
	Via         string   `json:"via,omitempty"`
	Agent       string   `json:"agent,omitempty"` // the caller's SSH_AUTH_SOCK, for Via
	ConfigFile  string   `json:"config_file,omitempty"`
	Localhost   bool     `json:"localhost,omitempty"`
	UDPDirect   bool     `json:"udp_direct,omitempty"`
	AllowDirect bool     `json:"allow_direct,omitempty"`
	Command     []string `json:"command,omitempty"`
	Debug       int      `json:"debug,omitempty"` // events are told up to this level; see CaptureEvent

	Manifest json.RawMessage `json:"manifest,omitempty"` // what the descriptors of a namespace are: a netns.Manifest
}

// BackendCgroup is a capture that ssh-captured has made: nothing comes with the call.
const BackendCgroup = "cgroup"

// CaptureRow is what a broker tells the client of a capture: once that it serves,
// then events as they happen.
type CaptureRow struct {
	Serving  bool          `json:"serving,omitempty"`
	Held     bool          `json:"held,omitempty"` // connect() waits for the decision
	Warnings []string      `json:"warnings,omitempty"`
	Event    *CaptureEvent `json:"event,omitempty"`
}

// CaptureEvent is one line for a person who debugs a capture.
type CaptureEvent struct {
	Level int    `json:"level"` // 1 fatal, 3 start-up, 5 connections, 7 name queries
	Text  string `json:"text"`
}

// ReloadResult says what a reload did.
type ReloadResult struct {
	Generation int      `json:"generation"`
	Changed    bool     `json:"changed"`
	Warnings   []string `json:"warnings"`
}

// MetricsRow is a piece of the metrics, in Prometheus's text format.
type MetricsRow struct {
	Text string `json:"text"`
	// Counting says that flows are counted; without it attempts and times are absent.
	Counting bool `json:"counting"`
}

// StopArgs says how to stop.
type StopArgs struct {
	DrainMS int64 `json:"drain_ms"` // how long live flows may go on; 0 cuts them
}

// DebugArgs sets the debug level of a running broker.
type DebugArgs struct {
	Level string `json:"level"` // as ssh-broker -D takes it
}

// ConnectArgs is where a flow is to lead. The socket that comes with it is one end of it.
type ConnectArgs struct {
	Host string `json:"host"` // name or address
	Port uint16 `json:"port"`
}

// ConnectRow says that the far end is connected.
type ConnectRow struct {
	Connected bool `json:"connected"`
}

// ListenerRow is one port through which programs reach the broker by themselves.
type ListenerRow struct {
	ID          uint64    `json:"id"`
	Type        string    `json:"type"`                  // tcp, socks, socks-proxy, http-connect, http-connect-chain
	Listen      string    `json:"listen"`                // address:port
	Destination string    `json:"destination,omitempty"` // host:port; of tcp
	Service     string    `json:"service,omitempty"`     // of the gateway behind Profile
	Profile     string    `json:"profile,omitempty"`     // id; "" where the rules decide, or with Server
	Server      string    `json:"server,omitempty"`      // user@host:port, where no profile is behind it
	Relay       bool      `json:"relay"`                 // other users and hosts may use it
	Source      string    `json:"source"`                // file:line, or the command
	Open        bool      `json:"open"`
	Error       string    `json:"error,omitempty"` // why it is not
	Since       time.Time `json:"since,omitzero"`
	Accepted    uint64    `json:"accepted"` // connections
	Refused     uint64    `json:"refused"`  // of them, before any rule was asked
	Live        int       `json:"live"`     // flows
}

// OpenListenerArgs is a tunnel to open.
type OpenListenerArgs struct {
	Type       string `json:"type"`
	Listen     string `json:"listen"`                // address, "" or "*", then ":port"
	Host       string `json:"host,omitempty"`        // destination of tcp
	Port       uint16 `json:"port,omitempty"`        //
	Server     string `json:"server,omitempty"`      // id or name of a profile, or a host
	User       string `json:"user,omitempty"`        // to log in as; "": the profile's
	ServerPort uint16 `json:"server_port,omitempty"` // 0: the profile's
	Relay      bool   `json:"relay,omitempty"`
	Service    string `json:"service,omitempty"` // of the gateway that Server is a profile for; in place of Host and Port
}

// ServicesArgs says whose services are asked for.
type ServicesArgs struct {
	Profile string `json:"profile,omitempty"` // id or name; "": all that lead to an ssh-gateway
}

// ServiceRow is a service that a gateway offers to us, or why it is not known what it
// offers. Its texts are fit for a terminal.
type ServiceRow struct {
	Profile     string   `json:"profile"`               // id
	Error       string   `json:"error,omitempty"`       // the gateway was not asked; there is nothing else then
	Name        string   `json:"name,omitempty"`        //
	Kind        string   `json:"kind,omitempty"`        // "tcp", "http-connect", or what the gateway's administrator calls it
	Target      string   `json:"target,omitempty"`      // host:port, of a service with a destination of its own
	Hosts       []string `json:"hosts,omitempty"`       // patterns of what the client may name
	Port        uint16   `json:"port,omitempty"`        // that the gateway suggests for a listener; 0: none
	Overridable bool     `json:"overridable,omitempty"` // another port does as well
	Description string   `json:"description,omitempty"` //
	Listen      []string `json:"listen,omitempty"`      // address:port of listeners that lead there
	Open        []string `json:"open,omitempty"`        // a command that opens one; its words
}

// CloseListenerArgs names one listener in either way.
type CloseListenerArgs struct {
	ID     uint64 `json:"id,omitempty"`
	Listen string `json:"listen,omitempty"` // address:port; without an address it is 127.0.0.1
}

// IDArgs names one connection, channel or client.
type IDArgs struct {
	ID uint64 `json:"id"`
}

// ProfileRow is one profile as it is in force.
type ProfileRow struct {
	ID        string   `json:"id"`
	Name      string   `json:"name,omitempty"`
	Servers   []string `json:"servers"` // host:port; more than one: those after the first stand in. None: as programs ask
	User      string   `json:"user"`
	Gateway   string   `json:"gateway,omitempty"` // id
	Proxy     bool     `json:"proxy"`             // a ruleset or the environment may name one
	Exclusive bool     `json:"exclusive"`         // a connection for each channel
	// Transports is how many connections there may be at a time, where it is not Exclusive.
	Transports int  `json:"transports"`
	Startup    bool `json:"startup"`   // connected without a channel
	Connected  int  `json:"connected"` // live connections
}

// ClientRow is one program that is connected to the broker's control socket.
type ClientRow struct {
	ID        uint64    `json:"id"`
	PID       int       `json:"pid"`
	UID       int       `json:"uid"`
	Program   string    `json:"program,omitempty"`
	Operation string    `json:"operation,omitempty"` // under way
	Since     time.Time `json:"since"`
}
