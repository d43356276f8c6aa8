package profiles

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strconv"
	"time"
)

// Destination is where the far end of a tunnel is to connect.
type Destination struct {
	Host   string // a name, sent unresolved, or a textual address
	Port   uint16
	Origin netip.AddrPort // the program's own address, told to the server as originator

	// Service is one of an ssh-gateway's services; "": the gateway chooses. Where the
	// service has a destination of its own, Host is "" and Port is 0. Only a profile with
	// HasServices reaches one.
	Service string

	// Flow is the id under which the flow is recorded here, and Program the path of the
	// program behind it where that is known: for servers that record them too.
	Flow, Program string
}

// Addr is the destination as an address of the net package: a *net.TCPAddr where Host is
// one, else the name as it is.
func (d Destination) Addr() net.Addr {
	if ip, err := netip.ParseAddr(d.Host); err == nil {
		return net.TCPAddrFromAddrPort(netip.AddrPortFrom(ip, d.Port))
	}
	return hostAddr(d.String())
}

// String is host:port, or the service where that says it all.
func (d Destination) String() string {
	if d.Host == "" && d.Service != "" {
		return "service " + d.Service
	}
	return net.JoinHostPort(d.Host, strconv.Itoa(int(d.Port)))
}

// hostAddr is the address of a destination that the server resolves.
type hostAddr string

func (hostAddr) Network() string  { return "tcp" }
func (a hostAddr) String() string { return string(a) }

// Stream is one flow inside a transport. Deadlines work, Close may be called more
// than once, and Close and Reset always release local readers and writers, even
// on a path that has gone dead.
//
// Read returns io.EOF only where the far end has ended its direction in order;
// ErrLost where the transport went, ErrReset where the far end closed the flow
// without ending its direction. Data that arrived before is delivered first.
//
// A stream may also implement io.ReaderFrom, io.WriterTo, Carrier, FarCloser and
// Counter. The streams of a Pool always do.
type Stream interface {
	net.Conn
	// CloseWrite ends our direction; the other stays open.
	CloseWrite() error
	// Reset ends the flow at once without an orderly end, in both directions.
	Reset() error
}

// FarCloser is a stream that knows when its far end takes no more data.
type FarCloser interface {
	// Closed is closed when the far end has given the flow up entirely or the
	// transport is lost: what is written from then on reaches nobody. What came
	// before may still be read.
	Closed() <-chan struct{}
}

// Carrier is a stream that moves data in goroutines of its own, which spares those
// of the caller and the hand-over of each piece. Deadlines need not count meanwhile.
type Carrier interface {
	// TakeFrom carries what next gives, one piece after the other, until next fails;
	// it returns that error, or nil for io.EOF. When next is called again, the piece
	// before has been accepted and is the caller's again. Not patient, next may return
	// nothing when there has been none for a while. Where the stream ends first
	// TakeFrom returns its error, but not out of a call of next: the caller ends that.
	// The last piece may then be in use for a while, and must not be changed.
	TakeFrom(next func(patient bool) ([]byte, error)) error
	// DeliverTo writes to w what comes, until the far end's EOF or an error, and calls
	// done once, with nil for EOF; that may be before DeliverTo returns. A write to w
	// that blocks is waited for.
	DeliverTo(w io.Writer, done func(error))
}

// Counter is a stream that counts what it carried.
type Counter interface {
	// Counts gives the bytes accepted from and delivered to the local side so far.
	Counts() (sent, received uint64)
}

// Transport is one live connection to a server, on which streams are opened.
// Safe for concurrent use.
type Transport interface {
	// Open asks the server for a stream to dst and waits for its answer, or until
	// ctx ends; a stream confirmed later than that is closed by the transport.
	// Its errors are of the classes below. The caller closes the stream.
	Open(ctx context.Context, dst Destination) (Stream, error)
	// Done is closed when the transport is lost or closed; all its streams then end
	// with a reset.
	Done() <-chan struct{}
	// Err says why Done was closed; nil before. It is ErrLost with the cause.
	Err() error
	Close() error
}

// Attended is a transport that knows whether another login like its own may take a person
// who was not asked through a Prompter: to touch a key, or to confirm something elsewhere.
type Attended interface {
	Attended() bool
}

// Prober is a transport that can be asked whether it still works.
type Prober interface {
	// Probe begins to ask, and loses the transport where no sign of life has come
	// within limit. It does not wait.
	Probe(limit time.Duration)
}

// Retirer is a transport that may come to take no more streams while those that are open
// go on: the server goes away, or we have other credentials now.
type Retirer interface {
	// Retired is closed then. Open fails with ErrLost from then on, or soon after.
	Retired() <-chan struct{}
}

// Describer is a transport that can say what it is.
type Describer interface {
	Describe() Description
}

// Description is what a live transport says of itself.
type Description struct {
	Local, Remote  string // addresses of the connection itself
	User           string // logged in as
	ServerVersion  string // as the server gives it; sanitised
	HostKey        string // type and SHA256 fingerprint
	KeyExchange    string
	Cipher         string
	Expires        time.Time // our certificate; zero: none, or the kind has none
	Note           string    // what does not work on this connection; "": nothing to say
	Sent, Received uint64    // bytes on the wire
}

// DialFunc opens the connection that a transport runs on.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// Connector makes transports of one kind. The pool calls it, once at a time for a Key but
// for exclusive profiles (four times), and for a transport that is to replace another or
// to stand beside it, which nobody waits for.
type Connector interface {
	// Connect reaches p's server and proves who we are. via is not nil where the
	// profile has a gateway: the connection then runs in what via returns, else the
	// connector dials by itself. ctx bounds the connect only, not the life of the
	// transport. The caller closes the transport.
	Connect(ctx context.Context, p *Profile, via DialFunc, ask Prompter) (Transport, error)
}

// Prompter asks the person behind a capture. A nil Prompter means that nobody can
// be asked.
type Prompter interface {
	Ask(ctx context.Context, p Prompt) (string, error)
}

// Prompt is one question. Text may have several lines.
type Prompt struct {
	Text   string
	Secret bool // do not echo, never log
	YesNo  bool // the answer is "yes" or "no"
}

// Classes of failure, found with errors.Is. The first group fails the transport,
// the second one stream.
var (
	ErrConnect = errors.New("server cannot be reached")
	ErrAuth    = errors.New("authentication failed")
	ErrHostKey = errors.New("host key not trusted")   // never falls back to plain
	ErrSetup   = errors.New("profile cannot be used") // unreadable key file, no common algorithm
	ErrLost    = errors.New("transport lost")
	ErrClosed  = errors.New("pool of transports closed")

	ErrRefused      = errors.New("refused by the destination")
	ErrProhibited   = errors.New("forwarding prohibited by the server")
	ErrNameNotFound = errors.New("name not found by the server")
	ErrOpen         = errors.New("server could not open the connection")
	ErrReset        = errors.New("flow reset by the far end")
	ErrEnded        = errors.New("its policy has ended the flow") // beside ErrReset, with the far end's words
)
