package nft

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"

	"golang.org/x/sys/unix"

	"sshbroker/capture/netlink"
)

// socket is one socket of nfnetlink. It is for one goroutine at a time.
type socket struct {
	*netlink.Socket // whose port the kernel knows a table's owner by
	buf             []byte
}

// dial opens a socket in the current network namespace.
func dial(groups uint32) (*socket, error) {
	return newSocket(netlink.Open(unix.NETLINK_NETFILTER, groups))
}

// adopt takes over a socket, which it owns from now on.
func adopt(f *os.File) (*socket, error) { return newSocket(netlink.Adopt(f)) }

func newSocket(s *netlink.Socket, err error) (*socket, error) {
	if err != nil {
		return nil, fmt.Errorf("nftables: socket: %w", err)
	}
	return &socket{s, make([]byte, 64<<10)}, nil
}

// commit carries out a transaction. The error names the message that the kernel
// refused first.
func (s *socket) commit(b *batch) error {
	b.message("end of transaction", unix.NFNL_MSG_BATCH_END, 0, unix.AF_UNSPEC, nil)
	return s.try(b)
}

// try has the kernel check a transaction that has no end, and then forget it.
func (s *socket) try(b *batch) error {
	_ = s.pending(func(netlink.Message) {}) // of one that was cut short
	_ = s.Control(func(fd int) error {
		// It has to be one datagram. What is not forced fits into the default buffer of
		// 208 KiB, or EMSGSIZE tells.
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, len(b.buf))
	})
	if err := s.Send(b.buf); err != nil {
		return fmt.Errorf("nftables: send %d bytes: %w", len(b.buf), err)
	}
	// The kernel has done all of it within the call, so every reply is there.
	answered, refused := false, error(nil)
	err := s.pending(func(m netlink.Message) {
		if m.Type != unix.NLMSG_ERROR || m.Seq >= uint32(len(b.what)) {
			return
		}
		answered = true
		if err := m.Err(); err != nil && refused == nil {
			refused = fmt.Errorf("nftables: %s: %w", b.what[m.Seq], err)
		}
	})
	if !answered {
		return errors.Join(errors.New("nftables: no answer to a transaction"), err)
	}
	return refused
}

// pending calls each for every message that has come.
func (s *socket) pending(each func(netlink.Message)) (lost error) {
	for {
		b, err := s.Poll(s.buf)
		messages, malformed := netlink.Messages(b)
		for _, m := range messages {
			each(m)
		}
		switch {
		case errors.Is(err, unix.EAGAIN):
			return lost
		case errors.Is(err, unix.ENOBUFS): // told once, and what did fit follows
			lost = err
		case err != nil:
			return err
		case malformed != nil:
			lost = malformed
		}
	}
}

// dump returns the attributes of everything in a table that a request finds.
func (s *socket) dump(table string, typ uint16) ([]attributes, error) {
	for range 10 { // a transaction of somebody else's came in between
		found, again, err := s.dumpOnce(table, typ)
		if err != nil {
			return nil, fmt.Errorf("nftables: list: %w", err)
		}
		if !again {
			return found, nil
		}
	}
	return nil, errors.New("nftables: list: it changes all the time")
}

func (s *socket) dumpOnce(table string, typ uint16) (found []attributes, again bool, err error) {
	_ = s.pending(func(netlink.Message) {})
	err = s.Send(netlink.Append(nil, unix.NFNL_SUBSYS_NFTABLES<<8|typ, unix.NLM_F_REQUEST|unix.NLM_F_DUMP, 0, netlink.Netfilter(unix.NFPROTO_INET, 0)))
	for err == nil {
		var b []byte
		if b, err = s.Receive(s.buf); err != nil {
			break
		}
		var messages []netlink.Message
		messages, err = netlink.Messages(b)
		for _, m := range messages {
			again = again || m.Flags&unix.NLM_F_DUMP_INTR != 0
			if m.Type == unix.NLMSG_DONE || m.Type == unix.NLMSG_ERROR {
				return found, again, m.Err()
			}
			if a := body(m); a.text(attrTable) == table {
				found = append(found, a)
			}
		}
	}
	return nil, false, err
}

// attributes are those of one message by their type.
type attributes map[uint16][]byte

func body(m netlink.Message) attributes {
	b := bytes.Clone(m.Body)
	return maps.Collect(netlink.Attributes(b[min(netlink.NetfilterLen, len(b)):]))
}

func (a attributes) text(typ uint16) string { return unix.ByteSliceToString(a[typ]) }
func (a attributes) num(typ uint16) uint64  { return number(a[typ]) }

// number is an integer of any width in network order; 0 where there is none.
func number(b []byte) uint64 {
	var whole [8]byte
	copy(whole[8-min(len(b), 8):], b)
	return binary.BigEndian.Uint64(whole[:])
}
