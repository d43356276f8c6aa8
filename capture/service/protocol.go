package service

import (
	"net/netip"
	"time"

	"sshbroker/capture"
)

// Version is raised when old and new cannot talk.
const Version = 1

// DefaultSocket is where ssh-captured listens; EnvSocket names another place.
const (
	DefaultSocket = "/run/ssh-captured/socket"
	EnvSocket     = "SSH_CAPTURED_SOCKET"
)

// System is the id of the capture of the whole host.
const System = "system"

// Op is what a message is about.
type Op string

// The operations. In brackets: what the message holds, what its answer holds.
const (
	OpHello  Op = "hello"  // [Hello] both ways, first
	OpAnswer Op = "answer" // of a request; Error set where it failed

	OpMake      Op = "make"      // [Capture] a cgroup for a capture of the caller's; [Made]
	OpEnter     Op = "enter"     // [Capture, a pidfd] moves a process of the caller's, and what it starts from now on, into it
	OpServe     Op = "serve"     // [Capture, Spec, Resume] from now on attempts come here; [Served, DNS sockets]
	OpSpec      Op = "spec"      // [Capture, Spec] another Spec for a capture that is served here
	OpCarry     Op = "carry"     // this connection carries what is handed to the caller's uid
	OpConnector Op = "connector" // [Enable] system-wide capture on or off
	OpStatus    Op = "status"    // [Status]
	OpRelease   Op = "release"   // opens everything and forgets it

	OpAttempt Op = "attempt" // [Attempt] to whoever serves, or carries

	OpAdmit  Op = "admit"  // [ID, or Key where ID is 0] [the connection]
	OpRefuse Op = "refuse" // [ID, Refusal; Text where it was handed over]
	OpPass   Op = "pass"   // [ID]
	OpHand   Op = "hand"   // [ID, Payload] let the owner's own broker carry it; [Handed] once that has decided
	OpOrigin Op = "origin" // [ID] [Origin]
	OpWaits  Op = "waits"  // [ID] [Yes] whether its program still waits
)

// Message is every message of both sides; which fields count is said at its Op.
type Message struct {
	Op  Op     `json:"op"`
	Seq uint64 `json:"seq,omitempty"` // of a request, not 0; its answer has the same

	Hello *Hello `json:"hello,omitempty"`
	Error *Error `json:"error,omitempty"`

	Capture string        `json:"capture,omitempty"` // id
	Spec    *capture.Spec `json:"spec,omitempty"`
	Resume  bool          `json:"resume,omitempty"`
	Enable  *bool         `json:"enable,omitempty"`
	Yes     bool          `json:"yes,omitempty"`

	ID      uint64          `json:"id,omitempty"` // of an attempt, in this connection
	Key     *Key            `json:"key,omitempty"`
	Attempt *Attempt        `json:"attempt,omitempty"`
	Refusal capture.Refusal `json:"refusal,omitempty"`
	Text    string          `json:"text,omitempty"`
	Payload []byte          `json:"payload,omitempty"`

	Made   *Made   `json:"made,omitempty"`
	Served *Served `json:"served,omitempty"`
	Handed *Handed `json:"handed,omitempty"`
	Origin *Origin `json:"origin,omitempty"`
	Status *Status `json:"status,omitempty"`
}

// Hello is each side's first message.
type Hello struct {
	Version int    `json:"version"`
	Program string `json:"program"` // and its version, for people
	PID     int    `json:"pid,omitempty"`
}

// Code is the class of an Error.
type Code string

// The codes.
const (
	CodeBadRequest Code = "bad-request"
	CodeForbidden  Code = "forbidden"  // not the caller's, or not for this caller
	CodeNotFound   Code = "not-found"  // no such capture, attempt or process
	CodeBusy       Code = "busy"       // served or carried by somebody else; too many
	CodeAbandoned  Code = "abandoned"  // the program gave up: capture.ErrAbandoned
	CodeNoFiles    Code = "no-files"   // no descriptor left: capture.ErrNoDescriptors
	CodeNoCarrier  Code = "no-carrier" // the owner has no broker that carries
	CodeKernel     Code = "kernel"     // this machine cannot; Message says what and Hint what would help
	CodeStopping   Code = "stopping"   // ssh-captured is about to end
	CodeReleased   Code = "released"   // everything was opened: the capture is no more
	CodeVersion    Code = "version"    // the two programs are of different versions
	CodeEnded      Code = "ended"      // the capture has no process any more
	CodeNoSystem   Code = "no-broker"  // no system broker has given rules yet
)

// Error is how a request failed.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

func (e *Error) Error() string { return e.Message }

// Made is a capture that a caller has made.
type Made struct {
	Cgroup string `json:"cgroup"` // its directory, to watch cgroup.events in
	Held   bool   `json:"held"`   // SYNs wait in a packet queue; else the kernel has none
}

// Served is what a server of a capture is told. With it come the sockets on which the
// capture's name queries arrive: UDP on 127.0.0.1 and ::1, then TCP on the same.
type Served struct {
	Held    bool `json:"held"`
	Enabled bool `json:"enabled"` // for System: whether it is in force
	// Origins says that asking for the origin costs microseconds; else /proc is searched.
	Origins bool `json:"origins"`
	// Marks says that the UDP sockets tell of each datagram its mark, which is its sender's:
	// capture.SenderMark. For System, on kernels that can (5.19).
	Marks  bool   `json:"marks,omitempty"`
	Owner  uint32 `json:"owner"`            // uid whose sockets are captured; 0 for System
	Cgroup string `json:"cgroup,omitempty"` // its directory; "" for System
}

// Key is how an attempt is known on both sides of a restart.
type Key struct {
	Src netip.AddrPort `json:"src"`
	Dst netip.AddrPort `json:"dst"`
	Seq uint32         `json:"isn"`
}

// Attempt is a held SYN.
type Attempt struct {
	Key
	UID     uint32    `json:"uid"`
	Arrived time.Time `json:"arrived"`
	// Payload is what the system broker says to whoever carries: then the message's
	// Capture is empty, and a refusal goes back to the system broker.
	Payload []byte `json:"payload,omitempty"`
}

// Outcome of a Handed attempt.
type Outcome string

// The outcomes. After HandRefused and HandGone the attempt is undecided and the system
// broker's again.
const (
	HandAdmitted Outcome = "admitted"
	HandRefused  Outcome = "refused"
	HandGone     Outcome = "gone" // the carrier's connection ended
	HandLost     Outcome = "lost" // the program gave up
)

// Handed is what became of an attempt that was handed over.
type Handed struct {
	Outcome Outcome         `json:"outcome"`
	Refusal capture.Refusal `json:"refusal,omitempty"`
	Text    string          `json:"text,omitempty"` // the carrier's reason
}

// Origin is the process behind an attempt.
type Origin struct {
	Known  bool   `json:"known"`
	PID    int    `json:"pid,omitempty"`
	Exe    string `json:"exe,omitempty"`
	Cgroup string `json:"cgroup,omitempty"` // below the root of the hierarchy; see view.Unit
	Error  string `json:"error,omitempty"`  // looking was not possible
}

// Status is for people and for `connector status`.
type Status struct {
	PID       int       `json:"pid"`
	Program   string    `json:"program"`
	Since     time.Time `json:"since"`
	Enabled   bool      `json:"enabled"`    // system-wide capture
	Serving   bool      `json:"serving"`    // by a system broker that is connected
	Held      bool      `json:"held"`       // SYNs wait in a packet queue
	Ownership string    `json:"ownership"`  // of the table: "owner, persist", "owner", "none"
	Policy    string    `json:"policy"`     // "closed" or "open"
	Keeper    string    `json:"keeper"`     // who keeps descriptors for the next: "service manager", "parent", "none"
	Origins   string    `json:"origins"`    // "bpf" or "proc"
	Hierarchy string    `json:"hierarchy"`  // where cgroup2 is mounted; "" where it is not
	Carriers  []uint32  `json:"carriers"`   // uids whose own brokers carry
	Captures  []Capture `json:"captures"`   // System among them where it is in force
	Waiting   int       `json:"waiting"`    // SYNs held just now
	Overruns  uint64    `json:"overruns"`   // times that the queue was not read in time
	Strangers uint64    `json:"strangers"`  // connections to a listener that nobody stood for
	Bounded   uint64    `json:"bounded"`    // SYNs put off because their uid had too many
	LostMark  uint64    `json:"lost_marks"` // SYNs dropped by guard 1: a foreign rule took our mark
	Diverted  uint64    `json:"diverted"`   // SYNs dropped by guard 2: a foreign rule diverted them first
	Metered   uint64    `json:"metered"`    // SYNs dropped because their uid made too many
	Repairs   uint64    `json:"repairs"`    // times that a foreign program removed our table
	LastGap   string    `json:"last_gap"`   // how long it was gone the last time

	Suppressed uint64 `json:"suppressed"` // lines of its log that were left out, as there were too many of a kind
}

// Capture is one capture in a Status.
type Capture struct {
	ID      string        `json:"id"`
	Owner   uint32        `json:"owner"`
	Cgroup  string        `json:"cgroup,omitempty"`
	Served  bool          `json:"served"` // a broker is connected
	Waiting int           `json:"waiting"`
	Spec    *capture.Spec `json:"spec,omitempty"`
	Hits    []Hit         `json:"hits,omitempty"`
}

// Hit counts the SYNs that the kernel decided by itself by one rule.
type Hit struct {
	Rule    int    `json:"rule"` // 0: what no rule names
	Outcome string `json:"outcome"`
	Count   uint64 `json:"count"`
}
