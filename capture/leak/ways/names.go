package ways

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// MadeUp is the pool from which a capture's resolver answers where all names are for the
// tunnel: a rule of the trial's says so.
var MadeUp = netip.MustParsePrefix("198.18.0.0/15")

// query asks a name server that is not there. Whoever answers it with an address of the
// pool is the capture's resolver.
func query(network string) func(Request) Result {
	return func(r Request) Result {
		name := dnsmessage.MustNewName("leak-" + strings.ToLower(r.Token) + ".example.")
		message := dnsmessage.Message{Header: dnsmessage.Header{ID: 0x5342, RecursionDesired: true},
			Questions: []dnsmessage.Question{{Name: name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
		packet, err := message.Pack()
		if err != nil {
			return failed("name query", err)
		}
		begin := time.Now()
		c, err := net.DialTimeout(network, netip.AddrPortFrom(r.To.Addr(), 53).String(), Limit)
		if err != nil {
			return failed("connect", err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(remaining(begin)))
		answer := make([]byte, 1500)
		n := 0
		if network == "tcp" {
			if _, err = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(packet))), packet...)); err == nil {
				if _, err = io.ReadFull(c, answer[:2]); err == nil {
					n, err = io.ReadFull(c, answer[:min(len(answer), int(binary.BigEndian.Uint16(answer)))])
				}
			}
		} else if _, err = c.Write(packet); err == nil {
			n, err = c.Read(answer)
		}
		if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
			return Result{Errno: unix.ETIMEDOUT, Text: "no answer"}
		}
		if err != nil {
			return failed("name query", err)
		}
		if fromPool(answer[:n]) {
			return Result{Caught: true, Text: "answered by the capture's resolver"}
		}
		return Result{Outside: true, Text: "answered by a name server of the host's"}
	}
}

func fromPool(answer []byte) bool {
	var m dnsmessage.Message
	if m.Unpack(answer) != nil || len(m.Answers) == 0 {
		return false
	}
	a, ok := m.Answers[0].Body.(*dnsmessage.AResource)
	return ok && MadeUp.Contains(netip.AddrFrom4(a.A))
}

// What one says to a daemon so that it answers, and nobody is asked for a name.
var (
	varlinkInfo = []byte(`{"method":"org.varlink.service.GetInfo"}` + "\x00")
	avahiHelp   = []byte("HELP\n")
	nscdVersion = nscdRequest(2, 10, "localhost\x00") // version 2, GETSTAT of nscd-client.h
)

func nscdRequest(version, typ int32, key string) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(version))
	b = binary.NativeEndian.AppendUint32(b, uint32(typ))
	return append(binary.NativeEndian.AppendUint32(b, uint32(len(key))), key...)
}

// daemon asks one that looks names up for others, and stands outside of every capture.
func daemon(path string, ask []byte) func(Request) Result {
	return func(Request) Result {
		c, err := net.DialTimeout("unix", path, Limit)
		if err != nil {
			return failed("connect to "+path, err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(Limit))
		if _, err := c.Write(ask); err != nil {
			return failed("write to "+path, err)
		}
		// Whatever it says: it has heard us. One that lets go at once has, too.
		_, _ = c.Read(make([]byte, 1))
		return Result{Outside: true, Text: path + " takes questions"}
	}
}

// resolvedByDBus looks whether systemd-resolved is on the system bus that is reached.
func resolvedByDBus(Request) Result {
	ctx, cancel := context.WithTimeout(context.Background(), Limit)
	defer cancel()
	conn, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return failed("system bus", err)
	}
	defer conn.Close()
	there := false
	err = conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.NameHasOwner", 0, "org.freedesktop.resolve1").Store(&there)
	switch {
	case err != nil:
		return failed("system bus", err)
	case !there:
		return Result{Errno: unix.ENOENT, Text: "org.freedesktop.resolve1 on the system bus"}
	}
	return Result{Outside: true, Text: "org.freedesktop.resolve1 takes questions"}
}
