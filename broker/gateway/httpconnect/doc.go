// Package httpconnect reads the requests of clients that ask a gateway for a
// connection by HTTP/1.1 CONNECT, and words the answers.
//
// It is strict where clients need no freedom: one form of a request line, lines that
// end in CRLF, header fields of the plain syntax, no body. What a name may be, and
// whether it may be reached, is not known here; nor is the connection, beyond the
// bytes that it gives.
package httpconnect
