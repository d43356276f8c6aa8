package broker

import (
	"context"
	"sync"
	"time"
)

// Where flows of several uids are to be decided, each uid has so many on their way at a
// time, and one that waits for a far end counts no longer than turnLength: the rest of a
// flood waits without costing anything, and the flow of somebody else comes before it.
// They are several until for sharedFor there has been one alone.
const (
	turnsPerUID = 4
	turnLength  = 20 * time.Millisecond
	sharedFor   = 10 * time.Second
)

// user is a uid with live flows.
type user struct {
	live  int           // guarded by Broker.mu
	turns chan struct{} // has room for turnsPerUID
}

// join counts a live flow of uid. The caller holds mu.
func (b *Broker) join(uid uint32) {
	u := b.users[uid]
	if u == nil {
		u = &user{turns: make(chan struct{}, turnsPerUID)}
		b.users[uid] = u
	}
	u.live++
	if len(b.users) > 1 {
		b.shared = time.Now()
	}
}

// part is join's inverse. The caller holds mu.
func (b *Broker) part(uid uint32) {
	u := b.users[uid]
	if u.live--; u.live == 0 {
		delete(b.users, uid)
	}
}

// ofUser counts the live flows of one uid.
func (b *Broker) ofUser(uid uint32) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if u := b.users[uid]; u != nil {
		return u.live
	}
	return 0
}

// turn waits until it is a flow's turn, and returns what ends that; it may be called
// again. A uid that is alone need not wait.
func (b *Broker) turn(ctx context.Context, uid uint32) (done func()) {
	b.mu.Lock()
	u, alone := b.users[uid], time.Since(b.shared) > sharedFor
	b.mu.Unlock()
	if alone {
		return func() {}
	}
	select {
	case u.turns <- struct{}{}:
	case <-ctx.Done():
		return func() {}
	}
	end := sync.OnceFunc(func() { <-u.turns })
	timer := time.AfterFunc(turnLength, end)
	return func() { timer.Stop(); end() }
}
