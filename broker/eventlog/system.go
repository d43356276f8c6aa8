package eventlog

import (
	"log/syslog"
	"os"
	"strconv"
	"strings"

	"github.com/coreos/go-systemd/v22/journal"
)

// journalSocket is where the journal listens, as the library has it.
const journalSocket = "/run/systemd/journal/socket"

// system is the system's log, as an output: the journal with fields where there is one,
// else syslogd.
type system struct {
	socket  string                             // of a syslogd; "": wherever it is
	writers map[syslog.Priority]*syslog.Writer // by facility
}

func (w *system) write(entries []*entry) (int, error) {
	send := w.syslog
	if w.socket == "" && hasJournal() {
		send = toJournal
	}
	for i, e := range entries {
		if err := send(e); err != nil {
			return i, err
		}
	}
	return len(entries), nil
}

func (w *system) close() {
	for _, s := range w.writers {
		s.Close()
	}
	w.writers = nil
}

func hasJournal() bool {
	info, err := os.Stat(journalSocket)
	return err == nil && info.Mode().Type() == os.ModeSocket
}

// syslog sends one entry to syslogd. The library connects anew where that has gone.
func (w *system) syslog(e *entry) error {
	facility := facilities[e.facility]
	s := w.writers[facility]
	if s == nil {
		network := ""
		if w.socket != "" {
			network = "unixgram"
		}
		var err error
		if s, err = syslog.Dial(network, w.socket, facility|syslog.LOG_INFO, identifier); err != nil {
			return err
		}
		if w.writers == nil {
			w.writers = map[syslog.Priority]*syslog.Writer{}
		}
		w.writers[facility] = s
	}
	switch priorities[e.severity] {
	case journal.PriCrit:
		return s.Crit(e.text)
	case journal.PriErr:
		return s.Err(e.text)
	case journal.PriWarning:
		return s.Warning(e.text)
	case journal.PriNotice:
		return s.Notice(e.text)
	}
	return s.Info(e.text)
}

// facilities and priorities say what ours are to the system, by syslog(3). They are never
// written to.
var (
	facilities = [...]syslog.Priority{
		Normal: syslog.LOG_DAEMON, Daemon: syslog.LOG_DAEMON, User: syslog.LOG_USER, Auth: syslog.LOG_AUTH,
		Local0: syslog.LOG_LOCAL0, Local1: syslog.LOG_LOCAL1, Local2: syslog.LOG_LOCAL2, Local3: syslog.LOG_LOCAL3,
		Local4: syslog.LOG_LOCAL4, Local5: syslog.LOG_LOCAL5, Local6: syslog.LOG_LOCAL6, Local7: syslog.LOG_LOCAL7,
	}
	priorities = [...]journal.Priority{
		Informational: journal.PriInfo, Notice: journal.PriNotice, Warning: journal.PriWarning, Error: journal.PriErr,
		Critical: journal.PriCrit, SecuritySuccess: journal.PriNotice, SecurityFailure: journal.PriWarning,
	}
)

// fieldPrefix begins the names of our own fields in the journal.
const fieldPrefix = "SSH_BROKER_"

// Field is the name of the argument's field in the journal.
func (n ArgName) Field() string {
	return fieldPrefix + strings.ToUpper(strings.ReplaceAll(string(n), "-", "_"))
}

// toJournal sends one entry to the journal, each argument as a field of its own.
func toJournal(e *entry) error {
	fields := map[string]string{
		"SYSLOG_IDENTIFIER":      identifier,
		"SYSLOG_FACILITY":        strconv.Itoa(int(facilities[e.facility] >> 3)),
		fieldPrefix + "EVENT":    e.event.String(),
		fieldPrefix + "NUMBER":   strconv.Itoa(e.event.Definition().Number),
		fieldPrefix + "SEVERITY": e.severity.String(),
		"SYSLOG_PID":             strconv.Itoa(os.Getpid()),
	}
	for _, a := range e.args {
		if a.Value != "" {
			fields[a.Name.Field()] = a.Value
		}
	}
	return journal.Send(e.text, priorities[e.severity], fields)
}
