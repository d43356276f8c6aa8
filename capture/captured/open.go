package captured

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"sshbroker/capture"
	"sshbroker/capture/cgroup"
	"sshbroker/capture/hold"
	"sshbroker/capture/listen"
	"sshbroker/capture/message"
	"sshbroker/capture/nft"
	"sshbroker/capture/origin"
	"sshbroker/capture/queue"
	"sshbroker/capture/service"
)

// Names of what is kept. Sockets for name queries have the capture's id behind theirs.
const (
	nameQueue    = "queue"
	nameTable    = "table"
	nameListener = "listener"
	nameSocket   = "socket"
	nameDNSUDP   = "dns-udp-"
	nameDNSTCP   = "dns-tcp-"

	// nameUnit is what the service manager calls the socket that it has made itself by
	// the unit of that name, and passes to every process. It is not ours to remove.
	nameUnit = "ssh-captured.socket"
)

const (
	queueLength  = 8192     // SYNs held at once by one queue
	queueBuffer  = 16 << 20 // bytes; holds what comes while nobody reads for a second
	firstQueue   = 21000    // queue numbers are looked for from here on
	queueNumbers = 4096

	socketMode    = 0o666
	directoryMode = 0o755
)

// kept takes over what a dead process left under a name, or opens it and has it kept.
// The caller closes the files.
func (s *Server) kept(name string, open func() ([]*os.File, error)) (files []*os.File, old bool, err error) {
	if files = s.Keep.Take(name); len(files) > 0 {
		return files, true, nil
	}
	files, err = open()
	for _, f := range files {
		if err == nil {
			err = s.Keep.Store(name, f)
		}
	}
	if err != nil {
		message.CloseAll(files)
		_ = s.Keep.Remove(name)
		return nil, false, err
	}
	return files, false, nil
}

// open makes or takes over sockets, table and captures, in an order in which nothing
// that is held is let go.
func (s *Server) open() error {
	saved, known, err := s.load()
	if err != nil {
		return err
	}
	files, old, err := s.kept(nameQueue, func() ([]*os.File, error) {
		q, err := queue.OpenSocket(queueBuffer)
		if err != nil {
			return nil, err
		}
		return []*os.File{q.File()}, nil
	})
	if err != nil {
		return err
	}
	if s.queue, err = queue.Adopt(files[0]); err != nil {
		return err
	}
	if s.zones = saved.Zones; !old {
		s.zones = nft.Zones() // to ask drops what is held
	}
	listeners, err := s.openListeners()
	if err != nil {
		return err
	}
	diag, err := origin.OpenDiag()
	if err != nil {
		return err
	}
	var read []uint16 // queues that the dead process has read from
	for _, c := range saved.Captures {
		if old {
			read = append(read, c.Queue)
		}
	}
	everywhere := func(capture.Flow) bool { return true }
	s.source = hold.New(hold.Config{Queue: s.queue, Listeners: listeners, Diag: diag, WayOut: everywhere, PerUID: synsPerUID,
		Find: s.find, Log: s.Log}, read...)
	if err := s.restore(saved, known, old); err != nil {
		return err
	}
	if files := s.Keep.Take(nameTable); len(files) > 0 {
		s.owned = s.closed()
		if s.table, err = nft.AdoptTable(files[0], s.owned); err != nil {
			return err
		}
	}
	return s.openSocket()
}

func (s *Server) openListeners() (list []*net.TCPListener, err error) {
	files, _, err := s.kept(nameListener, func() ([]*os.File, error) { return openPair(listen.Open, false) })
	if err != nil {
		return nil, err
	}
	defer message.CloseAll(files) // package net duplicates them
	if s.port, err = listen.Port(files[0]); err != nil {
		return nil, err
	}
	for _, f := range files {
		l, err := listener[*net.TCPListener](f)
		if err != nil {
			return nil, err
		}
		list = append(list, l)
	}
	return list, nil
}

// listener makes one of a socket, which stays the caller's.
func listener[T net.Listener](f *os.File) (listener T, err error) {
	l, err := net.FileListener(f)
	listener, ok := l.(T)
	if !ok {
		return listener, fmt.Errorf("%s: no such listener: %w", f.Name(), errors.Join(err, unix.ENOTSOCK))
	}
	return listener, nil
}

func (s *Server) openSocket() (err error) {
	files := s.Keep.Take(nameUnit)
	if s.activated = len(files) > 0; s.activated {
		message.CloseAll(s.Keep.Take(nameSocket)) // of one that ran without that unit
		_ = s.Keep.Remove(nameSocket)
	} else if files, err = s.makeSocket(); err != nil {
		return err
	}
	defer message.CloseAll(files)
	if s.socket, err = listener[*net.UnixListener](files[0]); err == nil {
		s.socket.SetUnlinkOnClose(false)
	}
	return err
}

// makeSocket makes the socket where no unit of the service manager has.
func (s *Server) makeSocket() ([]*os.File, error) {
	files, _, err := s.kept(nameSocket, func() ([]*os.File, error) {
		if err := os.MkdirAll(filepath.Dir(s.Socket), directoryMode); err != nil {
			return nil, err
		}
		if err := os.Remove(s.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: s.Socket, Net: "unixpacket"})
		if err != nil {
			return nil, err
		}
		defer l.Close()
		l.SetUnlinkOnClose(false) // the next process may have it by then
		f, err := l.File()
		if err != nil {
			return nil, err
		}
		return []*os.File{f}, os.Chmod(s.Socket, socketMode)
	})
	return files, err
}

// openPair opens a pair of sockets, or one where the host has no IPv6. Nobody can take the
// place of claimed ones once we are gone.
func openPair(open func(addr netip.AddrPort) (*os.File, error), claim bool) ([]*os.File, error) {
	files, port, err := listen.Pair(open, true)
	if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT) {
		files, port, err = listen.Pair(open, false)
	}
	if err == nil && claim {
		if err = listen.Claim(port, files...); err != nil {
			message.CloseAll(files)
		}
	}
	return files, err
}

// equip gives a capture its queue and its sockets for name queries.
func (s *Server) equip(h *held) (err error) {
	if h.queue == 0 {
		if err := s.bindQueue(h); err != nil {
			return err
		}
	}
	s.mu.Lock()
	s.captures[h.id], s.queues[h.queue] = h, h
	s.mu.Unlock()
	for _, k := range []struct {
		name string
		open func(netip.AddrPort) (*os.File, error)
		port *uint16
	}{{nameDNSUDP, listen.OpenUDP, &h.dnsUDP}, {nameDNSTCP, listen.Open, &h.dnsTCP}} {
		files, _, err := s.kept(k.name+h.id, func() ([]*os.File, error) { return openPair(k.open, true) })
		h.dns = append(h.dns, files...)
		if err == nil {
			*k.port, err = listen.Port(files[0])
		}
		if err != nil {
			return fmt.Errorf("sockets for name queries: %w", err)
		}
	}
	if h.leaf == nil { // the rules mark the whole host's queries by their senders
		err := listen.ReceiveMarks(h.dns[:len(h.dns)/2]...)
		if h.marks = err == nil; err != nil {
			s.Log.Warn("whose name queries are is found out by their source ports, which is not always possible", "error", err)
		}
	}
	return nil
}

// bindQueue finds a number that nobody on this host uses.
func (s *Server) bindQueue(h *held) error {
	for n := uint16(firstQueue); n < firstQueue+queueNumbers; n++ {
		err := s.queue.Bind(n, queueLength)
		if err == nil {
			h.queue = n
		}
		if !errors.Is(err, queue.ErrTaken) {
			return err
		}
	}
	return refusal(service.CodeBusy, "no queue number is free from %d to %d", firstQueue, firstQueue+queueNumbers-1)
}

// strip takes what equip has given, and the cgroup.
func (s *Server) strip(h *held) {
	s.mu.Lock()
	delete(s.captures, h.id)
	delete(s.queues, h.queue)
	s.mu.Unlock()
	if h.queue != 0 {
		_ = s.queue.Unbind(h.queue)
	}
	s.closeDNS(h)
	s.abandon(h.id)
	if h.leaf != nil {
		err := h.leaf.Remove()
		switch {
		case errors.Is(err, unix.EBUSY): // it was released, and means nothing any more
			s.released = append(s.released, h.leaf)
		case err != nil:
			s.Log.Warn("cgroup of a capture that has ended", "capture", h.id, "error", err)
		}
	}
}

func (s *Server) closeDNS(h *held) {
	s.mu.Lock()
	defer s.mu.Unlock()
	message.CloseAll(h.dns)
	h.dns = nil
}

// abandon has nobody keep the sockets of a capture any more.
func (s *Server) abandon(id string) {
	for _, name := range []string{nameDNSUDP + id, nameDNSTCP + id} {
		message.CloseAll(s.Keep.Take(name))
		_ = s.Keep.Remove(name)
	}
}

// restore brings the captures of a dead process back whose cgroups are still there.
// Where it has left no word at all, every cgroup is taken for a capture's, and all its
// flows are asked about. Else one that is not known was released.
func (s *Server) restore(saved config, known, bound bool) error {
	s.config = config{Enabled: saved.Enabled, Captures: map[string]saveable{}}
	s.unlimited = saved.Unlimited
	leaves := map[string]*cgroup.Leaf{}
	if s.tree != nil {
		list, err := s.tree.Leaves()
		if err != nil {
			return err
		}
		for _, l := range list {
			switch _, was := saved.Captures[l.ID]; {
			case !was && known:
				s.released = append(s.released, l)
				continue
			case !was:
				saved.Captures[l.ID] = saveable{Owner: l.UID}
			}
			leaves[l.ID] = l
		}
	}
	for id, c := range saved.Captures {
		h := newHeld(id, c.Owner)
		h.leaf = leaves[id]
		h.entered = h.leaf != nil
		if id != service.System && (h.leaf == nil || h.leaf.UID != h.owner) { // it has ended while nobody looked
			if bound {
				_ = s.queue.Unbind(c.Queue)
			}
			s.abandon(id)
			continue
		}
		if bound {
			h.queue = c.Queue
		}
		if err := s.equip(h); err != nil {
			return fmt.Errorf("capture %s: %w", id, err)
		}
		c.Queue = h.queue
		s.config.Captures[id] = c
	}
	return nil
}

// duplicate gives a descriptor of its own to a message.
func duplicate(f *os.File) (d *os.File, err error) {
	err = control(f, func(fd int) error {
		n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err == nil {
			d = os.NewFile(uintptr(n), f.Name())
		}
		return err
	})
	return d, err
}

// control does something with a descriptor. Fd would make it blocking, for everybody.
func control(f *os.File, do func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) { err = do(int(fd)) })
	return errors.Join(cerr, err)
}
