package names

import (
	"context"
	"net/netip"
)

// asker is whose queries they are: what was learnt from them, and how much may be
// under way for it at once. A room that is nil has place for everything. Safe for
// concurrent use.
type asker struct {
	label   string // for people
	unknown bool   // whose it is could not be told: it gets no answers
	memory  *memory
	apart   bool   // there are others, who are not told of what this one asked
	share   *share // of the pool; nil: no bound

	waiting  chan struct{} // queries over UDP that wait
	upstream chan struct{} // queries at the resolvers
	conns    chan struct{} // over TCP
}

func (a *asker) remember(addr netip.Addr, name string) { a.memory.remember(addr, name) }

// names returns what is known behind addr; a may be nil.
func (a *asker) names(addr netip.Addr) []string {
	if a == nil {
		return nil
	}
	return a.memory.lookup(addr)
}

// tryEnter takes a place without waiting; a nil room has place for everybody.
func tryEnter(room chan struct{}) bool {
	if room == nil {
		return true
	}
	select {
	case room <- struct{}{}:
		return true
	default:
		return false
	}
}

// enter waits for a place until ctx ends.
func enter(ctx context.Context, room chan struct{}) error {
	if room == nil {
		return nil
	}
	select {
	case room <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func leave(room chan struct{}) {
	if room != nil {
		<-room
	}
}
