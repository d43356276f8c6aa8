package eventlog

import (
	"os"
	"strconv"
	"time"
	"unicode/utf8"
)

// Bounds on one line, in bytes: programs, servers and users choose much of it.
const (
	maxValue = 512     // of one value, before it is quoted
	maxLine  = 4 << 10 // of all arguments
)

// identifier is what the lines are known by in the system's log.
const identifier = "ssh-broker"

// Arg is one argument of an event. One without a value is left out.
type Arg struct {
	Name  ArgName
	Value string
}

// Is gives the argument its value.
func (n ArgName) Is(value string) Arg { return Arg{n, value} }

// Seconds is how durations are written, as 1.250000s.
func Seconds(d time.Duration) string {
	return strconv.FormatFloat(d.Seconds(), 'f', 6, 64) + "s"
}

// entry is one event that was raised.
type entry struct {
	at       time.Time
	event    Event
	severity Severity
	facility Facility
	args     []Arg // cut
	text     string
}

// size is what the entry counts for in a queue.
func (e *entry) size() int {
	n := len(e.text) + 128
	for _, a := range e.args {
		n += len(a.Value)
	}
	return n
}

// appendText appends number, name and arguments, as
//
//	20200 Connector_filter_rule, Flow: 7, Program: "/opt/my program", ...
//
// It is printable ASCII and one line, whatever the values hold.
func appendText(b []byte, e Event, args []Arg) []byte {
	d := e.Definition()
	b = strconv.AppendInt(b, int64(d.Number), 10)
	b = append(b, ' ')
	b = append(b, d.Name...)
	end := len(b) + maxLine
	for _, a := range args {
		if a.Value == "" {
			continue
		}
		whole := len(b)
		b = append(b, ", "...)
		b = append(b, a.Name...)
		b = append(b, ": "...)
		b = appendValue(b, a.Value)
		if len(b) > end {
			return append(b[:whole], ", ..."...)
		}
	}
	return b
}

// appendValue appends a value as it is where nobody can mistake its end or take
// something in it for the next argument, else in quotes with escapes as Go has them.
func appendValue(b []byte, v string) []byte {
	for i := range len(v) {
		if !plainByte(v[i]) {
			return strconv.AppendQuoteToASCII(b, v)
		}
	}
	return append(b, v...)
}

func plainByte(c byte) bool {
	return c > ' ' && c < 0x7f && c != '"' && c != '\\' && c != ',' && c != '\'' && c != '`'
}

// cut shortens a value to maxValue bytes and shows that it did.
func cut(v string) string {
	const mark = "..."
	if len(v) <= maxValue {
		return v
	}
	n := maxValue - len(mark)
	for n > 0 && !utf8.RuneStart(v[n]) {
		n--
	}
	return v[:n] + mark
}

// prefix is what stands before the text of a line in a file, after the time: program
// and process, as in the system's log.
var prefix = " " + identifier + "[" + strconv.Itoa(os.Getpid()) + "]: "

// appendFileLine appends the entry as a file has it, with the end of its line.
func appendFileLine(b []byte, e *entry) []byte {
	b = e.at.AppendFormat(b, "2006-01-02T15:04:05.000Z07:00")
	b = append(b, prefix...)
	b = append(b, e.facility.String()...)
	b = append(b, '.')
	b = append(b, e.severity.String()...)
	b = append(b, ": "...)
	b = append(b, e.text...)
	return append(b, '\n')
}
