// Package faults does to a tunnel what networks, servers and hosts do to it, one fault
// after the other, and sees what programs, the audit record and ssh-broker-ctl say
// meanwhile and afterwards. What it sees is the table of docs/reliability.md, which an
// ordinary run holds to what it sees, and which
//
//	go test ./test/faults -update
//
// writes anew. The server is OpenSSH, the network that of test/netns; both need root.
// Faults that take minutes are tried with SSHBROKER_LONG=1 alone.
package faults
