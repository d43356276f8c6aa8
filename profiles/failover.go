package profiles

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// downFor is how long a server that could not be reached is tried after the others.
const downFor = time.Minute

// reach connects to the first of the profile's servers that can be reached. One that
// answers and will not have us, or shows a wrong key, is the end of it.
func (pl *Pool) reach(w *way, ask Prompter) (Transport, Server, error) {
	if w.key.number != 0 {
		done, err := pl.begin(w)
		if err != nil {
			return nil, Server{}, err
		}
		defer done()
	}
	var via DialFunc
	if gw := w.profile.Gateway; gw != nil {
		via = pl.through(gw, ask)
	}
	var failures error
	for _, s := range pl.order(w) {
		p := w.profile
		if len(p.More) > 0 {
			q := *p
			q.Host, q.Port = s.Host, s.Port
			p = &q
		}
		pl.mu.Lock()
		w.server = s
		pl.mu.Unlock()
		t, err := pl.connector.Connect(pl.life, p, via, ask)
		if err == nil {
			pl.mark(w, s, false)
			return t, s, nil
		}
		failures = also(failures, err)
		if !errors.Is(err, ErrConnect) || pl.life.Err() != nil {
			break
		}
		pl.mark(w, s, true)
		if len(w.profile.More) > 0 {
			pl.log.Warn("server cannot be reached", "profile", w.profile.Label(), "server", s, "error", err)
		}
	}
	return nil, Server{}, failures
}

// also is an error in one line that is everything that both are.
func also(before, err error) error {
	if before == nil {
		return err
	}
	return fmt.Errorf("%w; %w", before, err)
}

// order is the servers of a way out: as the profile lists them, those last that could not
// be reached a short time ago.
func (pl *Pool) order(w *way) []Server {
	list := append([]Server{{w.profile.Host, w.profile.Port}}, w.profile.More...)
	if len(list) == 1 {
		return list
	}
	pl.mu.Lock()
	defer pl.mu.Unlock()
	now := time.Now()
	resting := func(s Server) int {
		if since, ok := w.down[s]; ok && now.Sub(since) < downFor {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(list, func(a, b Server) int { return resting(a) - resting(b) })
	return list
}

// mark notes whether a server could be reached.
func (pl *Pool) mark(w *way, s Server, down bool) {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	if !down {
		delete(w.down, s)
		return
	}
	if w.down == nil {
		w.down = make(map[Server]time.Time)
	}
	w.down[s] = time.Now()
}
