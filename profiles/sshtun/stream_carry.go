package sshtun

import (
	"io"
	"net"
	"sync/atomic"
)

// TakeFrom is profiles.Carrier's. While nothing comes it waits in the caller's
// goroutine, so that an idle stream has no other; what comes is carried by one that
// can be left behind, which ends when it has been quiet.
func (s *stream) TakeFrom(next func(patient bool) ([]byte, error)) error {
	for {
		piece, err := next(true)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		carried := false
		ended := false
		_, err = s.pickUp(func() ([]byte, int, error) {
			if !carried {
				carried = true
				return piece, len(piece), nil
			}
			more, err := next(false)
			ended = err != nil
			if len(more) == 0 && err == nil {
				err = io.EOF // for this time
			}
			return more, len(more), err
		}, func([]byte) {})
		if err != nil || ended {
			return err
		}
	}
}

// DeliverTo is profiles.Carrier's. One goroutine reads the channel and writes to
// dst; where the stream is closed while it waits, done is called without it.
func (s *stream) DeliverTo(dst io.Writer, done func(error)) {
	h := &s.read
	if err := s.take(h); err != nil {
		done(s.fault("read", err))
		return
	}
	d := &delivery{}
	var over atomic.Bool // done is being called
	leave := func() {
		d.leave()
		if over.CompareAndSwap(false, true) {
			h.give()
			done(s.fault("read", net.ErrClosed))
		}
	}
	s.endMu.Lock()
	if s.ended || h.busy || len(h.buf) > 0 || h.err != nil { // an earlier Read left something
		s.endMu.Unlock()
		h.give()
		go func() {
			_, err := s.WriteTo(dst)
			done(err)
		}()
		return
	}
	h.busy = true
	s.leaveDelivery = leave
	s.endMu.Unlock()
	go func() {
		r := s.deliverAll(d, dst)
		h.results <- r
		if !over.CompareAndSwap(false, true) {
			return // what it read is drain's to take
		}
		<-h.results
		h.busy = false
		err := r.err
		if theirs, ok := err.(writerError); ok {
			err = theirs.error
		} else {
			h.err = err
			err = s.fault("read", err)
		}
		s.endMu.Lock()
		s.leaveDelivery = nil
		s.endMu.Unlock()
		h.give()
		if err == io.EOF {
			err = nil
		}
		done(err)
	}()
}
