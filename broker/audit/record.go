package audit

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"time"
	"unicode/utf16"
	"unicode/utf8"
)

// Version is the value of "v" in every record. Fields may be added under one
// version; none changes its meaning or goes.
const Version = 1

// Bounds on what one record holds, in bytes; a flow's program and its peers choose
// much of it.
const (
	maxText    = 1 << 10 // of one name or error text
	maxProgram = 4 << 10 // PATH_MAX
	maxNames   = 16
)

// Record is one flow. Fields that are not known stay zero and are then left out.
type Record struct {
	Time       time.Time // when the flow arrived
	Flow       uint64    // number of the flow, unique while the broker runs
	FlowID     string    // of one that a TLS tunnel carries: unique, and in the record of its gateway too
	Capture    string
	Backend    string // the capture's backend
	Generation uint64 // of the configuration that decided

	// What the decision was made from.
	UID      uint32
	User     string
	Groups   []string
	PID      int
	Program  string
	Src, Dst netip.AddrPort
	Names    []string // known names behind Dst, most recent first

	// The decision.
	Name       string // the one of Names by which it was made
	Rule       int    // 0: the default
	RuleSource string // "file:line"
	Action     string
	Profile    string

	// The outcome.
	Server  string // that carried it, as [user@]host:port
	Target  string // what the server was asked for, as host:port
	Reason  Reason
	Error   string // text of the error behind Reason
	UpEnd   string // how the direction from the program ended
	DownEnd string

	Decision time.Duration // from arrival until the rule was known
	Open     time.Duration // from then until the way was open or had failed
	Duration time.Duration // from arrival to the end

	BytesUp, BytesDown int64 // as far as we have moved them; 0 where the kernel carried it
}

// line is Record in the order and with the names of the file.
type line struct {
	V          int      `json:"v"`
	Time       string   `json:"time"`
	Flow       uint64   `json:"flow"`
	FlowID     string   `json:"flow_id,omitempty"`
	Capture    string   `json:"capture,omitempty"`
	Backend    string   `json:"backend,omitempty"`
	Generation uint64   `json:"generation"`
	UID        uint32   `json:"uid"`
	User       string   `json:"user,omitempty"`
	Groups     []string `json:"groups,omitempty"`
	PID        int      `json:"pid,omitempty"`
	Program    string   `json:"program,omitempty"`
	Src        string   `json:"src,omitempty"`
	Dst        string   `json:"dst,omitempty"`
	Names      []string `json:"names,omitempty"`
	Name       string   `json:"name,omitempty"`
	Rule       int      `json:"rule"`
	RuleSource string   `json:"rule_source,omitempty"`
	Action     string   `json:"action,omitempty"`
	Profile    string   `json:"profile,omitempty"`
	Server     string   `json:"server,omitempty"`
	Target     string   `json:"target,omitempty"`
	Reason     Reason   `json:"reason"`
	Error      string   `json:"error,omitempty"`
	UpEnd      string   `json:"up_end,omitempty"`
	DownEnd    string   `json:"down_end,omitempty"`
	DecisionMS millis   `json:"decision_ms"`
	OpenMS     millis   `json:"open_ms"`
	DurationMS millis   `json:"duration_ms"`
	BytesUp    int64    `json:"bytes_up"`
	BytesDown  int64    `json:"bytes_down"`
}

// millis is milliseconds with three digits after the point.
type millis time.Duration

func (m millis) MarshalJSON() ([]byte, error) {
	us := time.Duration(m).Microseconds()
	sign := ""
	if us < 0 {
		sign, us = "-", -us
	}
	return fmt.Appendf(nil, "%s%d.%03d", sign, us/1000, us%1000), nil
}

// AppendLine appends r to b as one line with its newline. The line is pure ASCII:
// whatever a name, a path or a server's text holds, it can neither end the line nor
// drive a terminal. Bytes that are not UTF-8 become U+FFFD.
func (r Record) AppendLine(b []byte) ([]byte, error) {
	text, err := json.Marshal(line{
		V:          Version,
		Time:       r.Time.UTC().Format(time.RFC3339Nano),
		Flow:       r.Flow,
		FlowID:     cut(r.FlowID, maxText),
		Capture:    cut(r.Capture, maxText),
		Backend:    cut(r.Backend, maxText),
		Generation: r.Generation,
		UID:        r.UID,
		User:       cut(r.User, maxText),
		Groups:     cutAll(r.Groups, 1<<16), // NGROUPS_MAX; the kernel's, not the program's, to choose
		PID:        r.PID,
		Program:    cut(r.Program, maxProgram),
		Src:        address(r.Src),
		Dst:        address(r.Dst),
		Names:      cutAll(r.Names, maxNames),
		Name:       cut(r.Name, maxText),
		Rule:       r.Rule,
		RuleSource: cut(r.RuleSource, maxProgram),
		Action:     cut(r.Action, maxText),
		Profile:    cut(r.Profile, maxText),
		Server:     cut(r.Server, maxText),
		Target:     cut(r.Target, maxText),
		Reason:     r.Reason,
		Error:      cut(r.Error, maxText),
		UpEnd:      cut(r.UpEnd, maxText),
		DownEnd:    cut(r.DownEnd, maxText),
		DecisionMS: millis(r.Decision),
		OpenMS:     millis(r.Open),
		DurationMS: millis(r.Duration),
		BytesUp:    r.BytesUp,
		BytesDown:  r.BytesDown,
	})
	if err != nil {
		return b, fmt.Errorf("audit record of flow %d: %w", r.Flow, err)
	}
	return append(appendASCII(b, text), '\n'), nil
}

func address(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// cut shortens s to at most n bytes and shows that it did.
func cut(s string, n int) string {
	const mark = "..."
	if len(s) <= n {
		return s
	}
	n -= len(mark)
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + mark
}

func cutAll(list []string, n int) []string {
	list = list[:min(len(list), n)]
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = cut(s, maxText)
	}
	return out
}

// appendASCII appends JSON text to b with DEL and everything beyond it escaped.
// Outside its strings JSON has nothing of that kind.
func appendASCII(b, text []byte) []byte {
	if !bytes.ContainsFunc(text, func(r rune) bool { return r >= 0x7f }) {
		return append(b, text...)
	}
	for _, r := range string(text) {
		switch {
		case r < 0x7f:
			b = append(b, byte(r))
		case r > 0xffff:
			hi, lo := utf16.EncodeRune(r)
			b = fmt.Appendf(b, `\u%04x\u%04x`, hi, lo)
		default:
			b = fmt.Appendf(b, `\u%04x`, r)
		}
	}
	return b
}
