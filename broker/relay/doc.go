// Package relay joins a program's TCP connection and the far end that was opened
// for it, and tells how each direction ended.
//
// It owns the bytes and the ends of one flow: both directions, half-close in either
// order, resets passed on as resets, live counts. It does not know why a flow
// exists, who asked for it, or what kind of tunnel carries it; it imports nothing
// of this module.
//
// How ends travel:
//
//	program                            far
//	FIN                      ->        CloseWrite
//	RST                      ->        Reset, no EOF before it
//	FIN                      <-        io.EOF
//	RST                      <-        any other error, or a reset of a plain TCP far end
//	RST at its next write,   <-        Closed: takes no more data
//	  once it has all of the far data and its FIN
//	RST                      <- ctx -> Reset
//
// An idle flow costs the caller's goroutine and one more, which a stream that carries
// by itself brings along, and no buffer: buffers, and the pipes of the kernel's splice
// path, are taken when there is data and given back when it is moved.
package relay
