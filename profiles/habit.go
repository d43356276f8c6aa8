package profiles

import "time"

// habit is what streams to a destination were like so far.
type habit uint8

const (
	unknown habit = iota // nothing was seen, or both were
	quiet
	bulk
)

// expectation is what is known of a stream before it is opened.
type expectation uint8

const (
	expectByHabit  expectation = iota // what those to its destination were like
	expectQuiet                       // it carries nothing
	expectAnything                    // it carries a transport
)

// A destination is known as quiet when more than quietStreams streams were opened to it,
// the first one quietAfter ago, and none was bulk. To take one that is for quiet costs
// whatever is quiet; to wait for evidence costs an empty transport.
const (
	quietStreams = 4
	quietAfter   = bundleTick
)

// maxHabits bounds the destinations that are remembered for one profile.
const maxHabits = 512

// target is a destination as far as it tells what comes.
type target struct {
	host    string
	port    uint16
	service string
}

// seen is what is known of a target.
type seen struct {
	opened      int
	quiet, bulk bool      // such a stream was there
	first, last time.Time // opened
}

// habits are what is known of destinations, by the pool's lock.
type habits map[target]*seen

// of notes that a stream to dst is about to be opened and returns what to expect of it.
func (h habits) of(dst Destination, now time.Time) habit {
	key := target{dst.Host, dst.Port, dst.Service}
	s := h[key]
	if s == nil {
		if len(h) >= maxHabits {
			h.forget()
		}
		s = &seen{first: now}
		h[key] = s
	}
	s.last = now
	s.opened++
	switch {
	case s.bulk && !s.quiet:
		return bulk
	case !s.bulk && s.opened > quietStreams && now.Sub(s.first) >= quietAfter:
		return quiet
	}
	return unknown
}

// isBulk notes that a stream to dst, opened at some time, has turned out to be bulk.
func (h habits) isBulk(dst Destination, opened time.Time) {
	if s := h[target{dst.Host, dst.Port, dst.Service}]; s != nil {
		s.quiet = s.quiet || !s.bulk && opened.Sub(s.first) >= quietAfter // an earlier one was not
		s.bulk = true
	}
}

// ended notes the end of a stream to dst that was not found to be bulk while it lived.
func (h habits) ended(dst Destination, opened time.Time, lived time.Duration, bytes uint64) {
	if float64(bytes) >= bulkBytes*max(1, lived.Seconds()/bundleTick.Seconds()) { // too short for it
		h.isBulk(dst, opened)
	} else if s := h[target{dst.Host, dst.Port, dst.Service}]; s != nil {
		s.quiet = true
	}
}

// forget drops the destination that was used longest ago.
func (h habits) forget() {
	var oldest target
	var at time.Time
	for key, s := range h {
		if at.IsZero() || s.last.Before(at) {
			oldest, at = key, s.last
		}
	}
	delete(h, oldest)
}
