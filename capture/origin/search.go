package origin

import (
	"sync/atomic"

	"sshbroker/capture"
)

// Search finds processes by looking through /proc. Safe for concurrent use.
type Search struct {
	Processes func() ([]int, error) // those that may hold the sockets; required

	last atomic.Int64 // process found by the last search
}

// Find finds the process that holds the socket.
func (s *Search) Find(sock Socket) capture.Origin {
	// A program that connects often is likely to be the last one found.
	if last := int(s.last.Load()); last != 0 {
		if o := Holder([]int{last}, sock.Inode); o.Known {
			return o
		}
	}
	pids, err := s.Processes()
	if err != nil {
		return capture.Origin{Err: err}
	}
	o := Holder(pids, sock.Inode)
	s.last.Store(int64(o.PID))
	return o
}
