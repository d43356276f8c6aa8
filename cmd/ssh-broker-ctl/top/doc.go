// Package top is the live view of captured connections: a table of them on a terminal
// that is sorted, filtered and followed, and the same table as plain text for files.
//
// It owns what is shown and which keys do what. It does not know how a broker is talked
// to: its caller hands it readings, in which no string steers a terminal.
package top
