package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"time"
)

// Stream is the far end of a flow: a stream inside a tunnel, or TCP.
//
// Reset and Close must release a Read and a Write that are blocked. A Stream that
// also is an io.WriterTo is asked to write its data itself, and should hold no
// buffer while it waits for some. One that also has
//
//	Closed() <-chan struct{}
//
// says by closing that channel that it can take no more data, while what it has
// received may still be read.
type Stream interface {
	net.Conn
	// CloseWrite ends our direction; the other stays open.
	CloseWrite() error
	// Reset ends both directions at once without an orderly end.
	Reset() error
}

// TCP is a far end that is plain TCP. Between it and the program the kernel moves
// the data by itself.
type TCP struct{ *net.TCPConn }

var _ Stream = TCP{}

// Reset makes the kernel send RST in place of FIN.
func (t TCP) Reset() error { return resetTCP(t.TCPConn) }

// Counters hold what a flow has moved so far, in bytes: what the receiving end has
// taken. They may be read at any time.
type Counters struct {
	Up   atomic.Int64 // from the program
	Down atomic.Int64 // to the program
}

// Direction is how one direction of a flow ended.
type Direction struct {
	Bytes int64 // what the receiving end has taken
	End   End
	Err   error // nil for EOF
}

// Result is what became of a flow. Up is from the program to the far end.
type Result struct{ Up, Down Direction }

// Relay holds the buffers that flows share. The zero Relay is ready. Safe for
// concurrent use.
type Relay struct {
	buffers bufferPool
	pipes   pipePool
}

// Close gives back the descriptors kept for the splice path. Flows that still run
// are not disturbed.
func (r *Relay) Close() error {
	r.pipes.close()
	return nil
}

// Pipe moves bytes both ways until both directions have ended, or until ctx ends,
// which resets both ends. It owns prog and far: both are closed when it returns, and
// no goroutine of it is left. count may be nil.
//
// A transport that is lost while the program does not read is noticed only when the
// program reads on; a caller that knows earlier ends ctx.
func (r *Relay) Pipe(ctx context.Context, prog *net.TCPConn, far Stream, count *Counters) Result {
	if count == nil {
		count = new(Counters)
	}
	f := &flow{relay: r, prog: prog, far: far, count: count, cutDone: make(chan struct{})}
	if t, ok := far.(TCP); ok {
		f.farTCP = t.TCPConn
		arm(f.farTCP)
	}
	arm(prog)
	if c, ok := far.(interface{ Closed() <-chan struct{} }); ok {
		f.farClosed = c.Closed()
	}
	cancelled := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(cancelled)
		f.cut(Cancelled, context.Cause(ctx))
	})

	down := make(chan Direction, 1)
	f.startDown(down)
	res := Result{Up: f.up()}
	res.Down = <-down

	if !stop() {
		<-cancelled
	}
	if f.first.Load() == nil {
		disarm(prog)
		if f.farTCP != nil {
			disarm(f.farTCP)
		}
	}
	prog.Close()
	far.Close()
	res.Up.Bytes, res.Down.Bytes = count.Up.Load(), count.Down.Load()
	return res
}

// flow is one Pipe. The up goroutine reads prog and writes far, the down goroutine
// reads far and writes prog; each is the only one that writes and half-closes its
// destination.
type flow struct {
	relay *Relay
	prog  *net.TCPConn
	far   Stream
	count *Counters

	farTCP    *net.TCPConn    // far, where it is plain TCP
	farClosed <-chan struct{} // nil: the far end never says so

	upOver   atomic.Bool // up reads prog no more; set before far is half-closed
	downOver atomic.Bool // down reads far no more; set before prog is half-closed

	first   atomic.Pointer[cause] // why the flow was cut; the first one counts
	cutDone chan struct{}         // closed by the cut
}

type cause struct {
	end End
	err error
}

// cut resets both ends. Whatever blocks in either direction returns.
func (f *flow) cut(end End, err error) {
	if !f.first.CompareAndSwap(nil, &cause{end, err}) {
		return
	}
	close(f.cutDone)
	resetTCP(f.prog)
	f.far.Reset()
}

// ended is how a direction ended that did not come to its EOF.
func (f *flow) ended() Direction {
	c := f.first.Load()
	return Direction{End: c.end, Err: c.err}
}

func (f *flow) up() Direction {
	srcErr, dstErr := f.copyUp()
	switch {
	case f.first.Load() != nil:
		return f.ended()

	case srcErr != nil:
		f.cut(programEnd(srcErr), srcErr)
		return f.ended()

	case dstErr != nil && (f.farTCP != nil || f.farTakesNoMore(dstErr)):
		// The far end may have sent all it has and gone. The program gets that
		// first, and its reset then, as it would without us.
		f.upOver.Store(true)
		f.watchProgram()
		f.awaitDelivered()
		f.cut(ResetByFar, dstErr)
		return f.ended()

	case dstErr != nil:
		f.cut(ResetByFar, dstErr)
		return f.ended()
	}

	f.upOver.Store(true)
	if f.farTCP != nil && f.downOver.Load() {
		wakeReader(f.farTCP)
	}
	end := Direction{End: EOF}
	if err := f.far.CloseWrite(); err != nil && !f.farTakesNoMore(err) {
		if f.farTCP == nil {
			f.cut(ResetByFar, err)
			return f.ended()
		}
		end = Direction{End: ResetByFar, Err: err} // down still reads what came before the reset
	}
	f.watchProgram()
	return end
}

// startDown begins the down direction and has its end sent to out.
func (f *flow) startDown(out chan<- Direction) {
	c, ok := f.far.(carrier)
	if !ok {
		go func() { out <- f.endDown(f.copyDown()) }()
		return
	}
	w := &programWriter{flow: f}
	c.DeliverTo(w, func(err error) {
		if w.err != nil {
			err = nil
		}
		out <- f.endDown(err, w.err)
	})
}

func (f *flow) endDown(srcErr, dstErr error) Direction {
	switch {
	case f.first.Load() != nil:
		return f.ended()
	case dstErr != nil:
		f.cut(programEnd(dstErr), dstErr)
		return f.ended()
	case srcErr != nil:
		f.awaitTaken()
		f.cut(ResetByFar, srcErr)
		return f.ended()
	}

	f.downOver.Store(true)
	if f.upOver.Load() {
		wakeReader(f.prog)
	}
	if err := f.prog.CloseWrite(); err != nil {
		f.cut(programEnd(err), err)
		return f.ended()
	}
	f.watchFar()
	return Direction{End: EOF}
}

// farTakesNoMore reports whether err, of a write to far, is the orderly end of a far
// end that is gone in both directions.
func (f *flow) farTakesNoMore(err error) bool {
	if errors.Is(err, io.EOF) || errors.Is(err, errFarClosed) {
		return true
	}
	select {
	case <-f.farClosed:
		return true
	default:
		return false
	}
}

// watchProgram waits for down to be over, and meanwhile for the program's reset,
// which nobody else would see: up reads no more, and down may have nothing to write.
func (f *flow) watchProgram() {
	if f.downOver.Load() || !waitDead(f.prog) {
		return
	}
	// An orderly end of both halves looks the same, but comes after downOver.
	if !f.downOver.Load() {
		f.cut(ResetByProgram, syscall.ECONNRESET)
	}
}

// watchFar is watchProgram for a far end that is plain TCP. Streams need none: one
// that is gone fails the next write.
func (f *flow) watchFar() {
	if f.farTCP == nil || f.upOver.Load() || !waitDead(f.farTCP) {
		return
	}
	if !f.upOver.Load() {
		f.awaitDelivered()
		f.cut(ResetByFar, syscall.ECONNRESET)
	}
}

// awaitDelivered waits until the program's kernel has acknowledged our FIN, so that
// a reset takes nothing away. The kernel has no event for it.
func (f *flow) awaitDelivered() {
	pause := time.Millisecond
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-f.cutDone:
			return
		case <-timer.C:
		}
		if finAcknowledged(f.prog) {
			return
		}
		timer.Reset(pause)
		pause = min(2*pause, 100*time.Millisecond)
	}
}

// lastData is how long a program has to take what came before a reset.
const lastData = time.Second

// awaitTaken waits until the program's kernel has what was written to it: our reset
// throws away what is still in our own, and a reset that overtakes data makes of a
// complete answer a short one. A program that does not read has no claim to more than
// lastData, as the reset of a peer's kernel would not wait for it at all.
func (f *flow) awaitTaken() {
	limit := time.Now().Add(lastData)
	for pause := time.Millisecond; unacknowledged(f.prog) && time.Now().Before(limit); pause = min(2*pause, 50*time.Millisecond) {
		select {
		case <-f.cutDone:
			return
		case <-time.After(pause): // the kernel has no event for it
		}
	}
}

// stalled is called while a write to far has been blocked for a second. Nobody reads
// the program then, so look whether it is gone. The other direction needs no such
// look: what blocks there is a write to the program.
func (f *flow) stalled() {
	if isDead(f.prog) {
		f.cut(ResetByProgram, syscall.ECONNRESET)
	}
}
