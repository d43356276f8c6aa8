// Package gateway runs ssh-gateway as a program, with the clients that people have: our
// own, curl, openssl, psql. All of it is on loopback, or in network namespaces of a test.
package gateway
