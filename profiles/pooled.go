package profiles

import (
	"cmp"
	"io"
	"slices"
	"sync"
	"time"
)

// pooled is a stream that tells the pool when it ends.
type pooled struct {
	Stream
	pool  *Pool
	link  *link
	id    uint64
	dst   Destination
	since time.Time
	once  sync.Once

	// Of one in a bundle, by the pool's lock.
	learns  bool // its destination is told what it was like
	bulk    bool
	turn    uint64 // of the bundle, when counted was taken
	counted uint64
}

var (
	_ io.ReaderFrom = (*pooled)(nil)
	_ io.WriterTo   = (*pooled)(nil)
	_ Carrier       = (*pooled)(nil)
	_ FarCloser     = (*pooled)(nil)
	_ Counter       = (*pooled)(nil)
)

func (pl *Pool) hold(l *link, s Stream, dst Destination, e expectation) *pooled {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	pl.lastID++
	p := &pooled{Stream: s, pool: pl, link: l, id: pl.lastID, dst: dst, since: time.Now()}
	if b := l.way.bundle; b != nil {
		p.learns, p.turn = e == expectByHabit, b.turn
	}
	pl.streams[p] = struct{}{}
	return p
}

func (p *pooled) Close() error {
	defer p.once.Do(p.gone)
	return p.Stream.Close()
}

func (p *pooled) Reset() error {
	defer p.once.Do(p.gone)
	return p.Stream.Reset()
}

func (p *pooled) gone() {
	p.pool.mu.Lock()
	delete(p.pool.streams, p)
	if b := p.link.way.bundle; b != nil && p.learns && !p.bulk {
		sent, received := p.Counts()
		b.habits.ended(p.dst, p.since, time.Since(p.since), sent+received)
	}
	p.pool.mu.Unlock()
	p.pool.release(p.link)
}

// ReadFrom uses the stream's own way of taking from r, where it has one.
func (p *pooled) ReadFrom(r io.Reader) (int64, error) {
	if rf, ok := p.Stream.(io.ReaderFrom); ok {
		return rf.ReadFrom(r)
	}
	return io.Copy(struct{ io.Writer }{p.Stream}, r)
}

// WriteTo uses the stream's own way of giving to w, where it has one.
func (p *pooled) WriteTo(w io.Writer) (int64, error) {
	if wt, ok := p.Stream.(io.WriterTo); ok {
		return wt.WriteTo(w)
	}
	return io.Copy(w, struct{ io.Reader }{p.Stream})
}

// TakeFrom is Carrier's; where the stream is none, it is a loop around Write.
func (p *pooled) TakeFrom(next func(patient bool) ([]byte, error)) error {
	if c, ok := p.Stream.(Carrier); ok {
		return c.TakeFrom(next)
	}
	for {
		piece, err := next(true)
		if err == io.EOF {
			return nil
		}
		if err == nil {
			_, err = p.Stream.Write(piece)
		}
		if err != nil {
			return err
		}
	}
}

// DeliverTo is Carrier's; where the stream is none, it is WriteTo in a goroutine.
func (p *pooled) DeliverTo(w io.Writer, done func(error)) {
	if c, ok := p.Stream.(Carrier); ok {
		c.DeliverTo(w, done)
		return
	}
	go func() {
		_, err := p.WriteTo(w)
		done(err)
	}()
}

// Closed is FarCloser's; where the stream does not know, it is closed with the
// transport.
func (p *pooled) Closed() <-chan struct{} {
	if fc, ok := p.Stream.(FarCloser); ok {
		return fc.Closed()
	}
	return p.link.Done()
}

// Way is the ID, in List, of the way out that carries the stream.
func (p *pooled) Way() uint64 {
	p.pool.mu.Lock()
	defer p.pool.mu.Unlock()
	return p.link.way.id // which changes when the transport is replaced
}

// Server is the one of the profile's servers that carries the stream.
func (p *pooled) Server() Server { return p.link.server }

func (p *pooled) Counts() (sent, received uint64) {
	if c, ok := p.Stream.(Counter); ok {
		return c.Counts()
	}
	return 0, 0
}

// Info is one way out as the pool sees it.
type Info struct {
	ID        uint64 // of the pool; never used twice
	Key       Key
	ProfileID string
	Server    string // host:port
	Number    int    // among the live transports of a profile that may have several; 0 for one that has one, or that was replaced
	Bulk      bool   // carries so much, of a profile that may have several, that new streams go elsewhere
	User      string
	Gateway   string // label of the profile that it goes through; "" for none

	Connected  bool // a transport is live
	Connecting bool
	Since      time.Time // of the transport; zero where there is none
	Streams    int       // open, and being opened
	Retired    bool
	Transport  Description // zero where the transport does not tell

	LastError string    // of the last attempt or transport; "" for none
	Failures  int       // in a row
	RetryAt   time.Time // no attempt goes out before
}

// List returns every way out, live or resting, oldest first.
func (pl *Pool) List() []Info {
	pl.mu.Lock()
	list := make([]Info, 0, len(pl.ways))
	live := make(map[uint64]Transport)
	for _, w := range pl.ways {
		p := w.profile
		if p.Exclusive && w.key.number == 0 && w.backoff.last == nil {
			continue // it has nothing to tell
		}
		if w.link == nil && w.attempt == nil && w.bundle != nil && len(w.bundle.links) > 0 {
			continue // the others tell
		}
		in := Info{
			ID: w.id, Key: w.key.Key, ProfileID: p.ID, User: p.User,
			Server:     w.server.String(),
			Connecting: w.attempt != nil,
			Failures:   w.backoff.failures,
			RetryAt:    w.backoff.until,
		}
		if p.Gateway != nil {
			in.Gateway = p.Gateway.Label()
		}
		if w.backoff.last != nil {
			in.LastError = w.backoff.last.Error()
		}
		if l := w.link; l != nil {
			in.Server = l.server.String()
			in.Connected, in.Since, in.Streams, in.Retired = true, l.since, l.streams, l.retired
			if b := w.bundle; b != nil && slices.Contains(b.links, l) {
				in.Number, in.Bulk = l.number, l.busy()
			}
			live[w.id] = l.Transport
		}
		list = append(list, in)
	}
	pl.mu.Unlock()
	for i := range list {
		if d, ok := live[list[i].ID].(Describer); ok {
			list[i].Transport = d.Describe()
			list[i].User = cmp.Or(list[i].User, list[i].Transport.User)
		}
	}
	slices.SortFunc(list, func(a, b Info) int { return cmp.Compare(a.ID, b.ID) })
	return list
}

// StreamInfo is one open stream as the pool sees it.
type StreamInfo struct {
	ID        uint64
	Way       uint64 // the ID of its Info
	ProfileID string
	Dst       Destination
	Since     time.Time
	Sent      uint64
	Received  uint64
}

// Streams returns every open stream, oldest first.
func (pl *Pool) Streams() []StreamInfo {
	pl.mu.Lock()
	list := make([]StreamInfo, 0, len(pl.streams))
	for p := range pl.streams {
		in := StreamInfo{ID: p.id, Way: p.link.way.id, ProfileID: p.link.way.profile.ID, Dst: p.dst, Since: p.since}
		in.Sent, in.Received = p.Counts()
		list = append(list, in)
	}
	pl.mu.Unlock()
	slices.SortFunc(list, func(a, b StreamInfo) int { return cmp.Compare(a.ID, b.ID) })
	return list
}
