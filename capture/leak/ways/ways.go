package ways

import (
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/capture"
)

// Request is one probe to be made. It travels as JSON.
type Request struct {
	Probe    string         `json:"probe"`
	Token    string         `json:"token"` // that the sink looks for
	To       netip.AddrPort `json:"to"`
	Group    bool           `json:"group,omitempty"` // To is a multicast group, on Device
	Device   string         `json:"device,omitempty"`
	Index    int            `json:"index,omitempty"`
	DeviceV4 netip.Addr     `json:"device_v4,omitzero"`
	FD       int            `json:"fd,omitempty"` // of an inherited socket
}

// Result is what the program that made the probe saw.
type Result struct {
	Errno unix.Errno `json:"errno,omitempty"` // 0: no call failed
	Text  string     `json:"text,omitempty"`  // the call that failed, or what was found
	// Outside says that the probe saw by itself that it got out: a daemon outside answered it.
	Outside bool `json:"outside,omitempty"`
	// Caught says that the capture's own resolver answered.
	Caught bool `json:"caught,omitempty"`
}

// Limit is how long one call of a probe may take.
const Limit = 5 * time.Second

// all are the ways by the names of their probes.
var all = map[string]func(Request) Result{
	"tcp4":            connect(plain),
	"tcp6":            connect(plain),
	"tcp-mapped":      connect(mapped),
	"tcp-device":      connect(boundToLoopback),
	"tcp-mark-pass":   connect(marked(capture.MarkPass)),
	"tcp-mark-direct": connect(marked(capture.MarkDirect)),
	"tcp-fastopen":    fastOpen,
	"tcp-iouring":     uring,
	"mptcp":           connect(multipath),
	"tcp-raw":         rawSYN,
	"udp4":            datagram(unix.IPPROTO_UDP, false),
	"udp6":            datagram(unix.IPPROTO_UDP, false),
	"udp-device":      datagram(unix.IPPROTO_UDP, true),
	"udp-lite":        datagram(unix.IPPROTO_UDPLITE, false),
	"icmp":            echo,
	"raw":             rawDatagram,
	"packet":          frame,
	"sctp":            connect(ofProtocol(unix.SOCK_STREAM, unix.IPPROTO_SCTP)),
	"dccp":            connect(ofProtocol(unix.SOCK_DCCP, unix.IPPROTO_DCCP)),
	"dns-udp":         query("udp"),
	"dns-tcp":         query("tcp"),
	"nscd":            daemon("/run/nscd/socket", nscdVersion),
	"resolved":        daemon("/run/systemd/resolve/io.systemd.Resolve", varlinkInfo),
	"avahi":           daemon("/run/avahi-daemon/socket", avahiHelp),
	"resolved-dbus":   resolvedByDBus,
	"inherited-tcp":   inherited,
	"inherited-udp":   inherited,
}

// Do makes a probe in this process.
func Do(r Request) Result {
	do, ok := all[r.Probe]
	if !ok {
		return Result{Errno: unix.EINVAL, Text: fmt.Sprintf("no probe %q", r.Probe)}
	}
	return do(r)
}

// Known says whether there is a way of that name.
func Known(probe string) bool { return all[probe] != nil }

// Describe is what the program that made the probe was told.
func (r Result) Describe(otherwise string) string {
	switch {
	case r.Errno == noErrno:
		return r.Text
	case r.Errno != 0:
		return fmt.Sprintf("%s: %v", r.Text, r.Errno)
	case r.Text != "":
		return r.Text
	}
	return otherwise
}
