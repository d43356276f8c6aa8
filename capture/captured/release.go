package captured

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/capture/cgroup"
	"sshbroker/capture/message"
	"sshbroker/capture/nft"
	"sshbroker/capture/service"
)

// lockFile stands in StateDir beside the state, held by the one ssh-captured.
const lockFile = "lock"

// Lock keeps a second ssh-captured away for as long as the file is open. Its error
// names the process that has it.
func Lock(stateDir string) (*os.File, error) {
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(stateDir, lockFile), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		b := make([]byte, 20)
		n, _ := f.Read(b)
		f.Close()
		return nil, fmt.Errorf("process %s has the lock: %w", b[:n], err)
	}
	_ = f.Truncate(0) // for people
	_, _ = fmt.Fprint(f, os.Getpid())
	return f, nil
}

// Release opens everything: it asks the running ssh-captured to, and does it itself
// where none runs. One that is about to come up, or to end, is waited for.
func Release(o Options) error {
	const patience, pause = 10 * time.Second, 20 * time.Millisecond
	for deadline := time.Now().Add(patience); ; time.Sleep(pause) {
		uc, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: o.Socket, Net: "unixpacket"})
		if err == nil {
			conn, err := connOf(uc)
			if err != nil {
				return err
			}
			defer conn.Close()
			defer time.AfterFunc(patience, func() { conn.Close() }).Stop()
			return releaseBy(conn, o.Program)
		}
		lock, err := Lock(o.StateDir)
		if err == nil {
			defer lock.Close()
			return releaseHere(o)
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(deadline) {
			return fmt.Errorf("ssh-captured does not answer at %s, and %w: end it with kill -9, and its parent, then release again", o.Socket, err)
		}
	}
}

func releaseBy(conn *message.Conn, program string) error {
	for _, m := range []service.Message{
		{Op: service.OpHello, Hello: &service.Hello{Version: service.Version, Program: program}},
		{Op: service.OpRelease, Seq: 1},
	} {
		var answer service.Message
		err := conn.Send(m)
		if err == nil {
			_, err = conn.Receive(&answer)
		}
		switch {
		case err != nil:
			return fmt.Errorf("ssh-captured does not answer: %w: end it with kill -9, and its parent, then release again", err)
		case answer.Error != nil:
			return answer.Error
		}
	}
	return nil
}

// releaseHere removes what a dead process left, and notes that nothing is captured.
func releaseHere(o Options) error {
	s := &Server{Options: o, owned: nft.Unowned}
	if nft.Persists() {
		s.owned = nft.OwnedPersistent // adopts an orphan, which only its owner may delete
	}
	if saved, _, lerr := s.load(); lerr == nil {
		s.unlimited = saved.Unlimited
		s.tune(false)
	}
	live := nft.DropLive
	if s.diverted() { // of brokers that are still there
		live = nft.KeepLive
	}
	err := live()
	table, terr := nft.NewTable(s.owned)
	if terr == nil {
		terr = table.Delete()
		table.Close()
	}
	err = errors.Join(err, terr)
	if tree, terr := cgroup.Find(); terr == nil {
		leaves, lerr := tree.Leaves()
		err = errors.Join(err, lerr)
		for _, l := range leaves {
			_ = l.Remove() // one with processes in it means nothing any more
		}
	}
	return errors.Join(err, s.save(config{}))
}
