// Package socket owns the connection that a transport of any kind runs on: what is read
// ahead and gathered on it, the settings of its socket, and whether its far end still
// lives.
//
// It does not dial, encrypt, or know what is said on the connection.
package socket
