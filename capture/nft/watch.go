package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"sshbroker/capture/netlink"
)

// Watch begins to call changed, from a goroutine of its own, for every transaction in
// the current network namespace that changed or removed our table and that this table's
// socket did not make, with the name of the process that did. It ends when ctx is done or
// watching fails, and then sends why. Where notifications are lost it calls changed as
// well, with "". Applying within changed is safe: that is not reported.
func (t *Table) Watch(ctx context.Context, changed func(by string)) (<-chan error, error) {
	s, err := dial(1 << (unix.NFNLGRP_NFTABLES - 1))
	if err != nil {
		return nil, err
	}
	if err := s.ignore(t.socket.Port()); err != nil {
		s.Close()
		return nil, err
	}
	ended := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() { s.Close() })
	go func() {
		err := s.watch(changed)
		if !stop() {
			err = ctx.Err()
		}
		s.Close()
		ended <- err
	}()
	return ended, nil
}

func (s *socket) watch(changed func(by string)) error {
	ours := false
	for {
		b, err := s.Receive(s.buf)
		messages, malformed := netlink.Messages(b)
		switch {
		case errors.Is(err, unix.ENOBUFS):
			ours = false
			changed("")
			continue
		case err != nil || malformed != nil:
			return fmt.Errorf("nftables: watch: %w", errors.Join(err, malformed))
		}
		for _, m := range messages {
			a := body(m)
			switch {
			case m.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.Body) == 0:
			case m.Type&0xff != unix.NFT_MSG_NEWGEN: // which ends a transaction
				ours = ours || a.text(attrTable) == HostTableName && m.Body[0] == unix.NFPROTO_INET
			case ours:
				ours = false
				changed(a.text(unix.NFTA_GEN_PROC_NAME))
			}
		}
	}
}

// ignore keeps what another socket caused out of the buffer of this one: a transaction
// with a large set would overrun it.
func (s *socket) ignore(port uint32) error {
	const portOffset = 12 // of nlmsghdr.nlmsg_pid
	// The header is in host order, while the filter reads words in network order.
	port = binary.BigEndian.Uint32(host32(port))
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: portOffset},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: port, Jt: 0, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
		{Code: unix.BPF_RET | unix.BPF_K, K: 1 << 30},
	}
	err := s.Control(func(fd int) error {
		return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
	})
	if err != nil {
		return fmt.Errorf("nftables: watch: filter: %w", err)
	}
	return nil
}
