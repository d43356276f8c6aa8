// Package interop has the tests of the whole program against real peers: OpenSSH,
// Dropbear, telnetd, databases and others from Debian, in network namespaces of the
// tests' own (test/netns). They need root, and ssh-capture itself runs as an ordinary
// user in them.
package interop
