package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// version is the first byte of a Request and an Answer.
const version = 1

// maxMessage bounds a Request and an Answer, in bytes.
const maxMessage = 4 << 10

// The most that each text may have, in bytes. Together they fit into maxMessage.
const (
	maxHost    = 255
	maxService = 255
	maxFlow    = 64
	maxProgram = 1024
	maxDetail  = 2048
	maxRule    = 255
)

// ErrMalformed says that the other end does not speak this protocol, or another
// version of it.
var ErrMalformed = errors.New("malformed message")

// Kind is what a stream is for. The zero Kind is none.
type Kind uint8

const (
	KindFlow     Kind = iota + 1 // a connection to Host and Port, or to the target of Service
	KindServices                 // a list of the services that the client may use
)

// Request is what the client says first on a stream.
type Request struct {
	Kind    Kind
	Host    string // name, sent unresolved, or textual address; "" with a Service that has a target of its own
	Port    uint16 // 0 likewise
	Service string // "" for the one that the connection itself has chosen
	Flow    string // the id under which both ends record the flow
	Program string // the path of the program behind it, as far as it is known; what does not print is replaced
}

// WriteRequest writes r with one call of w.Write. Its error is ErrMalformed where r
// cannot be said.
func WriteRequest(w io.Writer, r Request) error {
	m := newMessage()
	m.number(uint8(r.Kind))
	m.b = binary.BigEndian.AppendUint16(m.b, r.Port)
	m.text("host", r.Host, maxHost)
	m.text("service", r.Service, maxService)
	m.text("flow", r.Flow, maxFlow)
	m.text("program", printable(r.Program, maxProgram), maxProgram)
	if err := r.check(); err != nil {
		return err
	}
	return m.send(w)
}

// ReadRequest reads one Request and not a byte more. Its error is ErrMalformed, or r's.
func ReadRequest(r io.Reader) (Request, error) {
	m, err := receive(r)
	if err != nil {
		return Request{}, fmt.Errorf("request: %w", err)
	}
	q := Request{Kind: Kind(m.takeNumber())}
	q.Port = m.takePort()
	q.Host = m.takeText(maxHost)
	q.Service = m.takeText(maxService)
	q.Flow = m.takeText(maxFlow)
	q.Program = m.takeText(maxProgram)
	if err := m.done(); err != nil {
		return Request{}, fmt.Errorf("request: %w", err)
	}
	return q, q.check()
}

func (r Request) check() error {
	switch {
	case r.Kind != KindFlow && r.Kind != KindServices:
		return fmt.Errorf("%w: request of kind %d", ErrMalformed, r.Kind)
	case r.Kind == KindFlow && r.Host == "" && r.Service == "":
		return fmt.Errorf("%w: request without host and service", ErrMalformed)
	case (r.Host == "") != (r.Port == 0):
		return fmt.Errorf("%w: request with a host or a port alone", ErrMalformed)
	}
	return nil
}

// Status is the gateway's answer to a Request. The zero Status is none, and is refused
// by both WriteAnswer and ReadAnswer.
type Status uint8

const (
	OK           Status = iota + 1
	Refused             // by the destination
	Prohibited          // by the gateway's policy
	NameNotFound        //
	Unreachable         // no way to the destination
	TimedOut            // the destination did not answer
	Limited             // too many flows; later it may succeed
	BadRequest          //
	Failed              // anything else
)

// String is the word that records have for s.
func (s Status) String() string {
	switch s {
	case OK:
		return "ok"
	case Refused:
		return "refused"
	case Prohibited:
		return "prohibited"
	case NameNotFound:
		return "name-not-found"
	case Unreachable:
		return "unreachable"
	case TimedOut:
		return "timed-out"
	case Limited:
		return "limited"
	case BadRequest:
		return "bad-request"
	case Failed:
		return "failed"
	}
	return fmt.Sprintf("status(%d)", uint8(s))
}

// Answer is what the gateway says first on a stream.
type Answer struct {
	Status Status
	Detail string // for people
	Rule   string // that decided
}

// WriteAnswer writes a with one call of w.Write. What is too long or does not print is
// cut out of its texts.
func WriteAnswer(w io.Writer, a Answer) error {
	if a.Status < OK || a.Status > Failed {
		return fmt.Errorf("%w: answer of %s", ErrMalformed, a.Status)
	}
	m := newMessage()
	m.number(uint8(a.Status))
	m.text("detail", printable(a.Detail, maxDetail), maxDetail)
	m.text("rule", printable(a.Rule, maxRule), maxRule)
	return m.send(w)
}

// ReadAnswer reads one Answer and not a byte more. Its error is ErrMalformed, or r's.
func ReadAnswer(r io.Reader) (Answer, error) {
	m, err := receive(r)
	if err != nil {
		return Answer{}, fmt.Errorf("answer: %w", err)
	}
	a := Answer{Status: Status(m.takeNumber())}
	a.Detail = m.takeText(maxDetail)
	a.Rule = m.takeText(maxRule)
	if err := m.done(); err != nil {
		return Answer{}, fmt.Errorf("answer: %w", err)
	}
	if a.Status < OK || a.Status > Failed {
		return Answer{}, fmt.Errorf("%w: answer of %s", ErrMalformed, a.Status)
	}
	return a, nil
}

// message is a Request or an Answer in the making, or being taken apart: two bytes of
// length, the version, and fields; a text has two bytes of length before it.
type message struct {
	b   []byte
	err error
}

func newMessage() *message {
	return &message{b: append(make([]byte, 0, 128), 0, 0, version)}
}

func (m *message) number(n uint8) { m.b = append(m.b, n) }

func (m *message) text(name, s string, most int) {
	switch {
	case len(s) > most:
		m.err = fmt.Errorf("%w: %s of %d bytes, %d are the most", ErrMalformed, name, len(s), most)
	case !isPrintable(s):
		m.err = fmt.Errorf("%w: %s %q has a character that does not print", ErrMalformed, name, s)
	}
	m.b = binary.BigEndian.AppendUint16(m.b, uint16(len(s)))
	m.b = append(m.b, s...)
}

func (m *message) send(w io.Writer) error {
	if m.err != nil {
		return m.err
	}
	binary.BigEndian.PutUint16(m.b, uint16(len(m.b)-2))
	_, err := w.Write(m.b)
	return err
}

func receive(r io.Reader) (*message, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(size[:]))
	if n < 1 || n > maxMessage {
		return nil, fmt.Errorf("%w: %d bytes", ErrMalformed, n)
	}
	m := &message{b: make([]byte, n)}
	if _, err := io.ReadFull(r, m.b); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	if v := m.takeNumber(); v != version {
		return nil, fmt.Errorf("%w: version %d, this end speaks %d", ErrMalformed, v, version)
	}
	return m, nil
}

// take returns the next n bytes, or zeros where there are not so many.
func (m *message) take(n int) []byte {
	if m.err != nil || len(m.b) < n {
		if m.err == nil {
			m.err = fmt.Errorf("%w: too short", ErrMalformed)
		}
		return make([]byte, n)
	}
	b := m.b[:n]
	m.b = m.b[n:]
	return b
}

func (m *message) takeNumber() uint8 { return m.take(1)[0] }
func (m *message) takePort() uint16  { return binary.BigEndian.Uint16(m.take(2)) }

func (m *message) takeText(most int) string {
	n := int(m.takePort())
	if n > most {
		m.err = fmt.Errorf("%w: text of %d bytes, %d are the most", ErrMalformed, n, most)
		return ""
	}
	s := string(m.take(n))
	if m.err == nil && !isPrintable(s) {
		m.err = fmt.Errorf("%w: %q has a character that does not print", ErrMalformed, s)
	}
	return s
}

func (m *message) done() error {
	if m.err == nil && len(m.b) > 0 {
		m.err = fmt.Errorf("%w: %d bytes too many", ErrMalformed, len(m.b))
	}
	return m.err
}

func isPrintable(s string) bool {
	return utf8.ValidString(s) && strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) < 0
}

// printable makes s fit for a message.
func printable(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case r == utf8.RuneError || !unicode.IsPrint(r):
			return '?'
		}
		return r
	}, s)
	for len(s) > most {
		_, size := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-size]
	}
	return s
}
