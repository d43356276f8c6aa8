// Package sshtun owns the tunnel of kind SSH: it connects to a server, proves who
// both ends are with the help of hostkeys and creds, keeps the connection alive, and
// opens streams as direct-tcpip channels (RFC 4254 section 7.2) on
// golang.org/x/crypto/ssh.
//
// It does not choose servers, reconnect or count failures; that is the pool's.
//
// # How a stream ends
//
// SSH has two ends of a channel: EOF ends one direction, CLOSE both. The library
// tells a reader io.EOF for either. A stream here tells them apart by watching two
// other things that the library does: it ends the channel's extended data with
// either, and the channel's requests with CLOSE alone.
//
//	the far end sends             our end     Read returns, after all data
//	EOF                           any         io.EOF
//	EOF, and CLOSE later          any         io.EOF
//	CLOSE without EOF             open        ErrReset
//	CLOSE with or without EOF     ended       io.EOF
//	(transport lost)              any         ErrLost
//
// Limits. EOF and CLOSE that are processed within eofGrace of each other read as
// CLOSE alone: our end open, that is ErrReset though EOF came first, and a server
// that closes without waiting for our EOF is affected (sshd waits for it, unless
// the destination takes no more data). A CLOSE without EOF that answers a stream
// whose end we had sent reads as io.EOF. A CLOSE reads as EOF where the library's
// reader goroutine is stopped by the kernel for longer than eofGrace between two
// adjacent statements. An sshd turns a reset of the destination into EOF, and into
// CLOSE at the next write; the first cannot be told from an end in order.
package sshtun
