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
// tells a reader io.EOF for either. A stream here tells them apart by other things
// that the library does: with either it ends the channel's extended data, and with
// CLOSE alone it ends the channel's requests and sends nothing more on it. So each EOF
// of the far end makes one small request, which the server ignores, go to it.
//
//	the far end sends             our end     Read returns, after all data
//	EOF                           any         io.EOF
//	EOF, and CLOSE later          any         io.EOF
//	CLOSE without EOF             open        ErrReset
//	CLOSE with or without EOF     ended       io.EOF
//	(transport lost)              any         ErrLost
//
// Limits. EOF with CLOSE right behind it, both processed before anybody here could
// look, reads as CLOSE alone. Where our end is open that is ErrReset though EOF came
// first: it happens with servers that close without waiting for our EOF (sshd waits,
// unless the destination takes no more data). A CLOSE without EOF where we had sent
// EOF reads as io.EOF. EOF with the loss of the transport right behind it may read as
// ErrLost. An sshd turns a reset of the destination into EOF, and into CLOSE at the
// next write; the first cannot be told from an end in order. Dropbear keeps such a
// channel open and takes no more data.
//
// # New keys
//
// Keys are renewed when the server wants (OpenSSH after 64 GiB or 1 GiB by cipher, or
// its RekeyLimit; Dropbear after 1 GB), never at our wish: for Profile.RekeyBytes the
// pool replaces the transport, by what Carried says. The library can deadlock in a key exchange that it began: until the
// server's answer it must go on delivering packets, its delivering goroutine answers
// each CLOSE itself, and that answer waits for the end of the key exchange once 64
// packets are queued, which one busy stream does within the round trip. In a key
// exchange that the server began nothing has to be delivered. (v0.58.0,
// ssh/handshake.go, writePacket; 2^31 packets in one direction still begin one, and a
// deadlock then ends as a lost transport by keepalive.)
package sshtun
