package socket

import (
	"fmt"
	"time"
)

// Watched is a connection that can be asked for a sign of life.
type Watched interface {
	// Ask has the far end answer, and waits for that or for the end of the connection.
	Ask()
	// Received is how many bytes came so far: any is a sign of life.
	Received() uint64
	// Done is closed when the connection has ended.
	Done() <-chan struct{}
	// Lose ends it at once.
	Lose(err error)
}

// KeepAlive asks for a sign of life whenever nothing came for an interval, and gives the
// connection up after so many intervals without any. It returns when that has ended.
func KeepAlive(c Watched, interval time.Duration, misses int) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	answered := make(chan struct{}, 1)
	asked := false
	missed := 0
	last := c.Received()
	for {
		select {
		case <-c.Done():
			return
		case <-answered:
			asked = false
			missed = 0
			continue
		case <-tick.C:
		}
		if now := c.Received(); now != last {
			last, missed = now, 0
			continue
		}
		if missed++; missed > misses {
			c.Lose(fmt.Errorf("no sign of life for %s", time.Duration(missed)*interval))
			return
		}
		if !asked {
			asked = true
			go func() {
				c.Ask()
				answered <- struct{}{}
			}()
		}
	}
}

// Probe asks once, and gives the connection up where nothing has come within limit. It
// returns when the far end has answered or the connection has ended, so that one that
// does not answer is not asked again and again.
func Probe(c Watched, limit time.Duration) {
	before := c.Received()
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		c.Ask()
	}()
	late := time.NewTimer(limit)
	defer late.Stop()
	select {
	case <-answered:
	case <-c.Done():
	case <-late.C:
		if c.Received() == before {
			c.Lose(fmt.Errorf("no sign of life within %s, after a change of the network or a sleep", limit))
		}
		<-answered
	}
}
